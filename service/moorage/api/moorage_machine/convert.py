"""Helpers between the wire and the model."""

from __future__ import annotations

from collections.abc import Sequence

from moorage.api.moorage_machine import types as wire
from moorage.api.requests import process_id
from moorage.machines import model


def specs(helpers: Sequence[wire.Helper] | None) -> tuple[model.HelperSpec, ...]:
    """Return the helpers that a caller wants."""
    return tuple(
        model.HelperSpec(
            name=helper.name,
            exec_start=tuple(helper.execStart),
            type="exec" if helper.type is None else helper.type,
            sockets=tuple(
                model.HelperSocket(socket.name, model.SocketType(socket.type or "stream"), socket.mode)
                for socket in helper.sockets or ()
            ),
            after=tuple(helper.after or ()),
            on_failure=model.HelperFailure(helper.onFailure or model.HelperFailure.ignore),
            restart=helper.restart,
            properties=helper.properties or {},
        )
        for helper in helpers or ()
    )


def status(found: model.HelperStatus) -> wire.HelperStatus:
    """Return the state of a helper as it goes over the wire."""
    return wire.HelperStatus(
        name=found.helper.name,
        unit=found.helper.unit,
        activeState=found.active_state,
        subState=found.sub_state,
        result=found.result,
        mainProcess=process_id(found.main_process),
        invocationId=found.invocation_id or None,
        sockets=list(found.helper.sockets),
    )
