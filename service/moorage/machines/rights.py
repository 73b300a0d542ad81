"""What a caller without rights of its own may have done to units: the service manager does it as root.

Allowed is what takes something away from the caller's own machine, or is of no concern to anybody else; whatever is
not named here is root's to set. What that keeps away, for example: ``User=``, ``Group=``, ``LoadCredential=`` (the
rights of others), ``ExecStartPre=`` with "+" (root's), ``DeviceAllow=``, ``BPFProgram=``, ``IPIngressFilterPath=``
(what the kernel does for root only), ``Slice=``, ``MemoryMin=``, ``MemoryLow=``, ``ManagedOOMPreference=`` (at the
expense of others), ``SendSIGKILL=``, ``SurviveFinalKillSignal=`` (processes that cannot be got rid of), dependencies
on units of others. ``User=`` of a scope is not even set by us: the manager asserts when such a scope is stopped while
it is being started, and a caller could bring that about at every shutdown.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from moorage.pid1.manager import InvalidProperty, Json

MACHINE_SLICE: Final = "machine.slice"
"""Where machines go by default (systemd.special(7))."""

TASKS_MAX: Final = 16384
"""Default limit of tasks, machined's own: the manager's default for a unit is too low for a whole container."""

_LIMITS: Final = frozenset(
    {"CPUWeight", "CPUQuotaPerSecUSec", "IOWeight", "MemoryHigh", "MemoryMax", "MemorySwapMax", "TasksMax",
     "TimeoutStopUSec"}
)  # fmt: skip

SCOPE: Final = _LIMITS | {
    "CPUQuotaPeriodUSec", "RuntimeMaxUSec", "OOMPolicy", "Delegate", "KillMode", "KillSignal", "SendSIGHUP",
    "CPUAccounting", "IOAccounting", "MemoryAccounting", "TasksAccounting", "IPAccounting",
}  # fmt: skip
"""Properties of the scope of a machine. ``Delegate=`` gives nothing without ``User=``, but for software that was
delegated to, or is root in a user namespace by other ways, it keeps the manager's hands off."""

HELPER: Final = _LIMITS | {
    "Environment", "ExecReload", "KillSignal", "TimeoutStartUSec", "RestartUSec", "WatchdogUSec", "NotifyAccess",
    "SyslogIdentifier", "LogLevelMax", "WorkingDirectory", "UMask",
}  # fmt: skip
"""Properties of a helper in the system's manager, where it has a uid of its own: nothing that the manager would read,
write or own for it. Commands run with the helper's own rights."""

CEILINGS: Final[Mapping[str, int]] = {
    # More would be at the expense of the other machines: what the manager gives who does not ask.
    "CPUWeight": 100,
    "IOWeight": 100,
    "TasksMax": TASKS_MAX,
    # A shutdown waits as long: DefaultTimeoutStopUSec=.
    "TimeoutStopUSec": 90_000_000,
}
"""The most that may be set."""


def check_properties(properties: Mapping[str, Json], allowed: frozenset[str], where: str = "") -> None:
    """Check which properties a caller without rights sets. Whether they make sense is the manager's to judge.

    Args:
        properties: names and values.
        allowed: `SCOPE` or `HELPER`.
        where: begins the reason of an error.

    Raises:
        InvalidProperty: one that is not the caller's to set, or not as high.
    """
    for name, value in properties.items():
        if name not in allowed:
            raise InvalidProperty(name, f"{where}only root may set it")
        ceiling = CEILINGS.get(name)
        if ceiling is not None and (value == "infinity" or (isinstance(value, int) and value > ceiling)):
            raise InvalidProperty(name, f"{where}only root may set more than {ceiling}")


def check_slice(slice_: str | None, uid: int) -> None:
    """Check where a caller without rights puts its scope: into the machines' slice, or into its own.

    Raises:
        InvalidProperty: a slice with limits, or favours, that were meant for others.
    """
    if slice_ not in {None, MACHINE_SLICE, _slice_of(uid)}:
        raise InvalidProperty(
            "Slice", f"only root may choose another one than {MACHINE_SLICE} and {_slice_of(uid)}"
        )


def is_below_slice_of(control_group: str, uid: int) -> bool:
    """Whether a control group is a user's: in one of its sessions, or in what its manager keeps."""
    return control_group.startswith(f"/user.slice/{_slice_of(uid)}/")


def _slice_of(uid: int) -> str:
    return f"user-{uid}.slice"  # user-.slice of systemd.special(7)
