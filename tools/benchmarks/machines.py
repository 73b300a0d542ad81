"""Real processes, registered, watched and ended: the same calls of io.systemd.Machine to moored and to machined."""

import collections
import itertools
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.apart import Observer
from benchmarks.wire import (
    CALL_SECONDS,
    RECEIVE_BYTES,
    Unmeasurable,
    check,
    connect,
    encode,
    exchange,
    exchange_all,
    named,
)

CALLERS = 16
"""Connections that register or terminate at the same time."""

GONE_SECONDS = 180.0
"""Deadline for thousands of scopes to come or go; PID 1 stops a few hundred per second."""

LOOK_SECONDS = 0.0002
"""Interval for checking after a reply whether its process is in its scope: a tenth of what the fastest peer needs."""

LOOKS_MS = 1
"""The same while many are under way, when only the rate matters."""

LIST_SECONDS = 0.005
"""Pause between two calls of List while waiting for the list to be right."""

LIST_ALL = encode("io.systemd.Machine.List", more=True)

PREFIX = "bench"
"""Prefix of the names of all machines."""

_numbers = itertools.count()


@dataclass
class Leaders:
    """Processes that sleep, with a name for each. A context manager, which kills and reaps them.

    Attributes:
        prefix: of the names, unique in a run.
        names: of the machines.
        pids: of the processes.
        groups: control groups of those that have been seen in their scope.
    """

    count: int
    prefix: str = field(default_factory=lambda: f"{PREFIX}{next(_numbers)}n")
    names: list[str] = field(default_factory=list[str])
    pids: list[int] = field(default_factory=list[int])
    groups: list[Path] = field(default_factory=list[Path])
    _proc: list[int] = field(default_factory=list[int])
    _marks: list[bytes] = field(default_factory=list[bytes])

    def __enter__(self) -> Self:
        try:
            for number in range(self.count):
                self.names.append(f"{self.prefix}{number:04}")
                self._marks.append(f"{self.names[-1]}.scope".encode())
                self.pids.append(os.posix_spawn("/usr/bin/sleep", ["sleep", "infinity"], {}))
                self._proc.append(os.open(f"/proc/{self.pids[-1]}/cgroup", os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for fd in self._proc:
            os.close(fd)
        self._proc.clear()

    def kill(self) -> None:
        """Kill and reap all of them."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids.clear()

    def held(self, number: int) -> bool:
        """Whether a process is in its scope."""
        return self._marks[number] in os.pread(self._proc[number], 4096, 0)

    def find_groups(self) -> None:
        """Note the control groups of all.

        Raises:
            Unmeasurable: one is not in its scope.
        """
        for number, name in enumerate(self.names):
            if not self.held(number):
                raise Unmeasurable(f"{name} left its scope")
            path = os.pread(self._proc[number], 4096, 0).decode().rpartition("0::/")[2].strip()
            self.groups.append(Path("/sys/fs/cgroup") / path)

    def wait_until_gone(self) -> None:
        """Wait until PID 1 has removed the control groups of all scopes, which it does last.

        Raises:
            Unmeasurable: it does not.
        """
        deadline = time.monotonic() + GONE_SECONDS
        for group in self.groups:
            while group.exists():
                if time.monotonic() > deadline:
                    raise Unmeasurable(f"{group} is still there after {GONE_SECONDS:.0f} s")
                time.sleep(LOOKS_MS / 1000)
        self.groups.clear()

    def registrations(self) -> list[bytes]:
        """Return the calls that register them."""
        return [
            encode(
                "io.systemd.Machine.Register",
                {"name": name, "class": "container", "leader": pid, "allocateUnit": True},
            )
            for name, pid in zip(self.names, self.pids, strict=True)
        ]

    def terminations(self) -> list[bytes]:
        """Return the calls that end them."""
        return [encode("io.systemd.Machine.Terminate", {"name": name}) for name in self.names]


@dataclass
class Registered:
    """The cost of registering.

    Attributes:
        replies: ms until the reply, of each; of all together where they were registered at the same time.
        holds: ms until the scope held the process, likewise.
        true: ms until there is a reply and the scope holds the process, of each that was registered alone.
        held_at_reply: how many were in their scope when the reply came.
    """

    replies: list[float] = field(default_factory=list[float])
    holds: list[float] = field(default_factory=list[float])
    true: list[float] = field(default_factory=list[float])
    held_at_reply: int = 0


def register_one_by_one(path: str, leaders: Leaders) -> Registered:
    """Register on one connection, each once the scope of the previous one holds its process."""
    result = Registered()
    begun: list[float] = []
    with connect(path) as sock, Observer(leaders.count, leaders.held) as observer:
        for number, request in enumerate(leaders.registrations()):
            begun.append(time.perf_counter())
            exchange(sock.fileno(), request)
            replied = time.perf_counter()
            result.replies.append((replied - begun[-1]) * 1000)
            result.held_at_reply += leaders.held(number)
            while not leaders.held(number):
                time.sleep(LOOK_SECONDS)
                if time.perf_counter() > replied + CALL_SECONDS:
                    raise Unmeasurable(f"{leaders.names[number]} registered, but not in its scope")
    result.holds = [(seen - begin) * 1000 for begin, seen in zip(begun, observer.seen, strict=True)]
    # What was true at its reply may have been seen a moment later.
    result.true = [max(pair) for pair in zip(result.replies, result.holds, strict=True)]
    if result.held_at_reply == leaders.count:
        result.true = result.replies
    leaders.find_groups()
    return result


def register_together(path: str, leaders: Leaders) -> Registered:
    """Register from several connections, each of which has one call open at a time."""
    result = Registered()
    awaited = collections.deque[int]()
    begin = time.perf_counter()
    for number in _together(path, leaders.registrations(), awaited, leaders):
        if leaders.held(number):
            result.held_at_reply += 1
        else:
            awaited.append(number)
        result.replies = [(time.perf_counter() - begin) * 1000]
    deadline = time.perf_counter() + CALL_SECONDS
    while awaited:
        if leaders.held(awaited[0]):
            awaited.popleft()
        elif time.perf_counter() > deadline:
            raise Unmeasurable(f"{leaders.names[awaited[0]]} registered, but not in its scope")
        else:
            time.sleep(LOOKS_MS / 1000)
    result.holds = [(time.perf_counter() - begin) * 1000]
    leaders.find_groups()
    return result


def terminate_together(path: str, leaders: Leaders) -> float:
    """Terminate from several connections. Return the ms until all scopes are gone."""
    begin = time.perf_counter()
    collections.deque(_together(path, leaders.terminations(), collections.deque(), leaders), maxlen=0)
    leaders.wait_until_gone()
    return (time.perf_counter() - begin) * 1000


def register_until_refused(path: str, leaders: Leaders) -> tuple[int, str]:
    """Register until a call fails. Return how many were registered, and the refusal, if any."""
    registered = 0
    try:
        for _ in _together(path, leaders.registrations(), collections.deque(), leaders):
            registered += 1
    except Unmeasurable as refusal:
        return registered, str(refusal)
    return registered, ""


def _together(
    path: str, requests: list[bytes], awaited: collections.deque[int], leaders: Leaders
) -> Iterable[int]:
    """Make the calls from several connections; yield the number of each as its reply comes.

    `awaited` are processes that are looked at in between; who is in its scope leaves the queue.
    """
    socks = [connect(path) for _ in range(min(CALLERS, len(requests)))]
    todo = iter(enumerate(requests))
    open_calls: dict[int, int] = {}
    with select.epoll() as epoll:
        try:
            for sock in socks:
                epoll.register(sock.fileno(), select.EPOLLIN)
                number, request = next(todo)
                open_calls[sock.fileno()] = number
                os.write(sock.fileno(), request)
            last = time.perf_counter()
            while open_calls:
                ready = epoll.poll(LOOKS_MS / 1000 if awaited else CALL_SECONDS)
                for fd, _ in ready:
                    reply = os.read(fd, RECEIVE_BYTES)
                    number = open_calls.pop(fd)
                    if not reply.endswith(b"\0"):
                        raise Unmeasurable(f"{named(requests[number])}: no whole reply")
                    check(requests[number], reply)
                    following = next(todo, None)
                    if following is not None:
                        open_calls[fd], request = following
                        os.write(fd, request)
                    yield number
                while awaited and leaders.held(awaited[0]):
                    awaited.popleft()
                if ready:
                    last = time.perf_counter()
                elif time.perf_counter() > last + CALL_SECONDS:
                    raise Unmeasurable(f"{named(requests[0])}: no reply within {CALL_SECONDS:.0f} s")
        except OSError as error:
            raise Unmeasurable(f"{named(requests[0])}: {error.strerror}") from None
        finally:
            for sock in socks:
                sock.close()


def list_all(path: str, prefix: str, times: int) -> tuple[list[float], int]:
    """List all machines several times. Return the durations in ms, and how many with the prefix the last list had."""
    mark = f'"name":"{prefix}'.encode()
    samples: list[float] = []
    replies = b""
    with connect(path) as sock:
        for number in range(times + 1):
            begin = time.perf_counter()
            replies = exchange_all(sock.fileno(), LIST_ALL)
            if number:
                samples.append((time.perf_counter() - begin) * 1000)
    return samples, replies.count(mark)


def list_by_name(path: str, leaders: Leaders) -> list[float]:
    """List each machine by its name. Return the durations in µs."""
    requests = [encode("io.systemd.Machine.List", {"name": name}) for name in leaders.names]
    samples: list[float] = []
    with connect(path) as sock:
        for request in requests:
            begin = time.perf_counter_ns()
            exchange(sock.fileno(), request)
            samples.append((time.perf_counter_ns() - begin) / 1e3)
    return samples


def kill_all(path: str, leaders: Leaders) -> float:
    """Kill all leaders. Return the ms until the list has none of them."""
    mark = f'"name":"{leaders.prefix}'.encode()
    with connect(path) as sock:
        begin = time.perf_counter()
        leaders.kill()
        while mark in exchange_all(sock.fileno(), LIST_ALL):
            if time.perf_counter() > begin + GONE_SECONDS:
                raise Unmeasurable(f"machines without a process are listed {GONE_SECONDS:.0f} s later")
            time.sleep(LIST_SECONDS)
        right = (time.perf_counter() - begin) * 1000
    leaders.wait_until_gone()
    return right
