"""What is read of many machines, over control groups that are only files."""

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from moorage.kernel import cgroup
from moorage.machines.accounting import Accounting
from moorage.machines.final_account import FinalAccounts
from moorage.machines.machine import Machine
from moorage.machines.sampling import COUNTERS, Round

FILES = {
    "cgroup.controllers": "memory pids", "cgroup.events": "populated 1\nfrozen 0", "memory.max": "max",
    "pids.max": "max", "cpu.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=5",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    return tmp_path


def group(root: Path, path: str, **files: str) -> None:
    (root / path).mkdir(parents=True)
    for name, text in {**FILES, **{name.replace("_", "."): text for name, text in files.items()}}.items():
        (root / path / name).write_text(f"{text}\n")


class Accounts:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, frozenset[str]]] = []

    def counters(self, control_group: str, attributes: Collection[str]) -> Accounting:
        self.asked.append((control_group, frozenset(attributes)))
        return Accounting(memory_current=1)


def machine(name: str, slice_: str = "/a.slice", *, shared: bool = False) -> Machine:
    record = SimpleNamespace(
        control_group=f"{slice_}/{name}.scope",
        helpers=(),
        bases=None,
        placement=SimpleNamespace(shared=shared),
    )
    return cast("Machine", SimpleNamespace(record=record))


def a_round(accounts: Accounts, counters: Collection[str] = COUNTERS, *, limits: bool = False) -> Round:
    clock: Any = SimpleNamespace(realtime=lambda: 1, monotonic=lambda: 2)
    hierarchy: Any = cgroup
    return Round(cast("FinalAccounts", accounts), hierarchy, clock, counters, limits=limits)


def test_only_what_is_there_and_wanted_is_read(root: Path) -> None:
    for name in ("one", "two"):
        group(root, f"a.slice/{name}.scope")
    accounts = Accounts()
    round_ = a_round(accounts, ["cpu", "memory", "io"])
    # Those beside each other have the same controllers: it is read once.
    assert round_.sample(machine("one")).pressure == {}
    (root / "a.slice/two.scope/cgroup.controllers").unlink()
    round_.sample(machine("two"))
    there = frozenset({"cpu.stat", "memory.current"})
    assert accounts.asked == [("/a.slice/one.scope", there), ("/a.slice/two.scope", there)]


def test_the_lowest_limits_are_those_of_a_slice_above(root: Path) -> None:
    group(root, "a.slice", memory_max="500")
    group(root, "a.slice/a-b.slice", memory_max="900", pids_max="7")
    group(root, "a.slice/a-b.slice/one.scope", memory_max="600")
    group(root, "a.slice/a-b.slice/two.scope", memory_max="400", pids_max="5")
    round_ = a_round(Accounts(), limits=True)
    found = [round_.sample(machine(name, "/a.slice/a-b.slice")).limits for name in ("one", "two")]
    assert found == [{"MemoryMax": 500, "TasksMax": 7}, {"MemoryMax": 400, "TasksMax": 5}]
    assert a_round(Accounts()).sample(machine("one", "/a.slice/a-b.slice")).limits == {}


def test_pressure_is_read_unless_it_is_not_wanted(root: Path) -> None:
    group(root, "a.slice/one.scope")
    found = a_round(Accounts()).sample(machine("one")).pressure
    assert found.keys() == {"cpu"}


def test_what_shares_its_group_has_no_counters(root: Path) -> None:
    group(root, "a.slice/one.scope")
    found = a_round(Accounts(), limits=True).sample(machine("one", shared=True))
    assert (found.accounting, found.pressure, found.limits) == (Accounting(), {}, {})
