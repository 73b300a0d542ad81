"""The host on which a run happens: what lives on it, what it runs out of, and which instance of moored is there."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias

import trio
from fakes.kernel import FakeHierarchy, FakeProcesses, Faults, Group, Kernel, Process
from fakes.manager import FakeManager, FakeReferences
from fakes.pid1 import Pid1
from fakes.services import Program
from fakes.units import Unit

from moorage.kernel.process import Exit
from moorage.machines.event_files import EventFiles
from moorage.machines.events import Entry, EventLog, Extent, Note
from moorage.machines.machine import Machine
from moorage.machines.store import BadRecord, Store, decode
from simulation.core import Core
from simulation.plan import DAMAGE
from simulation.readers import Reader

SHELL: Final = "/bin/sh"
"""A program that is there: helpers are checked for that."""

OURS: Final = "moored"
"""What the directory of the records is called, and so what all marks have."""


DRAIN_SECONDS: Final = 5.0
"""For how long callers are served after SIGTERM (DRAIN_SECONDS of app)."""

Key: TypeAlias = tuple[str, str, int]
"""What tells a machine from all others: its name, the invocation of its unit, and when it was registered."""


def key_of(machine: Machine) -> Key:
    """Return the key of a machine."""
    record = machine.record
    return machine.name, record.placement.invocation_id, record.timestamp.monotonic


class Shortage(Faults):
    """What the host has run out of for a while."""

    def __init__(self) -> None:
        self.without: Counter[str] = Counter()

    def check(self, what: str) -> None:
        """See `Faults`."""
        if not self.without[what]:
            return
        number = {"fd": errno.EMFILE, "memory": errno.ENOMEM, "watch": errno.ENOSPC, "space": errno.ENOSPC}[
            what
        ]
        raise OSError(number, os.strerror(number))


class MortalStore(Store):
    """A directory of records that an instance writes to until it is killed."""

    def __init__(self, path: str, faults: Faults) -> None:
        super().__init__(path)
        self.killed = False
        self._faults = faults

    def write(self, file: str, content: bytes) -> None:
        """See `Store`."""
        if not self.killed:
            self._faults.check("fd")
            self._faults.check("space")
            super().write(file, content)

    def replace(self, file: str, name: str, content: bytes) -> None:
        """See `Store`."""
        if not self.killed:
            super().replace(file, name, content)

    def unlink(self, file: str) -> None:
        """See `Store`."""
        if not self.killed:
            super().unlink(file)


class MortalFiles(EventFiles):
    """Files of events that an instance writes to until it is killed."""

    def __init__(self, path: str, boot_id: str, extent: Extent, faults: Faults) -> None:
        super().__init__(path, boot_id, extent)
        self.killed = False
        self._faults = faults

    def append(self, log: EventLog, entry: Entry, *, begins: bool) -> None:
        """See `EventFiles`."""
        if not self.killed:
            super().append(log, entry, begins=begins)

    def renew(self, log: EventLog, notes: Iterable[Note]) -> None:
        """See `EventFiles`."""
        if not self.killed:
            super().renew(log, notes)

    def note(self, notes: Iterable[Note]) -> None:
        """See `EventFiles`."""
        if not self.killed:
            super().note(notes)

    def drop(self, base: int) -> None:
        """See `EventFiles`."""
        if not self.killed:
            super().drop(base)

    def write(self, descriptor: int, content: bytes) -> None:
        """See `EventFiles`."""
        self._faults.check("space")
        super().write(descriptor, content)


class Instance:
    """One life of moored.

    Attributes:
        core: of it.
        calls: the nursery of its callers, which goes with it.
        serving: it takes calls.
        over: set at the end.
    """

    def __init__(self, world: World, number: int) -> None:
        self.number = number
        self.world = world
        self.processes = FakeProcesses(world.kernel, world.faults)
        self.hierarchy = FakeHierarchy(world.kernel, world.faults)
        self.manager = FakeManager(world.pid1, self.processes)
        self.manager.delay = world.message
        self.manager.down = lambda: world.random.choice((0.05, 0.3, 5.0))
        self.references = FakeReferences(world.pid1)
        self.references.delay = world.message
        self.references.linger = lambda: world.random.choice((0.0, 0.05, 0.5))
        self.store = MortalStore(world.directory, world.faults)
        self.files = MortalFiles(
            f"{world.directory}.events", self.processes.boot_id(), world.extent, world.faults
        )
        self.serving = False
        self._ending = trio.Event()
        self.core = Core(
            self.manager,
            self.references,
            self.hierarchy,
            self.processes,
            world.pid1.journal,
            self.store,
            self.files,
            self._ended,
        )
        self.over = trio.Event()
        self.calls: trio.Nursery | None = None
        self.nursery: trio.Nursery | None = None

    def _ended(self, machine: Machine) -> None:
        key = key_of(machine)
        if (self.number, key) in self.world.ended_in:
            self.world.wrong("twice", f"{machine.name} has ended twice")
        self.world.ended_in.add((self.number, key))
        self.world.ended[key] += 1

    async def live(self) -> None:
        """Run until it is ended or killed, which may be before it serves."""
        try:
            async with trio.open_nursery() as self.nursery:
                await self.nursery.start(self.manager.run)
                self.nursery.start_soon(self.references.run)
                await self.nursery.start(self._run_core)
                async with trio.open_nursery() as self.calls:
                    self.core.serve()
                    self.serving = True
                    self.world.up.set()
                    try:
                        await self._ending.wait()
                    finally:
                        self.serving = False
                self.nursery.cancel_scope.cancel()
        finally:
            self.serving = False
            if not self.store.killed:
                self._look_for_leaks()
                if self.world.random.random() < 0.5:  # it was stopped, not restarted
                    self._release_stored()
            self.processes.release()
            for watch in [each for each in self.world.kernel.watches if each.hierarchy is self.hierarchy]:
                self.world.kernel.watches.remove(watch)
            self.store.close()
            self.over.set()

    async def _run_core(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self.core.run(task_status=task_status)

    def _release_stored(self) -> None:
        for each in list(self.world.pid1.stored):
            self.world.pid1.disconnect(each)

    def _look_for_leaks(self) -> None:
        if any(each.hierarchy is self.hierarchy for each in self.world.kernel.watches):
            self.world.wrong("watch", "the inotify instance is open after the end")

    def end(self) -> None:
        """End it as SIGTERM does."""
        self.serving = False
        self.core.end()
        assert self.calls is not None
        self.calls.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS
        self._ending.set()

    def kill(self) -> None:
        """End it as SIGKILL does: nothing that it does from now on has any effect."""
        assert self.nursery is not None
        self.serving = False
        self.store.killed = self.files.killed = True
        self.manager.lose(unread=self.world.random.random() < 0.5)
        self.manager.dead = True
        self.processes.killed = True
        self.nursery.cancel_scope.cancel()


class World:
    """The host.

    Attributes:
        violations: what was found wrong: kind and sentence.
        leaders: of machines by name, the last one.
        answered: machines whose registration was answered, with the number of the instance.
        forgotten: machines that are not kept any more because somebody wanted that.
        forgotten_by_root: of these, those whose units count towards no limit.
        damaged: inode numbers of records that are of no use, by the name of the machine.
        ended: how often a machine was found to have ended.
        strangers: names of units that are none of ours.
        changed: names of units of which properties were to be changed.
        emptied: when the last process of a control group has ended, by its number.
        killed: how many processes of a unit were killed for lack of memory, by its invocation and by whom.
        short_of: the groups for whose limits that was, by the invocation; an empty path is the host.
        extent: how many events are kept.
        readers: who are told what happens.
        down: seconds until the next instance is started.
    """

    def __init__(self, seed: int, directory: str) -> None:
        self.random = Random(seed)
        self.extent = Random(seed).choice((Extent(), Extent(events=32), Extent(events=16)))
        self.began = 0.0
        self.notes: list[str] | None = None
        self.crash = ""
        self.directory = directory
        self.faults = Shortage()
        self.kernel = Kernel()
        self.pid1 = Pid1(self.kernel, self.random)
        self.instance: Instance | None = None
        self.instances = 0
        self.up = trio.Event()
        self.violations: dict[tuple[str, str], None] = {}
        self.leaders: dict[str, Process] = {}
        self.leases: dict[str, trio.Event] = {}
        self.answered: list[tuple[Machine, int]] = []
        self.forgotten: set[Key] = set()
        self.forgotten_by_root: set[Key] = set()
        self.damaged: dict[str, int] = {}
        self.ended: Counter[Key] = Counter()
        self.ended_in: set[tuple[int, Key]] = set()
        self.strangers: dict[str, str] = {}
        self.changed: set[str] = set()
        self.emptied: dict[int, float] = {}
        self.kernel.emptied.append(self._note_emptied)
        self.killed: Counter[tuple[str, str]] = Counter()
        self.short_of: defaultdict[str, set[str]] = defaultdict(set)
        self.readers: list[Reader] = []
        self.failing = 0
        self.down = 0.0
        self.kernel.delay = lambda: self.random.choice((0.0, 0.0001, 0.002, 0.012))
        self.kernel.reports_removal = lambda: self.random.random() < 0.5
        self.pid1.work = lambda: self.random.choice((0.0, 0.0001, 0.0005, 0.002))
        # Short ones: what waits for them looks again and again, which takes the time of many runs.
        self.pid1.stop_seconds = self.pid1.start_seconds = 9.0
        self.pid1.program = self._program
        self.pid1.freezing = lambda: self.random.choice((0.0, 0.0002, 0.002, 3.0))
        self.pid1.late = self.is_late
        self.pid1.loses = lambda: self.random.random() < 0.3
        self.pid1.fails = self._fails

    def is_late(self) -> bool:
        """Whether the manager reads news of a unit from before its freeze only now."""
        return self.random.random() < 0.2

    def message(self) -> float:
        """Return how many seconds a message takes."""
        return self.random.choice((0.0, 0.0, 0.0001, 0.001, 0.004))

    def note(self, sentence: str) -> None:
        """Note something for whoever looks into a run."""
        if self.notes is not None:
            self.notes.append(f"{trio.current_time() - self.began:12.6f} {sentence}")

    def error(self, error: BaseException) -> None:
        """Note that the core has failed."""
        frames = traceback.extract_tb(error.__traceback__)
        where = next((f"{frame.name}" for frame in reversed(frames) if "moorage" in frame.filename), "?")
        self.wrong("crash", f"{type(error).__name__} in {where}: {error}")
        self.crash = "".join(traceback.format_exception(error))

    def answered_keys(self) -> set[Key]:
        """Return the keys of the machines whose registration was answered."""
        return {key_of(machine) for machine, _ in self.answered}

    @property
    def may_expire(self) -> bool:
        """Whether cursors may expire: there was no space at some time, or few events are kept."""
        return "space" in self.faults.without or self.extent != Extent()

    def damage(self, name: str, what: str) -> None:
        """Damage the record of a machine, which is as if root had forgotten it."""
        path = Path(self.directory, name)
        try:
            record = decode(path.read_bytes(), name)
        except (OSError, BadRecord):
            return
        self.note(f"the record of {name} is {what}")
        key = name, record.placement.invocation_id, record.timestamp.monotonic
        self.forgotten.add(key)
        self.forgotten_by_root.add(key)
        DAMAGE[what](path)
        if path.exists():
            self.damaged[name] = path.stat().st_ino

    def read(self, nursery: trio.Nursery) -> None:
        """Have somebody told what happens from now on."""
        pauses = self.random.choice(((0.0,), (0.0, 0.01), (0.5, 3.0)))
        reader = Reader(len(self.readers), Random(self.random.random()), pauses)
        self.readers.append(reader)
        nursery.start_soon(reader.run, self)

    def wrong(self, kind: str, sentence: str) -> None:
        """Note that something is not as it should be."""
        self.violations[kind, sentence] = None

    def is_populated(self, machine: Machine) -> bool:
        """Whether a machine has a process."""
        placement = machine.record.placement
        if placement.shared:
            leader = self.kernel.processes.get(machine.record.leader.pid if machine.record.leader else 0)
            return leader is not None and leader.exit is None and leader.id == machine.record.leader
        group = self.kernel.groups.get(placement.control_group)
        return group is not None and group.number == placement.control_group_id and group.count > 0

    def _note_emptied(self, group: Group) -> None:
        self.emptied[group.number] = trio.current_time()

    def _fails(self, unit: Unit) -> bool:
        if self.failing and unit.name not in self.strangers:
            self.failing -= 1
            return True
        return False

    def _program(self, _unit: Unit, argv: Sequence[str]) -> Program:
        what, _, value = argv[-1].partition(":")
        after = self.random.choice((0.0, 0.001, 0.02, 1.0))
        match what:
            case "fail":
                return Program(ready=None, ends=after, status=1)
            case "end":
                return Program(ready=0.0, ends=after)
            case "hang":
                return Program(ready=None)
            case "late":
                return Program(ready=after)
            case "deaf":
                return Program(ready=0.0, deaf=True)
            case "ask":
                return Program(ends=float(value))
            case _:
                return Program(ready=0.0)

    # Moored

    async def start(self) -> Instance:
        """Start the next instance."""
        while True:
            self.instances += 1
            try:
                instance = Instance(self, self.instances)
            except OSError:
                await trio.sleep(0.5)  # as the service manager does with what fails to start
                continue
            self.instance = instance
            return instance

    async def supervise(self) -> None:
        """Keep an instance running, as the service manager does."""
        while True:
            instance = await self.start()
            try:
                await instance.live()
            except* OSError as group:
                if not any(self.faults.without.values()):
                    raise
                logging.getLogger("simulation").info("moored ends: %r", group.exceptions)
            finally:
                if self.up.is_set():
                    self.up = trio.Event()
                self.instance = None
            await trio.sleep(self.down)

    def living(self) -> Instance | None:
        """Return the instance that serves."""
        instance = self.instance
        return instance if instance is not None and instance.serving else None

    # Processes

    def leader(self, name: str, path: str, *, deaf: bool, uid: int) -> Process:
        """Start a process that is to lead a machine; its parent asks for its end some time after it."""
        launcher = self.kernel.spawn("/system.slice/launcher.service")
        process = self.kernel.spawn(path, parent=launcher, deaf=deaf, uid=uid)
        process.ended.append(
            lambda ended: self.pid1.later(
                self.random.choice((0.0, 0.001, 0.1, 5.0)), lambda: self.kernel.reap(ended)
            )
        )
        self.leaders[name] = process
        return process

    def run_out_of_memory(self, group: str, limit: str, victim: Process) -> None:
        """Have the kernel kill a process of the unit of a group, for somebody's limit."""
        invocation = self._invocation(group)
        self.killed[invocation, "kernel"] += 1
        self.short_of[invocation].add(limit)
        if limit:
            self.kernel.make(limit)
            victim_path = victim.group.path
            if not f"{victim_path}/".startswith(f"{limit}/"):
                self.kernel.move(victim, limit)
        self.kernel.run_out_of_memory(limit, victim)

    def kill_by_oomd(self, group: str, victim: Process, *, noted: bool) -> None:
        """Have systemd-oomd kill a process of the unit of a group; that is noted before and, if it can be, after."""
        self.killed[self._invocation(group), "oomd"] += 1
        self.kernel.reach(group, "oomd_ooms")
        if victim.exit is None:
            self.kernel.end(victim, Exit(signal=9))
        if noted and group in self.kernel.groups:
            self.kernel.reach(group, "oomd_kills")

    def _invocation(self, group: str) -> str:
        return next(unit.invocation for unit in self.pid1.units if unit.group == group)

    def stranger(self, unit: str, kind: str) -> None:
        """Have somebody else start a unit, as with systemd-run(1)."""
        if self.pid1.units.get(unit) is not None:
            return
        process = self.kernel.spawn("/system.slice/cron.service")
        command = [[SHELL, [SHELL, "serve"], False]]
        values: list[tuple[str, object]] = [("Description", "somebody's")]
        if kind == "service":
            values.append(("ExecStart", command))
        self.pid1.start_transient(unit, values, (process,) if kind == "scope" else (), [])
        self.strangers[unit] = "running"

    def end_stranger(self, unit: str) -> None:
        """End a unit of somebody else."""
        found = self.pid1.units.get(unit)
        if self.strangers.pop(unit, None) and found is not None:
            for process in self.kernel.members(found.group) if found.group else ():
                self.kernel.end(process, Exit(status=0))

    def is_ours(self, unit: Unit) -> bool:
        """Whether moored has made a unit."""
        documentation = unit.properties.get("Documentation")
        return OURS in str(documentation)


class Threads:
    """Stands in for trio's threads: functions run at once, in the task that waits, after a while."""

    def __init__(self, random: Random) -> None:
        self._random = random

    async def run_sync(self, function: Callable[..., Any], *args: Any, **_options: Any) -> Any:
        """See `trio.to_thread.run_sync`."""
        keywords = getattr(function, "keywords", {})
        wait = keywords.get("wait", 0.0)
        await trio.sleep(self._random.choice((0.0, 0.001, wait, wait)))
        return function(*args)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Make a directory in memory."""
    return tempfile.TemporaryDirectory(
        prefix="simulate-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    )
