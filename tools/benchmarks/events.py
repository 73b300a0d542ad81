"""The end of machines, as it is told: to subscribers of moored, and to a client of machined on the bus."""

import array
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from jeepney.auth import BEGIN, make_auth_external
from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageType

from benchmarks import rows
from benchmarks.apart import Apart, OtherCaller
from benchmarks.machines import GONE_SECONDS, Leaders, register_one_by_one, register_together
from benchmarks.peers import MACHINED, MOORED, Peer, settle
from benchmarks.wire import CALL_SECONDS, Unmeasurable, connect, encode, exchange, quantile

ONES = 20
"""Machines that end one after the other in one round."""
BLOCKS, BLOCK = 4, 25
"""Machines that are registered and stopped with and without subscribers, in turns."""

RECEIVE_BYTES = 1 << 16

SUBSCRIBE = encode("io.moorage.Machine.Subscribe", more=True)
READY = b'"event":"snapshotDone"'
EXITED = b'"event":"exited"'

BUS = "/run/dbus/system_bus_socket"
RULE = "type='signal',interface='org.freedesktop.machine1.Manager',member='MachineRemoved'"
REMOVED = b"MachineRemoved\0"
"""The member of a signal, as it is marshalled."""
ANSWERED = b"NameHasNoOwner\0"
"""Of the error by which the last of some calls is answered."""

Watch = Callable[[int], AbstractContextManager["Watchers"]]
"""Makes so many sockets on which ends are told."""

Figures = Iterator[tuple[str, str, float]]
"""Keys, peers and values."""


class Watchers:
    """Sockets on which something is told by some bytes.

    Attributes:
        messages: of the first socket, as far as they end with a NUL; those of D-Bus do not.
    """

    def __init__(self, socks: Sequence[socket.socket], mark: bytes) -> None:
        self.messages = 0
        self._mark = mark
        self._told = {sock.fileno(): 0 for sock in socks}
        self._tails = dict.fromkeys(self._told, b"")
        self._first = socks[0].fileno()

    def wait(self, count: int) -> None:
        """Return when each of them was told that so many times.

        Raises:
            Unmeasurable: it was not.
        """
        waiting = {fd for fd, told in self._told.items() if told < count}
        with select.epoll() as epoll:
            for fd in waiting:
                epoll.register(fd, select.EPOLLIN)
            while waiting:
                ready = epoll.poll(GONE_SECONDS)
                if not ready:
                    raise Unmeasurable(f"{self._mark!r} was not told {count} times")
                for fd, _ in ready:
                    self._receive(fd)
                    if self._told[fd] >= count:
                        waiting.discard(fd)
                        epoll.unregister(fd)
        self._told = {fd: told - count for fd, told in self._told.items()}

    def _receive(self, fd: int) -> None:
        data = os.read(fd, RECEIVE_BYTES)
        if not data:
            raise Unmeasurable("the connection was closed")
        seen = self._tails[fd] + data
        self._told[fd] += seen.count(self._mark)
        self._tails[fd] = seen[1 - len(self._mark) :]
        if fd == self._first:
            self.messages += data.count(b"\0")


@contextmanager
def subscribers(count: int) -> Generator[Watchers]:
    """Subscribe so many times to all events of moored."""
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(MOORED.socket)) for _ in range(count)]
        for sock in socks:
            os.write(sock.fileno(), SUBSCRIBE)
        Watchers(socks, READY).wait(1)
        yield Watchers(socks, EXITED)


@contextmanager
def listeners(count: int) -> Generator[Watchers]:
    """Have the bus send what machined signals of the ends of machines, so many times."""
    with ExitStack() as stack:
        links = [
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            for _ in range(count)
        ]
        for link in links:
            link.settimeout(CALL_SECONDS)
            link.connect(BUS)
            link.sendall(b"\0" + make_auth_external() + BEGIN)
            link.recv(RECEIVE_BYTES)
            link.sendall(
                _call(1, "Hello") + _call(2, "AddMatch", RULE) + _call(3, "GetNameOwner", "nobody.there")
            )
        Watchers(links, ANSWERED).wait(1)
        yield Watchers(links, REMOVED)


def _call(serial: int, member: str, *words: str) -> bytes:
    fields: dict[HeaderFields, str | int] = {
        HeaderFields.path: "/org/freedesktop/DBus",
        HeaderFields.interface: "org.freedesktop.DBus",
        HeaderFields.member: member,
        HeaderFields.destination: "org.freedesktop.DBus",
    }
    if words:
        fields[HeaderFields.signature] = "s" * len(words)
    header = Header(Endianness.little, MessageType.method_call, 0, 1, 0, serial, fields)
    return Message(header, words).serialise(serial)


class Subscribers(Apart):
    """Some who subscribe to all events of moored, and read them."""

    what = "subscribers meanwhile"

    def __init__(self, count: int) -> None:
        self._count = count

    def work(self, stop: int, ready: Callable[[], object]) -> "array.array[float]":
        """See `Apart`."""
        with ExitStack() as stack:
            epoll = stack.enter_context(select.epoll())
            epoll.register(stop, select.EPOLLIN)
            for _ in range(self._count):
                sock = stack.enter_context(connect(MOORED.socket))
                os.write(sock.fileno(), SUBSCRIBE)
                Watchers([sock], READY).wait(1)
                epoll.register(sock.fileno(), select.EPOLLIN)
            ready()
            while True:
                for fd, _ in epoll.poll():
                    if fd == stop:
                        return array.array("d")
                    os.read(fd, RECEIVE_BYTES)

    def take(self, samples: list[float]) -> None:
        """See `Apart`."""


def of_ends(peer: Peer) -> Figures:
    """Measure how long it takes until somebody is told that a machine has ended, and that many have."""
    watch: Watch = {MOORED: subscribers, MACHINED: listeners}[peer]
    with Leaders(ONES) as leaders:
        register_together(peer.socket, leaders)
        settle()
        with watch(1) as told:
            for pid in reversed(leaders.pids.copy()):
                leaders.pids.pop()
                begin = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                told.wait(1)
                yield "exited/1", peer.name, (time.perf_counter() - begin) * 1000
        leaders.wait_until_gone()
    ms, _, _ = _deaths(peer, watch, 1)
    yield f"exited/{rows.DEATHS}", peer.name, ms


def _deaths(
    peer: Peer, watch: Watch, count: int, beside: AbstractContextManager[object] | None = None
) -> tuple[float, float, int]:
    """Kill many leaders at once, which so many are told. Return ms until the last is, ms of CPU, and messages.

    Args:
        peer: has the machines.
        watch: makes those who are told.
        count: of them.
        beside: what else is done meanwhile.
    """
    with Leaders(rows.DEATHS) as leaders:
        register_together(peer.socket, leaders)
        settle()
        with watch(count) as told, beside or nullcontext():
            used, begin = peer.cpu(), time.perf_counter()
            leaders.kill()
            told.wait(rows.DEATHS)
            ms = (time.perf_counter() - begin) * 1000
        settle()
        cpu = peer.cpu() - used
        leaders.wait_until_gone()
    return ms, cpu, told.messages


def of_many() -> Figures:
    """Measure what many subscribers cost, each other and those who are none."""
    one, used_by_one, _ = _deaths(MOORED, subscribers, 1)
    last, used, messages = _deaths(MOORED, subscribers, rows.SUBSCRIBERS)
    yield "many/last", rows.ONE, one
    yield "many/last", MOORED.name, last
    yield "many/cpu", MOORED.name, (used - used_by_one) * 1000 / (messages * (rows.SUBSCRIBERS - 1))
    other = OtherCaller(MOORED.socket)
    _deaths(MOORED, subscribers, rows.SUBSCRIBERS, other)
    yield "many/other", MOORED.name, quantile(other.waits, 0.99)


def of_few() -> Figures:
    """Measure what some subscribers cost those who register and stop machines."""
    for block in range(BLOCKS):
        for few in (True, False) if block % 2 else (False, True):
            peer = MOORED.name if few else rows.ALONE
            with ExitStack() as stack:
                leaders = stack.enter_context(Leaders(BLOCK))
                if few:
                    stack.enter_context(Subscribers(rows.FEW_SUBSCRIBERS))
                yield "few/register", peer, quantile(register_one_by_one(MOORED.socket, leaders).true, 0.5)
                settle()
                sock = stack.enter_context(connect(MOORED.socket))
                taken: list[float] = []
                for request in leaders.terminations():
                    begin = time.perf_counter()
                    exchange(sock.fileno(), request)
                    taken.append((time.perf_counter() - begin) * 1000)
                leaders.wait_until_gone()
                settle()
            yield "few/stop", peer, quantile(taken, 0.5)
