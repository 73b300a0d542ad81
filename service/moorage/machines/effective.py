"""What is in force of the limits and protections of units: reads the kernel for :mod:`moorage.machines.limits`.

Nothing is read where nothing that could differ was asked for. Nothing here fails a call: what cannot be had in
`LOOK_USEC` is not told.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import trio

from moorage.kernel import cgroup
from moorage.machines.compared.bpf import BPF_TYPES, attached
from moorage.machines.compared.cpu import cpu_max
from moorage.machines.compared.table import COMPARED, differences, paths
from moorage.machines.compared.values import (
    INFINITY,
    UINT64_MAX,
    set_of_bytes,
    set_of_text,
    set_text,
    whole_pages,
)
from moorage.machines.limits import Device, Difference, Facts, Kernel, Process
from moorage.pid1.manager import Json, Manager
from moorage.pid1.oneshot import CAP_BPF, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, ProbeFailed, probe
from moorage.pid1.unit_files import QUOTA_STEP_USEC
from moorage.probes import effective as effective_probe

LOOK_USEC: Final = 5_000_000
"""For how long devices and BPF programs are looked at, µs: as long as the unit that does so may run."""

OOMD: Final = "/system.slice/systemd-oomd.service"
"""Where systemd-oomd lives; there is one for all, in the system's service manager."""

_BEFORE_EXECUTION: Final = ("(", "systemd")
"""How the name of a process begins while the manager prepares it (``rename_process_from_path()`` of systemd)."""

_log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """A unit whose properties are looked at.

    Attributes:
        properties: that were asked for.
        control_group: its path; None if the unit is only rehearsed.
        helper: name of the helper that it is; None for that of the machine.
        main_pid: of a helper.
        slice: name of the machine's own slice that it is.
    """

    properties: Mapping[str, Json]
    control_group: str | None
    helper: str | None = None
    main_pid: int | None = None
    slice: str | None = None


class _Answer(msgspec.Struct):
    devices: dict[str, tuple[str, str | None] | None] = {}
    programs: dict[str, dict[int, int]] = {}


class Group:
    """A control group as it is."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, attribute: str) -> str | None:
        """See :class:`moorage.machines.limits.Kernel`."""
        return cgroup.attribute(self._path, attribute)

    def above(self, attribute: str) -> list[tuple[str, str]]:
        """See :class:`moorage.machines.limits.Kernel`."""
        return _above(self._path.rpartition("/")[0], attribute)


class Foreseen:
    """A control group as it would be: below the slice as that is, with what the service manager would write."""

    def __init__(
        self,
        slice_: str,
        properties: Mapping[str, Json],
        devices: Mapping[str, Device | None],
        own_slice: tuple[str, Foreseen] | None = None,
    ) -> None:
        """Foresee a group.

        Args:
            slice_: that is there, or would be without any properties.
            properties: of the group's unit.
            devices: what the paths among them lead to.
            own_slice: name of a slice between the two, which would come with the unit.
        """
        self._root = cgroup.manager_root()
        self._slice = self._root + slice_path(slice_)
        self._properties = properties
        self._devices = devices
        self._own_slice = own_slice

    def above(self, attribute: str) -> list[tuple[str, str]]:
        """See :class:`moorage.machines.limits.Kernel`."""
        above = _above(self._slice, attribute)
        if self._own_slice is None:
            return above
        name, foreseen = self._own_slice
        text = foreseen.read(attribute)
        return above if text is None else [(f"{self._slice}/{name}", text), *above]

    def read(self, attribute: str) -> str | None:
        """See :class:`moorage.machines.limits.Kernel`.

        Raises:
            ValueError: that cannot be foreseen.
        """
        controllers = cgroup.attribute(self._root, "cgroup.controllers") or ""
        if attribute == "cgroup.controllers":
            return controllers
        controller = attribute.partition(".")[0]
        if controller not in controllers.split():
            return None
        # Where the slice has the controller already, it has all its attributes.
        above = _above(self._slice, "cgroup.controllers")
        if above and controller in above[0][1].split() and cgroup.attribute(above[0][0], attribute) is None:
            return None
        return self._written(attribute)

    def _number(self, name: str, default: int | None) -> int | None:
        value = self._properties.get(name, default)
        if f"{name}Scale" in self._properties or not isinstance(value, int | str | None):
            raise ValueError(name)
        return None if value in (INFINITY, UINT64_MAX) or isinstance(value, str) else value

    def _written(self, attribute: str) -> str:
        match attribute.split("."):
            case ["memory", "min" | "low" as kind]:
                return _maximum(whole_pages(self._number(f"Memory{kind.capitalize()}", 0)))
            case ["memory", "high" | "max" as kind]:
                return _maximum(whole_pages(self._number(f"Memory{kind.capitalize()}", None)))
            case ["memory", "swap" | "zswap" as kind, "max"]:
                name = {"swap": "MemorySwapMax", "zswap": "MemoryZSwapMax"}[kind]
                return _maximum(whole_pages(self._number(name, None)))
            case ["memory", "zswap", "writeback"]:
                return "0" if self._properties.get("MemoryZSwapWriteback") is False else "1"
            case ["memory", "oom", "group"]:
                return "1" if self._properties.get("OOMPolicy") == "kill" else "0"
            case ["memory", "current" | "pressure"]:
                return ""
            case ["pids", "max"]:
                return _maximum(self._number("TasksMax", None))
            case ["cpu", "weight"]:
                return str(self._number("CPUWeight", None) or 100)
            case ["cpu", "idle"]:
                return str(int(self._number("CPUWeight", None) == 0))
            case ["cpu", "max"]:
                quota, period = (self._number(f"CPUQuota{kind}USec", None) for kind in ("PerSec", "Period"))
                return cpu_max(None if quota is None else quota - quota % QUOTA_STEP_USEC, period)
            case ["cpuset", "cpus" | "mems" as kind, *rest] if rest in ([], ["effective"]):
                return self._set(kind, effective=bool(rest))
            case ["io", "weight"]:
                given = self._lines(("IODeviceWeight", ""))
                return "\n".join([f"default {self._number('IOWeight', None) or 100}", *given])
            case ["io", "max"]:
                return "\n".join(self._lines(
                    ("IOReadBandwidthMax", "rbps="), ("IOWriteBandwidthMax", "wbps="), ("IOReadIOPSMax", "riops="),
                    ("IOWriteIOPSMax", "wiops=")
                ))  # fmt: skip
            case ["io", "latency"]:
                return "\n".join(self._lines(("IODeviceLatencyTargetUSec", "target=")))
            case _:
                raise ValueError(attribute)

    def _set(self, kind: str, *, effective: bool) -> str:
        value = self._properties.get({"cpus": "AllowedCPUs", "mems": "AllowedMemoryNodes"}[kind], [])
        wanted = set_of_bytes(value)
        if not effective:
            return set_text(wanted)
        above = self.above(f"cpuset.{kind}.effective")
        text = above[0][1] if above else cgroup.attribute("", f"cpuset.{kind}.effective")
        if text is None:
            raise ValueError(kind)
        there = set_of_text(text)
        return set_text(wanted & there or there)

    def _lines(self, *keys: tuple[str, str]) -> list[str]:
        lines: list[str] = []
        for name, key in keys:
            value = self._properties.get(name)
            for item in value if isinstance(value, list) else ():
                device = (
                    self._devices.get(str(item[0])) if isinstance(item, list) and len(item) == 2 else None
                )
                if device is not None and device.disk is not None and isinstance(item, list):
                    lines.append(f"{device.disk} {key}{item[1]}")
        return lines


def slice_path(name: str) -> str:
    """Return the path of a slice below that of its service manager: each "-" is a level (systemd.slice(5))."""
    parts = name.removesuffix(".slice").split("-") if name != "-.slice" else []
    return "".join(f"/{'-'.join(parts[: number + 1])}.slice" for number in range(len(parts)))


def _above(path: str, attribute: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    while path:
        text = cgroup.attribute(path, attribute)
        if text is not None:
            found.append((path, text))
        path = path.rpartition("/")[0]
    return found


def _maximum(number: int | None) -> str:
    return "max" if number is None else str(number)


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
    answer = await _looked_at(manager, concerned)
    found: list[Difference] = []
    for unit in concerned:
        try:
            found += _of(unit, own, slice_, answer, user=user)
        except Exception:  # noqa: BLE001 - the machine is there: its caller has to be told so
            _log.exception("Failed to tell what is in force in %s, ignoring.", unit.control_group)
    return found


def _of(unit: Unit, own: Unit | None, slice_: str, answer: _Answer, *, user: bool) -> list[Difference]:
    devices = {path: None if device is None else Device(*device) for path, device in answer.devices.items()}
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
        devices=devices,
        drivers=_drivers() if "DeviceAllow" in unit.properties else {},
        programs={} if os.geteuid() != 0 else answer.programs.get(f"{cgroup.ROOT}{unit.control_group}"),
        oomd=oomd is not None and oomd.populated,
        recursive=cgroup.is_recursive(),
        process=None if unit.main_pid is None else _process(unit.main_pid),
    )
    found = differences(facts)
    # What was not there because the group had gone is not told.
    if unit.control_group is not None and cgroup.identity(unit.control_group) != there:
        return []
    return [msgspec.structs.replace(each, helper=unit.helper, slice=unit.slice) for each in found]


async def _looked_at(manager: Manager, units: Sequence[Unit]) -> _Answer:
    """Have a unit look at devices and BPF programs, if any are of concern."""
    wanted = list(dict.fromkeys(path for unit in units for path in paths(unit.properties)))
    # Without privileges the manager loads none (bpf_devices_supported() and its like of systemd).
    groups = [f"{cgroup.ROOT}{unit.control_group}" for unit in units
              if unit.control_group is not None and os.geteuid() == 0 and attached(unit.properties)]  # fmt: skip
    if not wanted and not groups:
        return _Answer()
    question = os.memfd_create("question", os.MFD_CLOEXEC)
    try:
        os.pwrite(question, msgspec.json.encode({"paths": wanted, "groups": groups, "types": BPF_TYPES}), 0)
        with trio.fail_after(LOOK_USEC / 1e6):
            answer = await probe(
                manager,
                effective_probe.__file__,
                question,
                "What is in force of the limits of a machine",
                account=None,
                capabilities=CAP_NET_ADMIN | CAP_BPF | CAP_DAC_READ_SEARCH,
                system_calls=("bpf",),
            )
        return msgspec.json.decode(answer, type=_Answer)
    except (ProbeFailed, trio.TooSlowError, msgspec.DecodeError, OSError) as error:
        _log.warning("Failed to look at what is in force, ignoring: %s", error)
        return _Answer()
    finally:
        os.close(question)


def _drivers() -> dict[str, frozenset[str]]:
    """Names of devices by kind, of /proc/devices."""
    found: dict[str, set[str]] = {"char": set(), "block": set()}
    kind = "char"
    for line in Path("/proc/devices").read_text(errors="replace").splitlines():
        if line.startswith(("Character", "Block")):
            kind = "char" if line.startswith("Character") else "block"
        elif len(words := line.split(maxsplit=1)) == 2:
            found[kind].add(words[1])
    return {kind: frozenset(names) for kind, names in found.items()}


def _process(pid: int) -> Process | None:
    """Read what a process has (proc(5)); None if it is gone, or if the manager has not executed its program yet."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
        before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
        score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        fields = after.split()
        namespaced = _is_namespaced(pid, int(fields[1]))
        nice = int(fields[16])
    except (OSError, ValueError, IndexError):
        return None
    if before.partition("(")[2].startswith(_BEFORE_EXECUTION):
        return None
    found: dict[str, tuple[int | None, int | None]] = {}
    for line in limits.splitlines()[1:]:
        soft, hard = line[26:].split()[:2]  # "%-25s %-20s %-20s %-10s"
        found[line[:26].strip()] = _resource(soft), _resource(hard)
    return Process(found, nice, score, namespaced)


def _is_namespaced(pid: int, manager: int) -> bool:
    """Whether a process is in another user namespace than the manager that has started it, by what uids mean there."""
    return Path(f"/proc/{pid}/uid_map").read_text() != Path(f"/proc/{manager}/uid_map").read_text()


def _resource(text: str) -> int | None:
    return None if text == "unlimited" else int(text)
