"""The core on a kernel and a service manager in memory: some runs, and what longer searches have found."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

# The tools are no part of the package that is installed.
sys.path.insert(0, str(TOOLS))
command = importlib.import_module("simulation.command")
plan = importlib.import_module("simulation.plan")
simulation = importlib.import_module("simulation.run")
sys.path.remove(str(TOOLS))

RUNS = 60
"""About two seconds; tests/system/test_simulation.py makes many more."""

SEEDS = range(10)
"""Orders and delays that each plan below is tried with."""


def step(at: float, kind: str, name: str = "a", **values: Any) -> Any:
    return plan.Step(at, kind, name, values)


def registration(**values: Any) -> dict[str, Any]:
    return {"timeout": 30, "place": "scope", **values}


def helper(**values: Any) -> dict[str, Any]:
    return {
        "name": "f", "does": "serve", "type": "exec", "vital": False, "socket": False, "restart": None, **values
    }  # fmt: skip


def test_nothing_goes_wrong() -> None:
    found = {seed: wrong for seed, wrong in command.search(range(RUNS), jobs=1) if wrong}
    assert found == {}


def test_a_seed_is_a_run() -> None:
    seed = next(seed for seed in range(RUNS) if any(each.kind == "killed" for each in plan.draw(seed)))
    first, second = (simulation.run(seed, plan.draw(seed), verbose=True) for _ in range(2))
    assert first.notes
    assert first.notes == second.notes


@pytest.mark.parametrize("seed", SEEDS)
def test_a_name_is_free_once_its_stop_command_has_ended(seed: int) -> None:
    """Somebody else has the scope stopped meanwhile: that job waits for the command, too."""
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration(exec_stop=5.0, dies=0.5)),
            step(0.8, "stop_unit"),
            step(0.8, "register", **registration()),
        ],
        verbose=True,
    )
    assert list(done.violations) == []
    assert sum("register a: machine-a.scope" in note for note in done.notes) == 2, done.notes


@pytest.mark.parametrize("seed", SEEDS)
def test_helpers_end_with_a_machine_whose_unit_stays_active(seed: int) -> None:
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration(place="remains")),
            step(1, "add_helper", helper=helper()),
            step(3, "die", signal=9, reaped=0.0),
        ],
    )
    assert list(done.violations) == []


def test_what_goes_wrong_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that keeps what it should remove."""

    def keep(_store: object, _name: str) -> None:
        pass

    monkeypatch.setattr(importlib.import_module("simulation.world").MortalStore, "unlink", keep)
    seed = next(seed for seed, wrong in command.search(range(RUNS), jobs=1) if wrong)
    lines = command.replay(seed)
    steps = lines[1 : lines.index("  what happened:")]
    assert len(steps) == 1, lines
    assert "register" in steps[0]
