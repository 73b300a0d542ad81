"""org.freedesktop.machine1 without a bus: paths, descriptions, and how much one peer may have under way."""

import errno
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.api.machine1 import errors
from moorage.api.machine1.description import INTERFACES, MACHINE, MANAGER, introspection
from moorage.api.machine1.paths import MACHINES, name_of, path_of
from moorage.api.machine1.senders import (
    CALLS_PER_SENDER_MAX,
    CALLS_PER_UID_MAX,
    WAITING_MAX,
    Senders,
    TooMany,
)
from moorage.dbus.signature import split
from moorage.names import NAME_MAX
from moorage.wire.errors import System


@given(st.text(min_size=1, max_size=NAME_MAX))
def test_a_name_is_read_from_its_path(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    if len(path_of(name)) - len(MACHINES) - 1 <= 3 * NAME_MAX:  # those of machines are
        assert name_of(path_of(name)) == name


@given(st.text())
def test_no_path_does_harm(path: str) -> None:
    for each in (path, f"{MACHINES}/{path}"):
        found = name_of(each)
        assert found is None or len(found) <= 3 * NAME_MAX


@pytest.mark.parametrize(
    ("name", "label"),
    [(".host", "_2ehost"), ("my-box", "my_2dbox"), ("1a", "_31a"), ("a1", "a1"), ("", "_")],
)
def test_paths_are_those_of_machined(name: str, label: str) -> None:
    assert path_of(name) == f"{MACHINES}/{label}"


def test_what_is_described_can_be_sent() -> None:
    for described in INTERFACES.values():
        for member in (*described.methods.values(), *described.signals.values()):
            split(member.signature)
            split(member.answer)
        for each in described.properties.values():
            assert len(split(each.type)) == 1


def test_descriptions_are_xml() -> None:
    root = ET.fromstring(introspection((MANAGER, MACHINE), ["x&y"]))
    assert [each.get("name") for each in root.findall("interface")] == [MANAGER, MACHINE]
    assert [each.get("name") for each in root.findall("node")] == ["x&y"]


def test_a_peer_has_so_many_places() -> None:
    senders = Senders(frozenset({0}))
    places = [senders.enter(":1.1") for _ in range(CALLS_PER_SENDER_MAX)]
    with pytest.raises(TooMany):
        senders.enter(":1.1")
    senders.enter(":1.2").leave()
    for place in places:
        place.leave()
    assert len(senders) == 0
    assert senders.waiting == 0


def test_the_first_call_of_a_peer_is_taken_however_many_wait() -> None:
    senders = Senders(frozenset({0}))
    peers = range(WAITING_MAX // (CALLS_PER_SENDER_MAX - 1) + 1)
    places = []
    for number in peers:
        for _ in range(CALLS_PER_SENDER_MAX):
            try:
                places.append(senders.enter(f":1.{number}"))
            except TooMany:
                break
    assert senders.waiting == WAITING_MAX
    with pytest.raises(TooMany):
        senders.enter(f":1.{peers[-1]}")
    senders.enter(":1.new").leave()
    for place in places:
        place.leave()
    assert (len(senders), senders.waiting) == (0, 0)


def test_a_user_has_so_many_places_over_all_connections() -> None:
    senders = Senders(frozenset({0}))
    for _ in range(CALLS_PER_UID_MAX):
        senders.count(1000)
    with pytest.raises(TooMany):
        senders.count(1000)
    senders.count(1001)
    for _ in range(2 * CALLS_PER_UID_MAX):  # root waits for nobody
        senders.count(0)


@pytest.mark.parametrize(
    ("number", "name", "text"),
    [
        # What the manager inside says of a masked getty, machined passes on by its name.
        (errno.ERFKILL, "org.freedesktop.systemd1.UnitMasked", "The unit is masked."),
        (errno.EACCES, "org.freedesktop.DBus.Error.AccessDenied", "Permission denied"),
        (errno.ESTALE, "System.Error.ESTALE", "Stale file handle"),
    ],
)
def test_errors_of_the_system_have_the_names_that_sd_bus_has(number: int, name: str, text: str) -> None:
    found = errors.refusal_of(System.of(number), "web")
    assert (found.name, found.text) == (name, text)
