"""A control group that does not exist yet: what the service manager would write into it, for dry runs."""

from __future__ import annotations

from collections.abc import Mapping

from moorage.kernel import cgroup
from moorage.machines.compared.cpu import cpu_max
from moorage.machines.compared.values import (
    INFINITY,
    UINT64_MAX,
    set_of_bytes,
    set_of_text,
    set_text,
    whole_pages,
)
from moorage.machines.in_force import above
from moorage.machines.limits import Device
from moorage.pid1.manager import Json
from moorage.pid1.unit_files import QUOTA_STEP_USEC


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
        there = above(self._slice, attribute)
        if self._own_slice is None:
            return there
        name, foreseen = self._own_slice
        text = foreseen.read(attribute)
        return there if text is None else [(f"{self._slice}/{name}", text), *there]

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
        there = above(self._slice, "cgroup.controllers")
        if there and controller in there[0][1].split() and cgroup.attribute(there[0][0], attribute) is None:
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
        effective_above = self.above(f"cpuset.{kind}.effective")
        text = effective_above[0][1] if effective_above else cgroup.attribute("", f"cpuset.{kind}.effective")
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


def _maximum(number: int | None) -> str:
    return "max" if number is None else str(number)
