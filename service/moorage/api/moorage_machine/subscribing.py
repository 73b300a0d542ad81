"""Handler of Subscribe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from moorage import errors, names
from moorage.api.calls import permit
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.wording import SNAPSHOT_KINDS, message, shown
from moorage.machines.chronicle import Chronicle
from moorage.machines.events import BadCursor, CursorExpired, Kind
from moorage.machines.machine import Machine
from moorage.machines.subscriptions import Filter, Subscription
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method
from moorage.wire.types import Feed

NAMES_MAX = 1024
"""Names that one subscription, or one Measure, may be about; whoever is interested in more machines is in all."""

KINDS = frozenset(SNAPSHOT_KINDS | set(Kind))


class EventFeed(Feed[wire.EventOut]):
    """A snapshot, where one was asked for, and events."""

    def __init__(self, chronicle: Chronicle, subscription: Subscription, snapshot: Iterator[bytes]) -> None:
        self._chronicle = chronicle
        self._subscription = subscription
        self._snapshot: Iterator[bytes] | None = snapshot

    def follow(self, woken: Callable[[], None]) -> None:
        """See `Feed`."""
        self._subscription.woken = woken

    def take(self, room: int) -> Sequence[bytes]:
        """See `Feed`. Machines are converted one by one, when there is room for them."""
        if self._snapshot is not None:
            if (first := next(self._snapshot, None)) is not None:
                return [first]
            self._snapshot = None
        return self._subscription.take(room)

    def close(self) -> None:
        """See `Feed`."""
        self._chronicle.unsubscribe(self._subscription)


class Subscribing(Handlers):
    """Tells what happens."""

    @method("Subscribe", requires_more=True)
    def subscribe(self, call: Call, params: wire.SubscribeIn) -> Feed[wire.EventOut]:
        """Tell what happens from now on, after a snapshot; or what came after a cursor; or all that is known."""
        permit(call, self.authority)
        wanted = Filter(_names(params.names), _kinds(params.events))
        chronicle, uid = self.services.chronicle, call.peer.uid

        def sees(registrant: int) -> bool:
            return self.authority.policy.tells_all(uid, registrant)

        try:
            if params.oldest and params.cursor is not None:
                raise InvalidParameter("oldest")
            subscription = chronicle.subscribe(
                wanted, sees, cursor=params.cursor, oldest=bool(params.oldest)
            )
        except BadCursor:
            raise InvalidParameter("cursor") from None
        except CursorExpired:
            raise errors.CursorExpired from None
        snapshot: Iterator[bytes] = iter(())
        if params.oldest:
            before, at = chronicle.present(oldest=True)
            snapshot = iter((message("snapshotDone", before, at),))
        elif params.cursor is None:
            snapshot = self._snapshot(wanted, sees)
        return EventFeed(chronicle, subscription, snapshot)

    def _snapshot(self, wanted: Filter, sees: Callable[[int], bool]) -> Iterator[bytes]:
        """Return a message for each machine that there is now, and one that these were all.

        Those that have just ended are among them: their end is told when it has been looked into.
        """
        registry, chronicle = self.services.registry, self.services.chronicle
        partial, at = chronicle.present(partial=True)
        done, _ = chronicle.present()
        machines = [
            machine
            for machine in (*registry.snapshot(), *chronicle.ending)
            if wanted.wants("machine", machine.name)
        ]

        def told(machine: Machine) -> bytes:
            record = machine.record
            statuses = self.services.changing.statuses(machine)
            data = shown(machine, statuses, whole=sees(record.registrant))
            return message(
                "machine", partial, at, name=record.name, invocation_id=record.invocation_id, data=data
            )

        def messages() -> Iterator[bytes]:
            yield from map(told, machines)
            yield message("snapshotDone", done, at)

        return messages()


def _names(wanted: list[str] | None) -> frozenset[str] | None:
    if wanted is None:
        return None
    if not 0 < len(wanted) <= NAMES_MAX:
        raise InvalidParameter("names")
    for number, name in enumerate(wanted):
        if not names.is_machine_name(name):
            raise InvalidParameter(f"names[{number}]")
    return frozenset(wanted)


def _kinds(wanted: list[str] | None) -> frozenset[str] | None:
    if wanted is None:
        return None
    if not wanted:
        raise InvalidParameter("events")
    for number, kind in enumerate(wanted):
        if kind not in KINDS:
            raise InvalidParameter(f"events[{number}]")
    return frozenset(wanted)
