"""Handlers of io.systemd.MachineInstance: what is called at the control socket of one machine.

Which machine that is, the socket says (:attr:`moorage.wire.call.Call.about`). What each call means, and who may make
it, is what the call of io.moorage.Machine that does the same means there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from moorage.api.calls import Authority, managed, permit
from moorage.api.descriptions import load_description
from moorage.api.machine_instance.errors import REFUSALS, NotConnected, NotSupported
from moorage.api.machine_instance.types import (
    AddStorageIn,
    DescribeOut,
    EventOut,
    RemoveStorageIn,
    ReplaceStorageIn,
    SubscribeEventsIn,
)
from moorage.api.refusals import translated
from moorage.api.systemd_machine.handlers import TERMINATE_SECONDS
from moorage.machines.chronicle import Chronicle
from moorage.machines.events import Kind
from moorage.machines.freezing import FREEZE_SECONDS
from moorage.machines.machine import Machine
from moorage.machines.model import FreezerState, Phase
from moorage.machines.powering import Power
from moorage.machines.services import Services
from moorage.machines.subscriptions import Filter, Subscription
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.message import prepared_reply
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Feed

FILTER_MAX = 64
"""Names of events that one call may be about: twice as many as there are."""

_READY = prepared_reply(EventOut(event="READY"))
_LAST = frozenset({Kind.exited, Kind.forgotten})


class _Event(msgspec.Struct):
    event: str
    invocation_id: str = msgspec.field(name="invocationId", default="")
    data: dict[str, object] | None = None


class _Parameters(msgspec.Struct):
    event: _Event


class _Message(msgspec.Struct):
    """An event as subscribers of io.moorage.Machine are told it."""

    parameters: _Parameters


_decode = msgspec.json.Decoder(_Message).decode


class InstanceFeed(Feed[EventOut]):
    """The events of one machine, until its end."""

    def __init__(
        self,
        chronicle: Chronicle,
        subscription: Subscription,
        machine: Machine,
        wanted: frozenset[str] | None,
    ) -> None:
        self._chronicle = chronicle
        self._subscription = subscription
        self._invocation_id = machine.record.invocation_id
        self._wanted = wanted
        self._ready: list[bytes] = [_READY]
        self._ended = False

    def follow(self, woken: Callable[[], None]) -> None:
        """See `Feed`."""
        self._subscription.woken = woken

    def take(self, room: int) -> Sequence[bytes]:
        """See `Feed`.

        Raises:
            NotConnected: the machine has ended, or was forgotten.
        """
        if self._ended:
            raise NotConnected
        messages, self._ready = self._ready, []
        while not messages and not self._ended:
            found = self._subscription.take(room)
            if not found:
                return ()
            for message in found:
                self._add(message, messages)
        if not messages:
            raise NotConnected
        return messages

    def _add(self, message: bytes, messages: list[bytes]) -> None:
        """Add what one event is to this caller."""
        event = _decode(message[:-1]).parameters.event
        # Events that were lost are of no machine in particular.
        if self._ended or event.invocation_id not in {self._invocation_id, ""}:
            return
        if self._wanted is None or event.event in self._wanted:
            messages.append(prepared_reply(EventOut(event=event.event, data=event.data)))
        self._ended = event.event in _LAST

    def close(self) -> None:
        """See `Feed`."""
        self._chronicle.unsubscribe(self._subscription)


class MachineInstance(Interface):
    """The handlers of io.systemd.MachineInstance."""

    def __init__(self, services: Services, authority: Authority) -> None:
        super().__init__(load_description("io.systemd.MachineInstance"))
        self._services = services
        self._authority = authority

    @method("Terminate")
    async def terminate(self, call: Call, params: Empty) -> None:
        """Stop the machine; reply when it is gone, or after a few seconds."""
        del params
        machine = await self._managed(call)
        with translated(REFUSALS):
            await self._services.control.begin_stop(machine, wait=TERMINATE_SECONDS)

    @method("PowerOff")
    async def power_off(self, call: Call, params: Empty) -> None:
        """Ask the machine to power off; reply when it was asked."""
        del params
        await self._ask(call, Power.off)

    @method("Reboot")
    async def reboot(self, call: Call, params: Empty) -> None:
        """Ask the machine to boot again; reply when it was asked."""
        del params
        await self._ask(call, Power.reboot)

    async def _ask(self, call: Call, power: Power) -> None:
        machine = await self._managed(call)
        with translated(REFUSALS):
            await self._services.powering.ask(machine, power)

    @method("Pause")
    async def pause(self, call: Call, params: Empty) -> None:
        """Freeze the machine; reply when the kernel says that it is."""
        del params
        machine = await self._managed(call)
        with translated(REFUSALS):
            await self._services.freezing.freeze(machine, timeout=FREEZE_SECONDS)

    @method("Resume")
    async def resume(self, call: Call, params: Empty) -> None:
        """Let the machine run again; reply when it does."""
        del params
        machine = await self._managed(call)
        with translated(REFUSALS):
            await self._services.freezing.thaw(machine, timeout=FREEZE_SECONDS)

    @method("Describe")
    def describe(self, call: Call, params: Empty) -> DescribeOut:
        """Return whether the machine runs."""
        del params
        permit(call, self._authority)
        machine = self._machine(call)
        if self._services.looking.freezer(machine) is FreezerState.frozen:
            return DescribeOut(running=False, status="paused")
        phase = machine.phase
        return DescribeOut(running=phase is not Phase.lingering and machine.is_there, status=phase.value)

    @method("SubscribeEvents", requires_more=True)
    def subscribe_events(self, call: Call, params: SubscribeEventsIn) -> Feed[EventOut]:
        """Tell what happens to the machine."""
        permit(call, self._authority)
        machine = self._machine(call)
        if len(params.filter or ()) > FILTER_MAX:
            raise InvalidParameter("filter")
        uid, chronicle = call.peer.uid, self._services.chronicle
        subscription = chronicle.subscribe(
            Filter(frozenset({machine.name})),
            lambda registrant: self._authority.policy.tells_all(uid, registrant),
        )
        # None of them means all, as in systemd-vmspawn.
        return InstanceFeed(chronicle, subscription, machine, frozenset(params.filter or ()) or None)

    @method("AddStorage")
    def add_storage(self, call: Call, params: AddStorageIn) -> None:
        """Refuse: a control group has no devices that could be plugged in."""
        del params
        self._refuse(call)

    @method("RemoveStorage")
    def remove_storage(self, call: Call, params: RemoveStorageIn) -> None:
        """Refuse, likewise."""
        del params
        self._refuse(call)

    @method("ReplaceStorage")
    def replace_storage(self, call: Call, params: ReplaceStorageIn) -> None:
        """Refuse, likewise."""
        del params
        self._refuse(call)

    def _refuse(self, call: Call) -> None:
        permit(call, self._authority)
        raise NotSupported

    def _machine(self, call: Call) -> Machine:
        """Return the machine that a call is about.

        Raises:
            NotConnected: it is gone: the caller was connected before.
        """
        machine = call.about
        assert isinstance(machine, Machine)
        if self._services.registry.get(machine.name) is not machine:
            raise NotConnected
        return machine

    async def _managed(self, call: Call) -> Machine:
        """Return the machine that a call is about, which its caller may manage.

        Raises:
            NotConnected: it is gone.
            VarlinkError: the caller may not.
        """
        return await managed(
            call, self._authority, lambda: self._machine(call), NotConnected(), interactive=False
        )
