"""Errors of the wire as exceptions, there and back."""

import errno
from dataclasses import dataclass

import pytest

from moorage.wire.errors import (
    KNOWN_ERRORS,
    ExpectedMore,
    InvalidParameter,
    RemoteError,
    System,
    VarlinkError,
    error_from_reply,
    error_table,
)


@dataclass(eq=False)
class Own(VarlinkError):
    error = "org.example.Own"
    name: str
    unit: str | None = None


def test_fields_that_are_none_are_left_out() -> None:
    assert Own("web").parameters() == {"name": "web"}
    assert Own("web", "web.scope").parameters() == {"name": "web", "unit": "web.scope"}
    assert ExpectedMore().parameters() == {}


def test_says_what_it_is() -> None:
    assert str(Own("web")) == "org.example.Own(name='web')"
    assert str(RemoteError("a.B", {"x": 1})) == "a.B(x=1)"


def test_errno() -> None:
    assert System.of(errno.EMFILE).parameters() == {
        "origin": "linux",
        "errnoName": "EMFILE",
        "errno": errno.EMFILE,
    }
    assert System.of(4095).parameters() == {"origin": "linux", "errno": 4095}
    # As systemd names them, where Python has two names.
    two = (errno.EOPNOTSUPP, errno.EAGAIN, errno.EDEADLK)
    assert [System.of(number).errnoName for number in two] == ["EOPNOTSUPP", "EAGAIN", "EDEADLK"]


def test_reply_becomes_the_class_that_is_known() -> None:
    table = error_table([Own])
    found = error_from_reply("org.example.Own", {"name": "web"}, table)
    assert isinstance(found, Own)
    assert (found.name, found.unit) == ("web", None)
    invalid = error_from_reply("org.varlink.service.InvalidParameter", {"parameter": "x", "more": 1}, table)
    assert isinstance(invalid, InvalidParameter)


@pytest.mark.parametrize(
    ("error", "parameters"), [("org.example.Own", {}), ("org.example.Own", {"name": 1}), ("a.B", {"x": [1]})]
)
def test_reply_that_fits_no_class_keeps_its_name(error: str, parameters: dict[str, object]) -> None:
    found = error_from_reply(error, parameters, error_table([Own]))
    assert isinstance(found, RemoteError)
    assert (found.error, found.parameters()) == (error, parameters)


def test_every_service_has_these() -> None:
    assert all(known.error == name for name, known in KNOWN_ERRORS.items())
