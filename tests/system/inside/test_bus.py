"""org.freedesktop.machine1: the same calls on systemd-machined and on moored in its place get the same answers.

The name has one owner. So everything is asked of machined first, and then again of moored.
"""

import contextlib
import os
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Generator
from typing import Any

import hostile
import pytest
import trio
from jeepney import DBusAddress, MatchRule, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.fds import FileDescriptor
from jeepney.io.blocking import DBusConnection, Proxy, open_dbus_connection
from jeepney.low_level import HeaderFields, MessageFlag, MessageType
from moored import Processes, assert_nothing_left, main_pid, messages, run, until

pytestmark = pytest.mark.system_instance("the instance of a user does not take machined's place")

NAME = "org.freedesktop.machine1"
ROOT = "/org/freedesktop/machine1"
MANAGER = f"{NAME}.Manager"
MACHINE = f"{NAME}.Machine"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
HOST = f"{ROOT}/machine/_2ehost"

SYSTEMD = int(run("systemctl", "--version").split()[1])
NEWEST = 262

IMAGES = {
    "GetImage", "ListImages", "RemoveImage", "RenameImage", "CloneImage", "MarkImageReadOnly", "GetImageHostname",
    "GetImageMachineID", "GetImageMachineInfo", "GetImageOSRelease", "SetPoolLimit", "SetImageLimit", "CleanPool",
    "PoolPath", "PoolUsage", "PoolLimit",
}  # fmt: skip
"""What machined has for images, which moored does not keep."""

GONE = 4_000_000

EXTENDED = "sa(sv)a(sv)"
EX_SINCE = 258
"""The systemd since which there are CreateMachineEx and RegisterMachineEx."""

Answer = tuple[Any, ...]


def closed(value: Any) -> Any:
    """Close a file descriptor, and return that there was one; anything else is returned as it is."""
    if isinstance(value, FileDescriptor):
        value.close()
        return FileDescriptor
    return value


class Bus:
    """A client on the system bus."""

    def __init__(self) -> None:
        self._connection: DBusConnection = open_dbus_connection(bus="SYSTEM", enable_fds=True)

    def close(self) -> None:
        self._connection.close()

    def ask(
        self, path: str, interface: str, member: str, signature: str = "", *body: Any, text: bool = False
    ) -> Answer:
        """Make a call; return types and values of the answer, or the name of an error (and its text)."""
        address = DBusAddress(path, NAME, interface)
        message = new_method_call(address, member, signature or None, body)
        reply = self._connection.send_and_get_reply(message, timeout=60)
        if reply.header.message_type is MessageType.error:
            name = reply.header.fields[HeaderFields.error_name]
            return (name, *reply.body) if text else (name,)
        return (reply.header.fields.get(HeaderFields.signature, ""), *map(closed, reply.body))

    def manager(self, member: str, signature: str = "", *body: Any, text: bool = False) -> Answer:
        return self.ask(ROOT, MANAGER, member, signature, *body, text=text)

    def properties(self, path: str, interface: str = MACHINE) -> dict[str, Any]:
        signature, values = self.ask(path, PROPERTIES, "GetAll", "s", interface)
        assert signature == "a{sv}"
        return values

    def has_name(self) -> bool:
        (found,) = Proxy(message_bus, self._connection).NameHasOwner(NAME)
        return bool(found)


@pytest.fixture
def bus() -> Generator[Bus]:
    connected = Bus()
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def machined(moored: None) -> dict[str, Any]:
    """What machined answered to everything, by the name of the question."""
    return {name: question() for name, question in QUESTIONS.items()}


@pytest.fixture(scope="module")
def place(machined: dict[str, Any]) -> Generator[None]:
    """Moored in machined's place, after machined has been asked."""
    run("moorctl", "in-place", "on")
    yield
    run("moorctl", "in-place", "off")
    run("systemctl", "stop", "systemd-machined.service", "moored.service")


@pytest.fixture
def spawn(place: None) -> Generator[Processes]:
    """Start processes; they end with the test, which leaves no machine."""
    processes = Processes()
    yield processes
    processes.bury()
    trio.run(assert_nothing_left)


# The interfaces


def described(text: str) -> dict[str, Any]:
    """Return what an object has: names of methods, signals and properties with their signatures."""
    found: dict[str, Any] = {}
    for interface in ET.fromstring(text).iter("interface"):
        for member in interface:
            name = member.get("name", "")
            if name in IMAGES:
                continue
            arguments = [
                (each.get("type"), each.get("name"), each.get("direction")) for each in member.iter("arg")
            ]
            # That of 257 calls some methods deprecated, which they are not any more.
            emits = [
                each.get("value") for each in member.iter("annotation") if "Emits" in each.get("name", "")
            ]
            key = (interface.get("name"), member.tag, name)
            found[str(key)] = (sorted(arguments, key=str), member.get("type"), member.get("access"), emits)
    return found


def introspections() -> dict[str, Any]:
    bus = Bus()
    found = {path: bus.ask(path, INTROSPECTABLE, "Introspect")[1] for path in (ROOT, HOST)}
    bus.close()
    return {path: described(text) for path, text in found.items()}


def test_interfaces_are_described_as_machineds(machined: dict[str, Any], place: None) -> None:
    ours = introspections()
    for path, theirs in machined["introspections"].items():
        if SYSTEMD >= NEWEST:
            assert ours[path] == theirs
        else:  # what 257 has, is there
            assert {name: ours[path].get(name) for name in theirs} == theirs


# Calls

IDENTITY = "sayssus"
EX_REFUSED: list[list[tuple[str, tuple[str, Any]]]] = [
    [("NoSuch", ("s", "x"))],
    [("Slice", ("s", "machine.slice"))],
    [("Id", ("s", "x"))],
    [("Id", ("ay", b"1"))],
    [("Class", ("s", "bm"))],
    [("Class", ("s", "host"))],
    [("LeaderPID", ("u", GONE))],
    [("LeaderPIDFDID", ("t", 5))],
    [("LeaderPID", ("u", GONE)), ("LeaderPIDFDID", ("t", 5))],
    [("LeaderPID", ("u", os.getpid())), ("LeaderPIDFDID", ("t", 5))],
    [("RootDirectory", ("s", "a/b"))],
    [("NetworkInterfaces", ("ai", [0]))],
    [("NetworkInterfaces", ("ai", [-1]))],
    [("VSockCID", ("u", 0))],
    [("VSockCID", ("u", 2))],
]
"""What makes no machine, by CreateMachineEx and RegisterMachineEx."""

OTHER_TYPES: list[tuple[str, tuple[str, Any]]] = [("Service", ("u", 1)), ("LeaderPID", ("s", "1"))]
"""Said of these is that they are invalid; machined tells what its parser said (ENXIO)."""

CALLS: list[tuple[str, str, str, str, tuple[Any, ...]]] = [
    (ROOT, MANAGER, "GetMachine", "s", ("nobox",)),
    (ROOT, MANAGER, "GetMachine", "s", (".host",)),
    (ROOT, MANAGER, "GetMachine", "s", ("",)),
    (ROOT, MANAGER, "GetMachine", "s", ("x" * 300,)),
    (ROOT, MANAGER, "GetMachine", "s", ("a/b é\n",)),
    (ROOT, MANAGER, "GetMachine", "u", (5,)),
    (ROOT, MANAGER, "GetMachine", "", ()),
    (ROOT, MANAGER, "GetMachineByPID", "u", (GONE,)),
    (ROOT, MANAGER, "GetMachineByPID", "u", (1,)),
    (ROOT, MANAGER, "GetMachineByPID", "u", (0,)),
    (ROOT, MANAGER, "ListMachines", "", ()),
    (ROOT, MANAGER, "NoSuchMethod", "", ()),
    (ROOT, f"{NAME}.NoSuch", "GetMachine", "s", ("nobox",)),
    (f"{ROOT}/nothing", MANAGER, "GetMachine", "s", ("nobox",)),
    (f"{ROOT}/machine/nobox", MACHINE, "Terminate", "", ()),
    (f"{ROOT}/machine/_2ehos_", MACHINE, "Terminate", "", ()),
    (f"{ROOT}/machine/{'x' * 300}", MACHINE, "Terminate", "", ()),
    (f"{ROOT}/machine/self", PROPERTIES, "Get", "ss", (MACHINE, "Name")),
    *((ROOT, MANAGER, member, "s", ("nobox",)) for member in (
        "UnregisterMachine", "TerminateMachine", "GetMachineAddresses", "GetMachineSSHInfo", "GetMachineOSRelease",
        "GetMachineUIDShift", "OpenMachinePTY", "OpenMachineLogin", "OpenMachineRootDirectory",
    )),
    *((ROOT, MANAGER, member, "s", (".host",)) for member in (
        "TerminateMachine", "GetMachineSSHInfo", "GetMachineUIDShift",
    )),
    (ROOT, MANAGER, "KillMachine", "ssi", ("nobox", "all", 15)),
    (ROOT, MANAGER, "KillMachine", "ssi", (".host", "nobody", 15)),
    (ROOT, MANAGER, "KillMachine", "ssi", (".host", "all", 0)),
    (ROOT, MANAGER, "KillMachine", "ssi", (".host", "all", 65)),
    (ROOT, MANAGER, "KillMachine", "ssi", (".host", "all", -1)),
    (ROOT, MANAGER, "OpenMachineShell", "sssasas", ("nobox", "", "", [], [])),
    (ROOT, MANAGER, "OpenMachineShell", "sssasas", (".host", "", "bin/sh", [], [])),
    (ROOT, MANAGER, "OpenMachineShell", "sssasas", (".host", "", "/bin/sh", [], ["A"])),
    (ROOT, MANAGER, "BindMountMachine", "sssbb", ("nobox", "/", "/", False, False)),
    (ROOT, MANAGER, "BindMountMachine", "sssbb", (".host", "/", "/", False, False)),
    (ROOT, MANAGER, "CopyFromMachine", "sss", ("nobox", "/", "/")),
    (ROOT, MANAGER, "CopyFromMachine", "sss", (".host", "/", "/")),
    (ROOT, MANAGER, "CopyToMachineWithFlags", "ssst", (".host", "/", "/", 0)),
    (ROOT, MANAGER, "MapFromMachineUser", "su", ("nobox", 0)),
    (ROOT, MANAGER, "MapFromMachineUser", "su", (".host", 0)),
    (ROOT, MANAGER, "MapFromMachineUser", "su", (".host", 65535)),
    (ROOT, MANAGER, "MapFromMachineGroup", "su", (".host", 2**32 - 1)),
    (ROOT, MANAGER, "MapToMachineUser", "u", (0,)),
    (ROOT, MANAGER, "MapToMachineUser", "u", (65535,)),
    (ROOT, MANAGER, "MapToMachineUser", "u", (1_000_000,)),
    (ROOT, MANAGER, "MapToMachineGroup", "u", (1_000_000,)),
    *((ROOT, MANAGER, "RegisterMachine", IDENTITY, (name, b"", "", "vm", GONE, "")) for name in (
        "", ".", ".host", "x_y", "x y", "x/y", "-x", "x-", "x.", "x..y", "é", "x" * 65, "ok",
    )),
    (ROOT, MANAGER, "RegisterMachine", IDENTITY, ("xy", b"1", "", "vm", GONE, "")),
    (ROOT, MANAGER, "RegisterMachine", IDENTITY, ("xy", b"1" * 16, "", "bm", GONE, "")),
    (ROOT, MANAGER, "RegisterMachine", IDENTITY, ("xy", b"", "", "vm", 1, "")),
    (ROOT, MANAGER, "RegisterMachine", IDENTITY, ("xy", b"", "", "vm", GONE, "a/b")),
    (ROOT, MANAGER, "RegisterMachine", "s", ("xy",)),
    (ROOT, MANAGER, "RegisterMachineWithNetwork", f"{IDENTITY}ai", ("xy", b"", "", "vm", GONE, "", [0])),
    (ROOT, MANAGER, "RegisterMachineWithNetwork", f"{IDENTITY}ai", ("xy", b"", "", "vm", GONE, "", [-1])),
    (ROOT, MANAGER, "CreateMachine", f"{IDENTITY}a(sv)", ("xy", b"", "", "vm", GONE, "", [])),
    (ROOT, MANAGER, "CreateMachine", f"{IDENTITY}a(sv)", ("xy", b"12", "", "vm", GONE, "", [])),
    (HOST, PROPERTIES, "Get", "ss", (MACHINE, "Class")),
    (HOST, PROPERTIES, "Get", "ss", (MACHINE, "Nothing")),
    (HOST, PROPERTIES, "Get", "ss", (f"{NAME}.NoSuch", "Class")),
    (HOST, PROPERTIES, "GetAll", "s", (f"{NAME}.NoSuch",)),
    (HOST, PROPERTIES, "Set", "ssv", (MACHINE, "Class", ("s", "vm"))),
    (HOST, PROPERTIES, "Set", "ssv", (MACHINE, "Nothing", ("s", "vm"))),
    ("/", "org.freedesktop.DBus.Peer", "Ping", "", ()),
    ("/no/such/thing", "org.freedesktop.DBus.Peer", "Ping", "", ()),
    (ROOT, "org.freedesktop.DBus.Peer", "GetMachineId", "", ()),
]  # fmt: skip
if SYSTEMD >= EX_SINCE:
    CALLS.extend(
        (
            *(
                (ROOT, MANAGER, "CreateMachineEx", EXTENDED, ("xy", properties, []))
                for properties in EX_REFUSED
            ),
            *(
                (ROOT, MANAGER, "RegisterMachineEx", "sa(sv)", ("xy", properties))
                for properties in EX_REFUSED
            ),
            (ROOT, MANAGER, "CreateMachineEx", EXTENDED, ("x_y", [], [])),
            (ROOT, MANAGER, "CreateMachineEx", EXTENDED, (".host", [], [])),
            (ROOT, MANAGER, "CreateMachineEx", "sa(sv)", ("xy", [])),
        )
    )


def calls() -> list[Answer]:
    bus = Bus()
    found = [
        bus.ask(path, interface, member, signature, *body)
        for path, interface, member, signature, body in CALLS
    ]
    bus.close()
    return found


def test_calls_get_the_same_answers(machined: dict[str, Any], place: None) -> None:
    ours = calls()
    different = [
        (call, ours_, theirs)
        for call, ours_, theirs in zip(CALLS, ours, machined["calls"], strict=True)
        if ours_ != theirs
    ]
    assert different == []


# A machine's life

ID = bytes(range(16))
MINE = {"Timestamp", "TimestampMonotonic", "Leader", "LeaderPIDFDId", "Supervisor", "SupervisorPIDFDId"}
"""Properties that each takes from where it is."""


def life(create: Callable[[Bus, int], Answer], end: str) -> Callable[[], list[Any]]:
    def lived() -> list[Any]:
        bus = Bus()
        sleeper = subprocess.Popen(["sleep", "infinity"])
        seen: list[Any] = [create(bus, sleeper.pid)]
        path = f"{ROOT}/machine/my_2dbox"
        seen += [create(bus, sleeper.pid)]
        seen += [bus.manager("GetMachine", "s", "my-box"), bus.manager("GetMachineByPID", "u", sleeper.pid)]
        values = bus.properties(path)
        seen += [{name: value for name, value in values.items() if name not in MINE}]
        seen += [values["Leader"] == ("u", sleeper.pid)]
        seen += [sorted(bus.manager("ListMachines")[1])]
        seen += [bus.manager("KillMachine", "ssi", "my-box", "leader", 18)]
        seen += [bus.ask(path, MACHINE, "Kill", "si", "", 18)]
        for member in ("GetAddresses", "GetOSRelease", "GetUIDShift", "GetSSHInfo", "OpenRootDirectory"):
            seen += [(member, bus.ask(path, MACHINE, member))]
        seen += [bus.ask(path, MACHINE, "OpenPTY")[:-1]]
        seen += [bus.ask(path, MACHINE, "CopyFrom", "ss", "/", "/x")]
        seen += [bus.manager(end, "s", "my-box")]
        sleeper.kill()
        sleeper.wait()
        trio.run(
            lambda: until(lambda: bus.manager("GetMachine", "s", "my-box") == (f"{NAME}.NoSuchMachine",))
        )
        seen += [bus.ask(path, PROPERTIES, "GetAll", "s", MACHINE)]
        bus.close()
        return seen

    return lived


def created(bus: Bus, pid: int) -> Answer:
    after = ("After", ("as", ["basic.target"]))
    body = ("my-box", ID, "test", "vm", pid, "/srv", [1, 2], [("Slice", ("s", "machine.slice")), after])
    return bus.manager("CreateMachineWithNetwork", f"{IDENTITY}aia(sv)", *body)


def registered(bus: Bus, pid: int) -> Answer:
    return bus.manager("RegisterMachine", IDENTITY, "my-box", b"", "", "container", pid, "")


def pinned(pid: int) -> list[tuple[str, tuple[str, Any]]]:
    """Return a leader as CreateMachineEx takes it, who is told apart from all that may have its number later."""
    pidfd = os.pidfd_open(pid)
    number = os.fstat(pidfd).st_ino
    os.close(pidfd)
    return [("LeaderPID", ("u", pid)), ("LeaderPIDFDID", ("t", number))]


def described_whole(pid: int, class_: str) -> list[tuple[str, tuple[str, Any]]]:
    return [
        ("Id", ("ay", ID)),
        ("Service", ("s", "test")),
        ("Class", ("s", class_)),
        *pinned(pid),
        ("RootDirectory", ("s", "/srv")),
        ("NetworkInterfaces", ("ai", [1, 2])),
        ("VSockCID", ("u", 77)),
        ("SSHAddress", ("s", "vsock/77")),
        ("SSHPrivateKeyPath", ("s", "/key")),
    ]


def created_ex(bus: Bus, pid: int) -> Answer:
    scope = [("Slice", ("s", "machine.slice")), ("Description", ("s", "My box"))]
    return bus.manager("CreateMachineEx", EXTENDED, "my-box", described_whole(pid, "vm"), scope)


def registered_ex(bus: Bus, pid: int) -> Answer:
    return bus.manager("RegisterMachineEx", "sa(sv)", "my-box", described_whole(pid, "container"))


NOBODY = 65534
BY_USERS: list[tuple[str, str, str, str, tuple[Any, ...]]] = [
    (ROOT, MANAGER, "GetMachine", "s", (".host",)),
    (ROOT, MANAGER, "GetMachineByPID", "u", (0,)),
    (ROOT, MANAGER, "ListMachines", "", ()),
    (ROOT, MANAGER, "KillMachine", "ssi", ("my-box", "all", 15)),
    (ROOT, MANAGER, "KillMachine", "ssi", ("nobox", "all", 15)),
    (ROOT, MANAGER, "TerminateMachine", "s", ("my-box",)),
    (ROOT, MANAGER, "UnregisterMachine", "s", ("my-box",)),
    (ROOT, MANAGER, "OpenMachinePTY", "s", (".host",)),
    (ROOT, MANAGER, "OpenMachineLogin", "s", (".host",)),
    (ROOT, MANAGER, "OpenMachineShell", "sssasas", (".host", "", "", [], [])),
    (ROOT, MANAGER, "OpenMachineRootDirectory", "s", (".host",)),
    (ROOT, MANAGER, "RegisterMachine", IDENTITY, ("xy", b"", "", "vm", os.getpid(), "")),
    (ROOT, MANAGER, "CreateMachine", f"{IDENTITY}a(sv)", ("xy", b"", "", "vm", os.getpid(), "", [])),
    (ROOT, MANAGER, "RegisterMachine", IDENTITY, ("my-box", b"", "", "vm", os.getpid(), "")),
    (f"{ROOT}/machine/my_2dbox", MACHINE, "Terminate", "", ()),
    (f"{ROOT}/machine/my_2dbox", PROPERTIES, "Get", "ss", (MACHINE, "Class")),
    *(
        # Before 262 it asks nobody.
        (
            (HOST, MACHINE, "GetOSRelease", "", ()),
            (ROOT, MANAGER, "GetMachineOSRelease", "s", (".host",)),
            (f"{ROOT}/machine/my_2dbox", MACHINE, "GetOSRelease", "", ()),
        )
        if SYSTEMD >= NEWEST
        else ()
    ),
    (ROOT, "org.freedesktop.DBus.Peer", "Ping", "", ()),
]


def by_users() -> list[Answer]:
    """Ask as an ordinary user about a machine of root's."""
    root = Bus()
    sleeper = subprocess.Popen(["sleep", "infinity"])
    created(root, sleeper.pid)
    with hostile.as_user(NOBODY):
        bus = Bus()
    found = [
        bus.ask(path, interface, member, signature, *body)
        for path, interface, member, signature, body in BY_USERS
    ]
    bus.close()
    root.manager("TerminateMachine", "s", "my-box")
    sleeper.wait()
    root.close()
    return [(kind, sorted(body[0])) if kind == "a(ssso)" else (kind, *body) for kind, *body in found]


def test_users_get_the_same_answers(machined: dict[str, Any], place: None) -> None:
    different = [
        (call, ours, theirs)
        for call, ours, theirs in zip(BY_USERS, by_users(), machined["by users"], strict=True)
        if ours != theirs
    ]
    assert different == []


def test_ten_thousand_calls_of_one_peer_keep_nobody_waiting(spawn: Processes, bus: Bus) -> None:
    with hostile.as_user(NOBODY):
        flooding = open_dbus_connection(bus="SYSTEM")
    address = DBusAddress(ROOT, NAME, MANAGER)
    for number in range(10_000):
        message = new_method_call(address, "GetMachine", "s", (f"box{number}",))
        message.header.flags |= MessageFlag.no_reply_expected
        flooding.send(message)
        if number % 1000 == 0:  # those over varlink, and on the bus, are answered in between
            assert hostile.ask(hostile.encode("io.moorage.Machine.List", {}, more=True)) is not None
            assert bus.manager("GetMachine", "s", ".host") == ("o", HOST)
    # That it leaves with calls under way is nothing either.
    flooding.close()
    assert bus.manager("GetMachine", "s", ".host") == ("o", HOST)
    assert [line for line in messages("moored.service") if "Traceback" in line] == []


def test_what_is_too_large_is_refused_and_nothing_else(place: None, bus: Bus) -> None:
    with hostile.as_user(NOBODY):
        large = Bus()
    pid = main_pid()
    assert large.manager("GetMachine", "s", "x" * (1 << 20)) == (
        "org.freedesktop.DBus.Error.LimitsExceeded",
    )
    assert large.manager("GetMachine", "s", ".host") == ("o", HOST)
    large.close()
    assert bus.manager("GetMachine", "s", ".host") == ("o", HOST)
    assert main_pid() == pid


QUESTIONS: dict[str, Callable[[], Any]] = {
    "by users": by_users,
    "introspections": introspections,
    "calls": calls,
    "created": life(created, "TerminateMachine"),
    "registered": life(registered, "UnregisterMachine"),
}
if SYSTEMD >= EX_SINCE:
    QUESTIONS.update(
        {
            "created by properties": life(created_ex, "TerminateMachine"),
            "registered by properties": life(registered_ex, "UnregisterMachine"),
        }
    )


@pytest.mark.parametrize("question", [name for name in QUESTIONS if "ed" in name.split()[0][-2:]])
def test_a_machine_lives_as_it_does_with_machined(
    machined: dict[str, Any], spawn: Processes, question: str
) -> None:
    ours = QUESTIONS[question]()
    for mine, theirs in zip(ours, machined[question], strict=True):
        if isinstance(theirs, dict):  # 257 has fewer properties
            assert {name: mine.get(name) for name in theirs} == theirs
        else:
            assert mine == theirs


def test_images_are_elsewhere(place: None, bus: Bus) -> None:
    for member, signature, body in (
        ("ListImages", "", ()),
        ("GetImage", "s", ("x",)),
        ("CleanPool", "s", ("all",)),
    ):
        name, text = bus.manager(member, signature, *body, text=True)
        assert name == "org.freedesktop.DBus.Error.NotSupported"
        assert "beside" in text
    (name,) = bus.ask(f"{ROOT}/image/x", f"{NAME}.Image", "Remove")
    assert name == "org.freedesktop.DBus.Error.NotSupported"


def test_machines_come_and_go_with_signals(spawn: Processes, bus: Bus) -> None:
    listening = open_dbus_connection(bus="SYSTEM")
    rule = MatchRule(type="signal", sender=NAME, interface=MANAGER)
    Proxy(message_bus, listening).AddMatch(rule)
    sleeper = subprocess.Popen(["sleep", "infinity"])
    path = created(bus, sleeper.pid)[1]
    bus.manager("TerminateMachine", "s", "my-box")
    sleeper.wait()
    with listening.filter(MatchRule(type="signal", interface=MANAGER)) as queue:
        seen = [listening.recv_until_filtered(queue, timeout=20) for _ in range(2)]
    listening.close()
    assert [(each.header.fields[HeaderFields.member], each.body) for each in seen] == [
        ("MachineNew", ("my-box", path)),
        ("MachineRemoved", ("my-box", path)),
    ]


def test_the_service_is_started_by_a_call(place: None, bus: Bus) -> None:
    run("systemctl", "stop", "moored.service")
    assert not bus.has_name()
    assert bus.manager("GetMachine", "s", ".host") == ("o", HOST)
    assert run("systemctl", "is-active", "moored.service").strip() == "active"
    assert [line for line in messages("moored.service") if "Traceback" in line] == []


def test_a_pidfd_says_who_leads(spawn: Processes, bus: Bus) -> None:
    """It is that of one process for good; a number may be another's by the time that it is read."""
    sleeper, other = spawn(), spawn()

    def create(*properties: tuple[str, tuple[str, Any]]) -> Answer:
        pidfd = FileDescriptor(os.pidfd_open(sleeper.pid))
        with contextlib.closing(pidfd):
            leads = [("LeaderPIDFD", ("h", pidfd)), *properties]
            return bus.manager("CreateMachineEx", EXTENDED, "my-box", leads, [("TasksMax", ("t", 77))])

    for wrong in (("LeaderPID", ("u", other.pid)), pinned(other.pid)[1], *OTHER_TYPES):
        assert create(wrong) == ("org.freedesktop.DBus.Error.InvalidArgs",), wrong
    assert create(*pinned(sleeper.pid)) == ("o", f"{ROOT}/machine/my_2dbox")
    assert bus.properties(f"{ROOT}/machine/my_2dbox")["Leader"] == ("u", sleeper.pid)
    assert run("systemctl", "show", "machine-my\\x2dbox.scope", "-P", "TasksMax") == "77\n"
    exists = bus.manager("CreateMachineEx", EXTENDED, "my-box", pinned(other.pid), [])
    assert exists == (f"{NAME}.MachineExists",)
    bus.manager("TerminateMachine", "s", "my-box")


def test_a_scope_gets_what_was_asked_for(spawn: Processes, bus: Bus) -> None:
    sleeper = spawn()
    properties = [
        ("Description", ("s", "My box")),
        ("TasksMax", ("t", 77)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("DeviceAllow", ("a(ss)", [("/dev/null", "rw")])),
    ]
    answer = bus.manager(
        "CreateMachine", f"{IDENTITY}a(sv)", "my-box", b"", "", "vm", sleeper.pid, "", properties
    )
    assert answer == ("o", f"{ROOT}/machine/my_2dbox")
    shown = run("systemctl", "show", "machine-my\\x2dbox.scope", "-p", "Description,TasksMax,DeviceAllow")
    assert sorted(shown.split("\n")) == ["", "Description=My box", "DeviceAllow=/dev/null rw", "TasksMax=77"]
    for refused in (("NoSuch", ("s", "x")), ("TasksMax", ("s", "many"))):
        body = ("other", b"", "", "vm", os.getpid(), "", [refused])
        name = bus.manager("CreateMachine", f"{IDENTITY}a(sv)", *body)
        assert name == ("org.freedesktop.DBus.Error.InvalidArgs",)
    bus.manager("TerminateMachine", "s", "my-box")


@pytest.mark.parametrize("kind", [MessageType.method_call, MessageType.signal])
def test_nobody_waits_for_the_close_of_what_strangers_send(place: None, bus: Bus, kind: MessageType) -> None:
    bus.manager("ListMachines")  # somebody is there
    pid = main_pid()
    with contextlib.ExitStack() as held:
        stranger = open_dbus_connection(bus="SYSTEM", enable_fds=True)
        held.callback(stranger.close)
        with hostile.busy(pid):  # so that ours is not the last reference when it goes
            for _ in range(3):
                message = new_method_call(DBusAddress(ROOT, NAME, MANAGER), "GetMachine", "h", (0,))
                message.header.message_type = kind
                fd = held.enter_context(hostile.lingering())
                message.body = (fd,)
                stranger.send(message)
                os.close(fd)
        for _ in range(3):
            assert bus.manager("GetMachine", "s", "nobox") == (f"{NAME}.NoSuchMachine",)
    assert bus.manager("GetMachine", "s", "nobox") == (f"{NAME}.NoSuchMachine",)
    assert main_pid() == pid
