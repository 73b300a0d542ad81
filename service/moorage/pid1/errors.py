"""What the service manager refuses, or fails to do; methods of `moorage.pid1.manager.Manager` say which they raise."""

from collections.abc import Sequence


class ManagerError(Exception):
    """The service manager did not do what it was asked; always one of the subclasses below."""


class ManagerUnavailable(ManagerError):
    """The manager cannot be reached, is not one we can work with, or went away before it answered.

    Attributes:
        reason: a sentence for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"Service manager unavailable: {reason}")
        self.reason = reason


class ManagerTimeout(ManagerError):
    """The deadline passed first. The operation may have taken effect.

    Attributes:
        operation: what was being done, for the log.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(f"Service manager did not answer in time: {operation}")
        self.operation = operation


class UnitExists(ManagerError):
    """A unit of this name is loaded, or has a file on disk; `Manager.status` tells who holds it."""

    def __init__(self, unit: str) -> None:
        super().__init__(f"Unit {unit} exists already")
        self.unit = unit


class NoSuchUnit(ManagerError):
    """No such unit is loaded, or the process or control group asked for belongs to none.

    Attributes:
        unit: the name; empty when the question was not one about a name.
    """

    def __init__(self, unit: str = "") -> None:
        super().__init__(f"No such unit: {unit}" if unit else "No such unit")
        self.unit = unit


class NoSuchProperty(ManagerError):
    """Units of this type have no property of that name that could be set or read.

    Attributes:
        property: the name.
        nearest: names that could be meant; empty if there are none, or if they are not known.
        owner: the helper that it was for; None for the machine itself.
    """

    def __init__(
        self,
        property: str,  # noqa: A002 - the word of the field
        nearest: Sequence[str] = (),
        owner: str | None = None,
    ) -> None:
        super().__init__(f"No such property: {property}")
        self.property = property
        self.nearest = list(nearest)
        self.owner = owner


class InvalidProperty(ManagerError):
    """The property exists, but not with this value.

    Attributes:
        property: its name.
        reason: a clause that completes "Invalid value of X: …".
        owner: the helper whose property it is; None for one of the machine itself.
    """

    def __init__(self, property: str, reason: str, owner: str | None = None) -> None:  # noqa: A002
        super().__init__(f"Invalid value of {property}: {reason}")
        self.property = property
        self.reason = reason
        self.owner = owner


class AccessDenied(ManagerError):
    """The manager refuses this to us: no right, or its own polkit or SELinux check failed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Service manager denied access: {reason}")
        self.reason = reason


class UnitBusy(ManagerError):
    """The unit is frozen, or has a job that stands in the way: later, or after a thaw, it will work."""

    def __init__(self, unit: str, reason: str) -> None:
        super().__init__(f"Unit {unit} is busy: {reason}")
        self.unit = unit
        self.reason = reason


class FreezerCancelled(UnitBusy):
    """The manager gave up freezing a unit: it was thawed, or seemed to be.

    The manager looks at the control group whenever the kernel reports that it has changed. If that was before the
    order, and not all processes have stopped yet, it takes the unit for one that was thawed
    (``unit_freezer_complete()`` of systemd's src/core/unit.c).
    """


class ManagerRefused(ManagerError):
    """Any other error of the manager.

    Attributes:
        reason: its sentence.
        name: its name of the error, for the log.
    """

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(f"Service manager refused: {reason} ({name})")
        self.reason = reason
        self.name = name
