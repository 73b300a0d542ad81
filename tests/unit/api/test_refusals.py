"""Each front door has an answer for every refusal."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from moorage import errors as replies
from moorage.api.leader import ForeignNumber
from moorage.api.machine_instance import errors as instance
from moorage.api.moorage_machine import errors as ours
from moorage.api.refusals import Table, translated
from moorage.api.systemd_machine import errors as theirs
from moorage.authz.ownership import NotOwned, UnitNotOwned
from moorage.kernel.process import ProcessGone
from moorage.machines import errors
from moorage.machines.metadata import MetadataError, NotAvailable, Unreadable
from moorage.machines.model import Placement
from moorage.pid1 import errors as pid1
from moorage.wire.errors import InvalidParameter, PermissionDenied, System, TimedOut, VarlinkError

TABLES = {
    "io.moorage.Machine": ours.REFUSALS,
    "io.systemd.Machine": theirs.REFUSALS,
    "io.systemd.MachineInstance": instance.REFUSALS,
}

PLACEMENT = Placement("machine-web.scope", slice="machine.slice", invocation_id="1" * 32)

SAMPLES: dict[type[Exception], Exception] = {
    type(error): error
    for error in (
        errors.NameTaken("web", PLACEMENT, ["class"]),
        errors.LeaderTaken("web", None),
        errors.Full(),
        errors.NoPlace(),
        errors.UnitNameTaken("machine-web.scope", "a service"),
        errors.NotUnicode(),
        errors.OutsideUnits(""),
        errors.JobFailed("machine-web.scope", "failed", "timeout"),
        errors.InvalidHelper("[1].name"),
        errors.HelperFailed("tpm", "machine-web-tpm.service", "exit-code", ["no"]),
        errors.HelperLate("tpm", "machine-web-tpm.service", ["not yet"]),
        errors.NoIdMapping("BindPaths"),
        errors.MachineGone("web"),
        errors.NotWhole(),
        errors.RegisteredByUser(),
        errors.PartOfUnit("Freeze"),
        errors.GuestUnreachable("PowerOff", "the machine has no control address"),
        errors.ForeignUnit("SetProperties"),
        errors.MachineBusy("the machine is stopping"),
        errors.TooMuchUnderWay(),
        errors.NoSuchHelper("tpm"),
        errors.NoSuchSubgroup("payload"),
        errors.NotStoppable(),
        errors.TooOld("killing a subgroup", 258),
    )
}


def below(kind: type[Exception]) -> Iterator[type[Exception]]:
    for each in kind.__subclasses__():
        yield each
        yield from below(each)


def named(kinds: Iterator[type[Exception]]) -> list[type[Exception]]:
    return sorted(kinds, key=lambda kind: kind.__name__)


REFUSED = named(below(errors.Refused))


def answer(table: Table, error: Exception) -> VarlinkError:
    with pytest.raises(VarlinkError) as caught, translated(table):
        raise error
    return caught.value


@pytest.mark.parametrize("door", TABLES)
@pytest.mark.parametrize("refusal", REFUSED)
def test_every_refusal_has_a_line(door: str, refusal: type[Exception]) -> None:
    assert refusal in TABLES[door]


@pytest.mark.parametrize("door", TABLES)
@pytest.mark.parametrize("refusal", REFUSED)
def test_the_answer_can_be_sent(door: str, refusal: type[Exception]) -> None:
    error = answer(TABLES[door], SAMPLES[refusal])
    assert error.error.startswith((door, "org.varlink.service.", "io.systemd."))
    assert all(value is not None for value in error.parameters().values())


@pytest.mark.parametrize("door", TABLES)
@pytest.mark.parametrize("kind", [NotOwned, UnitNotOwned, ForeignNumber, ProcessGone, pid1.ManagerError])
def test_what_lies_below_has_a_line_too(door: str, kind: type[Exception]) -> None:
    assert kind in TABLES[door]


@pytest.mark.parametrize("kind", named(below(MetadataError)))
def test_metadata_that_cannot_be_had_has_a_line(kind: type[Exception]) -> None:
    assert kind in theirs.REFUSALS


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            errors.NameTaken("web", PLACEMENT, ["class"]),
            replies.MachineExists("web", "machine-web.scope", "1" * 32, ["class"]),
        ),
        (errors.NameTaken("web", None), replies.MachineExists("web")),
        (errors.NoPlace(), replies.Busy("Register")),
        (errors.OutsideUnits(""), replies.UnitNotOwned("no unit")),
        (errors.OutsideUnits("init.scope"), replies.UnitNotOwned("init.scope")),
        (errors.HelperLate("tpm", "a.service", ["x"]), replies.Timeout("start of a.service", "tpm", ["x"])),
        (errors.InvalidHelper("[0].name"), InvalidParameter("helpers[0].name")),
        (pid1.ManagerTimeout("stop"), replies.Timeout("stop")),
        (pid1.AccessDenied("no"), PermissionDenied()),
        (pid1.NoSuchUnit("a.scope"), replies.ManagerUnavailable("No such unit: a.scope")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_ours_says_what_is_known(error: Exception, expected: VarlinkError) -> None:
    found = answer(ours.REFUSALS, error)
    assert type(found) is type(expected)
    assert found.parameters() == expected.parameters()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.NoPlace(), System.of(errno.ENOSPC)),
        (errors.HelperLate("tpm", "a.service", []), TimedOut()),
        (pid1.ManagerTimeout("stop"), TimedOut()),
        (pid1.UnitBusy("a.scope", "frozen"), System.of(errno.EIO)),
        (pid1.NoSuchUnit("a.scope"), System.of(errno.ESRCH)),
        (NotOwned(1, 2), PermissionDenied()),
        (NotAvailable(), theirs.NotAvailable()),
        (Unreadable("it is damaged", errno.EBADMSG), System.of(errno.EBADMSG)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_theirs_says_what_machined_does(error: Exception, expected: VarlinkError) -> None:
    found = answer(theirs.REFUSALS, error)
    assert type(found) is type(expected)
    assert found.parameters() == expected.parameters()


@pytest.mark.parametrize("table", TABLES.values())
def test_a_bug_is_not_hidden(table: Table) -> None:
    bug: Any = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError), translated(table):
        raise bug
