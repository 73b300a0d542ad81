"""The system around the service: users in login sessions, their processes, and what nobody may touch."""

import contextlib
import ctypes
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import sessions
from moored import run

from fuzzing.boundary.requests import (
    CANARIES,
    CANARY,
    FOREIGN_SERVICE,
    ROOT,
    SECRET_FILE,
    SMUGGLED,
    TARGET,
    Leader,
)
from fuzzing.boundary.rules import DYNAMIC

CGROUPS = Path("/sys/fs/cgroup")
RECORDS = Path("/run/moorage/machines")
DIRECTORIES = Path("/run/moorage/m")
TRANSIENT = (Path("/run/systemd/transient"), Path("/run/systemd/system.control"))

SECRET = "text-of-a-file-of-root's"

ADMINISTRATOR = sessions.Kind(ROOT, 0)

FOREIGN = (FOREIGN_SERVICE, f"machine-{TARGET}-fs.service", f"machine-{CANARY}.scope")
OTHERS = ("dbus.service", "polkit.service", "systemd-logind.service", "moored.service", "moored.socket")
"""Of the system: they must be the same start."""

DYNAMIC_END = 65520

SETTLE_SECONDS = 20.0
"""For what comes a moment later, on a loaded machine."""
LOOK_SECONDS = 0.02

VOLATILE = re.compile(
    r"(CPU|Memory|Swap|Tasks|IO|IP|Effective).*(Current|Peak|USage|NSec|Bytes|Operations|Packets|Available|Max|High)"
    r"|CPUUsageNSec|Effective.*|.*Timestamp.*|Job|NeedDaemonReload|ManagedOOMKills|OOMKills"
)
"""Properties of units that change by themselves; settings of resources are among them, and are asked for by name."""

LAST_RUN = re.compile(r" ; start_time=[^}]*")
"""In properties of commands: the manager forgets it when it reads its files again."""

_IN_ALL_EVENTS = 0xFFF
_IN_NONBLOCK = 0o4000


def until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    """Wait until something is true of the system.

    Raises:
        AssertionError: it was not in time.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(LOOK_SECONDS)


def show(units: Sequence[str]) -> dict[str, dict[str, str]]:
    """What the manager says of units, but for what changes by itself; words of lists in a fixed order."""
    found: dict[str, dict[str, str]] = {}
    if not units:
        return found
    for text in run("systemctl", "show", "--all", "--", *units).strip().split("\n\n"):
        pairs = {line.partition("=")[0]: line.partition("=")[2] for line in text.splitlines()}
        found[pairs["Id"]] = {
            name: " ".join(sorted(LAST_RUN.sub("", value).split()))
            for name, value in pairs.items()
            if not VOLATILE.fullmatch(name)
        }
    return found


def changes(
    before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """Say which properties of units are others than before."""
    for unit, was in before.items():
        now = after.get(unit, {})
        names = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
        if names:
            yield f"{unit}: " + ", ".join(
                f"{name} was {was.get(name)!r}, is {now.get(name)!r}" for name in names
            )


def loaded() -> set[str]:
    """Units of machines that are loaded, in whatever state."""
    text = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "machine-*")
    return {line.split()[0] for line in text.splitlines()}


def group_of(pid: int) -> str | None:
    """The control group of a process; None if it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return (
            None if state == "Z" else Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].rstrip()
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def uids_of(pid: int) -> set[int]:
    """All uids of a process, with DYNAMIC for each of that range; empty if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    found = {int(word) for word in re.findall(r"^Uid:(.*)$", status, re.MULTILINE)[0].split()}
    return {DYNAMIC if DYNAMIC <= uid < DYNAMIC_END else uid for uid in found}


def processes_of_machines() -> Iterator[tuple[str, int]]:
    """Processes in units of machines, with the unit."""
    for directory, _, _ in os.walk(CGROUPS):
        units = [part for part in directory.split("/") if re.fullmatch(r"machine-.*\.(scope|service)", part)]
        if units:
            with contextlib.suppress(FileNotFoundError, OSError):
                for pid in (Path(directory) / "cgroup.procs").read_text().split():
                    yield units[0], int(pid)


def commands() -> Iterator[tuple[int, list[str]]]:
    """All processes, with their arguments."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                yield (
                    int(entry),
                    Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0"),
                )


class Users:
    """Users in their login sessions. Root has one as well, since who calls may well become a machine, and end."""

    def __init__(self) -> None:
        ordinary = (sessions.HOLDER, sessions.CREATOR, sessions.REGISTRANT, sessions.STRANGER)
        sessions.add_users(*ordinary)
        self.kinds = {kind.name: kind for kind in (ADMINISTRATOR, *ordinary)}
        self.sessions = {name: sessions.log_in(kind) for name, kind in self.kinds.items()}
        # What is in the care of their managers stays when a session ends.
        run("loginctl", "enable-linger", *self.kinds)
        for session in self.sessions.values():
            until(
                lambda session=session: (self._manager(session.uid) / "app.slice").is_dir(),
                lambda session=session: f"no manager of {session.kind.name}",
            )

    @staticmethod
    def _manager(uid: int) -> Path:
        return CGROUPS / f"user.slice/user-{uid}.slice/user@{uid}.service"

    def dial(self, user: str) -> socket.socket:
        """Connect to the service as a user."""
        return self.sessions[user].dial()

    def lost(self) -> set[str]:
        """Users whose session has ended; they are logged in again."""
        found = {name for name, session in self.sessions.items() if not session.is_there()}
        for name in found:
            self.sessions[name].end()
            self.sessions[name] = sessions.log_in(self.kinds[name])
        return found

    def group(self, user: str, name: str) -> Path:
        """Make a control group in what is the user's."""
        group = self._manager(self.kinds[user].uid) / "app.slice" / f"fuzz-{name}.scope"
        group.mkdir(parents=True, exist_ok=True)
        return group


class Leaders:
    """The processes of one round that may be made machines. A context.

    Args:
        users: whose they are.
        containers: whether some are to be containers, with root's file where their os-release(5) is.
    """

    EACH = 2

    def __init__(self, users: Users, *, containers: bool) -> None:
        self._users = users
        self._sessions = dict(users.sessions)  # a user whose session ends gets another one
        self._groups: list[Path] = []
        self.all: list[Leader] = []
        self.before: dict[int, str] = {}
        for user in users.sessions:
            for number in range(self.EACH):
                self._start(user, str(number))
        for user in users.sessions:
            pid = users.sessions[user].spawn()
            self.all.append(Leader(pid, user, in_session=True))
        if containers:
            for user in ("creator", "registrant"):
                self._start(user, "container", "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
                    f"mount --bind {SECRET_FILE} /usr/lib/os-release; exec sleep infinity")  # fmt: skip
        self.before = {leader.pid: group_of(leader.pid) or "" for leader in self.all}

    def _start(self, user: str, name: str, *argv: str) -> None:
        pid = self._sessions[user].spawn(*argv)
        group = self._users.group(user, f"{user}-{name}")
        (group / "cgroup.procs").write_text(str(pid))
        self._groups.append(group)
        self.all.append(Leader(pid, user, container=bool(argv)))

    def bury(self) -> None:
        """End all of them that are there yet; once."""
        for leader in self.all:
            session = self._sessions[leader.user]
            if session.is_there():
                session.kill(leader.pid)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(leader.pid, signal.SIGKILL)
        for group in self._groups:
            with contextlib.suppress(OSError):  # the unit is gone with it
                until(lambda group=group: "populated 0" in (group / "cgroup.events").read_text(), lambda: "")
                group.rmdir()
        self.all, self._groups = [], []


def unit_is_active(unit: str) -> bool:
    """Whether a unit is."""
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0


class Canaries:
    """Units and files that are nobody's business."""

    def __init__(self) -> None:
        Path(CANARIES).mkdir(mode=0o755)
        Path(SECRET_FILE).write_text(f'ID="{SECRET}"\n')
        Path(SECRET_FILE).chmod(0o600)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = self._libc.inotify_init1(_IN_NONBLOCK)
        assert self._libc.inotify_add_watch(self._watch, CANARIES.encode(), _IN_ALL_EVENTS) >= 0
        for unit in FOREIGN:
            if unit.endswith(".service"):
                run("systemd-run", "--quiet", f"--unit={unit}", "sleep", "infinity")
        self._scope = subprocess.Popen(
            ["systemd-run", "--scope", "--quiet", f"--unit={FOREIGN[-1]}", "sleep", "infinity"],
            stdout=subprocess.DEVNULL,
        )
        until(lambda: unit_is_active(FOREIGN[-1]), lambda: "no foreign scope")
        self.pid = self._scope.pid
        self._units = show(FOREIGN)
        self._others = self._starts()

    @staticmethod
    def _starts() -> Mapping[str, str]:
        return {unit: shown["InvocationID"] + shown["ActiveState"] for unit, shown in show(OTHERS).items()}

    def problems(self) -> Iterator[str]:
        """Say what happened to them."""
        for change in changes(self._units, show(FOREIGN)):
            yield f"a unit that is nobody's has changed: {change}"
        if group_of(self.pid) != f"/system.slice/{FOREIGN[-1]}":
            yield f"the process of {FOREIGN[-1]} is in {group_of(self.pid)}"
        others = self._starts()
        if others != self._others:
            yield f"units of the system are {others}, and were {self._others}"
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._watch, 1 << 16)
            _, mask, _, length = struct.unpack_from("iIII", data)
            yield f"below {CANARIES}: event {mask:#x} of {data[16 : 16 + length].rstrip(bytes(1))!r}"
        yield from self._smuggled()

    @staticmethod
    def _smuggled() -> Iterator[str]:
        for top in TRANSIENT:
            for path in top.rglob("*"):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    lines = re.split(r"[\r\n]", path.read_text(errors="replace"))
                    if any(line.strip().startswith(SMUGGLED) for line in lines):
                        yield f"{path} has a line that was smuggled into it: {lines}"


def secrets_seen(user: str, text: str, others: Sequence[str]) -> Iterator[str]:
    """Name the secrets in what a user received.

    Args:
        user: who; root may see everything.
        text: all that was received.
        others: secrets that are not this user's.
    """
    if SECRET in text:
        yield f"{user} was sent a file of root's: {text}"
    if user != ROOT:
        for secret in others:
            if secret in text:
                yield f"{user} was told {secret}: {text}"
