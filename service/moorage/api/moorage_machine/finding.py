"""Finding the machine that something belongs to."""

from __future__ import annotations

from moorage.api.leader import check_number
from moorage.api.moorage_machine import types as wire
from moorage.kernel import process
from moorage.machines import texts
from moorage.machines.lookup import Lookup
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter


def find(call: Call, params: wire.FindIn, registry: Registry, lookup: Lookup) -> Machine | None:
    """Return the machine that a process, a unit, a control group or an invocation belongs to.

    Raises:
        InvalidParameter: not exactly one of them is given, or it is malformed.
        ForeignNumber: the PID is from another PID namespace.
        ProcessGone: the process does not exist.
        OSError: no file descriptor is free.
    """
    given = [name for name in wire.FindIn.__struct_fields__ if getattr(params, name) is not None]
    if len(given) != 1:
        raise InvalidParameter(given[1] if given else "process")
    if params.unit is not None:
        return registry.by_unit(params.unit)
    if params.controlGroup is not None:
        if not texts.is_path(params.controlGroup):
            raise InvalidParameter("controlGroup")
        return registry.by_control_group(params.controlGroup.rstrip("/"))
    if params.invocationId is not None:
        if not texts.is_id128(params.invocationId):
            raise InvalidParameter("invocationId")
        return registry.by_invocation(params.invocationId.replace("-", "").lower())
    if params.processFileDescriptor is not None:
        pidfd = call.take_fd(params.processFileDescriptor, "processFileDescriptor")
        try:
            target = process.process_id(pidfd)
        except process.NotAProcess:
            raise InvalidParameter("processFileDescriptor") from None
        finally:
            call.give_back(pidfd)
    else:
        assert params.process is not None
        check_number(call, params.process)
        try:
            target = process.identify(params.process.pid, params.process.pidfdId, params.process.bootId)
        except process.NotAProcess:
            raise InvalidParameter("process") from None
    return lookup.by_process(target.pid, target.pidfd_id, target.boot_id)
