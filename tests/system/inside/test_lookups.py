"""What the rest of the system looks up of machines: the same with moored in machined's place as with machined itself.

Both have the same containers, one after the other: state files, users and groups, names. Then what systemd's own
programs and the C library make of moored's, over its restarts, and what is asked by those who mean harm.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from hostile import as_user, ask, dial, encode
from moored import THEIRS, UNTIL_SECONDS, freeze, main_pid, run, show, signal_moored, thaw, until

pytestmark = pytest.mark.system_instance("the instance of a user does not take machined's place")

PLACE = "/run/systemd/machine/io.systemd.Machine"
USERS = "/run/systemd/userdb/io.systemd.Machine"
NAMES = "/run/systemd/resolve.hook/io.systemd.Machine"
FILES = Path("/run/systemd/machines")
MACHINED = ("systemd-machined.service", "systemd-machined.socket")
SYSTEMD = int(run("systemctl", "--version").split()[1])
HAS_HOOK = SYSTEMD >= 259
"""Whether this systemd-resolved asks others, and this machined answers."""

SERVICE = {"service": "io.systemd.Machine"}
USER, GROUP = "io.systemd.UserDatabase.GetUserRecord", "io.systemd.UserDatabase.GetGroupRecord"
MEMBERS = "io.systemd.UserDatabase.GetMemberships"
FILTER, RESOLVE = "io.systemd.Resolve.Hook.QueryFilter", "io.systemd.Resolve.Hook.ResolveRecord"
A, AAAA, TXT = 1, 28, 16

UIDS, GIDS = 100_000, 300_000
"""Where the users and the groups of the container begin on the host."""

TEXT = """a $x `y` "q" \\ 'é' *?[ ;|&<>()!"""
"""Free text, with all that a shell would take for something else."""

IDENTITY: dict[str, Any] = {
    "id": "0123456789abcdef0123456789abcdef", "service": TEXT, "rootDirectory": "/a b", "ifIndices": [1, 2],
    "vSockCid": 77, "sshAddress": "vsock/77", "sshPrivateKeyPath": "/x/y",
}  # fmt: skip
YOUNG = {"UID", "SUPERVISOR", "SUPERVISOR_PIDFDID", "SUBGROUP", "CONTROL_ADDRESS"}
"""Fields of state files that an older machined does not write, or that are of who registers the machine."""
ITS_OWN = {"REALTIME", "MONOTONIC", "SCOPE_JOB"}
"""Fields that each registration has anew."""


class Leader(NamedTuple):
    """A process in a service of its own."""

    unit: str
    pid: int


STARTED: set[str] = set()
"""Services of leaders."""


def start(name: str, *argv: str) -> Leader:
    unit = f"{name}.service"
    STARTED.add(unit)
    run("systemd-run", "--quiet", "--collect", f"--unit={unit}", "--property=Type=exec", *argv)
    return Leader(unit, int(show(unit, "MainPID")["MainPID"]))


def shift(pid: int, uids: str, gids: str) -> None:
    """Give the users and groups of a namespace numbers on the host."""
    own = Path("/proc/self/ns/user").readlink()
    trio.run(lambda: until(lambda: Path(f"/proc/{pid}/ns/user").readlink() != own, "it has a namespace"))
    Path(f"/proc/{pid}/uid_map").write_text(uids)
    Path(f"/proc/{pid}/gid_map").write_text(gids)


def registered(name: str, class_: str, leader: Leader, **identity: Any) -> None:
    parameters = {"name": name, "class": class_, "leader": leader.pid, **identity}
    (reply,) = ask(encode(f"{THEIRS}Register", parameters), path=PLACE)
    assert "error" not in reply, reply


def asked(path: str, method: str, parameters: Any, *, more: bool = False) -> Any:
    """Ask, on a connection that stays open until the first answer; return that, in the form that is compared."""
    flags = {"more": True} if more else {}
    data = bytearray()
    with dial(path) as connected:
        connected.sendall(encode(method, parameters, **flags))
        while not data.endswith(b"\0"):
            part = connected.recv(65536)
            assert part, "hung up"
            data += part
    reply = json.loads(data[:-1])
    found = reply.setdefault("parameters", {})
    if "filterDomains" in found:
        found["filterDomains"].sort()
    if "errnoName" in found and SYSTEMD < 262:
        del found["errnoName"], found["origin"]
    if str(found.get("parameter", "")).startswith("question["):  # ours is more precise
        found["parameter"] = "question"
    return reply


def numbers(kind: str, name: str) -> list[dict[str, Any] | None]:
    prefix = f"v{kind[0]}"
    return [
        *({**SERVICE, kind: number} for number in (
            UIDS, UIDS + 999, UIDS + 1000, UIDS + 5005, GIDS, GIDS + 5005, 0, 1000, 65534, 65535, 65536, -1,
            2**32 - 2, 2**32 - 1, 2**32, 2**63, 2**64, 1.5, float(UIDS), "x", True, [],
        )),
        *({**SERVICE, name: f"{prefix}-{text}"} for text in (
            "shifted-0", "shifted-00", "shifted-+0", "shifted--1", "shifted-999", "shifted-1000", "shifted-5005",
            "shifted-65535", "shifted-4294967295", "shifted-99999999999", "shifted-", "shifted", "-0", "vm-0",
            "plain-0", "plain-5", "none-0", "a-long-name-that-does-not-fit-in-0",
        )),
        *({**SERVICE, name: text} for text in (
            "root", "", "a/b", "a b", "a:b", "a\nb", "é", "0", "-x", ".", "..", "x" * 32, "x" * 256,
            "x" * 10_240, "vu-shifted-0\n", 5, [], {},
        )),
        {**SERVICE, name: f"{prefix}-shifted-0", kind: UIDS if kind == "uid" else GIDS},
        {**SERVICE, name: f"{prefix}-shifted-0", kind: UIDS + 1}, {**SERVICE, name: "root", kind: UIDS},
        {**SERVICE, name: "root", kind: GIDS}, {**SERVICE, name: "a/b", kind: 0}, {**SERVICE, "foo": 1}, {**SERVICE},
        {}, {"service": "x"}, {"service": "x", kind: -1}, {"service": 5}, None,
    ]  # fmt: skip


def key(type_: Any, name: Any, **more: Any) -> dict[str, Any]:
    return {"key": {"type": type_, "name": name, **more}}


QUESTIONS: list[tuple[str, str, Any]] = [
    *((USERS, USER, each) for each in numbers("uid", "userName")),
    *((USERS, GROUP, each) for each in numbers("gid", "groupName")),
    *((USERS, MEMBERS, each) for each in (
        {}, SERVICE, {"service": "x"}, {**SERVICE, "userName": "root"}, {**SERVICE, "userName": "a/b"},
        {**SERVICE, "groupName": "vg-shifted-0"}, {**SERVICE, "groupName": 5}, {**SERVICE, "foo": 1},
    )),
]  # fmt: skip
HOOK_QUESTIONS: list[tuple[str, str, Any]] = [
    *((NAMES, FILTER, each) for each in (None, {}, {"a": 1})),
    *((NAMES, RESOLVE, {"question": each}) for each in (
        [], 5, [5], [{}], [{"key": 5}], [{"key": {}}], [{"key": {"type": A}}], [{"key": {"name": "shifted"}}],
        *([key(type_, "shifted")] for type_ in (A, AAAA, TXT, 0, 255, 65535, 65536, -1, "A")),
        *([key(A, "shifted", **{"class": class_})] for class_ in (1, 3, 255, 0, -1, 65536)),
        *([key(A, name)] for name in (
            "SHIFTED", "shifted.", "a.shifted", "b.a.shifted", ".shifted", "xshifted", "none", "", ".", "..", "a..b",
            "vm", "plain", ".host", "x" * 63, "x" * 64, ".".join(["x" * 49] * 5), ".".join(["x" * 50] * 5),
            "x." * 126, "x." * 128, "é", "é" * 32, "a b", "a\nb", "a\x7fb", "a\\.b", "a\\.shifted", "shi\\102ted",
            "\\000", "\\999", "\\1", "\\031x", "\\032x", "\\127", "\\128", "\\255", "\\256", "\\", "\\\\", "a\\x",
            "y" * 9000, 5,
        )),
        [key(TXT, "vm")], [key(A, "shifted"), key(AAAA, "shifted")], [key(A, "shifted")] * 2,
        [key(A, "shifted"), key(A, "none")], [key(A, "a.shifted"), key(A, "none")], [key(A, "shifted"), key(A, "vm")],
        [key(12, "3.2.1.10.in-addr.arpa")], [key(A, "shifted", x=1)], [{**key(A, "shifted"), "x": 1}],
    )),
    (NAMES, RESOLVE, {}), (NAMES, RESOLVE, {"question": [key(A, "shifted")], "x": 1}),
]  # fmt: skip
ALL = [*QUESTIONS, *(HOOK_QUESTIONS if HAS_HOOK else [])]


def state_files() -> dict[str, str]:
    """What there is: the fields of files, and where links lead."""
    return {
        path.name: os.readlink(path) if path.is_symlink() else path.read_text() for path in FILES.iterdir()
    }


def fields(text: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, value in pairs if name not in {*YOUNG, *ITS_OWN}}


class Machined(NamedTuple):
    """What the real one has said."""

    answers: list[Any]
    files: dict[str, str]


def has_place() -> bool:
    try:
        (reply,) = ask(encode("org.varlink.service.GetInfo"), path=PLACE)
    except OSError:
        return False
    return bool(reply["parameters"]["product"] == "moored")


def take_place() -> None:
    run("systemctl", "stop", "moored.service")
    run("systemctl", "start", "moored-machined.socket")
    assert has_place()
    # The sockets are there once it serves.
    trio.run(
        lambda: until(lambda: Path(USERS).is_socket() and Path(NAMES).is_socket(), "lookups are served")
    )


@pytest.fixture(scope="module")
def leaders(moored: None) -> Generator[dict[str, Leader]]:
    found = {
        "shifted": start("shifted", "unshare", "--user", "--net", "sleep", "infinity"),
        "vm": start("vm", "sleep", "infinity"),
        "plain": start("plain", "sleep", "infinity"),
    }
    pid = found["shifted"].pid
    shift(pid, f"0 {UIDS} 1000\n5000 {UIDS + 5000} 10\n", f"0 {GIDS} 1000\n5000 {GIDS + 5000} 10\n")
    inside = ("nsenter", f"--target={pid}", "--net", "ip")
    run(*inside, "link", "set", "lo", "up")
    for address in ("10.1.2.3/24", "10.1.2.4/24", "fd00::1/64"):
        run(*inside, "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
    yield found
    subprocess.run(["systemctl", "stop", *STARTED], check=False, capture_output=True)


def register_all(leaders: dict[str, Leader]) -> None:
    registered("shifted", "container", leaders["shifted"], **IDENTITY)
    registered("vm", "vm", leaders["vm"])
    registered("plain", "container", leaders["plain"])


@pytest.fixture(scope="module")
def machined(leaders: dict[str, Leader]) -> Machined:
    """Ask machined; then take its place, with the same machines."""
    run("systemctl", "start", "systemd-machined.service")
    register_all(leaders)
    found = Machined([asked(*each) for each in ALL], state_files())
    for name in leaders:
        ask(encode(f"{THEIRS}Unregister", {"name": name}), path=PLACE)
    run("systemctl", "mask", "--runtime", "--now", *MACHINED)
    return found


@pytest.fixture(scope="module")
def place(machined: Machined, leaders: dict[str, Leader]) -> Generator[dict[str, Leader]]:
    take_place()
    register_all(leaders)
    yield leaders
    for name in leaders:
        ask(encode(f"{THEIRS}Unregister", {"name": name}), path=PLACE)
    run("systemctl", "stop", "moored-machined.socket", "moored.service")
    run("systemctl", "unmask", "--runtime", *MACHINED)
    assert not Path(USERS).exists()
    assert not Path(NAMES).exists()
    assert state_files() == {}


@pytest.mark.parametrize("number", range(len(ALL)), ids=lambda number: ascii(ALL[number][1:])[:80])
def test_the_same_answer(place: dict[str, Leader], machined: Machined, number: int) -> None:
    assert asked(*ALL[number]) == machined.answers[number]


def test_a_nul_is_refused(place: dict[str, Leader]) -> None:
    # Where machined hangs up.
    assert asked(USERS, USER, {**SERVICE, "userName": "a\0b"})["parameters"] == {"parameter": "userName"}
    assert asked(USERS, USER, {"service": "io.systemd.Machine\0"})["error"].endswith(".BadService")
    assert asked(NAMES, RESOLVE, {"question": [key(A, "a\0b")]})["parameters"] == {"parameter": "question"}


def test_the_same_files(place: dict[str, Leader], machined: Machined) -> None:
    ours, theirs = state_files(), machined.files
    assert ours.keys() == theirs.keys()
    for name, text in theirs.items():
        if name.startswith("unit:"):
            assert ours[name] == text
        else:
            found, expected = fields(ours[name]), fields(text)
            if SYSTEMD < 262:  # it escapes in another way, and knows less
                found = {
                    field: found[field] for field in expected if field not in {"SERVICE", "NETIF", "ROOT"}
                }
                expected = {field: expected[field] for field in found}
            assert found == expected, name
        status = (FILES / name).lstat()
        assert (status.st_uid, oct(status.st_mode & 0o777)) == (0, "0o777" if ":" in name else "0o644")


# What others make of it


libsystemd = ctypes.CDLL("libsystemd.so.0")


def text_of(function: Any, argument: Any) -> str | int:
    """Call a function of libsystemd that returns a text."""
    found = ctypes.c_char_p()
    number = function(argument, ctypes.byref(found))
    if number < 0:
        return number
    assert found.value is not None
    return found.value.decode()


def class_of(name: str) -> str | int:
    return text_of(libsystemd.sd_machine_get_class, name.encode())


def test_libsystemd_knows_machines(place: dict[str, Leader]) -> None:
    assert [class_of(name) for name in ("shifted", "vm", "none", ".host")] == ["container", "vm", -6, "host"]
    for name, leader in place.items():
        assert text_of(libsystemd.sd_pid_get_machine_name, leader.pid) == name
        assert run("ps", "--no-headers", "-o", "machine", "-p", str(leader.pid)).strip() == name
    found = ctypes.POINTER(ctypes.c_char_p)()
    count = libsystemd.sd_get_machine_names(ctypes.byref(found))
    assert sorted(found[number] or b"" for number in range(count)) == [b"plain", b"shifted", b"vm"]
    indices = ctypes.POINTER(ctypes.c_int)()
    assert libsystemd.sd_machine_get_ifindices(b"shifted", ctypes.byref(indices)) == 2
    assert indices[:2] == [1, 2]


def getent(*argv: str) -> str | None:
    done = subprocess.run(
        ["getent", *argv], capture_output=True, text=True, check=False, timeout=UNTIL_SECONDS
    )
    return done.stdout.strip() if done.returncode == 0 else None


def test_addresses_over_the_bus_start_no_unit(place: dict[str, Leader]) -> None:
    call = ("busctl", "--json=short", "call", "org.freedesktop.machine1", "/org/freedesktop/machine1")
    member = ("org.freedesktop.machine1.Manager", "GetMachineAddresses", "s")

    def jobs_of_a_call() -> int:
        before = int(run("systemctl", "show", "--property=NInstalledJobs", "--value"))
        found = json.loads(run(*call, *member, "shifted"))["data"][0]
        addresses = [socket.inet_ntop(family, bytes(address)) for family, address in found]
        assert addresses == ["10.1.2.3", "10.1.2.4", "fd00::1"]
        return int(run("systemctl", "show", "--property=NInstalledJobs", "--value")) - before

    # The first one starts the unit that all have in common; others here may have jobs as well, but not all the time.
    assert 0 in [jobs_of_a_call() for _ in range(5)]
    assert json.loads(run(*call, *member, ".host"))["type"] == "a(iay)"


def test_the_c_library_knows_users(place: dict[str, Leader]) -> None:
    user = f"vu-shifted-7:x:{UIDS + 7}:65534:UID 7 of Container shifted:/:/usr/sbin/nologin"
    assert getent("passwd", "vu-shifted-7") == getent("passwd", str(UIDS + 7)) == user
    group = f"vg-shifted-7:x:{GIDS + 7}:"
    assert getent("group", "vg-shifted-7") == getent("group", str(GIDS + 7)) == group
    assert getent("passwd", str(UIDS + 1000)) is getent("passwd", "vu-vm-0") is None
    record = json.loads(run("userdbctl", "--json=short", "user", "vu-shifted-0"))
    assert (record["uid"], record["disposition"], record["service"]) == (
        UIDS,
        "container",
        "io.systemd.Machine",
    )
    record = json.loads(run("userdbctl", "--json=short", "group", str(GIDS)))
    assert record["groupName"] == "vg-shifted-0"


def test_names_resolve(place: dict[str, Leader]) -> None:
    if not HAS_HOOK:
        return
    found = run("resolvectl", "query", "shifted")
    assert {"10.1.2.3", "10.1.2.4", "fd00::1"} <= {*found.split()}
    assert "Data from: hook" in found
    assert getent("hosts", "shifted") is not None
    assert "10.1.2.3" in (getent("ahosts", "shifted") or "")
    assert getent("hosts", "a.shifted") is None
    assert getent("ahosts", "late") is None
    late = start("late", "unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep infinity")
    inside = ("nsenter", f"--target={late.pid}", "--net", "ip")
    trio.run(lambda: until(lambda: "UP" in run(*inside, "link", "show", "lo"), "its network is up"))
    run(*inside, "address", "add", "10.9.9.9/24", "dev", "lo")
    registered("late", "container", late)
    trio.run(lambda: until(lambda: "10.9.9.9" in (getent("ahosts", "late") or ""), "its name resolves"))
    run("systemctl", "stop", late.unit)
    trio.run(lambda: until(lambda: getent("ahosts", "late") is None, "the name is gone"))


def test_a_filter_follows_the_machines(place: dict[str, Leader]) -> None:
    with dial(NAMES) as connected, connected.makefile("rb") as read:

        def names() -> list[str]:
            message = bytearray()
            while not message.endswith(b"\0"):
                message += read.read(1)
            reply = json.loads(message[:-1])
            assert reply["continues"] is True
            return sorted(reply["parameters"]["filterDomains"])

        connected.sendall(encode(FILTER, {}, more=True))
        assert names() == ["plain", "shifted", "vm"]
        other = start("other", "sleep", "infinity")
        registered("other", "vm", other)
        assert names() == ["other", "plain", "shifted", "vm"]
        ask(encode(f"{THEIRS}Unregister", {"name": "other"}), path=PLACE)
        assert names() == ["plain", "shifted", "vm"]
        run("systemctl", "stop", other.unit)


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_all_is_as_it_was_after_a_restart(place: dict[str, Leader], how: str) -> None:
    before, pid = state_files(), main_pid()
    gone = start("gone", "sleep", "infinity")
    registered("gone", "container", gone)
    assert state_files().keys() == {*before, "gone", "unit:gone.service"}
    (FILES / ".moored").symlink_to("/etc/passwd")  # as if it had been killed while it wrote
    (FILES / "stale").write_text("# Kept by moored.\nNAME=stale\nLEADER=1\n")
    (FILES / "unit:stale.service").symlink_to("stale")
    (FILES / "dead").write_text("NAME=dead\nLEADER=4000000\nLEADER_PIDFDID=5\n")
    (FILES / "unit:dead.service").symlink_to("dead")
    (FILES / "theirs").write_text(f"NAME=theirs\nLEADER={os.getpid()}\n")
    (FILES / "unit:theirs.service").symlink_to("theirs")
    if how == "kill":
        run("systemctl", "kill", "--signal=STOP", "moored.service")
        run("systemctl", "stop", gone.unit)  # it ends while nobody looks
        signal_moored(signal.SIGKILL)
    else:
        run("systemctl", "restart", "moored.service")
        run("systemctl", "stop", gone.unit)
    expected = {*before, "theirs", "unit:theirs.service"}
    trio.run(lambda: until(lambda: main_pid() not in {0, pid}, "it is back"))
    trio.run(lambda: until(lambda: state_files().keys() == expected, "the files are those of the machines"))
    after = state_files()
    assert {name: after[name] for name in before} == before
    trio.run(lambda: until(lambda: getent("passwd", str(UIDS)) is not None, "users are served"))
    if HAS_HOOK:
        trio.run(lambda: until(lambda: getent("hosts", "shifted") is not None, "names are served"))
    assert Path("/etc/passwd").read_text().startswith("root:")
    (FILES / "theirs").unlink()
    (FILES / "unit:theirs.service").unlink()


def test_machined_finds_none_of_ours_when_it_takes_the_place(place: dict[str, Leader]) -> None:
    own = start("own", "sleep", "infinity")
    registered("own", "container", own)
    assert (FILES / "own").exists()
    run("systemctl", "unmask", "--runtime", *MACHINED)
    run("systemctl", "stop", "moored.service")  # which has its name on the bus
    assert (FILES / "own").exists()
    run("systemctl", "start", "systemd-machined.service")
    try:
        found = {path.name for path in FILES.iterdir()}
        assert not {"own", "shifted", "unit:shifted.service"} & found
        assert run("machinectl", "list", "--no-legend", "--no-pager").strip() in {"", "No machines."}
        # Moored, which is not in the place any more, has nothing to say here.
        ask(encode(f"{THEIRS}Unregister", {"name": "own"}))
        assert show(own.unit, "ActiveState")["ActiveState"] == "active"
    finally:
        run("systemctl", "mask", "--runtime", "--now", *MACHINED)
        run("systemctl", "stop", own.unit)
        take_place()
    assert {path.name for path in FILES.iterdir()} >= {"shifted", "unit:shifted.service"}


# Harm


def test_nothing_follows_links(place: dict[str, Leader], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    linked = start("linked", "sleep", "infinity")
    for name in ("linked", "unit:linked.service", ".moored"):
        (FILES / name).symlink_to(victim)
    registered("linked", "container", linked)
    assert not (FILES / "linked").is_symlink()
    assert os.readlink(FILES / "unit:linked.service") == "linked"
    assert class_of("linked") == "container"
    (FILES / "linked").unlink()
    (FILES / "linked").symlink_to(victim)
    run("systemctl", "stop", linked.unit)
    trio.run(lambda: until(lambda: not (FILES / "linked").is_symlink(), "it is gone"))
    assert not (FILES / "unit:linked.service").is_symlink()
    assert victim.read_text() == "kept"


@pytest.mark.parametrize("text", ["a\nCLASS=host", "a\rb", "a\0b", "a\u2028b", "\x1b[2J"])
def test_no_text_begins_a_line(place: dict[str, Leader], text: str) -> None:
    leader = start("liar", "sleep", "infinity")
    for field in ("service", "rootDirectory", "sshAddress", "sshPrivateKeyPath", "controlAddress"):
        value = f"/{text}" if field.endswith(("Path", "Directory", "controlAddress")) else text
        parameters = {"name": "liar", "class": "container", "leader": leader.pid, field: value}
        (reply,) = ask(encode(f"{THEIRS}Register", parameters), path=PLACE)
        assert reply == {"error": "org.varlink.service.InvalidParameter", "parameters": {"parameter": field}}
        assert not (FILES / "liar").exists()
    run("systemctl", "stop", leader.unit)


def test_a_name_that_no_host_has_is_shown_to_nobody(place: dict[str, Leader]) -> None:
    leader = start("odd", "unshare", "--user", "--net", "sleep", "infinity")
    shift(leader.pid, "0 700000 1000", "0 700000 1000")
    parameters = {"name": "a_b", "class": "container", "leader": {"pid": leader.pid}, "allocateUnit": False}
    (reply,) = ask(encode("io.moorage.Machine.Register", parameters))
    assert "error" not in reply, reply
    assert not [name for name in os.listdir(FILES) if "odd" in name or "a_b" in name]
    assert "a_b" not in asked(NAMES, FILTER, {})["parameters"]["filterDomains"]
    assert asked(NAMES, RESOLVE, {"question": [key(A, "a_b")]})["parameters"] == {}
    found = asked(USERS, USER, {**SERVICE, "uid": 700_000})
    assert found["parameters"]["record"]["userName"] == "vu-a_b-0"
    run("systemctl", "stop", leader.unit)


def test_a_thousand_lookups_at_once(place: dict[str, Leader]) -> None:
    wrong: list[Any] = []

    def look(number: int) -> None:
        found = asked(USERS, USER, {**SERVICE, "uid": UIDS + number})
        if found["parameters"].get("record", {}).get("userName") != f"vu-shifted-{number}":
            wrong.append(found)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(UNTIL_SECONDS)
    assert wrong == []
    assert not [thread for thread in threads if thread.is_alive()]


def test_users_have_their_share_of_connections(place: dict[str, Leader]) -> None:
    with as_user(1000):
        held = [dial(USERS) for _ in range(128)]
    try:
        for connected in held:  # each is accepted
            connected.sendall(encode(USER, {**SERVICE, "uid": UIDS}))
            assert b"vu-shifted-0" in connected.recv(4096)
        with as_user(1000):
            found = asked(USERS, USER, {**SERVICE, "uid": UIDS})
        assert found["parameters"]["errno"] == errno.EUSERS
        assert getent("passwd", str(UIDS)) is not None  # root's
    finally:
        for connected in held:
            connected.close()


def test_many_ranges_are_read_as_one(place: dict[str, Leader]) -> None:
    leader = start("ranges", "unshare", "--user", "sleep", "infinity")
    ranges = "".join(
        f"{2 * number} {70_000 + 2 * number} 1\n" for number in range(340)
    )  # as many as there can be
    shift(leader.pid, ranges, ranges)
    registered("ranges", "container", leader)
    for number in (0, 1, 338, 678, 679):
        found = asked(USERS, USER, {**SERVICE, "uid": 70_000 + number})
        name = found["parameters"].get("record", {}).get("userName")
        assert name == (f"vu-ranges-{number}" if number % 2 == 0 else None)
    run("systemctl", "stop", leader.unit)


def test_a_frozen_container_makes_nobody_wait(place: dict[str, Leader]) -> None:
    freeze(place["shifted"].unit)
    try:
        assert getent("passwd", str(UIDS)) is not None
        found = asked(NAMES, RESOLVE, {"question": [key(A, "shifted")]})
        assert [each["rr"]["address"] for each in found["parameters"]["answer"]] == [
            [10, 1, 2, 3],
            [10, 1, 2, 4],
        ]
    finally:
        thaw(place["shifted"].unit)


def test_who_ends_is_nobody(place: dict[str, Leader]) -> None:
    leader = start("brief", "unshare", "--user", "--net", "sleep", "infinity")
    shift(leader.pid, "0 800000 1000", "0 800000 1000")
    registered("brief", "container", leader)
    user = {**SERVICE, "uid": 800_000}
    question = {"question": [key(A, "brief")]}
    assert asked(USERS, USER, user)["parameters"]["record"]["userName"] == "vu-brief-0"
    stop = threading.Thread(target=run, args=("systemctl", "kill", "--signal=KILL", leader.unit))
    stop.start()

    def nothing_wrong() -> bool:
        found, resolved = asked(USERS, USER, user), asked(NAMES, RESOLVE, question)
        name = found["parameters"].get("record", {}).get("userName")
        assert name in {None, "vu-brief-0"}
        assert resolved.get("error") in {None, "io.systemd.System"}
        assert name is not None or found["error"].endswith((".NoRecordFound", ".System"))
        return name is None and resolved["parameters"] == {}

    trio.run(lambda: until(nothing_wrong, "nobody has heard of it"))
    stop.join()
