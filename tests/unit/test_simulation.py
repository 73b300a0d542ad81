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
world = importlib.import_module("simulation.world")
sys.path.remove(str(TOOLS))

RUNS = 20
"""Less than a second; tests/system/test_simulation.py makes thousands, of which these are the first."""

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


@pytest.mark.parametrize("seed", SEEDS)
def test_the_place_of_helpers_that_were_removed_ends_with_a_machine_whose_unit_stays_active(
    seed: int,
) -> None:
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration(place="remains")),
            step(1, "add_helper", helper=helper()),
            step(3, "remove_helper", helper="f"),
            step(5, "die", signal=9, reaped=0.0),
        ],
    )
    assert list(done.violations) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_name_of_a_leader_that_shared_its_unit_is_free_at_once(seed: int) -> None:
    """It dies while another process registers itself below the same unit, and before anybody is told."""
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration(place="remains")),
            step(0.0008, "die", signal=0, reaped=0.0),
            step(0.0025, "register", **registration(place="part")),
        ],
    )
    assert list(done.violations) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_helper_that_is_starting_when_its_machine_ends_does_not_keep_the_name(seed: int) -> None:
    """The manager stops it with its machine once it has started, which takes it 9 s; then it is deaf for as long."""
    slow = helper(does="deaf", type="oneshot")
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration()),
            step(1, "die", signal=9, reaped=0.0),
            step(1, "add_helper", helper=slow),
            step(4, "register", **registration()),
        ],
        verbose=True,
    )
    assert list(done.violations) == []
    assert sum("register a: machine-a.scope" in note for note in done.notes) == 2, done.notes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("what", ["restart", "killed", ""])
def test_a_part_of_a_unit_is_not_stopping_for_ever(seed: int, deaf: bool, what: str) -> None:
    """Its supervisor ends when it is asked to, and leaves it: it is asked itself, and may not listen."""
    steps = [step(0, "register", **registration(place="part", deaf=deaf)), step(1, "stop", wait=0)]
    if what:
        steps.append(step(1.3, what, down=0.05))
    done = simulation.run(seed, steps, verbose=True)
    assert list(done.violations) == []
    (ended,) = [note for note in done.notes if "exited" in note]
    assert (float(ended.split()[0]) > 600) == deaf
    assert ("cause stopped" in ended) == (not deaf)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_start_is_taken_back_that_a_busy_manager_reads_after_the_question_for_it(seed: int) -> None:
    done = simulation.run(
        seed,
        [
            step(0, "stall", seconds=12.0),
            step(1, "register", **registration(timeout=0.05)),
            step(1.001, "lose_link", unread=True),
        ],
    )
    assert list(done.violations) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_helpers_that_the_manager_starts_again_for_a_scope_that_has_ended_are_stopped(seed: int) -> None:
    """The start of another one pulls in the scope, which has just ended, and with it the first helper."""
    steps = [
        step(0, "register", **registration(helpers=[helper(name="g")])),
        step(1, "stop_unit"),
        step(1.003, "add_helper", helper=helper(type="oneshot", does="late")),
        step(1.013, "stop_unit"),
        step(5, "register", **registration()),
    ]
    done = simulation.run(seed, steps, verbose=True)
    assert list(done.violations) == []
    assert sum("register a: machine-a.scope" in note for note in done.notes) == 2, done.notes


@pytest.mark.parametrize("seed", SEEDS)
def test_a_start_is_taken_back_whose_scope_somebody_has_frozen(seed: int) -> None:
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration(timeout=0.05)),
            *(step(0.0005 * each, "freeze") for each in range(1, 12)),
            step(0.0003 * (seed + 1), "die", signal=9, reaped=0.0),
        ],
    )
    assert list(done.violations) == []


FREEZE: dict[str, Any] = {"by": "caller", "wait": 25, "helpers": True}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_freeze_that_the_manager_gives_up_is_ordered_again(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has thawed the machine: the manager has read late that it was not frozen yet."""
    late = iter([True, True])

    def is_late(_world: object) -> bool:
        return next(late, False)

    monkeypatch.setattr(world.World, "is_late", is_late)
    steps = [step(0, "register", **registration(helpers=[helper()])), step(5, "freeze", **FREEZE)]
    done = simulation.run(seed, steps, verbose=True)
    assert list(done.violations) == []
    assert next(late, None) is None
    assert any(note.endswith("freeze a: done") for note in done.notes), done.notes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("down", [None, 20.0])
def test_helpers_go_that_are_frozen_when_their_machine_ends(seed: int, down: float | None) -> None:
    """The manager drops the jobs that are to stop them, also while moored is dead."""
    steps = [step(0, "register", **registration(helpers=[helper()])), step(5, "freeze", **FREEZE)]
    steps += [] if down is None else [step(15, "killed", down=down)]
    done = simulation.run(seed, [*steps, step(16, "die", signal=9, reaped=0.0)])
    assert list(done.violations) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_many_change_one_machine_at_once(seed: int) -> None:
    """The last one wins, whole, whatever happens to the link meanwhile."""
    steps = [step(0, "register", **registration())]
    for number in range(1, 12):
        values: dict[str, Any] = {"value": number, "bad": number % 4 == 0, "dry_run": number % 5 == 0}
        steps.append(step(5 + 0.0003 * number * (seed % 3), "set", **values))
    steps.append(step(5.002, "lose_link", unread=bool(seed % 2)))
    done = simulation.run(seed, sorted(steps, key=lambda each: each.at))
    assert list(done.violations) == []
    assert done.changed == {"machine-a.scope"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stop_comes_while_a_machine_is_being_frozen(seed: int) -> None:
    steps = [step(0, "register", **registration(helpers=[helper()]))]
    steps += [step(5 + 0.0004 * each, "freeze", **FREEZE) for each in range(6)]
    done = simulation.run(seed, [*steps, step(5 + 0.0007 * (seed % 4), "stop", wait=200)], verbose=True)
    assert list(done.violations) == []
    assert any("exited" in note for note in done.notes), done.notes


@pytest.mark.parametrize("seed", SEEDS)
def test_a_machine_goes_on_while_its_vital_helper_does(seed: int) -> None:
    vital = helper(vital=True)
    done = simulation.run(seed, [step(0, "register", **registration(helpers=[vital]))], verbose=True)
    assert list(done.violations) == []
    (ended,) = [note for note in done.notes if "exited" in note]
    assert float(ended.split()[0]) > 600, "it ended before the end of the run"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_forgotten_scope_of_a_user_is_ended_when_it_has_failed(seed: int) -> None:
    """Its guest does not end when it is told to. What is left would count towards the user's limit for ever."""
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration(uid=1000, deaf=True)),
            step(1, "stop_unit"),
            step(1.5, "forget"),
        ],
    )
    assert list(done.violations) == []
    assert "machine-a.scope" not in {unit.name for unit in done.pid1.units}


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


@pytest.mark.parametrize("seed", SEEDS)
def test_a_machine_whose_record_is_lost_is_told_to_be_forgotten(seed: int) -> None:
    """Some of these runs keep so few events that its beginning has left the log by then."""
    noise = [
        step(1 + number / 10, "thaw" if number % 2 else "freeze", "b", by="caller", helpers=False, wait=25)
        for number in range(60)
    ]
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration()),
            step(0, "register", "b", **registration()),
            *noise,
            step(30, "damage", down=0.05, what="gone"),
        ],
    )
    assert list(done.violations) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_an_end_is_told_although_its_record_is_a_successors(seed: int) -> None:
    """How it ended is still being looked into when the service is killed."""
    done = simulation.run(
        seed,
        [
            step(0, "register", **registration()),
            step(1, "die", signal=9, reaped=3.0),
            step(1.2, "register", **registration()),
            step(1.5, "killed", down=0.05),
        ],
    )
    assert list(done.violations) == []
