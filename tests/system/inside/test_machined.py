"""Side by side with machined: the same calls get the same answers, but where it is said here that they do not.

machined of systemd 257 serves fewer methods and fields; what both serve is compared on both.
"""

import errno
import os
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from authority import ALICE, CHALLENGED, DENIED, acting_as, at_home, rules, wait_for
from hostile import ask, encode
from moored import OURS, SOCKET, THEIRS, Processes, assert_nothing_left, run, show, until

pytestmark = pytest.mark.system_instance("the instance of a user has nothing to do with machined")

MACHINED = "/run/systemd/machine/io.systemd.Machine"
SYSTEMD = int(run("systemctl", "--version").split()[1])
NEWEST = 262
"""The machined that is the model."""

Reply = dict[str, Any] | None
Parameters = dict[str, Any]

YOUNG = {"supervisor", "UID", "origin", "errnoName"} if SYSTEMD < NEWEST else set[str]()
"""Fields that this machined does not know."""


@pytest.fixture(scope="module", autouse=True)
def both(moored: None) -> Generator[None]:
    run("systemctl", "start", "systemd-machined.service")
    yield
    trio.run(assert_nothing_left)


def told(reply: Reply) -> Reply:
    """Bring a reply into the form in which it is compared."""
    if reply is None:
        return None
    parameters: dict[str, Any] = {
        name: value for name, value in reply.get("parameters", {}).items() if name not in YOUNG
    }
    if "timestamp" in parameters:  # each took its own
        parameters["timestamp"] = sorted(parameters["timestamp"])
    return {**reply, "parameters": parameters}


def asks(path: str, method: str, parameters: Parameters | None, *, more: bool = False) -> list[Reply]:
    flags = {"more": True} if more else {}
    return [told(reply) for reply in ask(encode(method, parameters, **flags), path=path)]


def error(name: str, **parameters: Any) -> list[Reply]:
    return [told({"error": name, "parameters": parameters})]


def system(number: int, name: str) -> list[Reply]:
    return error("io.systemd.System", origin="linux", errno=number, errnoName=name)


INVALID = "org.varlink.service.InvalidParameter"

GONE = 4_000_000
BOTH: list[tuple[str, Parameters | None]] = [
    (f"{THEIRS}List", None),
    (f"{THEIRS}List", {}),
    *((f"{THEIRS}List", {"name": name}) for name in (
        "xy", "x-y", "x.y", "", ".", "..", "-x", ".x", "x/y", "x y", "é", "x" * 64, "x" * 65, 5, [], {}, True,
    )),
    *((f"{THEIRS}List", {"pid": pid}) for pid in (
        {"pid": 0}, {"pid": 1}, {"pid": -1}, {"pid": GONE}, {"pid": 2**31}, {"pid": 2**40}, 1, "1", None, [],
        {"pid": 1, "pidfdId": 5}, {"pid": 1, "pidfdId": -1}, {"pid": 1, "bootId": "0" * 31 + "1"},
        {"pid": 1, "bootId": "x"}, {"pid": "1"}, {"pid": 1.0}, {"pid": str(GONE)},
    )),
    (f"{THEIRS}List", {"name": ".host", "pid": {"pid": 1}}),
    (f"{THEIRS}List", {"name": "xy", "pid": {"pid": 1}}),
    (f"{THEIRS}List", {"foo": 5}),
    (f"{THEIRS}List", {"name": ".host", "foo": 5}),
    *((f"{THEIRS}List", {"name": ".host", "acquireMetadata": value}) for value in (
        "no", "yes", "graceful", "maybe", "", True, 1,
    )),
    (f"{THEIRS}List", {"name": ".host", "allowInteractiveAuthentication": 1}),
    *((f"{THEIRS}Register", parameters) for parameters in (
        {}, {"name": "xy"}, {"class": "vm"}, {"name": "xy", "class": "bm"}, {"name": "xy", "class": "host"},
        {"name": "xy", "class": "vm", "leader": "1"}, {"name": "xy", "class": "vm", "leader": 1.5},
        {"name": "xy", "class": "vm", "foo": 1}, {"name": "xy", "class": "vm", "allocateUnit": 1},
        {"name": "xy", "class": "vm", "leader": GONE}, {"name": "xy", "class": "vm", "leader": 1},
        {"name": 5, "class": "vm"},
    )),
    *((f"{THEIRS}Register", {"name": name, "class": "vm", "leader": GONE}) for name in (
        "", ".", ".host", "x_y", "x y", "x/y", "-x", "x-", "x.", "x..y", "é", "x" * 65,
    )),
    *((f"{THEIRS}Register", {"name": "xy", "class": "vm", field: value, "leader": GONE}) for field, value in (
        ("id", "x"), ("id", 5), ("id", "1" * 31), ("id", ""), ("id", "0" * 32), ("service", 5),
        ("rootDirectory", "x"), ("rootDirectory", "a/b"),
        ("ifIndices", 5), ("ifIndices", [0]), ("ifIndices", [-1]), ("vSockCid", 0), ("vSockCid", 1), ("vSockCid", 2),
        ("vSockCid", -1), ("vSockCid", 2**32), ("sshAddress", 5), ("sshPrivateKeyPath", "x"),
        ("sshPrivateKeyPath", 5), ("sshAddress", ""), ("service", ""),
    )),
    *((f"{THEIRS}Kill", parameters) for parameters in (
        {}, {"signal": 9}, {"name": "xy"}, {"name": "xy", "signal": 9}, {"name": ".host", "signal": 9},
        {"name": ".host", "signal": 999}, {"name": "xy", "signal": 0}, {"name": "xy", "signal": -1},
        {"name": "xy", "signal": 64}, {"name": "xy", "signal": 65}, {"name": "xy", "signal": "9"},
        {"name": "xy", "signal": 9.0}, {"name": "xy", "signal": "x"}, {"name": "xy", "signal": ""},
        {"name": "xy", "signal": "99"}, {"name": "xy", "signal": 9.5},
    )),
    *((f"{THEIRS}{method}", parameters) for method in ("Unregister", "Terminate") for parameters in (
        {}, {"name": "xy"}, {"name": "x" * 65}, {"name": 5}, {"pid": {"pid": GONE}}, {"foo": 1},
    )),
    (f"{THEIRS}Terminate", {"name": ".host"}),
    ("io.systemd.Machine.NoSuchMethod", {}),
    ("org.varlink.service.NoSuchMethod", {}),
    ("org.varlink.service.GetInterfaceDescription", {}),
    ("org.varlink.service.GetInterfaceDescription", {"interface": "no.such"}),
    ("org.varlink.service.GetInterfaceDescription", {"interface": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "parameters"), BOTH, ids=ascii)
def test_the_same(method: str, parameters: Parameters | None) -> None:
    assert asks(SOCKET, method, parameters) == asks(MACHINED, method, parameters)


LEADERS: list[Parameters] = [
    *({"leader": pid} for pid in (-1, 0, 1, 2**33, GONE, "x", {"pid": 1})),
    *({"leaderProcessId": pid} for pid in (
        {"pid": -1}, {"pid": 0}, {"pid": 1}, {"pid": GONE}, {"pid": 1, "pidfdId": 5}, 1, "x",
    )),
]  # fmt: skip
"""What cannot lead a machine, and nobody is asked about."""


@pytest.mark.parametrize("leader", LEADERS, ids=ascii)
@pytest.mark.parametrize("unit", [False, True])
def test_a_user_is_told_the_same_of_a_leader(leader: Parameters, unit: bool) -> None:
    named = {"name": "xy", "class": "vm", "allocateUnit": unit, **leader}
    # Before 258 polkit knows no such action.
    for path in (SOCKET, MACHINED) if SYSTEMD >= NEWEST else (SOCKET,):
        with acting_as(ALICE):
            (reply,) = asks(path, f"{THEIRS}Register", named)
        assert reply is not None
        (field,) = leader
        assert (path, reply["error"], reply["parameters"]["parameter"].split(".")[0]) == (
            path,
            INVALID,
            field,
        )


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ('{"name":".host","name":".host"}', "name"),
        ('{"name":".host","n\\u0061me":"xy"}', "name"),
        ('{"pid":{"pid":1,"pid":1}}', "pid"),
    ],
)
def test_a_repeated_key_is_refused(parameters: str, field: str) -> None:
    call = f'{{"method":"{THEIRS}List","parameters":{parameters}}}\0'.encode()
    assert ask(call) == invalid(field)
    assert [reply.get("error") for reply in ask(call, path=MACHINED)] != [None]


def test_the_same_list_of_all() -> None:
    for metadata in ("no", "yes", "graceful"):
        parameters = {"acquireMetadata": metadata}
        ours = asks(SOCKET, f"{THEIRS}List", parameters, more=True)
        assert ours == asks(MACHINED, f"{THEIRS}List", parameters, more=True)
        assert len(ours) == 1


NOT_THERE = error(f"{THEIRS}NoSuchMachine")


def invalid(field: str) -> list[Reply]:
    return error(INVALID, parameter=field)


def no_method(method: str) -> list[Reply]:
    return error("org.varlink.service.MethodNotFound", method=method)


def no_interface(interface: str) -> list[Reply]:
    return error("org.varlink.service.InterfaceNotFound", interface=interface)


OTHERWISE: list[tuple[str, str, Parameters, list[Reply], list[Reply]]] = [
    # A machine of io.moorage.Machine may have such a name, so that one may ask for it here too.
    *(
        ("wider names", f"{THEIRS}List", {"name": name}, NOT_THERE, invalid("name"))
        for name in ("x_y", "x-", "x.", "x..y")
    ),
    # machined drops the connection.
    ("NUL", f"{THEIRS}List", {"name": "x\0y"}, invalid("name"), []),
    # null is the same as nothing, as varlink has it.
    ("null", f"{THEIRS}List", {"name": None}, error("org.varlink.service.ExpectedMore"), invalid("name")),
    # machined blames the structure only.
    *(
        ("paths", f"{THEIRS}List", {"pid": pid}, invalid(f"pid.{field}"), invalid("pid"))
        for pid, field in (
            ({"pid": 1.5}, "pid"),
            ({"pid": None}, "pid"),
            ({}, "pid"),
            ({"pid": 1, "foo": 1}, "foo"),
            ({"pid": 1, "bootId": 1}, "bootId"),
        )
    ),
    # What is not there is the interface.
    *(
        ("interfaces", method, {}, no_interface(interface), no_method(method))
        for method, interface in (
            ("io.systemd.Machine", "io.systemd"),
            ("no.such.Interface", "no.such"),
            ("nonsense", "nonsense"),
            ("", ""),
        )
    ),
]
"""Why, the call, what we say, what machined says."""


@pytest.mark.parametrize(("why", "method", "parameters", "ours", "theirs"), OTHERWISE, ids=ascii)
def test_not_the_same(
    why: str, method: str, parameters: Parameters, ours: list[Reply], theirs: list[Reply]
) -> None:
    assert (asks(SOCKET, method, parameters), asks(MACHINED, method, parameters)) == (ours, theirs), why


# Whoever registers itself as a part of a unit, and leaves

LEAVES = (
    'varlinkctl call {} io.systemd.Machine.Register \'{{"name":"passing","class":"container"}}\' && '
    "systemd-notify --ready && exec sleep infinity"
)


def test_a_part_of_a_unit_ends_with_its_leader_here_and_with_the_unit_there(nothing_left: None) -> None:
    for path in (SOCKET, MACHINED):
        service = ("--unit=passing", "--collect", "--property=Type=notify", "--property=NotifyAccess=all")
        run("systemd-run", "--quiet", *service, "sh", "-c", LEAVES.format(path))
        try:
            if path == SOCKET:
                trio.run(lambda: until(_gone(SOCKET, "passing"), "it has ended with varlinkctl"))
                assert run("systemctl", "is-active", "passing.service") == "active\n"
            else:
                (reply,) = asks(path, f"{THEIRS}List", {"name": "passing"})
                assert reply is not None
                assert reply["parameters"]["unit"] == "passing.service"
                assert asks(path, f"{THEIRS}Terminate", {"name": "passing"}) == [{"parameters": {}}]
                trio.run(lambda: until(_gone(MACHINED, "passing"), "it has ended with its unit"))
                assert not Path("/sys/fs/cgroup/system.slice/passing.service").exists()
        finally:
            subprocess.run(["systemctl", "stop", "passing.service"], check=False, capture_output=True)


BOOTED = """
group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/payload/init.scope
mkdir -p $group && echo $$ >$group/cgroup.procs && systemd-notify --ready && exec sleep infinity
"""
"""What a systemd in a container does with the group that it is given."""


def test_one_that_is_registered_late_is_where_its_leader_is(nothing_left: None) -> None:
    places: list[Any] = []
    for path in (SOCKET, MACHINED):
        service = ("--unit=late", "--collect", "--property=Type=notify", "--property=NotifyAccess=all")
        plain = ("--expand-environment=no", "--property=Delegate=yes")
        run("systemd-run", "--quiet", *service, *plain, "sh", "-c", BOOTED)
        try:
            leader = int(show("late.service", "MainPID")["MainPID"])
            named = {"name": "late", "class": "container", "leader": leader}
            (registered,) = asks(path, f"{THEIRS}Register", named)
            assert registered is not None
            assert "error" not in registered
            (reply,) = asks(path, f"{THEIRS}List", {"name": "late"})
            assert reply is not None
            places.append([reply["parameters"].get(name) for name in ("unit", "subgroup")])
            assert asks(path, f"{THEIRS}Unregister", {"name": "late"}) == [{"parameters": {}}]
        finally:
            run("systemctl", "stop", "late.service")
    assert places[0] == ["late.service", "payload/init.scope"]
    assert places[1] == (places[0] if SYSTEMD >= NEWEST else ["late.service", None])


# What is told to users about what is inside


INSPECTED = told(CHALLENGED if SYSTEMD >= 258 else DENIED)
"""Before 258 polkit knows no such action, and machined asks nobody."""


IN_USERS_OF_ITS_OWN = (
    "python3", "-c", "import os, signal; os.unshare(os.CLONE_NEWUSER); signal.pause()",
)  # fmt: skip


def test_who_may_not_look_learns_no_name(spawn: Processes) -> None:
    with rules():
        for path in (SOCKET, MACHINED) if SYSTEMD >= NEWEST else (SOCKET,):
            leader = at_home(spawn, ALICE, IN_USERS_OF_ITS_OWN)
            users = f"/proc/{leader.pid}/ns/user"
            wait_for(lambda users=users: os.readlink(users) != os.readlink("/proc/self/ns/user"))
            with acting_as(ALICE):
                named: Parameters = {"name": "in-place", "class": "container"}
                if path == SOCKET:  # before 258 polkit knows no action of machined's for it
                    named |= {"leader": {"pid": leader.pid}, "allocateUnit": False}
                    (registered,) = asks(path, f"{OURS}Register", named)
                else:
                    (registered,) = asks(path, f"{THEIRS}Register", {**named, "leader": leader.pid})
                assert registered is not None
                assert "error" not in registered, path
                answers = [
                    asks(path, f"{THEIRS}List", {**which, "acquireMetadata": how}, more=more)
                    for which in (
                        {"name": "in-place"},
                        {"name": "absent"},
                        {"name": ".."},
                        {"name": ".host"},
                        {},
                    )
                    for how in ("yes", "graceful")
                    for more in (False, True)
                ]
                assert answers == [[INSPECTED]] * len(answers), path
                (seen,) = asks(path, f"{THEIRS}List", {"name": "in-place"})
                assert seen is not None
                assert "error" not in seen
            leader.kill()
            leader.wait()
            trio.run(lambda path=path: until(_gone(path, "in-place"), "the machine is not listed"))


# The life of a machine


def names(pid: int) -> Callable[[Any], Any]:
    """Return what puts "the leader", "the caller" in the place of PIDs and of what goes with them."""
    places = {pid: "the leader", os.getpid(): "the caller"}

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("pid") in places:
                return (places[value["pid"]], sorted(value))
            return {key: rename(each) for key, each in value.items() if key not in OURS_ALONE}
        return [rename(each) for each in value] if isinstance(value, list) else value

    return rename


FULL = {
    "id": "0123456789abcdef0123456789abcdef", "service": "test", "rootDirectory": "/srv/side", "ifIndices": [1],
    "vSockCid": 77, "sshAddress": "vsock/77", "sshPrivateKeyPath": "/key", "controlAddress": "/run/control",
}  # fmt: skip
OURS_ALONE: set[str] = set()
"""What we say a moment after the registration, and machined does not know."""
if SYSTEMD < NEWEST:
    del FULL["controlAddress"]
    OURS_ALONE.add("controlAddress")

SIGURG = 23
"""A signal that does nothing to those who do not wait for it."""


async def life(path: str, leader: subprocess.Popen[bytes], class_: str) -> list[tuple[str, list[Reply]]]:
    """Live through the life of a machine; return what each step got for an answer."""
    pid = leader.pid
    named = {"name": "side", "class": class_, "leader": pid, "allocateUnit": True}
    steps: list[tuple[str, str, Parameters]] = [
        ("register", "Register", {**named, **FULL}),
        ("same name", "Register", {**named, "leader": os.getpid()}),
        ("same all over", "Register", named),
        ("same leader", "Register", {**named, "name": "side2"}),
        ("list by name", "List", {"name": "side"}),
        ("list by leader", "List", {"pid": {"pid": pid}}),
        ("list by both", "List", {"name": "side", "pid": {"pid": pid}}),
        ("list by two that differ", "List", {"name": ".host", "pid": {"pid": pid}}),
        ("list by another process", "List", {"name": "side", "pid": {"pid": 0}}),
        ("metadata", "List", {"name": "side", "acquireMetadata": "graceful"}),
        ("metadata or else", "List", {"name": "side", "acquireMetadata": "yes"}),
        ("signal 0", "Kill", {"name": "side", "signal": 0}),
        ("signal 65", "Kill", {"name": "side", "signal": 65}),
        ("no signal", "Kill", {"name": "side"}),
        ("kill all", "Kill", {"name": "side", "signal": SIGURG}),
        ("kill all, said", "Kill", {"name": "side", "signal": SIGURG, "whom": "all"}),
        ("kill leader", "Kill", {"name": "side", "signal": SIGURG, "whom": "leader"}),
        ("kill by pid", "Kill", {"pid": {"pid": pid}, "signal": SIGURG}),
        ("kill supervisor", "Kill", {"name": "side", "signal": SIGURG, "whom": "supervisor"}),
        ("kill whom", "Kill", {"name": "side", "signal": SIGURG, "whom": "nobody"}),
        ("forget", "Unregister", {"name": "side"}),
        # machined drops it a moment after the answer: whoever comes next waits for that.
        ("list what is forgotten", "List", {"name": "side"}),
        ("register again", "Register", named),
    ]
    rename = names(pid)
    answers: list[tuple[str, list[Reply]]] = []
    for step, method, parameters in steps:
        answers.append((step, rename(asks(path, f"{THEIRS}{method}", parameters))))
        if step == "forget":
            await until(_gone(path), "it is forgotten")
    return answers


EEXIST = system(errno.EEXIST, "EEXIST")
ESRCH = system(errno.ESRCH, "ESRCH")
EXISTS = error(f"{THEIRS}MachineExists")

DIFFERS: dict[str, tuple[list[Reply] | None, list[Reply]]] = {
    # Ours says where the machine is: see the test.
    "register": (None, [{"parameters": {}}]),
    # A word that says what is the matter.
    "same leader": (EXISTS, EEXIST),
    "register again": (EXISTS, EEXIST),
}
"""What we say and machined says where these differ."""
if SYSTEMD < NEWEST:
    DIFFERS["kill supervisor"] = ([{"parameters": {}}], invalid("whom"))


@pytest.mark.parametrize("class_", ["vm", "container"])
async def test_the_same_life(spawn: Processes, class_: str) -> None:
    lives: list[dict[str, list[Reply]]] = []
    for path in (SOCKET, MACHINED):
        leader = spawn()
        lives.append(dict(await life(path, leader, class_)))
        leader.kill()
        leader.wait()
        await assert_nothing_left()
    ours, theirs = lives
    (registered,) = ours.pop("register")
    assert registered is not None
    where = registered["parameters"]
    assert where.keys() == {"unit", "slice", "controlGroup", "invocationId"}
    assert (where["unit"], where["slice"]) == ("machine-side.scope", "machine.slice")
    assert theirs.pop("register") == DIFFERS["register"][1]
    for step, told_by_us in ours.items():
        if step in DIFFERS:
            assert (told_by_us, theirs[step]) == DIFFERS[step], step
        else:
            assert told_by_us == theirs[step], step


async def test_the_same_end(spawn: Processes) -> None:
    ends: list[list[Any]] = []
    for path in (SOCKET, MACHINED):
        leader = spawn()
        named = {"name": "side", "class": "vm", "leader": leader.pid, "allocateUnit": True}
        asks(path, f"{THEIRS}Register", named)
        if path == MACHINED:  # its Terminate is refused while the start job is under way
            await until(_is_active, "the scope is active")
        told_so = asks(path, f"{THEIRS}Terminate", {"name": "side"})
        status = await trio.to_thread.run_sync(leader.wait)
        await until(_gone(path), "the machine is not listed")
        ends.append([told_so, status])
        await assert_nothing_left()
    assert ends[0] == ends[1] == [[{"parameters": {}}], -15]


def _is_active() -> bool:
    done = subprocess.run(["systemctl", "is-active", "machine-side.scope"], check=False, capture_output=True)
    return done.stdout == b"active\n"


def _gone(path: str, name: str = "side") -> Callable[[], bool]:
    return lambda: asks(path, f"{THEIRS}List", {"name": name}) == NOT_THERE
