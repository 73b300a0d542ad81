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

A child that has entered a machine ends with its task. One that has not, and has read nothing that is of a guest
(`Task.lasting`), waits for another one of the same kind: it has no other rights any more, and nothing of the last one.

Only the standard library and what is as plain: it is run without site-packages.
"""

import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
from time import monotonic
from typing import Any, Final, NamedTuple

from moorage.probes.capabilities import CAP_KILL, be_closed_to_others, keep
from moorage.probes.child import DONE, REQUEST_MAX, TASKS, be_child, complain
from moorage.probes.handing import BUSY, LATE

CONTROL_FD: Final = 3
"""Where requests come from: the first of the descriptors that are passed (``SD_LISTEN_FDS_START``)."""

IDLE_SECONDS: Final = 60.0
"""Without a request and without a child, until it ends, s: its start takes a tenth of one, and 10 MiB are not kept for
a copy a day."""

SPARE_SECONDS: Final = 0.05
"""Without a request, until a child is made for the next one, s."""

LASTING_MAX: Final = 2
"""Children that wait for another task of one kind: one for who asks again at once, one for who asks meanwhile."""

SECONDS_MAX: Final = 3600.0
"""The longest that a child may be told to take, s."""

CHILDREN_PER_ACCOUNT_MAX: Final = 4
"""Children on one account: those of one user's machines, or of one machine of root's. A container can keep a child
that looks at its files for as long as it likes: a process that waits for a file server (fuse(4)) is not to be killed.
So many may stay, and nobody else waits for them."""

CHILDREN_WAITING_MAX: Final = 1 + LASTING_MAX * sum(task.lasting for task in TASKS.values())
"""Children that wait for a task, in all: one for any."""

CHILDREN_OF_USERS_MAX: Final = 128
"""Of CHILDREN_MAX, children on accounts of users: those of 32 who have all of theirs kept. The others are root's."""

CHILDREN_MAX: Final = 256
"""Children in all. One that waits has less than 1 MiB of its own."""

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
        link: where it is told its tasks, if it may have another one.
    """

    request: Request
    until: float
    answer: int
    link: socket.socket | None


class Waiting(NamedTuple):
    """A child that waits for a task.

    Attributes:
        pidfd: its own.
        link: where it is told.
    """

    pidfd: int
    link: socket.socket


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
        self._links: dict[int, int] = {}  # pidfds of children that may have another task, by their links
        self._spare: Waiting | None = None
        self._lasting: dict[str, list[Waiting]] = {}  # by the tasks that they have had

    def run(self) -> None:
        """Serve until nothing is asked any more, and all children have ended."""
        while self._listening or self._children:
            events = [fd for fd, _ in self._poll.poll(self._patience())]
            # Requests last: a child that has done a task by then has time for another one.
            for fd in reversed(events):
                if fd == self._control.fileno():
                    self._take()
                elif fd in self._links:
                    self._note_done(self._links[fd])
                elif fd in self._pids:
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
            complain(error)
        finally:
            for fd in fds:
                os.close(fd)

    def _begin(self, request: Request, leader: int, answer: int) -> None:
        if not self._has_place(request):
            _tell(answer, BUSY)
            return
        try:
            pidfd, link = self._waiting_for(request.task)
        except OSError:  # EAGAIN, ENOMEM
            _tell(answer, BUSY)
            return
        try:
            socket.send_fds(link, [request.task.encode()], [leader, answer])
        except OSError:  # somebody has killed it
            self._hang_up(link)
            _tell(answer, BUSY)
            return
        lasting = TASKS[request.task].lasting
        until = monotonic() + request.seconds
        self._children[pidfd] = Child(request, until, os.dup(answer), link if lasting else None)
        if not lasting:
            link.close()
        elif link.fileno() not in self._links:
            self._links[link.fileno()] = pidfd
            self._poll.register(link, select.POLLIN)

    def _waiting_for(self, task: str) -> Waiting:
        """Return a child that has time for a task; nobody else gets it.

        Raises:
            OSError: there is no place or no memory for one.
        """
        if lasting := self._lasting.get(task):
            return lasting.pop()
        found, self._spare = self._spare, None
        return found or self._fork()

    def _note_done(self, pidfd: int) -> None:
        """Note that a child has done its task, and may have another one, unless there are enough of its kind."""
        child = self._children.get(pidfd)
        if child is None or child.link is None:
            self._forget_waiting(pidfd)
            return
        try:
            done = child.link.recv(len(DONE), socket.MSG_DONTWAIT) == DONE
        except OSError:
            done = False
        if not done or pidfd in self._late:  # it ends
            self._poll.unregister(child.link)
            return
        del self._children[pidfd]
        os.close(child.answer)
        others = self._lasting.setdefault(child.request.task, [])
        if len(others) < LASTING_MAX:
            others.append(Waiting(pidfd, child.link))
        else:
            self._hang_up(child.link)

    def _forget_waiting(self, pidfd: int) -> None:
        """Have no task for a child any more."""
        for waiting in self._lasting.values():
            for each in [each for each in waiting if each.pidfd == pidfd]:
                waiting.remove(each)
                self._hang_up(each.link)

    def _hang_up(self, link: socket.socket) -> None:
        """Close a link to a child, which ends then."""
        if self._links.pop(link.fileno(), None) is not None:
            with contextlib.suppress(KeyError):
                self._poll.unregister(link)
        link.close()

    def _fork(self) -> Waiting:
        """Fork a child that waits for its task.

        Raises:
            OSError: there is no place or no memory for it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    be_child(theirs)
                with contextlib.suppress(OSError):  # whoever is first; both need it to be so
                    os.setpgid(pid, pid)
                pidfd = os.pidfd_open(pid)
            except BaseException:
                ours.close()
                raise
        self._pids[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        return Waiting(pidfd, ours)

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
        if self._spare is not None and self._spare.pidfd == pidfd:
            self._hang_up(self._spare.link)
            self._spare = None
        self._forget_waiting(pidfd)
        child = self._children.pop(pidfd, None)
        if child is not None:
            if child.link is not None:
                self._hang_up(child.link)
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


def main() -> None:
    """Serve requests."""
    be_closed_to_others()
    if os.geteuid() == 0:
        keep(CAP_KILL, dormant=CAPABILITIES)
    gc.collect()
    gc.freeze()  # so that children need not have pages of their own for it
    with socket.socket(fileno=CONTROL_FD) as control:
        Parent(control).run()
