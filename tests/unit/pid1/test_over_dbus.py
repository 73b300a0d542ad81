"""What of the D-Bus implementation needs no manager: names, paths, errors, and managers that are not there."""

import re
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from moorage.dbus.bus import CallFailed
from moorage.pid1.blame import Sent
from moorage.pid1.manager import (
    AccessDenied,
    InvalidProperty,
    ManagerError,
    ManagerRefused,
    ManagerTimeout,
    ManagerUnavailable,
    NoSuchProperty,
    NoSuchUnit,
    UnitBusy,
    UnitExists,
)
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import FIRST_CONNECT_SECONDS, Endpoints
from moorage.pid1.over_dbus.translate import path_of, translated, unit_of

SYSTEMD = "org.freedesktop.systemd1."
DBUS = "org.freedesktop.DBus.Error."


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        ("machine-web.scope", "machine_2dweb_2escope"),
        ("9x.scope", "_39x_2escope"),
        ("a_b@c\\x2d.service", "a_5fb_40c_5cx2d_2eservice"),
        ("init.scope", "init_2escope"),
        ("", "_"),
    ],
)
def test_object_paths(unit: str, path: str) -> None:
    assert path_of(unit) == f"/org/freedesktop/systemd1/unit/{path}"


@given(st.text(max_size=300))
def test_object_paths_are_legal_and_lead_back(unit: str) -> None:
    try:
        unit.encode()
    except UnicodeEncodeError:
        return
    path = path_of(unit)
    assert re.fullmatch(r"/org/freedesktop/systemd1/unit/[A-Za-z0-9_]+", path)
    if unit:
        assert unit_of(path) == unit


@pytest.mark.parametrize(
    ("name", "text", "properties", "expected", "attributes"),
    [
        (f"{SYSTEMD}UnitExists", "x", ("TasksMax",), UnitExists, {"unit": "u.scope"}),
        (f"{SYSTEMD}NoSuchUnit", "x", (), NoSuchUnit, {"unit": "u.scope"}),
        (f"{SYSTEMD}NoUnitForPID", "x", (), NoSuchUnit, {"unit": "u.scope"}),
        (f"{DBUS}UnknownObject", "x", (), NoSuchUnit, {}),
        (f"{SYSTEMD}NoSuchUnit", "Unit u.scope not found.", ("TasksMax",), NoSuchUnit, {}),
        (f"{DBUS}PropertyReadOnly", "Cannot set property A, or unknown property.", ("A",), NoSuchProperty,
         {"property": "A"}),
        (f"{DBUS}InvalidArgs", "A= is wrong", ("A", "B"), InvalidProperty, {"property": "A", "reason": "A= is wrong"}),
        (f"{DBUS}InvalidArgs", "something is wrong", ("A", "B"), ManagerRefused, {"reason": "something is wrong"}),
        (f"{DBUS}InvalidArgs", "A= is wrong", (), ManagerRefused, {"name": f"{DBUS}InvalidArgs"}),
        (f"{DBUS}UnixProcessIdUnknown", "x", ("PIDFDs", "A"), InvalidProperty, {"property": "PIDFDs"}),
        (f"{DBUS}AccessDenied", "x", ("A",), AccessDenied, {"reason": "x"}),
        (f"{DBUS}InteractiveAuthorizationRequired", "x", (), AccessDenied, {}),
        (f"{SYSTEMD}TransactionIsDestructive", "x", ("A",), UnitBusy, {"unit": "u.scope", "reason": "x"}),
        (f"{SYSTEMD}UnitBusy", "x", (), UnitBusy, {}),
        (f"{DBUS}NoReply", "x", (), ManagerUnavailable, {"reason": "x"}),
        (f"{SYSTEMD}LoadFailed", "x", ("A", "B"), ManagerRefused, {"name": f"{SYSTEMD}LoadFailed"}),
        ("", "", (), ManagerRefused, {}),
    ],
)  # fmt: skip
def test_errors(
    name: str,
    text: str,
    properties: tuple[str, ...],
    expected: type[ManagerError],
    attributes: dict[str, str],
) -> None:
    sent = [Sent(None, properties)] if properties else []
    error = translated(CallFailed(name, text), "u.scope", sent)
    assert type(error) is expected
    for attribute, value in attributes.items():
        assert getattr(error, attribute) == value


def test_where_a_manager_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Endpoints.of("system").private == "/run/systemd/private"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert Endpoints.of("user") == Endpoints("/run/user/7/systemd/private", "/run/user/7/bus")
    for bad in ("", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", bad)
        with pytest.raises(ManagerUnavailable):
            Endpoints.of("user")


def test_no_manager_at_all(tmp_path: Path) -> None:
    async def main() -> None:
        manager = DBusManager(Endpoints(f"{tmp_path}/private", f"{tmp_path}/bus"))
        with pytest.raises(ManagerUnavailable, match=r"private.*bus"):
            await manager.run()
        assert trio.current_time() > FIRST_CONNECT_SECONDS
        with pytest.raises(ManagerTimeout):
            await manager.status("x.scope", deadline=trio.current_time() + 1)
        with pytest.raises(ManagerUnavailable):
            await manager.status("x.scope", deadline=trio.current_time() + 1000)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
