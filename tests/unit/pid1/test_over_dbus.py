"""What of the D-Bus implementation needs no manager, but one that a test plays, or that is not there."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from dbus_peer import Peer, accepted, message
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import HeaderFields, Message, MessageType

from moorage.dbus.bus import CallFailed
from moorage.pid1.blame import Sent
from moorage.pid1.errors import (
    AccessDenied,
    FreezerCancelled,
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
from moorage.pid1.manager import UnitHint
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


# A service is of two halves, the unit and the service, each with a signal and with calls of its own


def reply_to(call: Message, body: tuple[object, ...], signature: str) -> bytes:
    return message(MessageType.method_return, 7, body, signature, reply_serial=call.header.serial)


def change(half: str, values: dict[str, tuple[str, Any]]) -> bytes:
    """The signal that a half of fs.service has changed."""
    return message(
        MessageType.signal,
        9,
        (f"{SYSTEMD}{half}", values, []),
        "sa{sv}as",
        path=path_of("fs.service"),
        interface="org.freedesktop.DBus.Properties",
        member="PropertiesChanged",
    )


@asynccontextmanager
async def linked(
    directory: Path, note: Callable[[UnitHint], None], answer: Callable[[Peer, Message], Awaitable[None]]
) -> AsyncGenerator[tuple[DBusManager, Peer]]:
    """A manager that a test answers for, and its own end of the link."""
    peers: list[Peer] = []
    manager = DBusManager(Endpoints(f"{directory}/private", f"{directory}/bus"))
    manager.watch(note, lambda unit: unit == "fs.service")

    async def serve() -> None:
        async with accepted(listener) as peer:
            peers.append(peer)
            first = await peer.receive()
            await peer.send(reply_to(first, (("s", "257"),), "v"))
            while True:
                await answer(peer, await peer.receive())

    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(f"{directory}/private")
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.fail_after(20):
                await nursery.start(manager.run)
                yield manager, peers[0]
            nursery.cancel_scope.cancel()


async def test_no_half_of_a_change_is_passed_on(tmp_path: Path) -> None:
    """That the main process is gone would be known before the service is anything but active."""
    send, receive = trio.open_memory_channel[UnitHint](10)

    async def answer(_peer: Peer, _call: Message) -> None:
        raise AssertionError("nothing is asked for")

    async with linked(tmp_path, send.send_nowait, answer) as (_, peer):
        assert (await receive.receive()).kind == "connected"
        main = {"MainPID": ("u", 0), "Result": ("s", "exit-code"), "NRestarts": ("u", 2)}
        await peer.send(change("Service", main))
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(trio.WouldBlock):
            receive.receive_nowait()
        await peer.send(change("Unit", {"ActiveState": ("s", "failed"), "SubState": ("s", "failed")}))
        failed = UnitHint("changed", "fs.service", "failed", "failed", "", "exit-code", 0, 2)
        assert await receive.receive() == failed
        await peer.send(change("Unit", {"ActiveState": ("s", "inactive"), "SubState": ("s", "dead")}))
        assert await receive.receive() == UnitHint("changed", "fs.service", "inactive", "dead"), (
            "of this one"
        )


async def test_a_status_is_of_one_moment(tmp_path: Path) -> None:
    """The manager goes on with its own work between two calls: here the main process ends."""
    alive = {"ActiveState": "active", "MainPID": 5, "Result": "success", "NRestarts": 0}
    ended = {"ActiveState": "failed", "MainPID": 0, "Result": "exit-code", "NRestarts": 0}
    now = alive

    async def answer(peer: Peer, call: Message) -> None:
        nonlocal now
        if call.header.fields[HeaderFields.member] == "GetAll":
            values = {"Id": ("s", "fs.service"), "ActiveState": ("s", now["ActiveState"])}
            await peer.send(reply_to(call, (values,), "a{sv}"))
            now = ended
        elif (name := call.body[1]) in now:
            value = now[name]
            await peer.send(reply_to(call, (("u" if isinstance(value, int) else "s", value),), "v"))
        else:
            await peer.send(reply_to(call, (("s", ""),), "v"))

    async with linked(tmp_path, lambda _hint: None, answer) as (manager, _):
        found = await manager.status("fs.service", deadline=trio.current_time() + 20)
    assert found is not None
    assert (found.active_state, found.main_pid, found.result) == ("failed", 0, "exit-code")


async def test_a_thaw_that_the_manager_gives_up_is_ordered_again(tmp_path: Path) -> None:
    orders: list[str] = []

    async def answer(peer: Peer, call: Message) -> None:
        orders.append(call.header.fields[HeaderFields.member])
        serial = call.header.serial
        cancelled = message(
            MessageType.error, 7, reply_serial=serial, error_name="org.freedesktop.systemd1.FreezeCancelled"
        )
        await peer.send(cancelled if len(orders) < 3 else reply_to(call, (), ""))

    async with linked(tmp_path, lambda _hint: None, answer) as (manager, _):
        await manager.thaw("fs.service", deadline=trio.current_time() + 20)
        assert orders == ["ThawUnit"] * 3
        orders.clear()
        with pytest.raises(FreezerCancelled):  # whether to order it again depends on who has thawed the unit
            await manager.freeze("fs.service", deadline=trio.current_time() + 20)
        assert orders == ["FreezeUnit"]
