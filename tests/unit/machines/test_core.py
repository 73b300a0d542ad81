"""The life of machines, with a service manager that the test plays."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import made
import pytest
import trio
import trio.testing
from fake_manager import FakeManager

from moorage.app import Core
from moorage.kernel.poller import Readiness
from moorage.kernel.system import system
from moorage.machines.errors import MachineGone
from moorage.machines.helpers import Home
from moorage.machines.machine import Machine
from moorage.machines.model import Helper, HelperFailure, HelperSpec
from moorage.machines.store import Store
from moorage.pid1 import journal
from moorage.pid1.manager import ServiceSpec, UnitHint
from moorage.pid1.references import BusReferences

MACHINES = 20
"""So many, since trio runs the tasks of a turn in any order: what depends on it goes wrong for some of them."""


def machine(name: str) -> Machine:
    """A machine in a scope that the kernel knows nothing of."""
    return made.machine(name, invocation_id="", runtime_directory="/run/m")


@asynccontextmanager
async def running(manager: FakeManager, directory: Path) -> AsyncGenerator[Core]:
    """A core that runs."""
    readiness = Readiness()
    core = Core(
        manager.manager,
        Store(str(directory)),
        Home(user=False, root="/run"),
        BusReferences(None),
        system(readiness),
        journal,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        yield core
        nursery.cancel_scope.cancel()
    readiness.close()


def enter(core: Core, *machines: Machine) -> None:
    """Have machines watched."""
    for each in machines:
        core.services.registry.add(each)
        core.followers.added(each)


async def test_a_lease_on_what_ends_at_once_leaves_nothing(tmp_path: Path) -> None:
    manager = FakeManager()
    async with running(manager, tmp_path) as core:
        for number in range(MACHINES):
            found = machine(f"m{number}")
            enter(core, found)
            core.leases.hold(found, trio.sleep_forever)
            manager.tell(UnitHint("removed", found.unit))
        await trio.testing.wait_all_tasks_blocked()
        assert len(core.services.registry) == 0
        assert core.idle


async def test_a_slow_reader_of_changes_gets_the_last(tmp_path: Path) -> None:
    manager = FakeManager()
    unit = "machine-web-fs.service"

    async def start(_spec: ServiceSpec) -> None:
        for number in range(1000):
            manager.tell(UnitHint("changed", unit, "activating", f"step-{number}"))
            await trio.testing.wait_all_tasks_blocked()
        manager.tell(UnitHint("main", unit, result="success", main_pid=os.getpid()))
        manager.tell(UnitHint("changed", unit, "active", "running"))

    manager.starting = start
    async with running(manager, tmp_path) as core:
        web = machine("web")
        enter(core, web)
        async with aclosing(core.services.changing.add(web, [HelperSpec("fs", ("/bin/sh",))])) as changes:
            seen = [await anext(changes)]
            await trio.testing.wait_all_tasks_blocked(0.01)
            seen += [statuses async for statuses in changes]
        assert [each.active_state for each in seen[-1]] == ["active"]
        assert len(seen) == 2, "a slow reader is told of what is, not of all that was"


async def added(core: Core, machine: Machine) -> None:
    """Add a helper to a machine."""
    async with aclosing(core.services.changing.add(machine, [HelperSpec("fs", ("/bin/sh",))])) as changes:
        async for _ in changes:
            pass


async def test_helpers_are_not_added_to_a_successor(tmp_path: Path) -> None:
    """The machine has ended and its name is another one's: so are the names of its units."""
    manager = FakeManager()
    started: list[str] = []
    web, successor = machine("web"), machine("web")

    async def start(spec: ServiceSpec) -> None:
        started.append(spec.unit)
        core.services.registry.remove(web)
        enter(core, successor)
        unit = "machine-web-fs.service"
        manager.tell(UnitHint("main", unit, result="success", main_pid=os.getpid()))
        manager.tell(UnitHint("changed", unit, "active", "running"))

    manager.starting = start
    async with running(manager, tmp_path) as core:
        enter(core, web)
        with pytest.raises(MachineGone):  # while they are started
            await added(core, web)
        assert started
        with pytest.raises(MachineGone):  # before
            await added(core, web)
        assert len(started) == 1
        assert not successor.record.helpers
        web.with_helpers((Helper("fs", "machine-web-fs.service", HelperFailure.ignore, ()),), None)
        with pytest.raises(MachineGone):
            await core.services.changing.remove(web, "fs")
    assert not any(name.startswith(".change-") for name in os.listdir(tmp_path))
