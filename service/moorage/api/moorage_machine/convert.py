"""Conversion between the wire and the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import asdict

from moorage.api.leader import Leader
from moorage.api.moorage_machine import types as wire
from moorage.api.wire_types import process_id, timestamp
from moorage.configuration.current import Entry
from moorage.machines import model
from moorage.machines.accounting import Accounting
from moorage.machines.limits import Difference
from moorage.machines.use import Pressure, PressureLine


def registration(
    params: wire.RegisterIn,
    registrant: int,
    identity: model.Identity,
    leader: Leader,
    defaults: model.Defaults,
    *,
    privileged: bool,
) -> model.Registration:
    """Convert a registration."""
    return model.Registration(
        name=params.name,
        class_=model.MachineClass(params.class_),
        registrant=registrant,
        leader=leader.id,
        leader_pidfd=leader.pidfd,
        leader_uid=leader.uid,
        supervisor=None if params.supervised is False else leader.supervisor,
        allocate_unit=params.allocateUnit is not False,
        identity=identity,
        slice=params.slice,
        description=params.description,
        properties=params.properties or {},
        slice_properties=params.sliceProperties,
        helpers=specs(params.helpers),
        exec_stop=tuple(params.execStop or ()),
        exec_stop_timeout_usec=params.execStopTimeoutUSec,
        lease=bool(params.lease),
        dry_run=bool(params.dryRun),
        privileged=privileged,
        defaults=defaults,
    )


def specs(helpers: Sequence[wire.Helper] | None) -> tuple[model.HelperSpec, ...]:
    """Convert the helpers that a caller asks for."""
    return tuple(
        model.HelperSpec(
            name=helper.name,
            exec_start=tuple(helper.execStart),
            type="exec" if helper.type is None else helper.type,
            sockets=tuple(
                model.HelperSocket(socket.name, socket.type or model.SocketType.stream, socket.mode)
                for socket in helper.sockets or ()
            ),
            after=tuple(helper.after or ()),
            on_failure=helper.onFailure or model.HelperFailure.ignore,
            restart=helper.restart,
            properties=helper.properties or {},
        )
        for helper in helpers or ()
    )


def helper_status(found: model.HelperStatus) -> wire.HelperStatus:
    """Convert the state of a helper."""
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


def options(entries: Iterable[Entry], *, sources: bool) -> list[wire.Option]:
    """Convert the options of the configuration.

    Args:
        entries: all of them.
        sources: include where their values come from.
    """
    found: list[wire.Option] = []
    for entry in entries:
        after, source = entry.after or (None, None)
        found.append(
            wire.Option(
                name=entry.name,
                value=entry.value,
                default=entry.default,
                source=entry.source if sources else None,
                afterRestart=after,
                afterRestartSource=source if sources else None,
            )
        )
    return found


def differences(found: Iterable[Difference]) -> list[wire.Difference]:
    """Convert differences."""
    return [wire.Difference(**asdict(each)) for each in found]


def machine(
    record: model.Record,
    phase: model.Phase,
    helpers: Iterable[model.HelperStatus],
    *,
    freezer: model.FreezerState,
    published: bool | None,
    whole: bool,
) -> wire.Machine:
    """Convert a machine.

    Args:
        record: its record.
        phase: its phase.
        helpers: the states of its helpers.
        freezer: the state of its freezer.
        published: machined lists it too; None where it has not been asked.
        whole: include what only root and the registrant may know.
    """
    placement, identity = record.placement, record.identity
    return wire.Machine(
        name=record.name,
        class_=wire.MachineClass(record.class_),
        phase=phase,
        freezer=freezer,
        id=identity.id,
        service=identity.service,
        uid=record.registrant,
        unit=placement.unit,
        subgroup=placement.subgroup,
        slice=placement.slice,
        controlGroup=placement.control_group,
        controlGroupId=placement.control_group_id,
        invocationId=placement.invocation_id,
        leader=process_id(record.leader),
        supervisor=process_id(record.supervisor),
        runtimeDirectory=record.runtime_directory,
        rootDirectory=identity.root_directory,
        ifIndices=list(identity.if_indices),
        vSockCid=identity.vsock_cid,
        sshAddress=identity.ssh_address,
        sshPrivateKeyPath=identity.ssh_private_key_path if whole else None,
        controlAddress=identity.control_address if whole else None,
        timestamp=timestamp(record.timestamp),
        helpers=[helper_status(helper) for helper in helpers],
        verdict=None if record.verdict is None else verdict(record.verdict, whole=whole),
        origin=record.origin,
        published=published if record.verdict is None else None,
    )


def verdict(found: model.Verdict, *, whole: bool) -> wire.Verdict:
    """Convert a verdict.

    Args:
        found: how a machine ended.
        whole: include what only root and the registrant may know.
    """
    return wire.Verdict(
        result=found.result,
        exitedAt=timestamp(found.exited_at),
        cause=found.cause,
        oomKilled=found.oom_killed,
        oomControlGroup=found.oom_group,
        leaderStatus=found.leader_status,
        leaderSignal=found.leader_signal,
        helper=found.helper,
        helperResult=found.helper_result,
        log=(list(found.log) or None) if whole else None,
        accounting=accounting(found.accounting),
    )


def pressures(found: Mapping[str, Pressure]) -> wire.Pressures | None:
    """Convert the pressure of resources, by their names; None of none."""
    return wire.Pressures(**{name: _pressure(each) for name, each in found.items()}) if found else None


def _pressure(found: Pressure) -> wire.Pressure:
    return wire.Pressure(some=_pressure_line(found.some), full=_pressure_line(found.full))


def _pressure_line(found: PressureLine | None) -> wire.PressureLine | None:
    if found is None:
        return None
    return wire.PressureLine(
        avg10=found.avg10, avg60=found.avg60, avg300=found.avg300, totalUSec=found.total_usec
    )


def accounting(found: Accounting) -> wire.Accounting:
    """Convert counters."""
    return wire.Accounting(
        cpuUsageNSec=found.cpu_usage_nsec,
        cpuUserNSec=found.cpu_user_nsec,
        cpuSystemNSec=found.cpu_system_nsec,
        cpuThrottledNSec=found.cpu_throttled_nsec,
        memoryCurrent=found.memory_current,
        memoryPeak=found.memory_peak,
        memorySwapCurrent=found.memory_swap_current,
        memorySwapPeak=found.memory_swap_peak,
        tasksCurrent=found.tasks_current,
        tasksPeak=found.tasks_peak,
        ioReadBytes=found.io_read_bytes,
        ioWriteBytes=found.io_write_bytes,
        ioReadOperations=found.io_read_operations,
        ioWriteOperations=found.io_write_operations,
        ipIngressBytes=found.ip_ingress_bytes,
        ipIngressPackets=found.ip_ingress_packets,
        ipEgressBytes=found.ip_egress_bytes,
        ipEgressPackets=found.ip_egress_packets,
        oomKills=found.oom_kills,
        managedOomKills=found.managed_oom_kills,
    )
