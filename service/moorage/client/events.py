"""What happens to machines: a class for each kind of event, with its data.

::

    match event:
        case events.MachineNew(data=machine):
            print(machine.unit)
        case events.Exited(name=name, data=verdict):
            print(name, verdict.result)

What a newer service reports beyond them, by its kind or by its data, is a :class:`PlainEvent`.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from moorage.client import types
from moorage.client.types import Event, PlainEvent
from moorage.wire.errors import ProtocolError

T = TypeVar("T")


class Helped(Struct, rename="camel", frozen=True):
    """Which helper an event is about."""

    helper: str


class Failure(Struct, rename="camel", frozen=True, kw_only=True):
    """Which helper has failed, and the result of its unit."""

    helper: str
    result: str | None = None


class Refusal(Struct, rename="camel", frozen=True):
    """What the caller of Register was told: the full name of an error, and its parameters."""

    error: str
    parameters: dict[str, Any] = {}


class LeaderEnd(Struct, rename="camel", frozen=True, kw_only=True):
    """How a leader ended. None: it is not known."""

    status: int | None = None
    signal: int | None = None


class Request(Struct, rename="camel", frozen=True):
    """On whose behalf a machine is stopped: caller, lease, helper, manager or unknown."""

    by: str


class Left(Struct, rename="camel", frozen=True):
    """PIDs of the processes left; None if they are too many, or not known."""

    pids: list[int] | None = None


class Changed(Struct, rename="camel", frozen=True, kw_only=True):
    """Properties that were set.

    Attributes:
        properties: those, for root and whoever registered the machine.
        differences: between what was requested and what is in force.
        helper: whose they are, if not the machine's.
    """

    properties: dict[str, Any] | None = None
    differences: list[types.Difference] | None = None
    helper: str | None = None


class Count(Struct, rename="camel", frozen=True):
    """How many."""

    count: int


class Reached(Struct, rename="camel", frozen=True):
    """A limit of the machine's own, and how often it was reached since that was last told.

    Attributes:
        resource: memoryHigh, memoryMax or tasksMax.
        count: how often.
    """

    resource: str
    count: int


class Killed(Struct, rename="camel", frozen=True, kw_only=True):
    """Processes that were killed for lack of memory since that was last told. None: it is not known.

    Attributes:
        by: kernel or oomd.
        count: how many.
        control_group: for whose limit the kernel did.
    """

    by: str
    count: int | None = None
    control_group: str | None = None


class Machine(Event, frozen=True, kw_only=True):
    """Only in a snapshot: a machine that exists."""

    data: types.Machine


class SnapshotDone(Event, frozen=True, kw_only=True):
    """The end of a snapshot."""


class MachineNew(Event, frozen=True, kw_only=True):
    """A machine is registered."""

    data: types.Machine


class RegistrationFailed(Event, frozen=True, kw_only=True):
    """A machine was not registered. Nothing is left of it."""

    data: Refusal


class LeaderExited(Event, frozen=True, kw_only=True):
    """The leader has ended."""

    data: LeaderEnd = LeaderEnd()


class Empty(Event, frozen=True, kw_only=True):
    """The last process has left, and none came since."""


class HelperStarted(Event, frozen=True, kw_only=True):
    """A helper was added. Those that a machine is registered with are in :class:`MachineNew`."""

    data: Helped


class HelperRestarted(Event, frozen=True, kw_only=True):
    """The service manager has started a helper again."""

    data: Helped


class HelperReloaded(Event, frozen=True, kw_only=True):
    """A helper was reloaded."""

    data: Helped


class HelperRemoved(Event, frozen=True, kw_only=True):
    """A helper was removed."""

    data: Helped


class HelperFailed(Event, frozen=True, kw_only=True):
    """A helper has failed."""

    data: Failure


class Stopping(Event, frozen=True, kw_only=True):
    """The machine is being stopped."""

    data: Request


class Lingering(Event, frozen=True, kw_only=True):
    """The machine was stopped, and processes are left."""

    data: Left = Left()


class Frozen(Event, frozen=True, kw_only=True):
    """All of its processes were suspended."""


class Thawed(Event, frozen=True, kw_only=True):
    """Its processes were resumed."""


class PropertiesChanged(Event, frozen=True, kw_only=True):
    """Properties were set."""

    data: Changed = Changed()


class LimitReached(Event, frozen=True, kw_only=True):
    """A limit was reached."""

    data: Reached


class OomKill(Event, frozen=True, kw_only=True):
    """Processes were killed for lack of memory."""

    data: Killed


class Exited(Event, frozen=True, kw_only=True):
    """The machine has ended."""

    data: types.Verdict


class Forgotten(Event, frozen=True, kw_only=True):
    """Its record was dropped; its unit may go on."""


class LeaseLost(Event, frozen=True, kw_only=True):
    """The connection that held the machine has ended: it is stopped."""


class LeaseResumed(Event, frozen=True, kw_only=True):
    """Another connection holds the machine, after a restart of the service."""


class Published(Event, frozen=True, kw_only=True):
    """machined has it, too."""


class Unpublished(Event, frozen=True, kw_only=True):
    """machined has it no more."""


class Lost(Event, frozen=True, kw_only=True):
    """Events were not reported, as they were not read in time."""

    data: Count


KINDS: Final[dict[str, type[Event]]] = {
    kind.__name__[0].lower() + kind.__name__[1:]: kind
    for kind in Event.__subclasses__()
    if kind is not PlainEvent
}
"""The class of each kind of event."""


class _Kind(Struct):
    event: str


def decoded(text: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode an event, or a part of it.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the reply is no event: {error}") from None


def event_of(text: bytes | msgspec.Raw) -> Event:
    """Return an event as an instance of the class of its kind; see the module for one that is not known.

    Raises:
        ProtocolError: it is not an event.
    """
    kind = KINDS.get(decoded(text, _Kind).event, PlainEvent)
    try:
        return decoded(text, kind)
    except ProtocolError:
        if kind is PlainEvent:
            raise
        return decoded(text, PlainEvent)  # of a newer service


__all__ = [
    "Changed",
    "Count",
    "Empty",
    "Event",
    "Exited",
    "Failure",
    "Forgotten",
    "Frozen",
    "Helped",
    "HelperFailed",
    "HelperReloaded",
    "HelperRemoved",
    "HelperRestarted",
    "HelperStarted",
    "Killed",
    "LeaderEnd",
    "LeaderExited",
    "LeaseLost",
    "LeaseResumed",
    "Left",
    "LimitReached",
    "Lingering",
    "Lost",
    "Machine",
    "MachineNew",
    "OomKill",
    "PlainEvent",
    "PropertiesChanged",
    "Published",
    "Reached",
    "Refusal",
    "RegistrationFailed",
    "Request",
    "SnapshotDone",
    "Stopping",
    "Thawed",
    "Unpublished",
    "event_of",
]
