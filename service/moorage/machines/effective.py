"""Limits and protections of units that are in force, alone and compared with those that were requested.

Nothing is read where nothing that could differ was asked for, and nothing here fails a call.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from moorage.kernel import block, cgroup
from moorage.machines import in_force, inspection
from moorage.machines.compared.bpf import attached, device_rules, has_device_program
from moorage.machines.compared.in_effect import in_effect
from moorage.machines.compared.table import COMPARED, differences, paths
from moorage.machines.foreseen import Foreseen
from moorage.machines.in_force import Group
from moorage.machines.in_use import Use, exceeded, use
from moorage.machines.inspection import Found
from moorage.machines.limits import Device, Difference, Facts, Kernel
from moorage.pid1.manager import Json, Manager

OOMD: Final = "/system.slice/systemd-oomd.service"
"""Where systemd-oomd lives; there is one for all, in the system's service manager."""

_log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """A unit whose properties are looked at.

    Attributes:
        properties: that were asked for.
        control_group: its path; None if the unit is only rehearsed.
        helper: name of the helper that it is; None for that of the machine.
        main_pid: of a helper.
        slice: name of the machine's own slice that it is.
        configured: see :class:`moorage.machines.limits.Facts`.
        before: what it used until its properties were changed; None where they were not.
    """

    properties: Mapping[str, Json]
    control_group: str | None
    helper: str | None = None
    main_pid: int | None = None
    slice: str | None = None
    configured: Mapping[str, Json] = {}
    before: Use | None = None


async def compare(manager: Manager, units: Sequence[Unit], slice_: str, *, user: bool) -> list[Difference]:
    """Compare properties that were asked for with what is in force, or would be.

    Args:
        manager: may start a unit that looks at what this service does not see.
        units: those of a machine.
        slice_: that they would be in, or their own slice: what is only rehearsed.
        user: the manager is that of a user.
    """
    own = next((unit for unit in units if unit.slice is not None), None)
    concerned = [
        unit
        for unit in units
        if unit.properties.keys() & COMPARED.keys() or (user and unit.helper is not None)
    ]
    if not concerned:
        return []
    wanted = list(dict.fromkeys(path for unit in concerned for path in paths(unit.properties)))
    # Without privileges the manager loads none (bpf_devices_supported() and its like of systemd).
    groups = [f"{cgroup.ROOT}{unit.control_group}" for unit in concerned
              if unit.control_group is not None and os.geteuid() == 0
              and (attached(unit.properties) or unit.configured)]  # fmt: skip
    answer = await inspection.look(manager, wanted, groups)
    found: list[Difference] = []
    for unit in concerned:
        try:
            found += _of(unit, own, slice_, answer, user=user)
        except Exception:  # noqa: BLE001 - the machine is there: its caller has to be told so
            _log.exception("Failed to tell what is in force in %s, ignoring.", unit.control_group)
    return found


def _of(unit: Unit, own: Unit | None, slice_: str, answer: Found, *, user: bool) -> list[Difference]:
    devices = _devices(answer)
    between: tuple[str, Foreseen] | None = None
    if own is not None and own.slice is not None and own is not unit:
        between = own.slice, Foreseen(slice_, own.properties, devices)
    there = None if unit.control_group is None else cgroup.identity(unit.control_group)
    if unit.control_group is None:
        kernel: Kernel = Foreseen(slice_, unit.properties, devices, between)
    elif there is None:
        return []  # a helper that has done its work, or a machine that ended at once
    else:
        kernel = Group(unit.control_group)
    oomd = cgroup.events(OOMD)
    facts = Facts(
        kernel=kernel,
        scope=unit.helper is None and unit.slice is None,
        helper=unit.helper is not None,
        user=user,
        properties=unit.properties,
        configured=unit.configured,
        devices=devices,
        drivers=in_force.drivers() if "DeviceAllow" in unit.properties else {},
        programs={} if os.geteuid() != 0 else answer.programs.get(f"{cgroup.ROOT}{unit.control_group}"),
        oomd=oomd is not None and oomd.populated,
        recursive=cgroup.is_recursive(),
        process=None if unit.main_pid is None else in_force.process(unit.main_pid),
    )
    found = differences(facts)
    if unit.before is not None:
        found += _exceeded(unit, unit.before, kernel)
    # What was not there because the group had gone is not told.
    if unit.control_group is not None and cgroup.identity(unit.control_group) != there:
        return []
    return [msgspec.structs.replace(each, helper=unit.helper, slice=unit.slice) for each in found]


def _exceeded(unit: Unit, before: Use, kernel: Kernel) -> list[Difference]:
    now = None if unit.control_group is None else use(unit.properties, kernel)
    try:
        return list(exceeded(unit.properties, before, now, kernel))
    except ValueError:  # what was asked for is a share, whose size is the manager's to compute
        return []


class InForce(NamedTuple):
    """The limits of a unit that are in force.

    Attributes:
        limits: values of properties, the ceilings of the groups above included; without those that are no limit, and
            those of which nothing is known.
        devices: rules for the devices that may be opened; None where any may be, or where that is not known.
    """

    limits: dict[str, Json]
    devices: list[str] | None


async def in_force_of(
    manager: Manager, control_group: str, configured: Mapping[str, Json], *, user: bool
) -> InForce:
    """Return what is in force of the limits of a unit.

    Args:
        manager: may start a unit that looks at what this service does not see.
        control_group: of the unit.
        configured: values of its properties.
        user: the manager is that of a user.
    """
    facts = Facts(kernel=Group(control_group), scope=True, user=user, properties=configured,
                  recursive=cgroup.is_recursive())  # fmt: skip
    limits = in_effect(facts, _device)
    policy, allowed = configured.get("DevicePolicy"), configured.get("DeviceAllow")
    if not isinstance(policy, str):
        return InForce(limits, None)
    if os.geteuid() != 0:  # who has no privileges may load no program
        return InForce({**limits, "DevicePolicy": "auto"}, None)
    if policy == "auto" and not allowed:
        return InForce(limits, None)  # the program of earlier rules may be there still
    groups = [f"{cgroup.ROOT}{each}" for each in (control_group, *_above(control_group))]
    answer = await inspection.look(manager, paths({"DeviceAllow": allowed}), groups)
    programs = [answer.programs.get(each) for each in groups]
    if programs[0] is None:
        return InForce(limits, None)
    if not has_device_program(programs[0]):
        return InForce({**limits, "DevicePolicy": "auto"}, None)
    limits["DevicePolicy"] = policy
    if any(each is None or has_device_program(each) for each in programs[1:]):
        return InForce(limits, None)  # a slice above has rules of its own
    known = msgspec.structs.replace(facts, devices=_devices(answer), drivers=in_force.drivers())
    return InForce(limits, device_rules(policy, allowed, known))


def _above(control_group: str) -> list[str]:
    """Return the paths of the groups above one, without the root."""
    parts = control_group.split("/")[1:-1]
    return ["/" + "/".join(parts[: number + 1]) for number in range(len(parts))]


def _device(numbers: str) -> str:
    """Return the path of a block device by its numbers."""
    name = block.name_of(numbers)
    return f"/dev/block/{numbers}" if name is None else f"/dev/{name}"


def _devices(answer: Found) -> dict[str, Device | None]:
    return {path: None if device is None else Device(*device) for path, device in answer.devices.items()}
