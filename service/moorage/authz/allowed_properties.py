"""What a user without rights may have done to the scope of a machine: the service manager does it as root.

A privilege boundary runs along a manager, not through one. So this is no list of what is dangerous: whatever is not
named here takes the rights of root (``authz/policy.py``), and what is named has been shown to be harmless in the hands
of a hostile user. Each value is so as well when the manager has read it back, with a ``daemon-reload``, from the file
of the unit that it wrote itself: it rounds on the way, and takes what became too small or too large for "no limit".

Named are limits, and weights up to the default, which only take something away from the machine itself; accounting,
which may be switched on; and what its owner can bring about by other means, with as much right:

- ``KillSignal=``, ``SendSIGHUP=``: ``Kill`` sends any signal to all processes of the machine.
- ``RuntimeMaxUSec=``: so does ``Stop``, at any time.
- ``TimeoutStopUSec=``: nothing outlives it, and it is no longer than the default.
- ``OOMPolicy=``: what becomes of the other processes of the machine when one of them is killed.
- ``Delegate=``: without ``User=`` the control group stays root's. Nobody unprivileged can make groups in it; off those
  of whoever else can, the manager keeps its hands, and still kills all that is in them.

Not named, for example: ``KillMode=``, ``SendSIGKILL=`` (a stop that leaves processes, and the name taken),
``CPUQuotaPeriodUSec=`` (longer bursts, at the expense of others), ``MemoryMin=``, ``ManagedOOMPreference=`` (at the
expense of others), all that is relative (``TasksMaxScale=``), ``AllowedCPUs=``, ``DeviceAllow=``, ``BPFProgram=``
(what the kernel does for root only), dependencies on units of others. ``User=`` of a scope is not even set by us: the
manager asserts when such a scope is stopped while it is being started, and a caller could bring that about at every
shutdown.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from moorage.machines.model import TASKS_MAX, Defaults
from moorage.pid1.errors import InvalidProperty
from moorage.pid1.manager import Json

WEIGHT_MAX: Final = 100
"""``CGROUP_WEIGHT_DFL`` of the kernel, what a group has that does not ask: more would be at the expense of others."""

STOP_MAX_USEC: Final = 90_000_000
"""``DefaultTimeoutStopUSec=``, µs: a shutdown waits as long."""

RUNTIME_MAX_USEC: Final = 10 * 365 * 86_400_000_000
"""Ten years, µs. The manager writes it in words, and cannot read back the largest numbers."""

QUOTA_MIN_USEC: Final = 10_000
"""A hundredth of a CPU, in µs of each second. What the manager writes as "0.00%" is no limit when it is read back."""

QUOTA_MAX_USEC: Final = 10_000_000_000
"""Ten thousand CPUs, in µs of each second. Nor is a percentage of more than 31 bits."""

SIGNAL_MAX: Final = 64
"""SIGRTMAX of Linux (signal(7))."""

_UINT64_MAX: Final = 2**64 - 1  # "infinity"


class Values(Protocol):
    """The values that may be set."""

    def allows(self, value: Json) -> bool:
        """Whether a value may be set; one of another type may not."""
        ...

    def __str__(self) -> str:
        """Say which they are."""
        ...


class Range(msgspec.Struct, frozen=True):
    """Integers.

    Attributes:
        least: the smallest.
        most: the largest.
        unlimited: "infinity" may be set as well, as that is the default.
    """

    least: int
    most: int
    unlimited: bool = False

    def allows(self, value: Json) -> bool:
        """Whether a value may be set."""
        if value in ("infinity", _UINT64_MAX):
            return self.unlimited
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        """Say which values may be set."""
        return f"{self.least} to {self.most}" + (", or infinity" if self.unlimited else "")


class Choice(msgspec.Struct, frozen=True):
    """Booleans or words.

    Attributes:
        values: all of them.
    """

    values: Sequence[bool | str]

    def allows(self, value: Json) -> bool:
        """Whether a value may be set: 1 is not true."""
        return isinstance(value, bool | str) and value in self.values

    def __str__(self) -> str:
        """Say which values may be set."""
        return ", ".join(value if isinstance(value, str) else str(value).lower() for value in self.values)


SCOPE: Final[Mapping[str, Values]] = {
    # 0 stands for idle, which is less than 1; infinity for "not set".
    "CPUWeight": Range(0, WEIGHT_MAX, unlimited=True),
    "IOWeight": Range(1, WEIGHT_MAX, unlimited=True),
    "CPUQuotaPerSecUSec": Range(QUOTA_MIN_USEC, QUOTA_MAX_USEC, unlimited=True),
    "MemoryHigh": Range(1, _UINT64_MAX - 1, unlimited=True),
    "MemoryMax": Range(1, _UINT64_MAX - 1, unlimited=True),
    "MemorySwapMax": Range(0, _UINT64_MAX - 1, unlimited=True),
    "TasksMax": Range(1, TASKS_MAX),  # or what the default is, see check()
    "RuntimeMaxUSec": Range(1, RUNTIME_MAX_USEC, unlimited=True),
    # 0 is no limit in unit files, and every reload reads them.
    "TimeoutStopUSec": Range(1, STOP_MAX_USEC),
    "KillSignal": Range(1, SIGNAL_MAX),
    "SendSIGHUP": Choice((False, True)),
    "OOMPolicy": Choice(("continue", "stop", "kill")),
    "Delegate": Choice((False, True)),
    # What a machine uses is not its owner's to hide from the administrator.
    "CPUAccounting": Choice((True,)),
    "IOAccounting": Choice((True,)),
    "IPAccounting": Choice((True,)),
    "MemoryAccounting": Choice((True,)),
    "TasksAccounting": Choice((True,)),
}
"""Properties of the scope of a machine, or of a slice of its own, and what a user may set each of them to."""


def check(
    properties: Mapping[str, Json],
    slice_: str | None,
    uid: int,
    *,
    slice_properties: Mapping[str, Json] | None = None,
    defaults: Defaults = Defaults(),  # noqa: B008 - frozen
) -> None:
    """Check whether a user without rights may have a scope like this.

    Args:
        properties: of the scope, by name.
        slice_: where it goes; None for the default.
        uid: of the user.
        slice_properties: of a slice of its own.
        defaults: what the scope has if the user does not say otherwise: nobody gets out of where the administrator
            wants machines to be, nor beyond the limit that they have there.

    Raises:
        InvalidProperty: the first thing that takes the rights of root.
    """
    for name, value in [*properties.items(), *(slice_properties or {}).items()]:
        values = Range(1, defaults.tasks_max) if name == "TasksMax" else SCOPE.get(name)
        if values is None:
            raise InvalidProperty(name, "setting it takes the rights of root")
        if not values.allows(value):
            raise InvalidProperty(name, f"without the rights of root, it may be {values}")
    if slice_ not in {None, defaults.slice, _slice_of(uid)}:
        raise InvalidProperty(
            "Slice", f"without the rights of root, it may be {defaults.slice}, {_slice_of(uid)}"
        )
    # Below that of all machines, a slice with limits could be in wait for units of others that are to be in one of its
    # name.
    if slice_properties is not None and slice_ != _slice_of(uid):
        raise InvalidProperty(
            "Slice", f"without the rights of root, a machine's own slice is below {_slice_of(uid)}"
        )


def is_below_slice_of(control_group: str, uid: int) -> bool:
    """Whether a control group is a user's: in one of its sessions, or in what its manager keeps."""
    return control_group.startswith(f"/user.slice/{_slice_of(uid)}/")


def _slice_of(uid: int) -> str:
    return f"user-{uid}.slice"  # user-.slice of systemd.special(7)
