"""Limits and protections: what decides whether they are in force.

The service manager says yes to what the kernel then rounds, undercuts or ignores (systemd issue 9641: limits that fail
silently). What counts is what the kernel has (cgroup-v2.rst), where no rounding and no missing controller can hide.
`moorage.machines.compared` has the comparison of each property, `moorage.machines.effective` reads what it takes.

Pure: what the kernel has is handed in (`Facts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from moorage.pid1.manager import Json


class Difference(msgspec.Struct, frozen=True):
    """A property whose value in force is not the one asked for.

    Attributes:
        property: its name.
        wanted: the value asked for: a number in the unit of the property, "infinity", a share such as "10%", a set
            such as "0-3", or a device with its value.
        effective: the value in force, in the same form; None if the property has no effect.
        reason: why, in words.
        helper: the helper whose property it is; None for the machine's own.
        slice: the machine's own slice, whose property it is.
    """

    property: str
    wanted: str
    effective: str | None
    reason: str
    helper: str | None = None
    slice: str | None = None


class Kernel(Protocol):
    """The kernel's view of a control group."""

    def read(self, attribute: str) -> str | None:
        """Read an attribute of the group; None if it has none of that name."""
        ...

    def above(self, attribute: str) -> Sequence[tuple[str, str]]:
        """Read an attribute of the groups above that have it: path and text, the nearest first, without the root."""
        ...


class Device(NamedTuple):
    """The device that a path leads to.

    Attributes:
        kind: "block", "char", or "file" for what lies on a file system.
        disk: numbers ("8:0") of the whole disk below it; None if there is none.
    """

    kind: str
    disk: str | None


class Process(NamedTuple):
    """The kernel's view of a service's process.

    Attributes:
        limits: soft and hard resource limits, by their names in /proc/PID/limits; None for no limit.
        nice: nice value.
        oom_score_adj: what is added to its badness (proc_pid_oom_score_adj(5)).
        namespaced: it is in a user namespace of its own; None where that is not known.
    """

    limits: Mapping[str, tuple[int | None, int | None]]
    nice: int
    oom_score_adj: int
    namespaced: bool | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides whether properties of a unit are in force.

    Attributes:
        kernel: of its control group.
        scope: it is a scope.
        helper: it is the service of a helper, which has a sandbox by default.
        user: its service manager is that of a user.
        properties: all that were asked for.
        devices: what the paths among them lead to; None for what leads nowhere. Paths that could not be looked at are
            left out.
        drivers: names of character and block devices, as /proc/devices has them.
        configured: all that the unit has now of those properties that take BPF programs; empty where that was not
            looked at, as of a unit that has just been started.
        programs: number of BPF programs attached to the group, by the number of the attach type (bpf(2)); empty if the
            service manager may load none; None if it is not known.
        oomd: systemd-oomd runs.
        recursive: the hierarchy is mounted with ``memory_recursiveprot``.
        process: the main process of a service; None where there is none, or not yet.
    """

    kernel: Kernel
    scope: bool
    user: bool
    properties: Mapping[str, Json]
    configured: Mapping[str, Json] = {}
    helper: bool = False
    devices: Mapping[str, Device | None] = {}
    drivers: Mapping[str, frozenset[str]] = {}
    programs: Mapping[int, int] | None = None
    oomd: bool = True
    recursive: bool = True
    process: Process | None = None


Comparison: TypeAlias = "Callable[[str, Json, Facts], Iterator[Difference]]"
