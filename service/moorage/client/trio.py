"""A client of io.moorage.Machine on trio.

::

    async with machine(Register("web", class_="vm", properties={"MemoryMax": 512 << 20})) as web:
        await web.run(["qemu-system-x86_64", "-name", web.machine.unit, ...])
        verdict = await web.wait()

    async with await Client.connect() as moored:
        described = await moored.call(Describe("web"))

    async with subscribe() as happened:
        async for event in happened:
            print(event.event, event.name)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar, Unpack

import trio

from moorage.addresses import default_address
from moorage.client import dialogue
from moorage.client.events import event_of
from moorage.client.leaders import Caller, Leader
from moorage.client.lifecycle import Lifecycle
from moorage.client.methods import Register, Request, StopRequested, Subscribe
from moorage.client.subscription import EventStream, event_stream
from moorage.client.types import Difference, Event, Machine, Verdict
from moorage.launch.command import Settings, Text
from moorage.steps.trio import take
from moorage.wire.patience import CONNECT_SECONDS

T = TypeVar("T")


class Client:
    """One connection to the service. Several tasks may share one: their calls are made one after another.

    A call that is given up, or not answered in time, closes the connection. The method may have been carried out all
    the same.
    """

    def __init__(self, connection: dialogue.Dialogue) -> None:
        self._dialogue = connection
        self._turn = trio.Lock()

    @classmethod
    async def connect(cls, address: str | None = None, *, timeout: float = CONNECT_SECONDS) -> Client:
        """Connect to the service.

        Args:
            address: path of its socket; by default $MOORAGE_ADDRESS, or that of the system's service.
            timeout: seconds.

        Raises:
            OSError: there is no such socket, or we may not connect to it.
            TimedOut: the service does not accept the connection.
        """
        path = default_address() if address is None else address
        return cls(await take(dialogue.connect(path, timeout)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._dialogue.closed

    def close(self) -> None:
        """End the connection; a call under way raises Disconnected. May be called again."""
        self._dialogue.close()

    async def call(self, request: Request[T], *, fds: Sequence[int] = (), timeout: float | None = None) -> T:
        """Call a method.

        Args:
            request: the method, and its parameters.
            fds: file descriptors to send along; they stay the caller's.
            timeout: seconds until the reply must have arrived; by default what the method may take.

        Raises:
            VarlinkError: the service refuses: one of the classes of :mod:`moorage.errors`, or an error of any service.
            Disconnected: the connection has ended.
            TimedOut: no reply arrived in time. The connection has ended.
            ProtocolError: the service broke the protocol. The connection has ended.
        """
        async with self._turn:
            return await take(dialogue.call(self._dialogue, request, fds, timeout))

    def stream(
        self, request: Request[T], *, fds: Sequence[int] = (), timeout: float | None = None
    ) -> Replies[T]:
        """Call a method that sends several replies.

        No other call can be made on this connection before the last of them.

        Args:
            request: the method, and its parameters.
            fds: file descriptors to send along; they stay the caller's.
            timeout: seconds until each reply must have arrived; by default what the method may take.

        Returns:
            An asynchronous iterator. The call is sent when the first reply is requested.
        """
        return Replies(dialogue.requested(self._dialogue, request, fds, timeout, more=True))

    async def machines(self) -> list[Machine]:
        """Return the living machines.

        Raises:
            VarlinkError: as :meth:`call`.
        """
        async with self._turn:
            return await take(dialogue.machines(self._dialogue))


class Replies(Generic[T]):
    """The replies to one call: an asynchronous iterator.

    Leaving its ``async with`` block before the last reply closes the connection: further replies may follow.
    """

    def __init__(self, replies: dialogue.Replies[T]) -> None:
        self._replies = replies

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        reply = await take(self._replies.next())
        if reply is None:
            raise StopAsyncIteration
        return reply

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._replies.close()


class Events:
    """What happens to machines: an asynchronous iterator without an end. Made by :func:`subscribe`.

    An iteration that is cancelled loses nothing: the next one goes on. Leaving the ``async with`` block, or
    :meth:`close`, ends the subscription, and with it the iteration.
    """

    def __init__(self, steps: EventStream) -> None:
        self._steps = steps
        self._turn = trio.Lock()

    @property
    def cursor(self) -> str | None:
        """The position after the last event, to go on from; None before the end of the first snapshot."""
        return self._steps.cursor

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        async with self._turn:
            report = await take(self._steps.next())
        if report is None:
            raise StopAsyncIteration
        return event_of(report)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription. May be called again."""
        self._steps.close()


def subscribe(wanted: Subscribe | None = None, *, address: str | None = None) -> Events:
    """Subscribe to what happens to machines.

    Where the service ends the connection, as at a restart or an upgrade, the subscription connects again and goes on
    after the last event. Where it cannot, as that has left the log, a snapshot comes first, as at the beginning.

    Args:
        wanted: parameters of Subscribe; by default all events, after a snapshot.
        address: path of the service's socket; by default $MOORAGE_ADDRESS, or that of the system's service.

    Returns:
        An asynchronous iterator over events, of the classes in :mod:`moorage.client.events`. It raises CursorExpired
        where the cursor in `wanted` is not good any more, another VarlinkError where the service refuses, and OSError
        or Disconnected where there is no service, or where it has been away for a minute.
    """
    return Events(event_stream(wanted, address))


class Launched:
    """A machine that this program has launched. Made by :func:`machine`."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    @property
    def machine(self) -> Machine:
        """The machine as it was registered: with the names of its unit, of its control group and of its helpers."""
        return self._lifecycle.registered.machine

    @property
    def differences(self) -> list[Difference]:
        """Limits and protections that are not in force as requested."""
        return self._lifecycle.registered.differences

    async def run(self, argv: Sequence[Text], **settings: Unpack[Settings]) -> None:
        """Execute a program as the leader, and wait until that has happened.

        Args:
            argv: program and arguments. A program without a slash is searched for in the PATH of `env`.
            settings: environment, working directory and more; see :class:`~moorage.launch.command.Settings`.

        Raises:
            BadCommand: the arguments make no command; the leader still waits for one.
            StartFailed: the program could not be executed.
            HolderGone: the leader has ended in the meantime.
            TooSlow: the program was not executed in time.
            RuntimeError: the machine had a leader from the start, or runs a program already.
        """
        await take(self._lifecycle.run(argv, settings))

    async def wait(self) -> Verdict:
        """Wait for the end of the leader, stop what it has left behind, and return how the machine ended.

        The service may be restarted or absent meanwhile.

        Raises:
            Forgotten: nobody knows how it ended: somebody has had it forgotten.
            OSError, VarlinkError: the service cannot be asked.
            RuntimeError: this process is the leader.
        """
        return await take(self._lifecycle.wait())

    async def stop(self) -> Verdict:
        """Stop the machine, and return how it ended.

        Raises:
            Forgotten: nobody knows how it ended: somebody has had it forgotten.
            OSError, VarlinkError: the service cannot be asked, or refuses.
        """
        return await take(self._lifecycle.stop())


@asynccontextmanager
async def machine(
    register: Register,
    *,
    leader: Leader | Caller | None = None,
    address: str | None = None,
    complain: Callable[[Exception], None] | None = None,
    stop_requested: Callable[[StopRequested], None] | None = None,
    grace: float | None = None,
) -> AsyncGenerator[Launched]:
    """Register a machine, with its helpers, hold its lease, and leave nothing of it at the end of the block.

    The lease is held by a task, over restarts and upgrades of the service; the machine also ends with this program,
    unless ``register.lease`` is False. Cancellation in the block, or an exception, stops the machine like its end.

    Args:
        register: parameters of Register. The leader and its file descriptor, and by default the lease, are filled in.
        leader: a child process (whatever has a `pid`), or a pidfd. By default a process is started that waits in the
            machine for :meth:`Launched.run`. :data:`~moorage.client.leaders.CALLER` is this process: its machine ends
            when it does, and not with the block.
        address: path of the service's socket; by default $MOORAGE_ADDRESS, or that of the system's service.
        complain: called with the error if a lease that was lost could not be taken again, once after each loss;
            further attempts follow.
        stop_requested: called once, in the task that holds the lease, when somebody has the service stop the machine,
            before its processes are told; it must not block. The program may shut its guest down then: the machine has
            until the deadline to end. Needs a lease.
        grace: how much time the machine needs for that, s; by default 90.

    Raises:
        VarlinkError: the service refuses: one of the classes of :mod:`moorage.errors`, or an error of any service.
            At the end of the block: it could not stop the machine. The leader has been killed then.
        OSError: there is no service.
        ValueError: the leader is not one.
    """
    lifecycle = Lifecycle(register, leader, address, complain, stop_requested, grace)
    await take(lifecycle.begin())
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, lifecycle.keep())
            try:
                yield Launched(lifecycle)
            except BaseException as error:  # noqa: BLE001  # raised below: the nursery would put it into a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        del failure  # its traceback refers to this frame
        await take(lifecycle.end())
