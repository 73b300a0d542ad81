"""Does what is asked of it inside machines, each by a child of its own.

Run by a unit that has the rights for it (`moorage.pid1.fork_server`), which moored starts when it first wants
something done, and which ends by itself. Its file descriptor 3 is a socket (SOCK_SEQPACKET), the other end of which
moored has, and nobody else. Each message is one JSON object with two file descriptors:

    {"task": NAME of TASKS, "account": NAME, "ofUser": BOOL, "seconds": N}

the pidfd of a leader, and a socket (SOCK_SEQPACKET) on which the question waits, and on which the answer goes.

The server itself enters nothing and reads nothing that comes from a machine, neither questions nor answers. Nobody may
look into it or its children, also not in the namespaces that they enter (PR_SET_DUMPABLE). A child has the rights of
its task, its three standard descriptors and these two, and nothing of what another one has. It is killed with all that
it may have started when its time is over.

Only the standard library and what is as plain: it is run without site-packages.
"""

import contextlib
import functools
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, NamedTuple, NoReturn

from moorage.probes import copy, mount, network, root, terminal
from moorage.probes.capabilities import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_KILL,
    CAP_MKNOD,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    CAP_SYS_CHROOT,
    CAP_SYS_PTRACE,
    be_closed_to_others,
    keep,
)
from moorage.probes.handing import ANSWER_FD, BUSY, LATE, LEADER_FD, send_descriptors
from moorage.probes.namespaces import enter_network, find_inside, open_root

CONTROL_FD: Final = 3
"""Where requests come from: the first of the descriptors that are passed (``SD_LISTEN_FDS_START``)."""

LINK_FD: Final = 3
"""Where a child is told its task; it has nothing else of the server's."""

REQUEST_MAX: Final = 4096
"""Bytes of a request, without its question."""

IDLE_SECONDS: Final = 60.0
"""Without a request and without a child, until it ends, s: its start takes a tenth of one, and 10 MiB are not kept for
a copy a day."""

SPARE_SECONDS: Final = 0.05
"""Without a request, until a child is made for the next one, s."""

READY_SECONDS: Final = 0.005
"""Without a task, until that child gets ready for one, s. It takes 0.5 ms of CPU time, for which nobody is to wait who
asks again at once."""

SECONDS_MAX: Final = 3600.0
"""The longest that a child may be told to take, s."""

CHILDREN_PER_ACCOUNT_MAX: Final = 4
"""Children on one account: those of one user's machines, or of one machine of root's. A container can keep a child
that looks at its files for as long as it likes: a process that waits for a file server (fuse(4)) is not to be killed.
So many may stay, and nobody else waits for them."""

CHILDREN_OF_USERS_MAX: Final = 128
"""Of CHILDREN_MAX, children on accounts of users: those of 32 who have all of theirs kept. The others are root's."""

CHILDREN_MAX: Final = 256
"""Children in all. One that waits has less than 1 MiB of its own."""

CHILD_DATA_MAX: Final = 128 * 1024 * 1024
"""Bytes of a child's own memory; ten times what it needs (RLIMIT_DATA)."""


class Task(NamedTuple):
    """What a child does.

    Attributes:
        main: does it; finds the leader at LEADER_FD, and question and answer at ANSWER_FD.
        capabilities: what it needs, by their bits.
    """

    main: Callable[[], None]
    capabilities: int


TASKS: Final = {
    "addresses": Task(network.main, CAP_SYS_PTRACE | CAP_SYS_ADMIN),
    "root": Task(root.main, CAP_SYS_PTRACE | CAP_DAC_READ_SEARCH),
    "copy": Task(
        copy.main,
        CAP_SYS_PTRACE
        | CAP_DAC_OVERRIDE
        | CAP_DAC_READ_SEARCH
        | CAP_CHOWN
        | CAP_FOWNER
        | CAP_FSETID
        | CAP_MKNOD,
    ),
    "bind": Task(
        mount.main,
        CAP_SYS_PTRACE | CAP_SYS_ADMIN | CAP_SYS_CHROOT | CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH,
    ),
    "terminal": Task(
        terminal.main, CAP_SYS_CHROOT | CAP_SYS_PTRACE | CAP_SYS_ADMIN | CAP_SETUID | CAP_SETGID
    ),
}

CAPABILITIES: Final = functools.reduce(int.__or__, (task.capabilities for task in TASKS.values()), CAP_KILL)
"""What its unit must have: for the tasks, and for itself CAP_KILL, to end children that have become other users."""


class Request(NamedTuple):
    """What is to be done, as far as the server reads it.

    Attributes:
        task: name of one of TASKS.
        account: whose place it takes.
        of_user: the account is that of a user.
        seconds: how long it may take.
    """

    task: str
    account: str
    of_user: bool
    seconds: float


class Child(NamedTuple):
    """A child at work.

    Attributes:
        request: what it does.
        until: deadline, on the monotonic clock.
        answer: socket on which is told that it was too late.
    """

    request: Request
    until: float
    answer: int


def parse(data: bytes) -> Request:
    """Read a request.

    Raises:
        ValueError, TypeError, LookupError, RecursionError: it is none.
    """
    asked: dict[str, Any] = json.loads(data)
    task, account, of_user, seconds = (asked[name] for name in ("task", "account", "ofUser", "seconds"))
    if task not in TASKS or not 0 < seconds <= SECONDS_MAX:
        raise ValueError("no request")
    return Request(task, str(account), bool(of_user), seconds)


class Parent:
    """Has a child for each request, and ends those that take too long.

    One more waits for what is asked next: it has all behind it that takes time, and has seen nothing yet.

    Args:
        control: where requests come from.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._listening = True
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._pids: dict[int, int] = {}  # of all children, by their pidfds; each is that of a group, too
        self._children: dict[int, Child] = {}  # those at work
        self._late: set[int] = set()
        self._spare: tuple[int, socket.socket] | None = None  # its pidfd, and where it is told its task

    def run(self) -> None:
        """Serve until nothing is asked any more, and all children have ended."""
        while self._listening or self._children:
            events = [fd for fd, _ in self._poll.poll(self._patience())]
            for fd in events:
                if fd == self._control.fileno():
                    self._take()
                else:
                    self._reap(fd)
            self._end_late()
            if self._spare is None:
                # Not while somebody may wait for something else.
                if self._listening and self._control.fileno() not in events:
                    with contextlib.suppress(OSError):
                        self._spare = self._fork()
            elif not events and not self._children:
                # Whoever sends from now on is told that nobody listens; what has been sent is still done.
                self._control.shutdown(socket.SHUT_RD)

    def _patience(self) -> float | None:
        """Return how long to wait for anything to happen, ms."""
        waits: list[float] = []
        if self._listening and self._spare is None:
            waits.append(SPARE_SECONDS)
        elif self._listening and not self._children:
            waits.append(IDLE_SECONDS)
        now = monotonic()
        waits += [child.until - now for pidfd, child in self._children.items() if pidfd not in self._late]
        return max(0.0, min(waits)) * 1000 + 1 if waits else None

    def _take(self) -> None:
        """Take a request, unless nobody is there any more who could make one."""
        data, fds, _, _ = socket.recv_fds(self._control, REQUEST_MAX, 2, socket.MSG_CMSG_CLOEXEC)
        if not data:
            self._poll.unregister(self._control)
            self._listening = False
            return
        try:
            leader, answer = fds
            self._begin(parse(data), leader, answer)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            _complain(error)
        finally:
            for fd in fds:
                os.close(fd)

    def _begin(self, request: Request, leader: int, answer: int) -> None:
        if not self._has_place(request):
            _tell(answer, BUSY)
            return
        try:
            pidfd, link = self._spare or self._fork()
        except OSError:  # EAGAIN, ENOMEM
            _tell(answer, BUSY)
            return
        self._spare = None
        with link:
            try:
                socket.send_fds(link, [request.task.encode()], [leader, answer])
            except OSError:  # somebody has killed it
                _tell(answer, BUSY)
                return
        self._children[pidfd] = Child(request, monotonic() + request.seconds, os.dup(answer))

    def _fork(self) -> tuple[int, socket.socket]:
        """Fork a child that waits for its task; return its pidfd, and where it is told.

        Raises:
            OSError: there is no place or no memory for it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    _be_child(theirs)
                with contextlib.suppress(OSError):  # whoever is first; both need it to be so
                    os.setpgid(pid, pid)
                pidfd = os.pidfd_open(pid)
            except BaseException:
                ours.close()
                raise
        self._pids[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        return pidfd, ours

    def _has_place(self, request: Request) -> bool:
        others = [child.request for child in self._children.values()]
        return (
            len(others) < CHILDREN_MAX
            and sum(other.account == request.account for other in others) < CHILDREN_PER_ACCOUNT_MAX
            and (not request.of_user or sum(other.of_user for other in others) < CHILDREN_OF_USERS_MAX)
        )

    def _reap(self, pidfd: int) -> None:
        """Note that a child has ended."""
        pid = self._pids.pop(pidfd)
        _kill_group(pid)  # before its number is free
        os.waitpid(pid, 0)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        if self._spare is not None and self._spare[0] == pidfd:
            self._spare[1].close()
            self._spare = None
        child = self._children.pop(pidfd, None)
        if child is not None:
            if pidfd in self._late:
                self._late.remove(pidfd)
                _tell(child.answer, LATE)
            os.close(child.answer)

    def _end_late(self) -> None:
        now = monotonic()
        for pidfd, child in self._children.items():
            if child.until <= now and pidfd not in self._late:
                self._late.add(pidfd)
                _kill_group(self._pids[pidfd])


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _tell(answer: int, what: bytes) -> None:
    # Whoever asked may be gone, or have more to read than fits.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(answer)) as connected:
        connected.send(what, socket.MSG_DONTWAIT)


def _be_child(link: socket.socket) -> NoReturn:
    """Wait for a task, do it, and end."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(link.fileno(), LINK_FD)
        # What the server has, of others as well.
        os.closerange(LINK_FD + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        resource.setrlimit(resource.RLIMIT_DATA, (CHILD_DATA_MAX, CHILD_DATA_MAX))
        with socket.socket(fileno=LINK_FD) as own:
            if not select.select([own], [], [], READY_SECONDS)[0]:
                with contextlib.suppress(OSError):  # it is slower then, and that is all
                    get_ready()
            name, fds, _, _ = socket.recv_fds(own, REQUEST_MAX, 2)
        if name:
            leader, answer = fds
            _move(leader, LEADER_FD)
            _move(answer, ANSWER_FD)
            task = TASKS[name.decode()]
            if os.geteuid() == 0:
                keep(task.capabilities)
            task.main()
        status = 0
    except BaseException as error:  # noqa: BLE001  # whatever it is, this is not to go on as the server
        _complain(error)
    finally:
        os._exit(status)


def get_ready() -> None:
    """Do to this process itself what tasks do first to others, and nothing to anybody else.

    After a fork the first access to each page of memory takes longer than what is done with it, and those of a short
    task are half of its time. They are behind this process then.

    Raises:
        OSError: there is no file descriptor or no memory left.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        found: list[int] = []
        try:
            found.append(os.pidfd_open(os.getpid()))
            found.append(open_root(found[0], os.O_RDONLY))
            found.append(find_inside(b"/"))
            enter_network(found[0])
            send_descriptors(ours, b'{"text": ["", 0, null, false]}', found[:2])
            data, fds, _, _ = socket.recv_fds(theirs, REQUEST_MAX, 2)
            found += fds
            json.dumps(json.loads(data)).encode()
        finally:
            for fd in found:
                os.close(fd)


def _move(fd: int, to: int) -> None:
    if fd != to:
        os.dup2(fd, to)
        os.close(fd)


def _complain(error: BaseException) -> None:
    # Without the lines of the program, which would be looked for in the files of the machine.
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stderr.flush()


def main() -> None:
    """Serve requests."""
    be_closed_to_others()
    if os.geteuid() == 0:
        keep(CAP_KILL, dormant=CAPABILITIES)
    gc.collect()
    gc.freeze()  # so that children need not have pages of their own for it
    with socket.socket(fileno=CONTROL_FD) as control:
        Parent(control).run()
