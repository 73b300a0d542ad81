"""Refusals of calls. They have one base, so that each front door has one table for them."""

from __future__ import annotations

from collections.abc import Sequence

from moorage.machines.model import Placement
from moorage.pid1.errors import ManagerTimeout


class Refused(Exception):
    """A call cannot be carried out, for a reason that its caller can understand. Nothing of it was done."""


class NameTaken(Refused):
    """A machine of that name is registered, or is being registered.

    Attributes:
        name: of the machine.
        placement: where it is; None while it is still being registered.
        differs: parameters in which a repeated call of the same caller differs from the first; None for other calls.
    """

    def __init__(self, name: str, placement: Placement | None, differs: Sequence[str] | None = None) -> None:
        super().__init__(f"machine {name} exists")
        self.name = name
        self.placement = placement
        self.differs = differs


class LeaderTaken(Refused):
    """The process is the leader of another machine, or lives in another machine's unit.

    Attributes:
        name: of the other machine.
        placement: where it is; None while it is still being registered.
    """

    def __init__(self, name: str, placement: Placement | None) -> None:
        super().__init__(f"the process belongs to machine {name}")
        self.name = name
        self.placement = placement


class Full(Refused):
    """There are as many machines as one instance keeps, in all or of one uid."""


class NoPlace(Full):
    """No place has become free before the deadline."""


class UnitNameTaken(Refused):
    """The name of the scope is held by something that is no machine of ours.

    Attributes:
        unit: the name.
        holder: what holds it, in words.
    """

    def __init__(self, unit: str, holder: str) -> None:
        super().__init__(f"{unit} is taken by {holder}")
        self.unit = unit
        self.holder = holder


class NotUnicode(Refused):
    """The name of the control group that the process is in is not UTF-8: neither a record nor a reply can have it."""


class OutsideUnits(Refused):
    """The process is in no unit of this service manager that a machine could be.

    Attributes:
        unit: the one that it is in all the same; empty if it is in none.
    """

    def __init__(self, unit: str) -> None:
        super().__init__(f"in {unit or 'no unit'}")
        self.unit = unit


class JobFailed(Refused):
    """The unit was not started, or does not hold the leader.

    Attributes:
        unit: its name.
        job_result: result of the start job; "done" where only the second look failed.
        unit_result: ``Result=`` of the unit.
    """

    def __init__(self, unit: str, job_result: str, unit_result: str | None) -> None:
        super().__init__(f"job for {unit}: {job_result} ({unit_result})")
        self.unit = unit
        self.job_result = job_result
        self.unit_result = unit_result


class InvalidHelper(Refused):
    """A helper cannot be as it is described.

    Attributes:
        field: path of the field within the list of helpers, such as "[1].sockets[0].name".
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"invalid helper: {field}")
        self.field = field


class HelperFailed(Refused):
    """A helper did not start, and with it what was to start with it.

    Attributes:
        helper: its name.
        unit: the unit that failed.
        result: why, as the manager says; None if it does not.
        log: the last lines that it wrote.
    """

    def __init__(self, helper: str, unit: str, result: str | None, log: Sequence[str]) -> None:
        super().__init__(f"helper {helper}: {unit}: {result}")
        self.helper = helper
        self.unit = unit
        self.result = result
        self.log = list(log)


class HelperLate(Refused, ManagerTimeout):
    """A helper was not ready in time.

    Attributes:
        helper: its name.
        log: the last lines that it wrote.
    """

    def __init__(self, helper: str, unit: str, log: Sequence[str]) -> None:
        super().__init__(f"start of {unit}")
        self.helper = helper
        self.log = list(log)


class NoIdMapping(Refused):
    """An id-mapped bind mount is wanted of the service manager.

    Attributes:
        property: by which.
    """

    def __init__(self, property_: str) -> None:
        super().__init__(f"{property_} with idmap")
        self.property = property_


class MachineGone(Refused):
    """The machine has ended, or was forgotten. Its name, and those of its units, may be another one's by now.

    Attributes:
        name: of the machine.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"machine {name} is gone")
        self.name = name


class NotWhole(Refused):
    """The machine is a part of a unit: there is nothing that helpers could be bound to."""


class RegisteredByUser(Refused):
    """Whoever registered the machine had no rights to helpers: root adds none either, to what a user controls."""


class TooMuchUnderWay(Refused):
    """So much is being done with the machine already that nothing more is begun."""

    def __init__(self) -> None:
        super().__init__("too much is under way")


class PartOfUnit(Refused):
    """The machine is a part of a unit: others would have it done to them.

    Attributes:
        operation: what cannot be done.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation} of a part of a unit")
        self.operation = operation


class ForeignUnit(Refused):
    """The machine is in a unit that was not made for it: what is changed of that outlives the machine.

    Attributes:
        operation: what cannot be done.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation} of a unit of others")
        self.operation = operation


class MachineBusy(Refused):
    """Something is done with the machine that stands in the way."""


class NoSuchHelper(Refused):
    """The machine has no helper of this name.

    Attributes:
        helper: the name.
    """

    def __init__(self, helper: str) -> None:
        super().__init__(f"no helper {helper}")
        self.helper = helper


class NoSuchSubgroup(Refused):
    """There is no process in this part of the machine's control group.

    Attributes:
        subgroup: its path, as the caller has written it.
    """

    def __init__(self, subgroup: str) -> None:
        super().__init__(f"no process in {subgroup}")
        self.subgroup = subgroup


class NotStoppable(Refused):
    """The machine has neither a unit of its own nor a living supervisor that could be asked to stop it."""


class GuestUnreachable(Refused):
    """The guest cannot be asked for something.

    Attributes:
        operation: what it was to be asked for.
        reason: a clause that says why.
    """

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"{operation}: {reason}")
        self.operation = operation
        self.reason = reason


class TooOld(Refused):
    """The service manager is too old for an operation.

    Attributes:
        operation: what cannot be done.
        version: of systemd, that could do it.
    """

    def __init__(self, operation: str, version: int) -> None:
        super().__init__(f"{operation} needs systemd {version}")
        self.operation = operation
        self.version = version
