"""Whatever a caller sends: a typed error or a closed connection, and nothing of it stays."""

import ctypes
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hostile
import pytest
import trio
from hostile import ask, call, dial, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from moored import (
    OURS,
    SOCKET,
    THEIRS,
    USER,
    Processes,
    connect,
    cursor,
    descriptors,
    listed,
    logged,
    main_pid,
    process_of,
    register,
    scopes,
    until,
)

from moorage import errors as machine_errors
from moorage.kernel.process import PID_MAX
from moorage.wire.connection import FDS_MAX, INPUT_MAX
from moorage.wire.errors import VarlinkError

pytestmark = pytest.mark.system_instance(
    "what is refused before anything is done does not depend on an instance", runs=True
)

INVALID = "org.varlink.service.InvalidParameter"

SEVERAL = {f"{OURS}{name}" for name in ("List", "Measure", "Subscribe", "AwaitStop")}
"""Methods that have to be called with 'more'."""

PROPERTY = settings(deadline=None, database=None)


@pytest.fixture(scope="module", autouse=True)
def survives(moored: None) -> Generator[None]:
    """One and the same process answers from the first test to the last, and has nothing to complain about."""
    call("io.systemd.service.Ping")
    before, place = main_pid(), cursor()
    yield
    assert call("io.systemd.service.Ping") == {"parameters": {}}
    assert main_pid() == before
    bad = [
        line
        for line in logged(place)
        if "Traceback" in line or (line.startswith("Failed") and "ignoring" not in line)
    ]
    assert bad == []


@pytest.fixture(autouse=True)
def clean(nothing_left: None) -> None:
    """Every test here must leave things as they were."""


def error_of(reply: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return an error reply's name and parameters."""
    assert reply is not None, "the connection was closed"
    assert "error" in reply, reply
    return reply["error"], reply["parameters"]


# Values


@pytest.mark.parametrize("method", sorted(hostile.parameters_types()))
def test_a_wrong_type_anywhere_is_blamed_on_its_field(method: str) -> None:
    with dial() as connected, connected.makefile("rb") as replies:
        for field, parameters in hostile.wrong_parameters(hostile.parameters_types()[method]):
            # Where several replies have to be asked for with 'more', that is looked at first.
            hostile.send(connected, encode(method, parameters, more=method in SEVERAL))
            received = _read_one(replies)
            assert received == {"error": INVALID, "parameters": {"parameter": field}}, parameters


def _read_one(replies: Any) -> dict[str, Any]:
    text = bytearray()
    while (byte := replies.read(1)) != b"\0":
        assert byte, "the connection was closed"
        text += byte
    return json.loads(text)


# Legal in moored's own interface, as systemd allows them in the names of units.
WIDER_NAMES = ("a_b", "a@b", "a:b", r"a\b", "a..b", "a.", "_")
BAD_NAMES = (
    "", ".", "..", ".a", "-a", "a" * 65, "a/b", "/", "../a", "a\0b", "\0", "a b", "a\nb", "a\x7f", "ä", "☃", "a\u200b",
    "\U0001d51e", "%i", "a;b", "a*", "a" * 100_000, "\\" * 64,
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_is_none(spawn: Processes, name: str) -> None:
    pid = spawn().pid
    refused = (INVALID, {"parameter": "name"})
    for parameters in (
        {"leader": {"pid": pid}},
        {"leader": {"pid": pid}, "dryRun": True},
        {"leader": {"pid": pid}, "allocateUnit": False},
    ):
        assert error_of(call(f"{OURS}Register", {"name": name, "class": "vm", **parameters})) == refused
    for method, more in (("Describe", {}), ("Kill", {"signal": 9}), ("Stop", {}), ("Forget", {})):
        assert error_of(call(f"{OURS}{method}", {"name": name, **more})) == refused
    their = {"name": name, "class": "vm", "leader": pid, "allocateUnit": True}
    assert error_of(call(f"{THEIRS}Register", their)) == refused
    for method, more in (("List", {}), ("Kill", {"signal": 9}), ("Terminate", {}), ("Unregister", {})):
        assert error_of(call(f"{THEIRS}{method}", {"name": name, **more})) == refused


@pytest.mark.parametrize("name", [*WIDER_NAMES, "a.-b", "a-", "-"], ids=ascii)
def test_a_name_that_machined_refuses(spawn: Processes, name: str) -> None:
    their = {"name": name, "class": "vm", "leader": spawn().pid, "allocateUnit": True}
    assert error_of(call(f"{THEIRS}Register", their)) == (INVALID, {"parameter": "name"})


@pytest.mark.parametrize(
    "slice_",
    [
        "", ".slice", "-.slice", "a", "a.service", "machine", "/machine.slice", "machine.slice/", "a/b.slice",
        "-a.slice", "a-.slice", "a--b.slice", "a b.slice", "a\0.slice", "é.slice", "a.slice\n", "a.SLICE", "a@b.slice",
        "a" * 250 + ".slice", "a" * 100_000 + ".slice",
    ],
    ids=lambda text: ascii(text)[:30],
)  # fmt: skip
def test_a_slice_that_is_none(spawn: Processes, slice_: str) -> None:
    leader = {"pid": spawn().pid}
    for dry in (True, False):
        reply = call(
            f"{OURS}Register",
            {"name": "web", "class": "vm", "leader": leader, "slice": slice_, "dryRun": dry},
        )
        assert error_of(reply) == (INVALID, {"parameter": "slice"})


LONG = "x" * 4097
BAD_TEXTS: dict[str, tuple[Any, ...]] = {
    "id": ("", "x", "0" * 31, "g" * 32, "1" * 33, "1" * 31 + "-", "1" * 32 + "\0"),
    "service": ("a\0b", "a\nb", "\x1b[31m", "a\u2028b", "a\u202eb", LONG),
    "rootDirectory": ("", "a", "./a", "/a/../b", "/..", "/a\0b", "/a\nb", "/" + LONG),
    "ifIndices": ([0], [-1], [2**31], [1, 2**62], [1] * 257),
    "vSockCid": (-1, 0, 1, 2, 2**32 - 1, 2**32, 2**62),
    "sshAddress": ("a\0b", "a\nb", LONG),
    "sshPrivateKeyPath": ("", "key", "/a/../b", "/a\0b", "/" + LONG),
    "controlAddress": ("", "a\0b", LONG),
}
OUR_TEXTS: dict[str, tuple[Any, ...]] = {
    # To machined these are none.
    "id": ("0" * 32,),
    "service": ("",),
    "sshAddress": ("",),
    "description": ("", "a\0b", "a\nb", LONG),
    "timeoutUSec": (0, -1, 600_000_001, 2**62),
    "leaderFileDescriptor": (-1, 0, 1, FDS_MAX, 2**31, 2**62, -(2**62)),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for texts in (BAD_TEXTS, OUR_TEXTS)
        for field, values in texts.items()
        for value in values
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_value_out_of_range(spawn: Processes, field: str, value: Any) -> None:
    refused = (INVALID, {"parameter": field})
    pid = spawn().pid
    leader = {} if field.startswith("leader") else {"leader": {"pid": pid}}
    assert (
        error_of(call(f"{OURS}Register", {"name": "web", "class": "vm", field: value, **leader})) == refused
    )
    if value in BAD_TEXTS.get(field, ()):
        their = {"name": "web", "class": "vm", "leader": pid, "allocateUnit": True, field: value}
        assert error_of(call(f"{THEIRS}Register", their)) == refused


@pytest.mark.parametrize("signal", [0, -1, 65, 999, 2**31, 2**62])
def test_a_signal_that_is_none(spawn: Processes, signal: int) -> None:
    refused = (INVALID, {"parameter": "signal"})
    assert error_of(call(f"{OURS}Kill", {"name": "web", "signal": signal})) == refused
    assert error_of(call(f"{THEIRS}Kill", {"name": "web", "signal": signal})) == refused


@pytest.mark.parametrize(
    ("method", "parameters", "field"),
    [
        ("Kill", {"name": "web", "signal": 9, "subgroup": "../.."}, "subgroup"),
        ("Kill", {"name": "web", "signal": 9, "subgroup": "a\0b"}, "subgroup"),
        ("Kill", {"name": "web", "signal": 9, "subgroup": "a", "whom": "leader"}, "subgroup"),
        ("Find", {}, "process"),
        ("Find", {"unit": "x", "controlGroup": "/"}, "controlGroup"),
        ("Find", {"controlGroup": "machine.slice"}, "controlGroup"),
        ("Find", {"controlGroup": "/a/../b"}, "controlGroup"),
        ("Find", {"invocationId": "x"}, "invocationId"),
        ("Find", {"process": {"pid": 0}}, "process"),
        ("Find", {"process": {"pid": -1}}, "process"),
        ("Find", {"processFileDescriptor": 0}, "processFileDescriptor"),
        ("Register", {"name": "web", "class": "vm", "allocateUnit": False, "slice": "a.slice"}, "slice"),
        (
            "Register",
            {"name": "web", "class": "vm", "allocateUnit": False, "description": "a"},
            "description",
        ),
        (
            "Register",
            {"name": "web", "class": "vm", "allocateUnit": False, "properties": {"CPUWeight": 5}},
            "properties",
        ),
    ],
)
def test_parameters_that_do_not_go_together(method: str, parameters: dict[str, Any], field: str) -> None:
    assert error_of(call(f"{OURS}{method}", parameters)) == (INVALID, {"parameter": field})


# Processes


def test_a_number_that_is_no_leader(spawn: Processes) -> None:
    started, end = threading.Event(), threading.Event()
    tids: list[int] = []

    def run() -> None:
        tids.append(threading.get_native_id())
        started.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        for pid in (0, 1, -1, -(2**31), PID_MAX + 1, 2**31, 2**32 + spawn().pid, 2**62, main_pid(), tids[0]):
            ours = call(f"{OURS}Register", {"name": "web", "class": "vm", "leader": {"pid": pid}})
            assert error_of(ours) == (INVALID, {"parameter": "leader"}), pid
            for unit in (True, False):
                for field, value in (("leader", pid), ("leaderProcessId", {"pid": pid})):
                    their = {"name": "web", "class": "vm", field: value, "allocateUnit": unit}
                    assert error_of(call(f"{THEIRS}Register", their)) == (INVALID, {"parameter": field}), pid
    finally:
        end.set()
        thread.join()


def expect_gone(leader: dict[str, Any]) -> None:
    ours = call(f"{OURS}Register", {"name": "web", "class": "vm", "leader": leader})
    assert error_of(ours) == (f"{OURS}ProcessGone", {"pid": leader["pid"]})
    their = {"name": "web", "class": "vm", "leaderProcessId": leader, "allocateUnit": True}
    assert error_of(call(f"{THEIRS}Register", their)) == (INVALID, {"parameter": "leaderProcessId"})
    assert error_of(call(f"{OURS}Find", {"process": leader})) == (
        f"{OURS}ProcessGone",
        {"pid": leader["pid"]},
    )
    assert error_of(call(f"{THEIRS}List", {"pid": leader})) == (f"{THEIRS}NoSuchMachine", {})


def test_a_process_that_is_gone(spawn: Processes) -> None:
    process = spawn()
    named = process_of(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    expect_gone(named)  # a zombie
    process.wait()
    expect_gone(named)
    expect_gone({"pid": named["pid"]})


def test_a_process_that_is_another_one(spawn: Processes) -> None:
    one, other = process_of(spawn()), process_of(spawn())
    expect_gone({**one, "pidfdId": other["pidfdId"]})
    expect_gone({**one, "bootId": "0" * 31 + "1"})
    malformed = {**one, "bootId": "not an ID"}
    ours = call(f"{OURS}Register", {"name": "web", "class": "vm", "leader": malformed})
    assert error_of(ours) == (f"{OURS}ProcessGone", {"pid": one["pid"]})
    assert error_of(call(f"{THEIRS}List", {"pid": malformed})) == (INVALID, {"parameter": "pid"})


SYS_CLONE3 = 435


class CloneArguments(ctypes.Structure):
    """``struct clone_args`` (clone3(2)) up to set_tid."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size",
        )
    ]  # fmt: skip


def spawn_as(pid: int) -> int:
    """Start a process under a number that was another's."""
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = (ctypes.c_int * 1)(pid)
    arguments = CloneArguments(exit_signal=17, set_tid=ctypes.addressof(wanted), set_tid_size=1)
    child = libc.syscall(SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if child == 0:
        os.execv("/usr/bin/sleep", ["sleep", "infinity"])
    assert child == pid, os.strerror(ctypes.get_errno())
    return child


def lives(pid: int) -> bool:
    """Whether a child of ours has not exited."""
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


def end(pid: int) -> None:
    """Kill and bury a child of ours."""
    os.kill(pid, 9)
    os.waitpid(pid, 0)


@pytest.mark.system_instance("only root may start a process under a number of its choice")
def test_a_number_that_was_handed_out_again(spawn: Processes) -> None:
    process = spawn()
    named = process_of(process)
    process.kill()
    process.wait()
    again = spawn_as(process.pid)
    try:
        assert process_of(again)["pid"] == named["pid"]
        expect_gone(named)
    finally:
        end(again)


@pytest.mark.system_instance("only root may start a process under a number of its choice")
async def test_a_number_that_is_handed_out_again_while_its_machine_lives(spawn: Processes) -> None:
    command = ("sh", "-c", "read x; sleep infinity & echo; exec sleep infinity")
    leader = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert leader.stdin is not None
    assert leader.stdout is not None
    async with await connect() as client:
        machine = (await register(client, "web", leader))["machine"]
        named = machine["leader"]
        leader.stdin.write(b"\n")
        leader.stdin.flush()
        leader.stdout.readline()  # now there are two
        leader.kill()
        leader.wait()
        again = spawn_as(leader.pid)
        try:
            # The machine goes on in its other process, and the new one is no part of it.
            assert list(await listed(client)) == ["web"]
            with pytest.raises(machine_errors.NoSuchMachine):
                await client.call(f"{OURS}Find", {"process": {"pid": again}})
            with pytest.raises(machine_errors.ProcessGone):
                await client.call(f"{OURS}Kill", {"name": "web", "signal": 9, "whom": "leader"})
            with pytest.raises(machine_errors.ProcessGone):
                await client.call(f"{OURS}Find", {"process": named})
            assert lives(again)
            await client.call(f"{OURS}Stop", {"name": "web"})
            assert lives(again)
        finally:
            end(again)


KILLS = 40


async def test_a_leader_that_dies_during_the_call(spawn: Processes) -> None:
    outcomes: set[str] = set()

    async def attempt(number: int) -> None:
        leader = spawn(("sleep", f"{number * 0.0005:.4f}"))  # its own end, at some moment of the call
        async with await connect() as client:
            try:
                reply = await register(client, f"dying-{number}", leader)
            except VarlinkError as error:
                outcomes.add(error.error)
            else:
                outcomes.add("registered")
                assert reply["machine"]["leader"]["pid"] == leader.pid
        await trio.to_thread.run_sync(leader.wait)

    async with trio.open_nursery() as nursery:
        for number in range(KILLS):
            nursery.start_soon(attempt, number)
    assert outcomes <= {"registered", f"{OURS}ProcessGone"}
    assert f"{OURS}ProcessGone" in outcomes


# File descriptors


def test_a_file_descriptor_that_is_no_pidfd() -> None:
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        readable, writable = os.pipe()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        files = {
            "file": stack.enter_context(Path("/etc/hostname").open()).fileno(),
            "directory": os.open("/proc/self", os.O_RDONLY),
            "path": os.open("/proc/1", os.O_PATH),
            "socket": ours.fileno(),
            "pipe": readable,
            "epoll": stack.enter_context(select.epoll()).fileno(),
            "memfd": os.memfd_create("pidfd"),
            "init": os.pidfd_open(1),
            "moored": os.pidfd_open(main_pid()),
        }
        for fd in (writable, *files.values()):
            if fd not in {ours.fileno(), files["file"], files["epoll"]}:
                stack.callback(os.close, fd)
        for kind, fd in files.items():
            parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0}
            expected = (INVALID, {"parameter": "leaderFileDescriptor"})
            assert error_of(call(f"{OURS}Register", parameters, [fd])) == expected, kind
            if kind not in {"init", "moored"}:
                expected = (INVALID, {"parameter": "processFileDescriptor"})
                assert error_of(call(f"{OURS}Find", {"processFileDescriptor": 0}, [fd])) == expected, kind


def test_a_pidfd_of_one_that_is_gone(spawn: Processes) -> None:
    process = spawn()
    pidfd = os.pidfd_open(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0}
    assert error_of(call(f"{OURS}Register", parameters, [pidfd]))[0] == f"{OURS}ProcessGone"
    process.wait()
    assert error_of(call(f"{OURS}Register", parameters, [pidfd])) == (f"{OURS}ProcessGone", {})
    os.close(pidfd)


def test_a_pidfd_and_a_number_that_disagree(spawn: Processes) -> None:
    pidfd = os.pidfd_open(spawn().pid)
    parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0, "leader": {"pid": spawn().pid}}
    assert error_of(call(f"{OURS}Register", parameters, [pidfd])) == (
        INVALID,
        {"parameter": "leaderFileDescriptor"},
    )
    os.close(pidfd)


def test_a_pidfd_and_an_identity_that_disagree(spawn: Processes) -> None:
    process = spawn()
    pidfd = os.pidfd_open(process.pid)
    named = {**process_of(process), "pidfdId": process_of(spawn())["pidfdId"]}
    parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0, "leader": named, "dryRun": True}
    assert error_of(call(f"{OURS}Register", parameters, [pidfd])) == (
        INVALID,
        {"parameter": "leaderFileDescriptor"},
    )
    os.close(pidfd)


@pytest.mark.parametrize("count", [1, 2, FDS_MAX])
async def test_file_descriptors_that_nobody_asked_for(count: int) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    before = descriptors()
    assert call("io.systemd.service.Ping", {}, fds) is not None
    assert error_of(call(f"{OURS}Describe", {"name": "never"}, fds))[0] == f"{OURS}NoSuchMachine"
    index = {"name": "web", "class": "vm", "leaderFileDescriptor": count}
    assert error_of(call(f"{OURS}Register", index, fds)) == (INVALID, {"parameter": "leaderFileDescriptor"})
    assert ask(b"no message\0", fds) == []
    assert ask(b'{"method":"never finished', fds) == []
    await until(lambda: descriptors() <= before, "they are closed")
    for fd in fds:
        os.close(fd)


def test_file_descriptors_in_the_middle_of_a_message() -> None:
    message = encode("io.systemd.service.Ping")
    with dial() as connected, Path("/dev/null").open() as file:
        hostile.send(connected, message[:10])
        call("io.systemd.service.Ping")  # by now the first part has been read
        hostile.send(connected, message[10:], [file.fileno()])
        assert hostile.receive(connected) == b""


# Properties


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("NoSuch", 1, "NoSuchProperty"),
        ("", 1, "NoSuchProperty"),
        ("a\0b", 1, "NoSuchProperty"),
        ("memorymax", 1, "NoSuchProperty"),
        ("ExecStart", [], "NoSuchProperty"),
        ("Id", "x", "NoSuchProperty"),
        ("ActiveState", "active", "NoSuchProperty"),
        ("MemoryMax", "x", "InvalidProperty"),
        ("MemoryMax", -1, "InvalidProperty"),
        ("MemoryMax", 2**64, "InvalidProperty"),
        ("MemoryMax", 1.5, "InvalidProperty"),
        ("MemoryMax", None, "InvalidProperty"),
        ("MemoryMax", [], "InvalidProperty"),
        ("MemoryMax", {}, "InvalidProperty"),
        ("MemoryMax", True, "InvalidProperty"),
        ("CPUWeight", 10_001, "InvalidProperty"),
        ("TasksMax", 0, "InvalidProperty"),
        ("KillMode", "x", "InvalidProperty"),
        ("KillMode", 1, "InvalidProperty"),
        ("KillSignal", 999, "InvalidProperty"),
        ("KillSignal", 2**40, "InvalidProperty"),
        ("OOMPolicy", "x", "InvalidProperty"),
        ("Delegate", "x", "InvalidProperty"),
        ("DevicePolicy", "x", "InvalidProperty"),
        ("After", "x", "InvalidProperty"),
        ("After", ["no unit"], "InvalidProperty"),
        ("After", ["a\0.service"], "InvalidProperty"),
        ("Slice", "a.slice", "InvalidProperty"),
        ("Description", "a", "InvalidProperty"),
        ("PIDs", [1], "InvalidProperty"),
        ("PIDFDs", [0], "InvalidProperty"),
        ("Controller", ":1.1", "InvalidProperty"),
        ("AddRef", True, "InvalidProperty"),
        ("CollectMode", "inactive", "InvalidProperty"),
    ],
)
def test_a_property_that_cannot_be(spawn: Processes, name: str, value: Any, error: str) -> None:
    parameters = {"name": "web", "class": "vm", "leader": {"pid": spawn().pid}, "properties": {name: value}}
    found, told = error_of(call(f"{OURS}Register", parameters))
    quoted = name.replace("\0", "\ufffd")  # sd-json cannot read U+0000
    assert (found, told.get("property")) == (f"{OURS}{error}", quoted), told
    assert scopes() == []


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_JSON = st.recursive(
    _SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_PROPERTIES = st.sampled_from(
    ["MemoryMax", "CPUWeight", "AllowedCPUs", "DeviceAllow", "IPAddressAllow", "IODeviceWeight", "After", "Delegate",
     "DelegateControllers", "KillMode", "BPFProgram", "SocketBindAllow", "Documentation", "MemoryMaxScale", "NFTSet"]
)  # fmt: skip


@PROPERTY
@given(properties=st.dictionaries(_PROPERTIES | st.text(max_size=12), _JSON, min_size=1, max_size=3))
def test_any_properties_get_an_answer(properties: dict[str, Any]) -> None:
    me = {"name": "web", "class": "container", "dryRun": True, "properties": properties}
    reply = call(f"{OURS}Register", me)
    if reply is not None and "error" in reply:
        assert reply["error"] in {
            f"{OURS}NoSuchProperty",
            f"{OURS}InvalidProperty",
            INVALID,
        }, reply


# Messages

PING = b'"method":"io.systemd.service.Ping"'


@pytest.mark.parametrize(
    "message",
    [
        b"", b" ", b"null", b"1", b'""', b"[]", b"{}", b"{", b'{"method":1}', b'{"method":null}', b"\xff\xfe",
        b"{" + PING + b',"parameters":[]}', b"{" + PING + b',"parameters":1}', b"{" + PING + b',"parameters":"{}"}',
        b"{" + PING + b',"more":1}', b"{" + PING + b',"more":null}', b"{" + PING + b',"oneway":"true"}',
        b"{" + PING + b',"more":true,"oneway":true}', b"{" + PING + b',"more":true,"upgrade":true}',
        b"{" + PING + b',"unknown":1}', b"{" + PING + b"," + PING + b"}", b"{" + PING + b"}{" + PING + b"}",
        b"{" + PING + b"} x", b"{" + PING + b',"parameters":{"a":}}',
        b'{"error":"x","parameters":{}}', b'{"parameters":{}}', b'{"parameters":{},"continues":true}',
        b"\xef\xbb\xbf{" + PING + b"}", b"{'method':'x'}", b"GET / HTTP/1.1\r\n\r\n", b"BEGIN\r\n",
    ],
)  # fmt: skip
def test_what_is_no_call_ends_the_connection(message: bytes) -> None:
    good = b"{" + PING + b"}\0"
    assert ask(good + message + b"\0" + good) == [{"parameters": {}}], "answered before, closed after"


@pytest.mark.parametrize(
    ("method", "error", "parameters"),
    [
        ("", "InterfaceNotFound", {"interface": ""}),
        ("x", "InterfaceNotFound", {"interface": "x"}),
        ("io.moorage.Machine", "InterfaceNotFound", {"interface": "io.moorage"}),
        ("io.moorage.Machine.", "MethodNotFound", {"method": "io.moorage.Machine."}),
        ("io.moorage.Machine.register", "MethodNotFound", {"method": "io.moorage.Machine.register"}),
        ("io.moorage.Machine.__init__", "MethodNotFound", {"method": "io.moorage.Machine.__init__"}),
        ("io.systemd.service.Reload", "MethodNotImplemented", {"method": "io.systemd.service.Reload"}),
        ("a\0b.c", "InterfaceNotFound", {"interface": "a\ufffdb"}),  # sd-json cannot read U+0000
        ("\u00e4.\u00e4", "InterfaceNotFound", {"interface": "\u00e4"}),
    ],
)
def test_a_method_that_is_none(method: str, error: str, parameters: dict[str, str]) -> None:
    assert error_of(call(method)) == (f"org.varlink.service.{error}", parameters)


def test_a_call_that_wants_no_answer_gets_none_even_if_it_fails() -> None:
    good = encode("io.systemd.service.Ping")
    for method, parameters in (
        ("no.such.Method", {}),
        (f"{OURS}Describe", {"name": "web"}),
        (f"{OURS}Register", {"name": "/"}),
        ("io.systemd.service.GetLogLevel", {}),
        ("io.systemd.service.Ping", {"x": 1}),
    ):
        assert ask(encode(method, parameters, oneway=True) + good) == [{"parameters": {}}]


@PROPERTY
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    for reply in ask(data):
        assert "error" in reply


@PROPERTY
@given(data=st.data())
def test_a_good_call_with_a_few_bytes_changed(data: st.DataObject) -> None:
    good = encode(f"{OURS}Kill", {"name": "web", "signal": 15, "whom": "all", "subgroup": "a/b"})
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    for reply in ask(bytes(changed)):
        assert "error" in reply


@PROPERTY
@given(parameters=st.dictionaries(st.text(max_size=8), _JSON, max_size=4), more=st.booleans())
def test_any_parameters_get_an_answer(parameters: dict[str, Any], more: bool) -> None:
    for method in ("Register", "Describe", "Find", "Kill", "Stop", "Forget"):
        replies = ask(encode(f"{OURS}{method}", parameters, more=more))
        assert [reply["error"].rpartition(".")[0] for reply in replies] == ["org.varlink.service"]


DEEP = 200_000


@pytest.mark.parametrize(
    "nested",
    [
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b'{"name":"web","class":"vm","properties":{"MemoryMax":' + b"[" * DEEP + b"]" * DEEP + b"}}",
        b'{"name":"web","class":"vm","unheardOf":' + b"[" * DEEP + b"]" * DEEP + b"}",
    ],
    ids=["lists", "objects", "closed lists", "closed objects", "in a property", "in an unknown field"],
)
def test_json_that_is_nested_deeply(nested: bytes) -> None:
    assert ask(nested + b"\0") == []
    for method in (f"{OURS}Register", f"{THEIRS}Register", "io.systemd.service.Ping"):
        replies = ask(b'{"method":"%b","parameters":%b}\0' % (method.encode(), nested))
        assert [error_of(reply)[0] for reply in replies] in ([], [INVALID])


def test_a_flood_of_nothing() -> None:
    assert ask(b"\0" * 1_000_000) == []


def test_a_message_without_an_end() -> None:
    with dial() as connected:
        piece = b" " * 65536
        for _ in range(INPUT_MAX // len(piece) + 1):
            hostile.send(connected, piece)
        assert hostile.receive(connected) == b""


def test_a_message_that_is_just_small_enough() -> None:
    tail = encode("io.systemd.service.Ping")
    for size, answers in ((INPUT_MAX - 1, 1), (INPUT_MAX + 1, 0)):
        assert len(ask(b" " * (size - len(tail) + 1) + tail)) == answers


def test_numbers_that_never_end() -> None:
    digits = b"9" * 1_000_000
    for number in (digits, b"-" + digits, b"1e" + digits, b"0.5" + digits):
        replies = ask(b'{"method":"io.systemd.service.SetLogLevel","parameters":{"level":%b}}\0' % number)
        assert [error_of(reply)[0] for reply in replies] in ([], [INVALID])


# Manners


def rss() -> int:
    """Resident memory of moored, bytes."""
    pages = int(Path(f"/proc/{main_pid()}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


CROWD = 24
CALLS = 400


async def test_a_client_that_never_reads(spawn: Processes) -> None:
    async with await connect() as client, trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            await register(client, f"crowd-{number}", spawn(), description="x" * 4000, service="y" * 4000)

        for number in range(CROWD):
            nursery.start_soon(one, number)
    before = rss()
    # Some 40 MB of replies to each of them, if they were made.
    calls = encode(f"{THEIRS}List", more=True) * CALLS + encode(f"{OURS}List", more=True) * CALLS
    deaf = [dial() for _ in range(8)]
    for connected in deaf:
        connected.setblocking(False)
        assert connected.send(calls) > 0
    async with await connect() as client:
        for _ in range(50):
            await client.call("io.systemd.service.Ping")
        assert len(await listed(client)) == CROWD
        # Each may have what waits below the high-water mark, twice over for the joining of it, and its input.
        assert rss() - before < len(deaf) * 2 * 1024 * 1024
        # One that begins to read after all gets all of it, in order.
        late = deaf.pop()
        late.setblocking(True)
        late.settimeout(20)
        late.shutdown(socket.SHUT_WR)
        received = await trio.to_thread.run_sync(hostile.receive, late)
        late.close()
        names = [*([] if USER else [".host"]), *(f"crowd-{number}" for number in range(CROWD))]
        replies = [json.loads(text) for text in received.split(b"\0")[:-1]]
        told = [reply["parameters"].get("name") for reply in replies[: len(names) * 2]]
        assert sorted(told) == sorted(names * 2)
        for connected in deaf:
            connected.close()
        for number in range(CROWD):
            await client.call(f"{OURS}Stop", {"name": f"crowd-{number}"})


async def test_a_client_that_sends_a_byte_at_a_time(spawn: Processes) -> None:
    leader = spawn()
    message = encode(f"{OURS}Register", {"name": "slow", "class": "vm", "leader": {"pid": leader.pid}})
    slow = dial()
    async with await connect() as client:
        for at in range(len(message) - 1):
            slow.send(message[at : at + 1])
            # By the time that another caller has its answer, the byte has been seen too.
            await client.call("io.systemd.service.Ping")
        assert await listed(client) == {}
        slow.send(message[-1:])
        reply = await trio.to_thread.run_sync(slow.recv, 65536)
        assert json.loads(reply.rstrip(b"\0"))["parameters"]["machine"]["name"] == "slow"
        await client.call(f"{OURS}Stop", {"name": "slow"})
    slow.close()


def hang_up(connected: socket.socket) -> None:
    connected.close()


def stop_writing(connected: socket.socket) -> None:
    connected.shutdown(socket.SHUT_WR)
    assert hostile.receive(connected) == b""
    connected.close()


@pytest.mark.parametrize("how", [hang_up, stop_writing])
def test_a_client_that_hangs_up_within_a_call(
    spawn: Processes, how: Callable[[socket.socket], None]
) -> None:
    pidfd = os.pidfd_open(spawn().pid)
    parameters = {"name": "half", "class": "vm", "leaderFileDescriptor": 0, "properties": {"CPUWeight": 5}}
    message = encode(f"{OURS}Register", parameters)
    for length in range(len(message)):
        connected = dial()
        if length:
            hostile.send(connected, message[:length], [pidfd])
        how(connected)
    os.close(pidfd)
    assert scopes() == []


async def test_a_client_that_hangs_up_within_the_reply(spawn: Processes) -> None:
    async with await connect() as client:
        for length in (0, 0, 0, 0, 1, 2, 100):
            leader = spawn()
            connected = dial()
            hostile.send(
                connected,
                encode(f"{OURS}Register", {"name": "left", "class": "vm", "leader": {"pid": leader.pid}}),
            )
            if length:
                await trio.to_thread.run_sync(connected.recv, length)
            connected.close()
            # Dropped, or completed: by when the next call about it is answered, one of the two.
            leader.kill()
            leader.wait()
            await until(lambda: _gone(client, "left"), "the machine is gone")


async def _gone(client: Any, name: str) -> bool:
    return name not in await listed(client)


async def test_a_client_that_hangs_up_at_any_moment_of_the_call(spawn: Processes) -> None:
    # How long a registration takes here, in turns of the service: as many Pings as another caller gets answered.
    async with await connect() as client:
        for turns in range(24):
            leader = spawn()
            connected = dial()
            hostile.send(
                connected,
                encode(
                    f"{OURS}Register", {"name": f"m{turns}", "class": "vm", "leader": {"pid": leader.pid}}
                ),
            )
            for _ in range(turns):
                await client.call("io.systemd.service.Ping")
            connected.close()
        await until(lambda: settled(client), "every call is through")
        for name in await listed(client):
            await client.call(f"{OURS}Stop", {"name": name})


async def settled(client: Any) -> bool:
    """Whether no registration is under way: every scope is that of a machine."""
    return {f"machine-{name}.scope" for name in await listed(client)} == set(scopes())


def test_callers_that_come_and_go(spawn: Processes) -> None:
    pid = main_pid()
    before = descriptors()
    code = (
        "import socket, sys\n"
        "for _ in range(500):\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.close()\n"
    )
    for one in [spawn((sys.executable, "-c", code, SOCKET)) for _ in range(2)]:
        assert one.wait(20) == 0
    call("io.systemd.service.Ping")
    assert (main_pid(), descriptors() <= before + 1) == (pid, True)
