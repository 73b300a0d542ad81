"""Handlers of AwaitStop and PrepareForShutdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moorage import errors
from moorage.api.calls import find_named, permit
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.refusals import translated
from moorage.api.wire_types import Timestamp
from moorage.machines.grace import GRACE_SECONDS_MAX, INSIST_SECONDS, Grace, Waiter
from moorage.machines.machine import Machine
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, PermissionDenied
from moorage.wire.message import prepared_reply
from moorage.wire.method import method
from moorage.wire.types import Empty, Feed


class StopFeed(Feed[wire.AwaitStopOut]):
    """Tells somebody first that it will, and then that a machine is to be stopped; ends with the machine."""

    def __init__(self, grace: Grace, machine: Machine, waiter: Waiter) -> None:
        self._grace = grace
        self._machine = machine
        self._waiter = waiter
        self._begun = False

    def follow(self, woken: Callable[[], None]) -> None:
        """See `Feed`."""
        self._waiter.woken = woken

    def take(self, room: int) -> Sequence[bytes]:
        """See `Feed`.

        Raises:
            NoSuchMachine: it is gone.
        """
        if not self._begun:
            self._begun = True
            return (prepared_reply(wire.AwaitStopOut()),)
        if self._machine.gone.is_set():
            raise errors.NoSuchMachine(self._machine.name)
        period = self._waiter.take(self._machine)
        if period is None:
            return ()
        deadline = Timestamp(monotonic=period.insist_by)
        return (prepared_reply(wire.AwaitStopOut(deadline=deadline, powerOff=period.power_off)),)

    def close(self) -> None:
        """See `Feed`."""
        self._grace.leave(self._machine, self._waiter)


class Awaiting(Handlers):
    """Tells launchers before their machines are stopped."""

    @method("AwaitStop", requires_more=True)
    def await_stop(self, call: Call, params: wire.AwaitStopIn) -> Feed[wire.AwaitStopOut]:
        """Tell when a machine is to be stopped, before it is."""
        grace_usec = INSIST_SECONDS * 1e6 if params.graceUSec is None else params.graceUSec
        if grace_usec > GRACE_SECONDS_MAX * 1e6:
            raise InvalidParameter("graceUSec")
        machine = find_named(self.registry, params.name)
        if machine is None or params.ifInvocationId not in {None, machine.record.invocation_id}:
            raise errors.NoSuchMachine(params.name)
        policy, uid = self.authority.policy, call.peer.uid
        if policy.decide(call.method, uid, machine.record.registrant) is not True:
            raise PermissionDenied
        with translated(REFUSALS):
            waiter = self.services.grace.join(machine, grace_usec / 1e6)
        return StopFeed(self.services.grace, machine, waiter)

    @method("PrepareForShutdown")
    async def prepare_for_shutdown(self, call: Call, params: Empty) -> None:
        """Have those told who wait for stops that are under way; reply when these machines had their time."""
        permit(call, self.authority)
        await self.services.grace.before_shutdown()
