"""Has things done inside machines, by a unit with the rights that moored does not have.

The unit runs `moorage.probes.fork_server`, which forks a child for each. It is started when there is something to do,
and ends by itself some time after. It is not bound to moored: what it does is finished when moored ends.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import ExitStack, suppress
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec
import trio

from moorage.pid1.errors import ManagerError, UnitExists
from moorage.pid1.manager import Json, Manager, ServiceSpec
from moorage.pid1.oneshot import (
    AGAIN_SECONDS,
    PROBE_NOFILE,
    PROBE_STOP_SECONDS,
    Account,
    ProbeFailed,
    sandbox,
)
from moorage.probes import inside as program
from moorage.probes.fork_server import (
    CAPABILITIES,
    CHILDREN_MAX,
    CHILDREN_PER_ACCOUNT_MAX,
    CHILDREN_WAITING_MAX,
)
from moorage.probes.handing import BUSY, LATE

UNITS_MAX: Final = 4
"""Units of this kind: one, and those that a former moored has left, as long as something keeps their children."""

AT_ONCE_MAX: Final = 16
"""Children at work at the same time. More wait, within their deadline."""

AT_ONCE_OF_USERS_MAX: Final = 12
"""Of AT_ONCE_MAX, children on accounts of users. A few users together can keep so many until their time is over; the
other places are root's, who does not wait for them."""

MEMORY_MAX: Final = 1024 * 1024 * 1024
"""Bytes of the unit: four times what CHILDREN_MAX need that wait, or all that eight of them may have."""

START_SECONDS: Final = 10.0
"""For the start of the unit, s. It takes a tenth of one."""

ANSWER_MAX: Final = 64 * 1024
"""Bytes of an answer; each is a few numbers."""

ANSWER_FDS: Final = 1
"""File descriptors that are handed over."""

_SYSTEM_CALLS: Final = ("@mount", "chroot", "setns")
_FAMILIES: Final = ("AF_UNIX", "AF_NETLINK")
_CROWDED_SECONDS: Final = 0.02
"""Pause while the kernel takes no file descriptors, because too many of root's are on their way, s."""


class Answer(msgspec.Struct, frozen=True):
    """An answer from inside a machine.

    Attributes:
        said: in JSON.
        descriptors: what has been handed over; the receiver owns them.
    """

    said: bytes
    descriptors: list[int]

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.descriptors:
            os.close(fd)


class TookTooLong(Exception):
    """What was asked for was ended, as it took too long."""


class ForkServer:
    """The unit, when there is one.

    Args:
        manager: starts it.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._control: socket.socket | None = None
        self._sending = trio.Lock()
        self._all = trio.Semaphore(AT_ONCE_MAX)
        self._users = trio.Semaphore(AT_ONCE_OF_USERS_MAX)
        self._accounts: WeakValueDictionary[str, trio.Semaphore] = WeakValueDictionary()

    def close(self) -> None:
        """Hang up: it ends when it has finished what it does."""
        if self._control is not None:
            self._control.close()
            self._control = None

    async def ask(
        self, task: str, leader: int, question: Any, *, account: Account, seconds: float
    ) -> Answer:
        """Have something done inside a machine, within the deadline of the caller's task.

        Args:
            task: of `moorage.probes.child.TASKS`.
            leader: pidfd.
            question: what is told to the child, for JSON.
            account: whose it is.
            seconds: how long it may take.

        Raises:
            TookTooLong: it did.
            ProbeFailed: there is no answer.
            OSError: the question is too long (EMSGSIZE).
        """
        request = msgspec.json.encode(
            {"task": task, "account": account.name, "ofUser": account.of_user, "seconds": seconds}
        )
        asked = msgspec.json.encode(question)
        own = self._accounts.setdefault(account.name, trio.Semaphore(CHILDREN_PER_ACCOUNT_MAX))
        with ExitStack() as places:
            for each in (own, self._users, self._all) if account.of_user else (own, self._all):
                await _enter(each, places)
            answer = await self._ask(request, leader, asked)
            while answer.said == BUSY:
                await trio.sleep(AGAIN_SECONDS)
                answer = await self._ask(request, leader, asked)
        if answer.said == LATE:
            raise TookTooLong
        return answer

    async def _ask(self, request: bytes, leader: int, question: bytes) -> Answer:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with ours:
            with theirs:
                ours.setblocking(False)  # noqa: FBT003  # its only argument
                ours.send(question)
                await self._send(request, [leader, theirs.fileno()])
            await trio.lowlevel.wait_readable(ours)
            try:
                said, fds = _received(ours)
            except OSError as exc:
                raise ProbeFailed(f"no answer: {exc}") from exc
        if not said:
            raise ProbeFailed("it ended without an answer")
        return Answer(said, fds)

    async def _send(self, request: bytes, descriptors: list[int]) -> None:
        with ExitStack() as turn:
            await _enter(self._sending, turn)
            while True:
                control = self._control
                if control is None:
                    control = self._control = await self._start()
                try:
                    socket.send_fds(control, [request], descriptors)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(control)
                except (BrokenPipeError, ConnectionResetError):  # it has ended, as it had nothing to do
                    self.close()
                except OSError as exc:
                    if exc.errno != errno.ETOOMANYREFS:
                        raise ProbeFailed(str(exc)) from exc
                    await trio.sleep(_CROWDED_SECONDS)
                else:
                    return

    async def _start(self) -> socket.socket:
        """Start the unit; return the socket to which it listens."""
        deadline = min(trio.current_effective_deadline(), trio.current_time() + START_SECONDS)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            with theirs:
                types = await self._manager.property_types("service", deadline=deadline)
                properties = types.convert(_properties())
                for number in range(UNITS_MAX):
                    spec = ServiceSpec(
                        unit=f"moored-inside-{number}.service",
                        description="Work inside Machines",
                        properties=properties,
                        file_descriptors=((theirs.fileno(), "control"),),
                    )
                    try:
                        job = await self._manager.start_service(spec, deadline=deadline)
                    except UnitExists:
                        continue
                    if job.result != "done":
                        raise ProbeFailed(f"job of {job.unit} ended with {job.result!r}")
                    ours.setblocking(False)  # noqa: FBT003  # its only argument
                    return ours
            raise ProbeFailed(f"{UNITS_MAX} units that work inside machines have not ended")
        except ManagerError as exc:
            ours.close()
            raise ProbeFailed(str(exc)) from exc
        except BaseException:
            ours.close()
            raise


async def _enter(what: trio.Semaphore | trio.Lock, stack: ExitStack) -> None:
    """Acquire something, to be released with a stack; without a turn of the scheduler where nobody has it."""
    try:
        what.acquire_nowait()
    except trio.WouldBlock:
        await what.acquire()
    stack.callback(what.release)


def _received(connected: socket.socket) -> tuple[bytes, list[int]]:
    """Receive an answer; nothing if there is none.

    Raises:
        OSError: it cannot be received.
    """
    with suppress(ConnectionResetError):  # the question was not read; what was said comes after that
        return socket.recv_fds(connected, ANSWER_MAX, ANSWER_FDS, socket.MSG_CMSG_CLOEXEC)[:2]
    return socket.recv_fds(connected, ANSWER_MAX, ANSWER_FDS, socket.MSG_CMSG_CLOEXEC)[:2]


def _properties() -> dict[str, Json]:
    """Return the properties of the unit; what would give it a view of the files of its own is of no use."""
    command: list[Json] = [sys.executable, "-I", "-S", "-B", program.__file__]
    return {
        **sandbox(CAPABILITIES, _SYSTEM_CALLS, _FAMILIES),
        "Type": "exec",
        "ExecStart": [[sys.executable, command, False]],
        "TimeoutStartUSec": round(START_SECONDS * 1e6),
        "TimeoutStopUSec": round(PROBE_STOP_SECONDS * 1e6),
        "MemoryMax": MEMORY_MAX,
        # Threads count: the server itself, children that wait, and those at work, of which each may have one more.
        "TasksMax": 1 + CHILDREN_WAITING_MAX + 2 * CHILDREN_MAX,
        "LimitNOFILE": PROBE_NOFILE,
        # One child that has too much is to go, not all.
        "OOMPolicy": "continue",
        "MemoryDenyWriteExecute": True,
        "LockPersonality": True,
        "RestrictRealtime": True,
    }
