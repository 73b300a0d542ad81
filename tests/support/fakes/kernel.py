"""Processes and control groups of a host that exists in memory, and what one program sees of them.

`Kernel` is the host, which the test changes at will. `FakeHierarchy` and `FakeProcesses` are one program's view of it:
its inotify watches, its pidfds, its limit of file descriptors. What the kernel has to report arrives later, when
`Kernel.run` gets its turn, as with a real one.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import signal as signals
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

import trio

from moorage.kernel.cgroup import Events, Limits, Usage, Watch
from moorage.kernel.process import Exit, NotAProcess, ProcessGone, ProcessId
from moorage.kernel.processes import Watcher

BOOT_ID: Final = "b007" * 8
BOOTED: Final = 1_700_000_000_000_000
"""µs since the epoch."""

HARMLESS: Final = frozenset({0, signals.SIGCHLD, signals.SIGURG, signals.SIGWINCH, signals.SIGCONT})
"""Signals that end nobody (signal(7))."""


class FakeClock:
    """Trio's clock, as the time since boot."""

    def realtime(self) -> int:
        """See `Clock`."""
        return BOOTED + self.monotonic()

    def monotonic(self) -> int:
        """See `Clock`."""
        return round(trio.current_time() * 1e6) + 1_000_000


class Group:
    """A control group.

    Attributes:
        path: below the root of the hierarchy.
        number: of its inode.
        count: processes in it and below that have not ended.
        frozen: it is frozen by itself, whatever those above are.
        freezing: it was told to freeze, and is not frozen yet.
        counts: how often its own limits were reached, and how many of its own processes were killed, by the names
            of `Limits`.
    """

    def __init__(self, path: str, number: int) -> None:
        self.path = path
        self.number = number
        self.count = 0
        self.frozen = False
        self.freezing = False
        self.counts: Counter[str] = Counter()


class Process:
    """A process.

    Attributes:
        pid: its number.
        pidfd_id: inode number of its pidfd.
        uid: all its uids.
        parent: whose child it is; None for PID 1's.
        group: where it is, or was when it ended.
        exit: how it ended.
        reaped: its parent has asked for that.
        deaf: only SIGKILL ends it.
        pending: signals that wait for a thaw.
        ended: called when it has ended.
    """

    def __init__(self, pid: int, pidfd_id: int, uid: int, parent: Process | None, group: Group) -> None:
        self.pid = pid
        self.pidfd_id = pidfd_id
        self.uid = uid
        self.parent = parent
        self.group = group
        self.exit: Exit | None = None
        self.reaped = False
        self.deaf = False
        self.pending: list[int] = []
        self.ended: list[Callable[[Process], None]] = []

    @property
    def id(self) -> ProcessId:
        """What names it for good."""
        return ProcessId(self.pid, self.pidfd_id, BOOT_ID)


class Kernel:
    """The host.

    Attributes:
        processes: those that have not been reaped, by PID.
        groups: by path.
        delay: seconds until the kernel reports what has happened; asked each time.
        reports_removal: whether watches are told that a group is gone; asked each time. The real one does not always.
        emptied: called at once with each group that has lost its last process.
        gone: counts of groups that are gone, by the path of each group above them.
    """

    def __init__(self) -> None:
        self.processes: dict[int, Process] = {}
        self.groups: dict[str, Group] = {}
        self.delay: Callable[[], float] = lambda: 0.0
        self.reports_removal: Callable[[], bool] = lambda: False
        self.emptied: list[Callable[[Group], None]] = []
        self.gone: Counter[tuple[str, str]] = Counter()
        self._numbers = 1000
        self._reports: list[Callable[[], object]] = []
        self._reported = trio.Event()
        self.watches: list[FakeWatch] = []
        self.pidfds: list[FakeProcesses] = []
        self.make("")

    def number(self) -> int:
        """Return a number that was never used before."""
        self._numbers += 1
        return self._numbers

    # Control groups

    def make(self, path: str) -> Group:
        """Make a group, with all those above it; nothing happens if it is there."""
        if path:
            above = path.rpartition("/")[0]
            if above not in self.groups:
                self.make(above)
        return self.groups.setdefault(path, Group(path, self.number()))

    def remove(self, path: str) -> bool:
        """Remove a group and those below it; return False if there are processes."""
        group = self.groups.get(path)
        if group is None:
            return True
        if group.count:
            return False
        for below in sorted(
            (each for each in self.groups if f"{each}/".startswith(f"{path}/")), reverse=True
        ):
            gone = self.groups.pop(below)
            self._pass_on(gone)
            for watch in self.watches if self.reports_removal() else ():
                watch.note(gone, removed=True)
        return True

    def _pass_on(self, gone: Group) -> None:
        """Keep the counts of a group that is gone in those above it."""
        totals = gone.counts + Counter(
            {what: n for (path, what), n in self.gone.items() if path == gone.path}
        )
        for key in [key for key in self.gone if key[0] == gone.path]:
            del self.gone[key]
        above = gone.path.rpartition("/")[0]
        for what in ("oom", "oom_kills"):
            self.gone[above, what] += totals[what]

    def freeze(self, path: str, *, frozen: bool) -> None:
        """Freeze or thaw a group, and with it those below."""
        within = [group for group in self.groups.values() if f"{group.path}/".startswith(f"{path}/")]
        before = {group: self.is_frozen(group.path) for group in within}
        self.groups[path].frozen = frozen
        for group, was in before.items():
            if self.is_frozen(group.path) != was:
                self._changed(group)
        for process in self.members(path):
            if not self.is_frozen(process.group.path):
                pending, process.pending = process.pending, []
                for number in pending:
                    if process.exit is None:
                        self.signal(process, number)

    def is_frozen(self, path: str) -> bool:
        """Whether a group is frozen, by itself or with one above."""
        while path:
            if (group := self.groups.get(path)) is not None and group.frozen:
                return True
            path = path.rpartition("/")[0]
        return False

    def _changed(self, group: Group) -> None:
        for watch in self.watches:
            if not watch.once:
                watch.note(group, removed=False)

    # Limits

    def reach(self, path: str, what: str, count: int = 1) -> None:
        """Count that a limit of a group was reached, or what systemd-oomd notes on it, by the names of `Limits`."""
        group = self.groups[path]
        group.counts[what] += count
        self._reported_to_limits(group if what in {"tasks_max", "oomd_kills", "oomd_ooms"} else None, path)

    def run_out_of_memory(self, path: str, victim: Process) -> None:
        """Have a process killed for the limit of a group that it is in or below; the host's if the path is empty."""
        if victim.exit is not None:
            return
        if path:
            self.reach(path, "oom")
        home = victim.group
        self.reach(home.path, "oom_kills")
        self.end(victim, Exit(signal=signals.SIGKILL))

    def _reported_to_limits(self, only: Group | None, path: str) -> None:
        """Note a change for those who watch limits: of one group, or of one and all that are above it."""
        groups = [only] if only is not None else []
        while only is None and path:
            groups.append(self.groups[path])
            path = path.rpartition("/")[0]
        for watch in self.watches:
            if watch.once:
                for group in groups:
                    watch.note(group, removed=False)

    def total(self, path: str, what: str) -> int:
        """Return the sum of a count of a group and of all below it."""
        within = [group for group in self.groups.values() if f"{group.path}/".startswith(f"{path}/")]
        return sum(group.counts[what] for group in within) + self.gone[path, what]

    def _count(self, group: Group, by: int) -> None:
        while True:
            group.count += by
            if group.count == (1 if by > 0 else 0):
                self._changed(group)
                if by < 0:
                    for told in list(self.emptied):
                        told(group)
            if not group.path:
                return
            group = self.groups[group.path.rpartition("/")[0]]

    # Processes

    def spawn(
        self, path: str, *, uid: int = 0, parent: Process | None = None, deaf: bool = False
    ) -> Process:
        """Start a process in a group."""
        number = self.number()
        process = Process(number, number + 1_000_000, uid, parent, self.make(path))
        process.deaf = deaf
        self.processes[process.pid] = process
        self._count(process.group, 1)
        return process

    def move(self, process: Process, path: str) -> None:
        """Move a process to another group.

        Raises:
            ProcessLookupError: it has ended.
        """
        if process.exit is not None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        before, process.group = process.group, self.make(path)
        self._count(process.group, 1)
        self._count(before, -1)

    def signal(self, process: Process, number: int) -> None:
        """Send a signal.

        Raises:
            ProcessLookupError: the process has ended.
        """
        if process.exit is not None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        if number in HARMLESS or (process.deaf and number != signals.SIGKILL):
            return
        if self.is_frozen(process.group.path) and number != signals.SIGKILL:
            process.pending.append(number)
            return
        self.end(process, Exit(signal=number))

    def end(self, process: Process, how: Exit) -> None:
        """End a process; a child of PID 1's is reaped at once."""
        if process.exit is not None:
            return
        process.exit = how
        self._count(process.group, -1)
        for told in list(process.ended):
            told(process)
        self.report(lambda: [each.note(process) for each in self.pidfds])
        if process.parent is None:
            self.reap(process)

    def reap(self, process: Process) -> None:
        """Have the parent of a process that has ended ask how."""
        if process.exit is not None and not process.reaped:
            process.reaped = True
            self.processes.pop(process.pid, None)
            self.report(lambda: [each.note(process) for each in self.pidfds])

    def members(self, path: str) -> list[Process]:
        """Return the processes in a group and below it that have not ended."""
        return [
            process
            for process in self.processes.values()
            if process.exit is None and f"{process.group.path}/".startswith(f"{path}/")
        ]

    # What is reported

    def report(self, call: Callable[[], object]) -> None:
        """Have a function called when the kernel gets round to it."""
        self._reports.append(call)
        self._reported.set()

    async def run(self) -> None:
        """Report what has happened, a moment after it has."""
        while True:
            await self._reported.wait()
            self._reported = trio.Event()
            await trio.sleep(self.delay())
            reports, self._reports = self._reports, []
            for report in reports:
                report()


class Faults:
    """What a program runs out of; the test replaces `check`."""

    def check(self, what: str) -> None:
        """Raise OSError where there is none left of something: "fd", "memory", "watch" or "space"."""


class FakeWatch:
    """One inotify instance.

    Attributes:
        once: it watches limits, and each group is reported once.
    """

    def __init__(
        self,
        hierarchy: FakeHierarchy,
        changed: Callable[[str], None],
        overflow: Callable[[], None],
        *,
        once: bool = False,
    ) -> None:
        self.hierarchy = hierarchy
        self.once = once
        self._changed = changed
        self.overflow = overflow
        self._groups: dict[str, Group] = {}
        self._noted: dict[tuple[Group, bool], None] = {}
        hierarchy.kernel.watches.append(self)

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, control_group: str) -> bool:
        """See `Watch`."""
        if control_group in self._groups:
            return True
        self.hierarchy.faults.check("watch")
        group = self.hierarchy.kernel.groups.get(control_group)
        if group is None:
            return False
        self._groups[control_group] = group
        return True

    def remove(self, control_group: str) -> None:
        """See `Watch`."""
        self._groups.pop(control_group, None)

    def close(self) -> None:
        """See `Watch`."""
        self._groups.clear()
        self.hierarchy.kernel.watches.remove(self)

    def note(self, group: Group, *, removed: bool) -> None:
        """Take note of an event, which is reported later."""
        if self._groups.get(group.path) is group:
            if not self._noted:
                self.hierarchy.kernel.report(self._tell)
            self._noted[group, removed] = None

    def lose(self) -> None:
        """Drop what is still to be reported, and say so (IN_Q_OVERFLOW)."""
        for group, removed in self._noted:
            if (removed or self.once) and self._groups.get(group.path) is group:
                del self._groups[group.path]
        self._noted.clear()
        self.hierarchy.kernel.report(self.overflow)

    def _tell(self) -> None:
        noted, self._noted = self._noted, {}
        changed: dict[str, None] = {}
        for group, removed in noted:
            if self._groups.get(group.path) is group:
                if removed or self.once:
                    del self._groups[group.path]
                changed[group.path] = None
        for path in changed:
            self._changed(path)


class FakeHierarchy:
    """`Hierarchy` of a kernel in memory."""

    def __init__(self, kernel: Kernel, faults: Faults) -> None:
        self.kernel = kernel
        self.faults = faults

    def events(self, control_group: str) -> Events | None:
        """See `Hierarchy`."""
        self.faults.check("fd")
        group = self.kernel.groups.get(control_group)
        return None if group is None else Events(group.count > 0, self.kernel.is_frozen(control_group))

    def attribute(self, control_group: str, name: str) -> str | None:
        """See `Hierarchy`."""
        self.faults.check("fd")
        group = self.kernel.groups.get(control_group)
        if group is None:
            return None
        return {
            "cgroup.controllers": "cpu memory pids",
            "cgroup.freeze": str(int(group.frozen or group.freezing)),
        }.get(name)

    def identity(self, control_group: str) -> int | None:
        """See `Hierarchy`."""
        group = self.kernel.groups.get(control_group)
        return None if group is None else group.number

    def controllers(self, control_group: str) -> frozenset[str]:
        """See `Hierarchy`."""
        return frozenset((self.attribute(control_group, "cgroup.controllers") or "").split())

    def usage(self, control_group: str, attributes: Collection[str] = ()) -> Usage:
        """See `Hierarchy`."""
        del attributes
        self.faults.check("fd")
        group = self.kernel.groups.get(control_group)
        counts: dict[str, int | None] = dict.fromkeys(Usage.__struct_fields__)
        if group is not None:
            counts["cpu_usage_nsec"] = 1000
            counts["oom_kills"] = self.kernel.total(control_group, "oom_kills")
            counts["managed_oom_kills"] = group.counts["oomd_kills"]
        return Usage(**counts)

    def limits(self, control_group: str) -> Limits:
        """See `Hierarchy`."""
        self.faults.check("fd")
        group = self.kernel.groups.get(control_group)
        if group is None:
            return Limits()
        counts = {name: group.counts[name] for name in Limits.__struct_fields__}
        counts["oom_below"] = self.kernel.total(control_group, "oom") - counts["oom"]
        counts["oom_kills"] = self.kernel.total(control_group, "oom_kills")
        return Limits(**counts)

    def ooms(self, control_group: str) -> int | None:
        """See `Hierarchy`."""
        self.faults.check("fd")
        group = self.kernel.groups.get(control_group)
        return None if group is None else group.counts["oom"]

    def ooms_below(self, control_group: str, most: int) -> dict[str, int] | None:
        """See `Hierarchy`."""
        self.faults.check("fd")
        below = [path for path in self.kernel.groups if path.startswith(f"{control_group}/")]
        counts = {path: self.kernel.groups[path].counts["oom"] for path in below}
        return None if len(below) > most else {path: times for path, times in counts.items() if times}

    def processes(self, control_group: str, most: int) -> list[int] | None:
        """See `Hierarchy`."""
        self.faults.check("fd")
        found = [process.pid for process in self.kernel.members(control_group)]
        return None if len(found) > most else found

    async def find(self, pattern: str) -> list[str]:
        """See `Hierarchy`."""
        await trio.lowlevel.checkpoint()
        return [
            group.path
            for group in self.kernel.groups.values()
            if group.count and fnmatch.fnmatchcase(group.path.rpartition("/")[2], pattern)
        ]

    def watch(self, changed: Callable[[str], None], overflow: Callable[[], None]) -> Watch:
        """See `Hierarchy`."""
        return FakeWatch(self, changed, overflow)

    def watch_limits(self, reached: Callable[[str], None], overflow: Callable[[], None]) -> Watch:
        """See `Hierarchy`."""
        return FakeWatch(self, reached, overflow, once=True)


class _Watch:
    """A process that is watched."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.told = False


class FakeProcesses:
    """`Processes` of a kernel in memory.

    Attributes:
        killed: the program does nothing any more.
    """

    def __init__(self, kernel: Kernel, faults: Faults) -> None:
        self._kernel = kernel
        self._faults = faults
        self.killed = False
        self._pidfds: dict[int, Process] = {}
        self._watches: dict[int, _Watch] = {}
        kernel.pidfds.append(self)

    @property
    def open_pidfds(self) -> int:
        """How many this program has."""
        return len(self._pidfds)

    def __contains__(self, pidfd: object) -> bool:
        return pidfd in self._pidfds

    def process(self, pidfd: int) -> Process:
        """Return the process of a pidfd.

        Raises:
            OSError: it was closed (EBADF).
        """
        if pidfd not in self._pidfds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._pidfds[pidfd]

    def hand_over(self, process: Process) -> int:
        """Return a pidfd of a process, as a caller sends one along."""
        pidfd = self._kernel.number()
        self._pidfds[pidfd] = process
        return pidfd

    def release(self) -> None:
        """End the program: all its pidfds are closed."""
        self._pidfds.clear()
        self._watches.clear()
        self._kernel.pidfds.remove(self)

    def note(self, process: Process) -> None:
        """Tell whoever watches a process that it has ended, or was reaped."""
        for pidfd, watch in list(self._watches.items()):
            if self._pidfds.get(pidfd) is not process or pidfd not in self._watches:
                continue
            if not watch.told:
                watch.told = True
                watch.watcher.process_ended()
            if process.reaped and pidfd in self._watches:
                watch.watcher.process_reaped()

    def boot_id(self) -> str:
        """See `Processes`."""
        return BOOT_ID

    def open(self, pid: int, pidfd_id: int | None = None, boot: str | None = None) -> int:
        """See `Processes`."""
        self._faults.check("fd")
        return self.hand_over(self._found(pid, pidfd_id, boot))

    def identify(self, pid: int, pidfd_id: int | None = None, boot: str | None = None) -> ProcessId:
        """See `Processes`."""
        self._faults.check("fd")
        return self._found(pid, pidfd_id, boot).id

    def _found(self, pid: int, pidfd_id: int | None, boot: str | None) -> Process:
        if pid <= 0:
            raise NotAProcess(f"{pid} is no PID")
        process = self._kernel.processes.get(pid)
        if process is None or process.exit is not None or pidfd_id not in {None, process.pidfd_id}:
            raise ProcessGone(pid)
        if boot not in {None, BOOT_ID}:
            raise ProcessGone(pid)
        return process

    def duplicate(self, pidfd: int) -> int:
        """See `Processes`."""
        self._faults.check("fd")
        return self.hand_over(self.process(pidfd))

    def close(self, pidfd: int) -> None:
        """See `Processes`."""
        self.process(pidfd)
        assert pidfd not in self._watches, "a pidfd is closed that is still watched"
        del self._pidfds[pidfd]

    def watch(self, pidfd: int, watcher: Watcher) -> None:
        """See `Processes`."""
        process = self.process(pidfd)
        self._faults.check("memory")
        self._watches[pidfd] = _Watch(watcher)
        if process.exit is not None:
            self._kernel.report(lambda: self.note(process))

    def unwatch(self, pidfd: int) -> None:
        """See `Processes`."""
        del self._watches[pidfd]

    def send_signal(self, pidfd: int, number: int) -> None:
        """See `Processes`."""
        if not self.killed:
            self._kernel.signal(self.process(pidfd), number)

    def pid_of(self, pidfd: int) -> int:
        """See `Processes`."""
        process = self.process(pidfd)
        if process.reaped:
            raise ProcessGone(None)
        return process.pid

    def has_exited(self, pidfd: int) -> bool:
        """See `Processes`."""
        return self.process(pidfd).exit is not None

    def exit_of(self, pidfd: int) -> Exit | None:
        """See `Processes`."""
        process = self.process(pidfd)
        return process.exit if process.reaped else None

    def is_alive(self, found: ProcessId) -> bool:
        """See `Processes`."""
        self._faults.check("fd")
        process = self._kernel.processes.get(found.pid)
        return process is not None and process.exit is None and process.pidfd_id == found.pidfd_id

    def _there(self, pid: int) -> Process:
        process = self._kernel.processes.get(pid)
        if process is None:
            raise ProcessGone(pid)
        return process

    def control_group(self, pid: int) -> str:
        """See `Processes`."""
        process = self._there(pid)
        # A zombie is shown in the root once its group is gone.
        return process.group.path if process.exit is None else process.group.path or "/"

    def parent(self, pid: int) -> int:
        """See `Processes`."""
        parent = self._there(pid).parent
        return 1 if parent is None else parent.pid

    def owner(self, pid: int) -> int:
        """See `Processes`."""
        return self._there(pid).uid

    def uids(self, pid: int) -> frozenset[int]:
        """See `Processes`."""
        return frozenset({self._there(pid).uid})

    def shares_our_ids(self, pid: int) -> bool:
        """See `Processes`."""
        self._there(pid)
        return True
