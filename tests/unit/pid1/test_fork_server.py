"""The server that has things done inside machines, as a process of its own; and moored's end of it."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any

import pytest
import trio
import trio.testing
from fakes.played import PlayedManager

from moorage.pid1.errors import UnitExists
from moorage.pid1.fork_server import ForkServer, TookTooLong, _received
from moorage.pid1.manager import ServiceSpec
from moorage.pid1.oneshot import Account, ProbeFailed
from moorage.probes import inside as program
from moorage.probes.child import LINK_FD, REQUEST_MAX, get_ready
from moorage.probes.fork_server import CHILDREN_PER_ACCOUNT_MAX, LASTING_MAX, parse
from moorage.probes.handing import BUSY, LATE

SECONDS = 20.0
"""For what takes milliseconds."""

IMPATIENT = f"""\
import sys
sys.path.append({str(Path(program.__file__).parents[2])!r})
from moorage.probes import child, fork_server
fork_server.IDLE_SECONDS = 0.05
fork_server.main()
"""
"""The program, but that it ends when nothing is asked for 0.05 s."""

PROGRAM = (program.__file__,)


def start(fd: int, *code: str, stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start the server with a socket at its file descriptor 3."""
    place = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.executable, sys.argv[2:])"
    argv = [sys.executable, "-c", place, str(fd), sys.executable, "-I", "-S", "-B", *code]
    return subprocess.Popen(argv, pass_fds=[fd], stderr=stderr)


class Server:
    """A server, with its other end."""

    def __init__(self, *code: str) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(SECONDS)
        with theirs:
            self.said = tempfile.TemporaryFile()  # noqa: SIM115  # no pipe, which a child that stays would keep open
            self.process = start(theirs.fileno(), *(code or PROGRAM), stderr=self.said)

    def ask(self, question: str | None = "null", **changed: Any) -> socket.socket:
        """Have the root directory of this process opened; without a question that never ends."""
        request = {"task": "root", "account": "a", "ofUser": False, "seconds": SECONDS, **changed}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(SECONDS)
        if question is not None:
            ours.send(question.encode())
        leader = os.pidfd_open(os.getpid())
        try:
            with theirs:
                socket.send_fds(self.control, [json.dumps(request).encode()], [leader, theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(leader)
        return ours

    def close(self) -> str:
        """Hang up; return what the server has written, once it has ended well."""
        self.control.close()
        status = self.process.wait(SECONDS)
        self.said.seek(0)
        said = self.said.read().decode()
        self.said.close()
        assert status == 0, said
        return said


@pytest.fixture
def server() -> Generator[Server]:
    server = Server()
    yield server
    server.control.close()
    server.process.kill()
    server.process.wait()
    server.said.close()


def answer(asked: socket.socket) -> bytes:
    with asked:
        said, fds = _received(asked)
        for fd in fds:
            assert os.path.samestat(os.fstat(fd), Path("/").stat())
            os.close(fd)
        assert bool(fds) == (said == b"0")
        # The child has ended, or will, and with it its end.
        with contextlib.suppress(ConnectionResetError):  # it has not read its question
            assert asked.recv(100) == b""
    return said


def children(process: subprocess.Popen[bytes]) -> set[int]:
    """Return the children of a server."""
    return set(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def waiting(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the children of a server that have nothing to do yet, once there are any."""
    until = monotonic() + SECONDS
    while monotonic() < until:
        found = children(process)
        lives = [pid for pid in found if "(sleeping)" in Path(f"/proc/{pid}/status").read_text()]
        if lives:
            return lives
        sleep(0.01)
    raise AssertionError("no child waits")


def test_each_has_a_child(server: Server) -> None:
    assert [answer(server.ask()) for _ in range(3)] == [b"0"] * 3
    together = [server.ask(account=f"a{number}") for number in range(8)]
    assert [answer(each) for each in together] == [b"0"] * 8
    assert server.close() == ""


def test_a_child_gets_ready_without_a_trace() -> None:
    def seen() -> list[str]:
        rights = [
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(("Uid", "Gid", "Groups", "Cap"))
        ]
        namespaces = sorted(os.readlink(each) for each in Path("/proc/self/ns").iterdir())
        return [*rights, *namespaces, os.getcwd(), str(len(os.listdir("/proc/self/fd")))]

    before = seen()
    get_ready()
    assert seen() == before


def test_a_child_that_is_ready_does_its_task() -> None:
    server = Server("-c", IMPATIENT.replace("fork_server.IDLE_SECONDS = 0.05", "child.READY_SECONDS = 0.0"))
    assert [answer(server.ask()) for _ in range(3)] == [b"0"] * 3
    assert server.close() == ""


def test_what_takes_too_long_is_ended(server: Server) -> None:
    assert answer(server.ask(None, seconds=0.05)) == LATE
    assert answer(server.ask()) == b"0"
    assert server.close() == ""


def test_an_account_has_so_many_places(server: Server) -> None:
    stay = [server.ask(None, seconds=SECONDS) for _ in range(CHILDREN_PER_ACCOUNT_MAX)]
    assert answer(server.ask()) == BUSY
    assert answer(server.ask(account="b")) == b"0"
    stay[0].send(b"null")
    assert answer(stay[0]) == b"0"
    assert answer(server.ask()) == b"0"
    for each in stay[1:]:
        each.close()
    assert [line for line in server.close().splitlines() if not line.startswith("BrokenPipeError")] == []


def test_what_was_begun_is_finished_when_moored_ends(server: Server) -> None:
    asked = server.ask(None)
    assert answer(server.ask(account="b")) == b"0"
    server.control.close()
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.2)
    asked.send(b"null")
    assert answer(asked) == b"0"
    assert server.close() == ""


def test_it_ends_when_nothing_is_asked() -> None:
    server = Server("-c", IMPATIENT)
    assert answer(server.ask()) == b"0"
    server.process.wait(SECONDS)
    with pytest.raises(BrokenPipeError):
        server.ask()
    assert server.close() == ""


def test_a_child_that_enters_nothing_has_further_tasks_of_its_kind(server: Server) -> None:
    assert answer(server.ask()) == b"0"
    before = children(server.process)
    assert [answer(server.ask(account=f"a{number}")) for number in range(9)] == [b"0"] * 9
    stayed = before & children(server.process)
    assert stayed
    # It has nothing left of its tasks: but for the standard ones, the descriptor where it is told the next one.
    until = monotonic() + SECONDS
    while not all(descriptors(pid) <= {0, 1, 2, LINK_FD} for pid in stayed):
        assert monotonic() < until
        sleep(0.01)
    assert server.close() == ""


def descriptors(pid: int) -> set[int]:
    return {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}


def test_no_more_children_wait_than_are_needed(server: Server) -> None:
    for _ in range(4):
        asked = [server.ask(account=f"a{number}") for number in range(12)]
        assert [answer(each) for each in asked] == [b"0"] * 12
    until = monotonic() + SECONDS
    while len(children(server.process)) > LASTING_MAX + 1:  # and one for any task
        assert monotonic() < until
        sleep(0.01)
    assert server.close() == ""


def test_one_that_waits_for_another_task_is_replaced_when_it_was_killed(server: Server) -> None:
    for _ in range(3):
        assert answer(server.ask()) == b"0"
        for pid in waiting(server.process):
            os.kill(pid, signal.SIGKILL)
        said = b""
        while said != b"0":  # nobody knows yet
            said = answer_or_none(server.ask())
            assert said in {b"0", BUSY, b""}
    assert server.close() == ""


def test_a_child_that_was_killed_before_it_had_a_task_is_replaced(server: Server) -> None:
    assert answer(server.ask()) == b"0"
    for pid in waiting(server.process):
        os.kill(pid, signal.SIGKILL)
    answers = [answer(server.ask()) for _ in range(3)]
    assert answers[-1] == b"0"


@pytest.mark.parametrize(
    "request_",
    [
        b"x",
        b"{}",
        b"[]",
        b"[" * REQUEST_MAX,
        b'{"task": "x", "account": "a", "ofUser": false, "seconds": 1}',
        b'{"task": ["root"], "account": "a", "ofUser": false, "seconds": 1}',
        b'{"task": "root", "account": "a", "ofUser": false, "seconds": "1"}',
        b'{"task": "root", "account": "a", "ofUser": false, "seconds": 0}',
        b'{"task": "root", "account": "a", "ofUser": false, "seconds": NaN}',
        b'{"task": "root", "account": "a", "ofUser": false, "seconds": 3601}',
    ],
    ids=ascii,
)
def test_what_is_no_request_is_none(request_: bytes) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, RecursionError)):
        parse(request_)


def test_nothing_is_done_for_what_is_no_request(server: Server) -> None:
    server.control.send(b"x")
    assert answer_or_none(server.ask(task="x")) == b""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        request = b'{"task": "root", "account": "a", "ofUser": false, "seconds": 1}'
        socket.send_fds(server.control, [request], [theirs.fileno()])
    assert answer(server.ask()) == b"0"
    assert len(server.close().splitlines()) == 3


def answer_or_none(asked: socket.socket) -> bytes:
    with asked, contextlib.suppress(ConnectionResetError):  # the question was not read
        return asked.recv(100)
    return b""


# -- moored's end ----------------------------------------------------------------------------------------------------


class Started:
    """A manager that starts the server as a child of this process.

    Attributes:
        manager: it.
        units: that were started.
        taken: names that are.
        code: what is run.
    """

    def __init__(self) -> None:
        self.manager = PlayedManager()
        self.manager.starting = self._start
        self.units: list[str] = []
        self.taken: set[str] = set()
        self.code: tuple[str, ...] = PROGRAM
        self.processes: list[subprocess.Popen[bytes]] = []
        self.server = ForkServer(self.manager)

    async def _start(self, spec: ServiceSpec) -> None:
        if spec.unit in self.taken:
            raise UnitExists(spec.unit)
        self.units.append(spec.unit)
        ((fd, _),) = spec.file_descriptors
        self.processes.append(start(fd, *self.code))

    def end(self) -> None:
        """End all."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def started() -> Generator[Started]:
    started = Started()
    yield started
    started.server.close()
    started.end()


@pytest.fixture
def leader() -> Generator[int]:
    fd = os.pidfd_open(os.getpid())
    yield fd
    os.close(fd)


ROOT = Account("machine-x", of_user=False)


async def opened(server: ForkServer, leader: int, account: Account = ROOT) -> None:
    found = await server.ask("root", leader, None, account=account, seconds=SECONDS)
    assert found.said == b"0"
    assert len(found.descriptors) == 1
    found.close()


async def test_one_unit_does_it_and_another_one_when_it_has_ended(started: Started, leader: int) -> None:
    server = started.server
    async with trio.open_nursery() as nursery:
        for number in range(24):
            nursery.start_soon(opened, server, leader, Account(f"user-{number}", of_user=bool(number % 3)))
    assert started.units == ["moored-inside-0.service"]
    started.end()
    # A child that has only just been forked has the socket as well for a moment, and nobody reads from it.
    assert server._control is not None
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(server._control)
    started.taken = {"moored-inside-0.service"}
    await opened(server, leader)
    assert started.units[1:] == ["moored-inside-1.service"]


async def test_one_that_ends_by_itself_loses_nothing(started: Started, leader: int) -> None:
    started.code = ("-c", IMPATIENT)
    server = started.server
    for _ in range(12):
        await opened(server, leader)
        await trio.sleep(0.045)
    assert 1 <= len(started.units) <= 12


async def test_too_many_that_have_not_ended_are_an_error(started: Started, leader: int) -> None:
    started.taken = {f"moored-inside-{number}.service" for number in range(9)}
    with pytest.raises(ProbeFailed, match="have not ended"):
        await opened(started.server, leader)


async def test_what_takes_too_long_is_said_to(started: Started, leader: int) -> None:
    server = started.server
    await opened(server, leader)
    (process,) = started.processes
    for pid in waiting(process):
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TookTooLong):
        await server.ask("root", leader, None, account=ROOT, seconds=0.1)
    for pid in children(process):
        os.kill(pid, signal.SIGCONT)
    await opened(server, leader)


async def test_one_that_is_killed_is_no_answer(started: Started, leader: int) -> None:
    server = started.server
    await opened(server, leader)
    (process,) = started.processes
    process.send_signal(signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_kill_soon, process.kill)
        with pytest.raises(ProbeFailed):
            await server.ask("root", leader, None, account=ROOT, seconds=SECONDS)
    await opened(server, leader)
    assert len(started.units) == 2


async def _kill_soon(kill: Callable[[], None]) -> None:
    await trio.testing.wait_all_tasks_blocked()
    kill()


async def test_what_is_too_long_is_not_sent(started: Started, leader: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        await started.server.ask("root", leader, "x" * 2**24, account=ROOT, seconds=SECONDS)
