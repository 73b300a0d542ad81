"""A moored that runs, as tests inside a sandbox talk to it and see what it left behind.

It is the instance of whoever runs the tests: root's is the system's, and everybody else has one below the service
manager of that user.
"""

import contextlib
import ctypes
import inspect
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import service_manager
import trio

from moorage import errors as machine_errors
from moorage.api.systemd_machine import errors as systemd_errors
from moorage.kernel.process import process_id
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

USER = os.geteuid() != 0
"""Whether this is the instance of a user."""

RUNTIME = Path(os.environ["XDG_RUNTIME_DIR"] if USER else "/run")
"""Where services have their runtime directories, and the service manager its own."""

SOCKET = f"{RUNTIME}/moorage/io.moorage.Machine"
"""Serves both interfaces."""

OURS = "io.moorage.Machine."
THEIRS = "io.systemd.Machine."

RECORDS = RUNTIME / "moorage/machines"
DIRECTORIES = RUNTIME / "moorage/m"
UNIT_FILES = RUNTIME / "systemd" / ("user" if USER else "system")
"""Unit files that are not kept over a boot."""
KEPT_UNIT_FILES = Path.home() / ".config/systemd/user" if USER else Path("/etc/systemd/system")
"""Unit files of the administrator, or of the user."""
TRANSIENT = RUNTIME / "systemd/transient"
"""Unit files that the service manager has made itself."""
ALONE = RUNTIME / "moorage/moored.conf.d/alone.conf"
"""Says that moored has nothing to do with machined."""
GRACE = Path.home() / ".config/moorage/user.conf.d/grace.conf" if USER else ALONE.with_name("grace.conf")
"""Says how long launchers have to take their leases again."""
NOTE = ".beside-"
"""What the names of notes of what machined has begin with, among the records."""
DROP_IN = UNIT_FILES / "moored.service.d/test.conf"

ERRORS: list[type[VarlinkError]] = [
    value
    for module in (machine_errors, systemd_errors)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, VarlinkError) and value is not VarlinkError
]
"""What a client of these tests raises by class."""

UNTIL_SECONDS = 20.0
"""Longest wait for anything that should come at once: a loaded machine of two cores is slow, but not that slow."""

TURN_SECONDS = 0.005
"""First pause between two looks at what tells nobody that it changed."""
TURN_SECONDS_MAX = 0.03
"""Longest one: each is a tenth of what was waited for by then, as looks are work for those who are waited for."""

_CLONE3 = 435  # on every architecture

_OF_THE_MANAGER = frozenset({"busctl", "moorctl", "systemctl", "systemd-run"})
"""Commands that take ``--user``."""

Process = subprocess.Popen[bytes]
T = TypeVar("T")


def for_us(*argv: str) -> tuple[str, ...]:
    """Return a command as it has to be to reach the service manager, or the moored, of whoever runs the tests."""
    return (argv[0], "--user", *argv[1:]) if USER and argv[0] in _OF_THE_MANAGER else argv


@overload
async def until(
    condition: Callable[[], Coroutine[Any, Any, T]], what: str = "", *, seconds: float = ...
) -> T: ...


@overload
async def until(condition: Callable[[], T], what: str = "", *, seconds: float = ...) -> T: ...


async def until(condition: Callable[[], Any], what: str = "", *, seconds: float = UNTIL_SECONDS) -> Any:
    """Wait until a condition is true, and return what it said.

    Raises:
        AssertionError: it was not true in time.
    """
    result: Any = None
    began = trio.current_time()
    with trio.move_on_after(seconds):
        while True:
            result = condition()
            if inspect.isawaitable(result):
                result = await result
            if result:
                return result
            waited = trio.current_time() - began
            await trio.sleep(min(max(TURN_SECONDS, waited / 10), TURN_SECONDS_MAX))
    raise AssertionError(
        f"not within {seconds} s: {what or inspect.getsource(condition).strip()}; is {result!r}"
    )


# Talking


def told(machine: dict[str, Any]) -> dict[str, Any]:
    """Return what was told of a machine, but not whether machined has it by then, which is chance."""
    return {key: value for key, value in machine.items() if key != "published"}


async def connect(path: str = SOCKET) -> Client:
    """Connect; use the result with ``async with``."""
    return await Client.connect(path, errors=ERRORS)


async def register(
    client: Client, name: str, process: Process | int | None, /, **fields: Any
) -> dict[str, Any]:
    """Register a machine, by default of class vm in a scope of its own, and return the whole reply."""
    pid = process.pid if isinstance(process, subprocess.Popen) else process
    named = {} if pid is None else {"leader": {"pid": pid}}
    reply = await client.call(f"{OURS}Register", {"name": name, "class": "vm", **named, **fields})
    return {**reply, "machine": told(reply["machine"])}


async def controlled(name: str) -> None:
    """Wait for the control socket of a machine, which it has a moment after the reply."""
    await until((RUNTIME / "moorage/control" / name).exists, f"{name} can be controlled")


async def describe(client: Client, name: str) -> dict[str, Any]:
    """Describe a machine; return the machine only."""
    return told((await client.call(f"{OURS}Describe", {"name": name}))["machine"])


async def listed(client: Client) -> dict[str, dict[str, Any]]:
    """Return the machines that are listed, by name."""
    try:
        async with client.call_more(f"{OURS}List") as replies:
            return {reply["machine"]["name"]: told(reply["machine"]) async for reply in replies}
    except machine_errors.NoSuchMachine:
        return {}


async def verdict(client: Client, name: str) -> dict[str, Any]:
    """Wait for the end of a machine, and return its verdict."""

    async def exited() -> dict[str, Any] | None:
        return (await describe(client, name)).get("verdict")

    found = await until(exited, f"the verdict of {name}")
    assert found is not None
    return found


def process_of(leader: Process | int) -> dict[str, Any]:
    """Name a living process as it goes over the wire."""
    pidfd = os.pidfd_open(leader.pid if isinstance(leader, subprocess.Popen) else leader)
    try:
        found = process_id(pidfd)
    finally:
        os.close(pidfd)
    return {"pid": found.pid, "pidfdId": found.pidfd_id, "bootId": found.boot_id}


def kill(*processes: Process) -> None:
    """Kill processes with SIGKILL and bury them."""
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait(UNTIL_SECONDS)


# What the system says


def stay_alone() -> None:
    """Have moored, from its next start on, have nothing to do with machined; a user's has not anyway.

    For tests that count what it does, and opens; all others have a service as it is installed.
    """
    if not USER:
        ALONE.parent.mkdir(parents=True, exist_ok=True)
        ALONE.write_text("publish = false\nadopt = false\n")


def run(*argv: str) -> str:
    """Run a command :func:`for_us` that has to succeed, and return what it printed."""
    done = subprocess.run(for_us(*argv), capture_output=True, text=True, check=False, timeout=UNTIL_SECONDS)
    assert done.returncode == 0, f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def freeze(unit: str) -> None:
    """Freeze a unit, again if the manager gives up although nobody has thawed it (`FreezerCancelled`)."""
    _freezer("freeze", unit)


def thaw(unit: str) -> None:
    """Thaw a unit, likewise."""
    _freezer("thaw", unit)


def _freezer(order: str, unit: str) -> None:
    deadline = time.monotonic() + UNTIL_SECONDS
    argv = for_us("systemctl", order, unit)
    while (done := subprocess.run(argv, capture_output=True, text=True, check=False)).returncode:
        assert "aborted" in done.stderr, done.stderr
        assert time.monotonic() < deadline, done.stderr


def show(unit: str, *properties: str) -> dict[str, str]:
    """Return what ``systemctl show`` says of properties of a unit, or of all of them."""
    wanted = [f"--property={','.join(properties)}"] if properties else []
    lines = run("systemctl", "show", "--all", *wanted, "--", unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


MANAGER = run("systemctl", "show", "--property=ControlGroup", "--value").strip() if USER else ""
"""The control group of the service manager."""

SERVICES = f"{MANAGER}/{'app.slice' if USER else 'system.slice'}"
"""The control group in which services are that ask for no slice."""

ELSEWHERE = f"{MANAGER}/elsewhere"
"""A control group that tests may make, and that belongs to no unit."""

MOORCTL = ("--user",) if USER else ()
"""Options with which moorctl calls it, and with which it is started itself."""


def scopes() -> list[str]:
    """Names of the scopes of machines that the service manager has loaded, in whatever state."""
    return service_manager.loaded("machine-*.scope")


def units() -> list[str]:
    """Names of all units of machines that are loaded, in whatever state."""
    return service_manager.loaded("machine-*.scope", "machine-*.service", "machine-*.socket")


def directories() -> list[str]:
    """Names of the runtime directories of machines."""
    return sorted(os.listdir(DIRECTORIES)) if DIRECTORIES.exists() else []


def transient_files() -> list[str]:
    """Names of the unit files that the service manager has made for machines."""
    return [name for name in os.listdir(TRANSIENT) if name.startswith("machine-")]


def sync_journal() -> None:
    """Wait until the journal has what was written before."""
    if not USER:
        run("journalctl", "--sync")
        return
    # Only root may ask for it. What comes later is there later.
    mark = secrets.token_hex(16)
    subprocess.run(["systemd-cat", "--identifier=mark"], input=mark, text=True, check=True)
    deadline = time.monotonic() + UNTIL_SECONDS
    while mark not in run("journalctl", "--identifier=mark", "--output=cat", "--no-pager"):
        assert time.monotonic() < deadline, "nothing gets into the journal"
        time.sleep(TURN_SECONDS)


def messages(unit: str, since: str | None = None) -> list[str]:
    """What a unit has written to the journal, of all its runs, or since a place in the journal.

    A name may have had runs of other tests, and of the same test before: who waits for a line says since when.
    """
    sync_journal()
    after = [f"--after-cursor={since}"] if since else []
    by_unit = [f"_SYSTEMD_UNIT={unit}"]
    if USER:  # journald may not know of which unit a process was that is gone (`moorage.pid1.journal`)
        by_unit = [f"_SYSTEMD_USER_UNIT={unit}", "+", f"SYSLOG_IDENTIFIER={unit}", "_TRANSPORT=stdout"]
    lines = run("journalctl", "--output=json", "--no-pager", *after, *by_unit).splitlines()
    return [json.loads(line)["MESSAGE"] for line in lines]


def state(unit: str) -> str:
    """``ActiveState=`` of a unit."""
    return service_manager.property_of(unit, "Unit", "ActiveState")


def control_group(process: Process | int) -> str:
    """The control group that a process is in."""
    pid = process.pid if isinstance(process, subprocess.Popen) else process
    return Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].rstrip("\n")


def members(group: str) -> list[int]:
    """Return the PIDs of the processes in a control group."""
    return [int(pid) for pid in Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split()]


def move(process: Process, group: str) -> None:
    """Put a process into a control group, as who it is delegated to may do."""
    path = Path(f"/sys/fs/cgroup{group}")
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.procs").write_text(str(process.pid))


def living_records() -> list[str]:
    """Names of the records of machines that are not said to be gone, and of all else that lies there but notes."""
    names: list[str] = []
    for path in RECORDS.iterdir():
        if path.name.startswith(NOTE):
            continue
        try:
            phase = json.loads(path.read_bytes())["phase"]
        except (FileNotFoundError, ValueError):
            phase = "unreadable"
        if phase != "exited":
            names.append(path.name)
    return names


def main_pid() -> int:
    """PID of moored, 0 when it does not run."""
    return service_manager.property_of("moored.service", "Service", "MainPID")


def signal_moored(number: int) -> None:
    """Send a signal to moored, which must run: 0 would be the process group of the tests."""
    pid = main_pid()
    assert pid != 0
    os.kill(pid, number)


def stored() -> str:
    """Return how many file descriptors of moored the service manager keeps."""
    return run("systemctl", "show", "-P", "NFileDescriptorStore", "moored.service").strip()


def descriptors() -> int:
    """How many file descriptors moored has open, but for one by which it has things done inside machines.

    A socket counts once: that of its references is duplicated as soon as the service manager has stored it.
    """
    found = _open_files()
    packets = {f"socket:[{line.split()[6]}]" for line in _unix_sockets() if line.split()[4] == "0005"}
    sockets = {link for link in found if link.startswith("socket:")}
    others = [link for link in found if link not in sockets]
    return len(sockets - packets) + max(0, len(sockets & packets) - 1) + len(others)


def _open_files() -> list[str]:
    directory = f"/proc/{main_pid()}/fd"
    found: list[str] = []
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            found.append(os.readlink(f"{directory}/{name}"))
    return found


def _unix_sockets() -> list[str]:
    return Path(f"/proc/{main_pid()}/net/unix").read_text().splitlines()[1:]


def cursor() -> str:
    """The end of the journal."""
    return run("journalctl", "--lines=0", "--show-cursor").rpartition("-- cursor: ")[2].strip()


def logged(since: str) -> list[str]:
    """What moored has logged since a place in the journal, a message each."""
    of_moored = f"--{'user-' if USER else ''}unit=moored.service"
    argv = ("journalctl", of_moored, f"--after-cursor={since}", "--output=json", "--no-pager")
    sync_journal()
    entries = [json.loads(line) for line in run(*argv).splitlines()]
    return [str(entry["MESSAGE"]) for entry in entries if entry.get("_COMM") == "moored"]


def configure(*options: str) -> None:
    """Have moored start with options; it must be stopped, or be restarted afterwards. None: as it is installed."""
    if options:
        DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        DROP_IN.write_text(
            f"[Service]\nExecStart=\nExecStart=/usr/bin/moored {' '.join((*MOORCTL, *options))}\n"
        )
    else:
        DROP_IN.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")


def set_grace(seconds: float | None) -> None:
    """Give launchers so long to take their leases again, from the next start of moored on; None: the default."""
    if seconds is not None:
        GRACE.parent.mkdir(parents=True, exist_ok=True)
        GRACE.write_text(f'leaseGrace = "{round(seconds * 1000)}ms"\n')
    else:
        GRACE.unlink(missing_ok=True)
    run("systemctl", "stop", "moored.service")


LOST = "nobody-takes-it-again"


@contextlib.contextmanager
def lost_lease() -> Generator[Callable[[], set[str]]]:
    """Hold the lease of a machine that nobody takes again when its connection has ended with the service.

    Those of other machines, which are to be left alone, would end at the same moment: so nobody has to wait until
    nothing has happened.

    Yields:
        Whose leases have ended since, as far as is known by now.
    """
    with (
        subprocess.Popen(["sleep", "infinity"]) as leader,
        socket.socket(socket.AF_UNIX) as launcher,
    ):
        wanted = {"name": LOST, "class": "vm", "leader": {"pid": leader.pid}, "lease": True}
        try:
            launcher.connect(SOCKET)
            launcher.sendall(
                json.dumps({"method": f"{OURS}Register", "parameters": wanted}).encode() + b"\0"
            )
            with launcher.makefile("rb") as replies:
                reply = b""
                while not reply.endswith(b"\0"):
                    reply += replies.read(1)
            assert "error" not in json.loads(reply[:-1]), reply
            yield _leases_lost
        finally:
            leader.kill()


def _leases_lost() -> set[str]:
    events = [json.loads(line) for line in run("moorctl", "events", "--json").splitlines()]
    begin = max(
        n for n, each in enumerate(events) if (each["event"], each.get("name")) == ("machineNew", LOST)
    )
    return {each["name"] for each in events[begin:] if each["event"] == "leaseLost"}


async def assert_nothing_left(descriptors_before: int | None = None) -> None:
    """Wait until no trace of a machine is left but verdicts.

    Args:
        descriptors_before: how many file descriptors moored may have.

    Raises:
        AssertionError: something is left.
    """
    async with await connect() as client:
        await until(lambda: nothing_listed(client), "no machine is listed")
    await until(lambda: not scopes(), "no scope of a machine is loaded")
    await until(lambda: not living_records(), "no record but those of verdicts")
    await until(lambda: not list(RECORDS.glob(f"{NOTE}*")), "no note of what machined has")
    if descriptors_before is not None:
        try:
            await until(
                lambda: descriptors() <= descriptors_before, f"at most {descriptors_before} descriptors"
            )
        except AssertionError as error:
            error.add_note(f"They are: {', '.join(sorted(_open_files()))}\n{_sockets_open()}")
            raise


def _sockets_open() -> str:
    """What the kernel lists of the Unix sockets of moored."""
    ours = set(_open_files())
    return "\n".join(line for line in _unix_sockets() if f"socket:[{line.split()[6]}]" in ours)


async def nothing_listed(client: Client) -> bool:
    """Whether no machine is listed."""
    return not await listed(client)


async def assert_everything_gone() -> None:
    """Wait until no unit and no directory of any machine is left, be moored alive or not.

    Raises:
        AssertionError: something is left.
    """
    await until(lambda: not units(), "no unit of a machine is loaded")
    await until(lambda: not directories(), "no runtime directory is left")
    # A slice goes after the last unit in it, and its file with it.
    await until(lambda: not transient_files(), "no unit file of a machine is left")


async def end_moored() -> None:
    """Kill moored, which must be mortal, and take its socket away, so that nothing brings it back."""
    if pid := main_pid():
        os.kill(pid, signal.SIGKILL)
    await until(lambda: state("moored.service") in {"inactive", "failed"})
    run("systemctl", "stop", "moored.socket")


def start_listening() -> None:
    """Start moored's socket.

    Tests in a row do so more often than the service manager lets pass (StartLimitBurst=). Its count ends with a reset,
    and with the unit itself, which need not be loaded.
    """
    command = for_us("systemctl", "reset-failed", "moored.socket")
    subprocess.run(command, capture_output=True, check=False, timeout=UNTIL_SECONDS)
    run("systemctl", "start", "moored.socket")


MACHINED = ("systemd-machined.service", "systemd-machined.socket")
BY_NAME = KEPT_UNIT_FILES / "dbus-org.freedesktop.machine1.service"
"""What the message bus starts for machined's name."""


def take_place() -> None:
    """Put moored in machined's place, as docs/in-place-of-machined.md says."""
    run("systemctl", "stop", "moored.service")
    run("systemctl", "mask", "--runtime", "--now", *MACHINED)
    BY_NAME.symlink_to("/usr/lib/systemd/system/moored.service")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "moored-machined.socket")


def give_place_back() -> None:
    """Let machined have its place again, and listen."""
    run("systemctl", "stop", "moored-machined.socket", "moored.service")
    BY_NAME.unlink()
    run("systemctl", "unmask", "--runtime", *MACHINED)
    run("systemctl", "daemon-reload")
    start_listening()


class Processes:
    """Starts processes for one test, and buries them all at its end."""

    def __init__(self) -> None:
        self._started: list[Process] = []
        self._pids: list[int] = []

    def __call__(
        self,
        argv: Sequence[str] = ("sleep", "infinity"),
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        user: int | None = None,
    ) -> Process:
        """Start a process, of a command :func:`for_us`; the options are those of subprocess.Popen."""
        process = subprocess.Popen(for_us(*argv), stdin=stdin, stdout=stdout, user=user)
        self._started.append(process)
        return process

    def at(self, pid: int) -> int:
        """Start a process that has a certain PID, which must be free: what the kernel does by chance (clone3(2))."""
        wanted = (ctypes.c_int * 1)(pid)
        arguments = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
        library = ctypes.CDLL(None, use_errno=True)
        started = library.syscall(_CLONE3, arguments, len(arguments))
        if started == 0:
            os.execvp("sleep", ("sleep", "infinity"))
        assert started == pid, os.strerror(ctypes.get_errno())
        self._pids.append(pid)
        return pid

    def bury(self) -> None:
        """Kill what is left of them."""
        kill(*self._started)
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._pids.clear()
        for process in self._started:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._started.clear()
