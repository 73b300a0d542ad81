"""A machine from its registration to its end, as steps (:mod:`moorage.steps.waits`).

``machine()`` of :mod:`moorage.client.trio`, :mod:`moorage.client.asyncio` and :mod:`moorage.client.blocking` takes
them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, TypeVar

from msgspec.structs import replace

from moorage import errors
from moorage.addresses import default_address
from moorage.client.dialogue import call, call_at, connect
from moorage.client.leaders import Caller, Leader, named, open_leader
from moorage.client.lease import Lease, Notice
from moorage.client.methods import AwaitStop, Describe, Register, Registered, Request, Stop, StopRequested
from moorage.client.types import Machine, Phase, Verdict
from moorage.launch.command import Settings, Text
from moorage.launch.errors import TooSlow
from moorage.launch.payload import END_SECONDS, Held, hold
from moorage.steps.waits import Steps, Wait, pause, shielded
from moorage.wire.errors import Disconnected

T = TypeVar("T")

AFTERMATH_SECONDS: Final = 1.0
"""For how long processes may take to end with their leader before they count as left behind, s: the kernel hangs up on
all that have its terminal, and on a loaded host they run a moment later than whoever waits for the leader."""

LOOK_SECONDS: Final = 0.02
"""Pause between two looks whether they have ended, s."""

LOOK_SECONDS_MAX: Final = 1.0
"""The same of a machine that has outlived SIGKILL: each pause is twice the one before, up to this."""

ABSENT_SECONDS: Final = 60.0
"""For how long the service may be absent while somebody waits for a verdict, s: an upgrade of the host's packages may
stop it, and start it a minute later."""

END_ABSENT_SECONDS: Final = 5.0
"""The same while a machine is to be stopped: a restart takes less, and a person may have pressed Ctrl-C."""

ABSENT_LOOK_SECONDS: Final = 0.5
"""Pause between two attempts to reach it, s."""


class Forgotten(Exception):
    """The machine was forgotten (Forget), or its verdict is no longer kept: nobody knows how it ended."""


class Lifecycle:
    """A machine that a program launches, and leaves nothing of.

    Args:
        register: parameters of Register, without the leader.
        leader: a child or a pidfd; None to start a process that waits for :meth:`run`; CALLER for this process, whose
            machine ends when it does.
        address: path of the service's socket; see :func:`~moorage.addresses.default_address`.
        complain: see :class:`~moorage.client.lease.Lease`.
        stop_requested: called once, where the lease is kept, when the machine is to be stopped, before it is.
        grace: how much time the machine needs to end then, s.
    """

    def __init__(
        self,
        register: Register,
        leader: Leader | Caller | None = None,
        address: str | None = None,
        complain: Callable[[Exception], None] | None = None,
        stop_requested: Callable[[StopRequested], None] | None = None,
        grace: float | None = None,
    ) -> None:
        self._stop_requested = stop_requested
        self._grace_usec = None if grace is None else round(grace * 1e6)
        self._leader = leader
        self._address = default_address() if address is None else address
        self._complain = complain
        # The end of this process is that of a machine of which it is the leader.
        lease = leader is not Caller.CALLER and register.lease is not False
        self._register = replace(register, lease=lease or None)
        self._held: Held | None = None
        self._pidfd: int | None = None
        self._lease: Lease | None = None
        self._registered: Registered | None = None
        self._over = False

    @property
    def registered(self) -> Registered:
        """The reply of Register."""
        assert self._registered is not None
        return self._registered

    def begin(self) -> Steps[None]:
        """Start the leader if there is none, and register it.

        Raises:
            VarlinkError: the service refuses. Nothing is left.
            OSError: there is no service.
            ValueError: the leader is not one.
        """
        try:
            yield from self._open()
            fds: Sequence[int] = ()
            if self._pidfd is not None:
                name = named(self._pidfd)
                fds = () if name else (self._pidfd,)
                self._register = replace(
                    self._register, leader=name, leader_file_descriptor=None if name else 0
                )
            dialogue = yield from connect(self._address)
            try:
                self._registered = yield from call(dialogue, self._register, fds)
            except BaseException:
                dialogue.close()
                raise
            self._lease = Lease(self._address, dialogue, self._register, fds, self._complain, self._notice())
            yield from self._lease.listen()
        except BaseException:
            yield from self._close()
            raise

    def _notice(self) -> Notice | None:
        if self._stop_requested is None:
            return None
        machine = self.registered.machine
        request = AwaitStop(
            machine.name, if_invocation_id=machine.invocation_id, grace_usec=self._grace_usec
        )
        return Notice(request, self._stop_requested)

    def _open(self) -> Steps[None]:
        if self._leader is None:
            self._held = yield from hold()
            self._pidfd = self._held.pidfd
        elif not isinstance(self._leader, Caller):
            self._pidfd = open_leader(self._leader)

    def keep(self) -> Steps[None]:
        """Hold the lease; runs beside all else, until it is cancelled or the leader has ended."""
        if self._register.lease and self._lease is not None:
            yield from self._lease.keep()

    def run(self, argv: Sequence[Text], settings: Settings) -> Steps[None]:
        """Execute a program as the leader that was held.

        Raises:
            RuntimeError: the machine had a leader from the start, or runs a program already.
        """
        if self._held is None:
            raise RuntimeError("the machine has a leader that runs already")
        yield from self._held.run(argv, settings)

    def wait(self) -> Steps[Verdict]:
        """Wait for the end of the leader, stop what it has left behind, and return the verdict.

        Raises:
            Forgotten: nobody knows how the machine ended.
            RuntimeError: this process is the leader.
            OSError, VarlinkError: the service cannot be asked for the verdict.
        """
        if self._pidfd is None:
            raise RuntimeError("this process is the leader, and cannot outlive it")
        if self._held is None:
            yield from _ended(self._pidfd)
        else:
            yield from self._held.wait()  # the service learns its status when it has been waited for
        until, look = monotonic() + AFTERMATH_SECONDS, LOOK_SECONDS
        while (found := (yield from self._described())).verdict is None:
            if found.phase == Phase.RUNNING and monotonic() >= until:
                return (yield from self.stop())
            yield from pause(look)
            look = look if found.phase == Phase.RUNNING else min(2 * look, LOOK_SECONDS_MAX)
        self._over = True
        return self._completed(found.verdict)

    def stop(self) -> Steps[Verdict]:
        """Stop the machine, and return its verdict.

        Raises:
            Forgotten: nobody knows how the machine ended.
            OSError, VarlinkError: the service cannot be asked, or refuses.
        """
        yield from self._stopped()
        self._over = True
        if self._held is not None:
            yield from self._held.wait()
        verdict = (yield from self._described()).verdict
        if verdict is None:
            raise Forgotten
        return self._completed(verdict)

    def _completed(self, verdict: Verdict) -> Verdict:
        """Add how the leader ended, where we know it and the service does not: only parents do before Linux 6.15."""
        status = None if self._held is None else self._held.status
        if status is None or not verdict.leader_status is verdict.leader_signal is None:
            return verdict
        return (
            replace(verdict, leader_status=status)
            if status >= 0
            else replace(verdict, leader_signal=-status)
        )

    def _stopped(self) -> Steps[None]:
        machine = self.registered.machine
        # Whoever stops it here need not be told of that.
        at_once = None if self._stop_requested is None else 0
        stop = Stop(machine.name, if_invocation_id=machine.invocation_id, insist_after_usec=at_once)
        with contextlib.suppress(errors.NoSuchMachine):  # it has ended
            yield from self._asked(stop, END_ABSENT_SECONDS)

    def _described(self) -> Steps[Machine]:
        """Return this very machine, be it alive or not."""
        machine = self.registered.machine
        try:
            found = (yield from self._asked(Describe(machine.name), ABSENT_SECONDS)).machine
        except errors.NoSuchMachine:
            raise Forgotten from None
        if found.invocation_id != machine.invocation_id:
            raise Forgotten
        return found

    def _asked(self, request: Request[T], seconds: float) -> Steps[T]:
        """Call the service, which may be absent for so many seconds, on a connection of its own."""
        until = monotonic() + seconds
        while True:
            try:
                return (yield from call_at(self._address, request))
            except (OSError, Disconnected):
                if monotonic() >= until:
                    raise
                yield from pause(ABSENT_LOOK_SECONDS)

    def end(self) -> Steps[None]:
        """Leave nothing: stop a machine that has not ended, and end the payload and the lease.

        If the service cannot do it, the leader is killed; the service stops the rest when it is back, unless the
        machine has no lease.

        Raises:
            OSError, VarlinkError: the service could not stop the machine.
        """
        yield from shielded(self._end())

    def _end(self) -> Steps[None]:
        try:
            if not self._over and self._pidfd is not None:
                yield from self._stopped()
        except BaseException:
            assert self._pidfd is not None
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            raise
        finally:
            if self._held is not None:
                with contextlib.suppress(ChildProcessError, TooSlow):
                    yield from self._held.wait(monotonic() + END_SECONDS)
            yield from self._close()

    def _close(self) -> Steps[None]:
        if self._lease is not None:
            self._lease.close()
        if self._held is not None:
            yield from self._held.end()
        elif self._pidfd is not None:
            os.close(self._pidfd)
        self._held = self._pidfd = None


def _ended(pidfd: int) -> Steps[None]:
    watched = os.dup(pidfd)  # others may wait, too
    try:
        yield Wait(watched)
    finally:
        os.close(watched)
