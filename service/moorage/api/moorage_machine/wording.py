"""What is told of machines, worded as io.moorage.Machine has it, and ready for the wire."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.refusals import refusal_of
from moorage.api.wire_types import timestamp
from moorage.machines.chronicle import Happened, Messages
from moorage.machines.events import Kind
from moorage.machines.machine import Machine
from moorage.machines.model import FreezerState, HelperStatus, Timestamp
from moorage.wire.errors import System, VarlinkError
from moorage.wire.message import encode_parameters, prepared_reply

SNAPSHOT_KINDS = frozenset({"machine", "snapshotDone", "lost"})
"""Events that only one subscriber is told: they are about the stream itself."""


def message(
    event: str,
    cursor: str,
    at: Timestamp,
    *,
    name: str = "",
    invocation_id: str = "",
    data: msgspec.Struct | Mapping[str, object] | None = None,
) -> bytes:
    """Return an event as it goes over the wire."""
    return prepared_reply(
        wire.EventOut(
            event=wire.Event(
                cursor=cursor,
                event=event,
                name=name,
                invocationId=invocation_id or None,
                timestamp=timestamp(at),
                data=cast("dict[str, Any]", data) or None,
            )
        )
    )


def shown(machine: Machine, helpers: list[HelperStatus], *, whole: bool) -> wire.Machine:
    """Convert a machine without asking anybody.

    Args:
        machine: living or gone.
        helpers: their states.
        whole: include what only root and the registrant may know.
    """
    freezer = FreezerState.frozen if machine.frozen else FreezerState.running
    return convert.machine(
        machine.record, machine.phase, helpers, freezer=freezer, published=machine.published, whole=whole
    )


class Wording:
    """Words events; see :class:`moorage.machines.chronicle.Scribe`."""

    def write(self, happened: Happened) -> Messages:
        """Return the messages about an event."""
        whole, public = _data(happened)

        def worded(data: msgspec.Struct | Mapping[str, object]) -> bytes:
            return message(
                happened.kind,
                happened.cursor,
                happened.at,
                name=happened.name,
                invocation_id=happened.invocation_id,
                data=data,
            )

        told = worded(whole)
        return Messages(told, told if public is whole else worded(public))

    def write_lost(self, cursor: str, at: Timestamp, count: int) -> bytes:
        """Return the message that events were not told; see the protocol."""
        return message("lost", cursor, at, data={"count": count})


_Data = msgspec.Struct | Mapping[str, object]


def _data(happened: Happened) -> tuple[_Data, _Data]:
    """Return what is known of an event: all of it, and what everybody may know; the same object if that is all."""
    machine = happened.machine
    if happened.error is not None:
        return _failure(happened.error)
    if machine is not None and happened.kind is Kind.machine_new:
        identity, helpers = machine.record.identity, list(happened.helpers)
        whole = shown(machine, helpers, whole=True)
        secret = identity.ssh_private_key_path or identity.control_address
        return whole, shown(machine, helpers, whole=False) if secret else whole
    if machine is not None and happened.kind is Kind.exited:
        found = machine.record.verdict
        assert found is not None
        verdict = convert.verdict(found, whole=True)
        return verdict, convert.verdict(found, whole=False) if found.log else verdict
    known = {name: value for name, value in happened.data.items() if value is not None}
    if happened.kind is not Kind.properties_changed:
        return known, known
    # A helper's may be credentials.
    return known, {name: value for name, value in known.items() if name != "properties"}


def _failure(error: Exception) -> tuple[_Data, _Data]:
    refusal = error if isinstance(error, VarlinkError) else refusal_of(error, REFUSALS)
    if refusal is None:  # what is left is a bug, or the kernel's
        number = error.errno if isinstance(error, OSError) else None
        refusal = System.of(number or errno.EIO)
    parameters = msgspec.json.decode(encode_parameters(refusal.parameters()), type=dict[str, object])
    whole = {"error": refusal.error, "parameters": parameters}
    if "log" not in parameters:
        return whole, whole
    public = {name: value for name, value in parameters.items() if name != "log"}
    return whole, {"error": refusal.error, "parameters": public}
