"""Who may do what on the system's instance: calls, machines, processes, units, properties."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import hostile
import pytest
from authority import (
    ALICE,
    BOB,
    CHALLENGED,
    DENIED,
    acting_as,
    asks,
    at_home,
    in_service,
    registers,
    rules,
    wait_for,
)
from hostile import call, dial, encode
from made import record
from moored import (
    OURS,
    THEIRS,
    UNTIL_SECONDS,
    Process,
    Processes,
    control_group,
    main_pid,
    process_of,
    run,
    scopes,
    show,
)
from msgspec.structs import replace
from vmm import noted, vmm

from moorage.machines.model import Record
from moorage.machines.store import BadRecord, Store

pytestmark = pytest.mark.system_instance("the instance of a user answers that user alone")

SECRETS = {"sshPrivateKeyPath": "/etc/secret", "controlAddress": "/run/control"}


@pytest.fixture(scope="module", autouse=True)
def _rules() -> Generator[None]:
    with rules():
        yield


# The policy file of systemd 257 does not have that action: what polkit does not know, nobody may do.
INSPECTED = CHALLENGED if int(run("systemctl", "--version").split()[1]) >= 258 else DENIED

# Calls


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("org.varlink.service.GetInfo", {}),
        ("org.varlink.service.GetInterfaceDescription", {"interface": "io.moorage.Machine"}),
        ("io.systemd.service.Ping", {}),
    ],
)
def test_everybody_may_look_at_the_service(
    nothing_left: None, method: str, parameters: dict[str, Any]
) -> None:
    for user in (ALICE, BOB):
        assert asks(user, method, parameters) == call(method, parameters)
        assert "error" not in asks(user, method, parameters)


HELPERS = [{"name": "a", "execStart": ["/bin/true"]}]
LOOKS: dict[str, dict[str, Any]] = {
    f"{OURS}List": {},
    f"{OURS}Describe": {"name": "web"},
    f"{OURS}DescribeProperties": {"type": "scope"},
    f"{OURS}DescribeConfiguration": {},
    f"{OURS}Find": {"unit": "machine-web.scope"},
    f"{OURS}Measure": {},
    f"{OURS}Subscribe": {},
    f"{THEIRS}List": {"name": "web"},
}
ASKED: dict[str, dict[str, Any]] = {
    f"{OURS}Register": {"name": "hers", "class": "vm"},
    f"{OURS}Kill": {"name": "web", "signal": 9},
    f"{OURS}Stop": {"name": "web"},
    f"{OURS}Forget": {"name": "web"},
    f"{OURS}SetProperties": {"name": "web", "properties": {"TasksMax": 5}},
    f"{OURS}Freeze": {"name": "web"},
    f"{OURS}Thaw": {"name": "web"},
    f"{OURS}ResetAccounting": {"name": "web"},
    f"{OURS}Reboot": {"name": "web"},
    f"{OURS}PowerOff": {"name": "web"},
    f"{OURS}AddHelpers": {"name": "web", "helpers": HELPERS},
    f"{OURS}RemoveHelper": {"name": "web", "helper": "a"},
    f"{OURS}Reload": {"name": "web"},
    f"{THEIRS}Register": {"name": "hers", "class": "vm", "allocateUnit": True},
    f"{THEIRS}Unregister": {"name": "web"},
    f"{THEIRS}Terminate": {"name": "web"},
    f"{THEIRS}Kill": {"name": "web", "signal": 9},
    f"{THEIRS}Open": {"name": "web", "mode": "shell"},
    f"{THEIRS}OpenRootDirectory": {"name": ".host"},
}
REFUSED: dict[str, dict[str, Any]] = {
    f"{OURS}PrepareForShutdown": {},
    "io.systemd.service.SetLogLevel": {"level": 7},
    "io.systemd.service.GetLogLevel": {},
    "io.systemd.service.GetEnvironment": {},
}
OPEN = {
    "org.varlink.service.GetInfo",
    "org.varlink.service.GetInterfaceDescription",
    "io.systemd.service.Ping",
    f"{OURS}AwaitStop",  # tried below
    # In test_machined_inside, with a container.
    *(f"{THEIRS}{method}" for method in ("MapFrom", "MapTo", "CopyFrom", "CopyTo", "BindMount")),
}


def everything() -> list[Any]:
    return hostile.ask(encode(f"{OURS}List", more=True))


def stops(*names: str, user: int = 0) -> None:
    for name in names:
        assert "error" not in asks(user, f"{OURS}Stop", {"name": name})


def test_every_method_is_tried_below() -> None:
    assert LOOKS.keys() | ASKED.keys() | REFUSED.keys() | OPEN == hostile.parameters_types().keys()


def test_what_polkit_does_not_allow_changes_nothing(spawn: Processes) -> None:
    leader = spawn()
    registers(0, leader, "web")
    before = everything()
    for methods, answer in ((ASKED, CHALLENGED), (REFUSED, DENIED)):
        for method, parameters in methods.items():
            assert asks(ALICE, method, parameters) == answer, method
    # What looks into a machine asks too; of everybody's at once as well.
    for parameters in ({"name": "web"}, {"name": ".host"}, {"pid": {"pid": leader.pid}}):
        assert asks(ALICE, f"{THEIRS}List", {**parameters, "acquireMetadata": "yes"}) == INSPECTED
    with acting_as(ALICE):
        replies = hostile.ask(encode(f"{THEIRS}List", {"acquireMetadata": "graceful"}, more=True))
    assert replies == [INSPECTED]
    with acting_as(ALICE):  # nobody but those who may stop it without a question gives it time
        assert hostile.ask(encode(f"{OURS}AwaitStop", {"name": "web"}, more=True)) == [DENIED]
    assert everything() == before
    assert scopes() == ["machine-web.scope"]
    assert call("io.systemd.service.GetLogLevel") == {"parameters": {"level": 6}}
    stops("web")


def test_a_user_does_everything_with_her_own_machine(spawn: Processes) -> None:
    leader = at_home(spawn, ALICE)
    machine = registers(ALICE, leader, "yes")["parameters"]["machine"]
    assert (machine["uid"], machine["leader"]) == (ALICE, process_of(leader))
    assert control_group(leader) == "/machine.slice/machine-yes.scope" == machine["controlGroup"]
    assert show("machine-yes.scope", "TasksMax") == {"TasksMax": "16384"}
    # It has chosen the namespaces that one looks into: that is for polkit to allow, as with machined.
    looked_at = asks(ALICE, f"{THEIRS}List", {"name": "yes", "acquireMetadata": "graceful"})
    assert ("error" not in looked_at) == (INSPECTED == CHALLENGED), looked_at
    # From here on polkit is not asked: the name of its machines is not in these rules for others than Register.
    run("systemctl", "mask", "--runtime", "--now", "polkit.service")
    try:
        for method, parameters in (
            (f"{OURS}Describe", {"name": "yes"}),
            (f"{OURS}Find", {"process": {"pid": leader.pid}}),
            (f"{THEIRS}List", {"name": "yes"}),
            (f"{THEIRS}Kill", {"name": "yes", "signal": signal.SIGCONT}),
            (f"{OURS}Kill", {"name": "yes", "signal": signal.SIGCONT, "whom": "leader"}),
            (f"{OURS}SetProperties", {"name": "yes", "properties": {"TasksMax": 500}}),
            (f"{OURS}Freeze", {"name": "yes"}),
            (f"{OURS}Thaw", {"name": "yes"}),
            (f"{OURS}ResetAccounting", {"name": "yes"}),
            (f"{OURS}Stop", {"name": "yes"}),
            (f"{OURS}Forget", {"name": "yes"}),
        ):
            assert "error" not in asks(ALICE, method, parameters), method
    finally:
        run("systemctl", "unmask", "--runtime", "polkit.service")
    assert leader.wait(UNTIL_SECONDS) == -15
    for method in ("Unregister", "Terminate"):
        leader = at_home(spawn, ALICE)
        named = {"name": "yes", "class": "vm", "leader": leader.pid, "allocateUnit": True}
        assert "error" not in asks(ALICE, f"{THEIRS}Register", named)
        assert asks(ALICE, f"{THEIRS}{method}", {"name": "yes"}) == {"parameters": {}}
        leader.terminate()
        leader.wait(UNTIL_SECONDS)


def test_a_user_sees_machines_of_others_without_secrets(spawn: Processes) -> None:
    leader = at_home(spawn, ALICE)
    assert "error" not in registers(ALICE, leader, "yes", **SECRETS)
    registers(0, spawn(), "web", **SECRETS)
    for user, whole in ((0, {"yes", "web"}), (ALICE, {"yes"}), (BOB, set[str]())):
        replies: list[dict[str, Any]] = []
        for name in ("yes", "web"):
            described = asks(user, f"{OURS}Describe", {"name": name})["parameters"]
            assert described["machine"].keys() >= {"unit", "leader", "controlGroup", "helpers"}
            replies.append(described["machine"])
            replies.append(
                asks(user, f"{OURS}Find", {"unit": f"machine-{name}.scope"})["parameters"]["machine"]
            )
            replies.append(asks(user, f"{THEIRS}List", {"name": name})["parameters"])
        with acting_as(user):
            found = hostile.ask(encode(f"{OURS}List", more=True))
            replies += [reply["parameters"]["machine"] for reply in found]
            found = hostile.ask(encode(f"{THEIRS}List", more=True))
            replies += [reply["parameters"] for reply in found if reply["parameters"]["name"] != ".host"]
        assert len(replies) == 10
        for reply in replies:
            told = {name: reply[name] for name in SECRETS if name in reply}
            assert told == (SECRETS if reply["name"] in whole else {}), (user, reply)
    # Nor is the one told who only may stop it.
    registers(0, spawn(), "stop", **SECRETS)
    stopped = asks(BOB, f"{OURS}Stop", {"name": "stop"})["parameters"]["machine"]
    assert not stopped.keys() & SECRETS.keys()
    stops("yes", "web")


def test_repeating_a_call_gives_nobody_the_machine_of_another(spawn: Processes) -> None:
    leader = at_home(spawn, ALICE)
    first = registers(ALICE, leader, "yes")
    assert registers(ALICE, leader, "yes") == first
    # Root may have anything, but not twice.
    for user, answer in ((BOB, "ProcessNotOwned"), (0, "MachineExists")):
        assert registers(user, leader, "yes")["error"] == f"{OURS}{answer}"
        assert registers(user, leader, "yes-more")["error"] == f"{OURS}{answer}"
    assert asks(BOB, f"{OURS}Stop", {"name": "yes-more"})["error"] == f"{OURS}NoSuchMachine"
    assert (
        asks(ALICE, f"{OURS}Stop", {"name": "yes"})["parameters"]["machine"]["verdict"]["result"]
        == "success"
    )


def test_a_connection_stays_with_who_made_it(spawn: Processes) -> None:
    with acting_as(ALICE):
        hers = dial()
    with hers:  # used by root, made by alice
        hostile.send(hers, encode("io.systemd.service.GetLogLevel"))
        assert json.loads(hers.recv(4096).rstrip(b"\0")) == DENIED
    with dial() as ours, acting_as(ALICE):
        hostile.send(ours, encode("io.systemd.service.GetLogLevel"))
        assert json.loads(ours.recv(4096).rstrip(b"\0")) == {"parameters": {"level": 6}}


# Processes


def test_a_process_of_anybody_may_be_registered_and_killed_by_root(spawn: Processes) -> None:
    leader = spawn(user=ALICE)
    reply = call(f"{OURS}Register", {"name": "hers", "class": "vm", "leader": {"pid": leader.pid}})
    assert reply is not None
    assert reply["parameters"]["machine"]["uid"] == 0, "who registered it"
    assert call(f"{OURS}Kill", {"name": "hers", "signal": 9, "whom": "leader"}) == {"parameters": {}}
    assert leader.wait(UNTIL_SECONDS) == -9


def test_processes_of_others_stay_where_they_are(spawn: Processes) -> None:
    # systemd issue 38911, CVE-2026-4105: not even who may register machines may have any process as one.
    for owner in (0, BOB):
        leader = at_home(spawn, owner)
        before = control_group(leader)
        answer = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": owner}}
        pidfd = os.pidfd_open(leader.pid)
        by_fd = {"name": "yes", "class": "vm", "leaderFileDescriptor": 0}
        not_received = {
            "error": "org.varlink.service.InvalidParameter",
            "parameters": {"parameter": "leaderFileDescriptor"},
        }
        for unit in (True, False):
            assert registers(ALICE, leader, "yes", allocateUnit=unit) == answer
            # File descriptors are received from root only. Linux 6.16 does not even let users send any, once the
            # service has accepted the connection.
            with contextlib.suppress(PermissionError):
                assert (
                    asks(ALICE, f"{OURS}Register", {**by_fd, "allocateUnit": unit}, [pidfd]) == not_received
                )
            named = {"name": "yes", "class": "container", "leader": leader.pid, "allocateUnit": unit}
            assert asks(ALICE, f"{THEIRS}Register", named) == DENIED
        os.close(pidfd)
        assert (leader.poll(), control_group(leader)) == (None, before)
    assert scopes() == []
    for pid in (1, main_pid()):
        assert registers(ALICE, pid, "yes")["error"] == "org.varlink.service.InvalidParameter"
    # Of the classes only two can be registered, whoever asks (MACHINE_CLASS_CAN_REGISTER).
    for user in (0, ALICE):
        for method in (OURS, THEIRS):
            answer = asks(user, f"{method}Register", {"name": "yes", "class": "host"})
            assert answer == {
                "error": "org.varlink.service.InvalidParameter",
                "parameters": {"parameter": "class"},
            }


def test_a_program_with_the_rights_of_another_is_not_hers(spawn: Processes) -> None:
    # Set-user-ID: hers as to who started it, root's as to what it may do.
    command = ("/usr/bin/su", "-c", "true", "bob")
    leader = at_home(spawn, ALICE, command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    answer = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": 0}}
    assert registers(ALICE, leader, "yes") == answer


FIFO = Path("/run/test-gate")


def test_a_process_that_becomes_anothers_while_it_is_moved_is_no_machine(spawn: Processes) -> None:
    command = ("/bin/sh", "-c", "read x; exec su -c true bob")
    leader = at_home(spawn, ALICE, command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    os.mkfifo(FIFO)
    FIFO.chmod(0o644)
    # The scope is started when the helper is through, and that waits for the other end of this.
    waits = [{"name": "gate", "type": "oneshot", "execStart": ["/bin/cat", str(FIFO)]}]
    try:
        with acting_as(ALICE):
            hers = dial()
        with hers:
            named = {"name": "as-root", "class": "vm", "leader": {"pid": leader.pid}, "helpers": waits}
            hostile.send(hers, encode(f"{OURS}Register", named))
            with FIFO.open("w"):  # waits for the helper, which is after all checks
                assert leader.stdin is not None
                leader.stdin.write(b"go\n")
                leader.stdin.flush()
                wait_for(lambda: Path(f"/proc/{leader.pid}/comm").read_text() == "su\n")
            reply = json.loads(hers.recv(65536).rstrip(b"\0"))
    finally:
        FIFO.unlink()
    assert reply == {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": 0}}
    assert scopes() == []
    assert leader.wait(UNTIL_SECONDS) != 0, "the scope that it was in is taken back"


def namespaced(spawn: Processes, owner: int, first: int) -> Process:
    """Start a process that a user runs in a user namespace of its own, of 65536 uids from the first on."""
    command = ("unshare", "--user", "--", "sh", "-c", "echo; exec sleep infinity")
    inner = spawn(command, user=owner, stdout=subprocess.PIPE)
    assert inner.stdout is not None
    assert inner.stdout.readline() == b"\n"
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{inner.pid}/{kind}").write_text(f"0 {first} 65536\n")
    return inner


def joined(
    spawn: Processes, namespace: Process, home: int, argv: Sequence[str] = ("sleep", "infinity")
) -> Process:
    """Start a process in a user namespace, as its root, in the slice of a user."""
    command = ("systemd-run", "--scope", "--quiet", f"--slice=user-{home}.slice", "--", "nsenter",
               f"--user=/proc/{namespace.pid}/ns/user", "--setuid=0", "--setgid=0", *argv)  # fmt: skip
    started = spawn(command)
    wait_for(lambda: Path(f"/proc/{started.pid}/comm").read_text() == "sleep\n")
    return started


def test_what_is_in_a_user_namespace_belongs_to_its_owner(spawn: Processes) -> None:
    hers, roots = namespaced(spawn, ALICE, 100_000), namespaced(spawn, 0, 300_000)
    payload = joined(spawn, hers, ALICE)
    nested = joined(spawn, hers, ALICE, ("unshare", "--user", "sleep", "infinity"))
    stranger = joined(spawn, roots, ALICE)
    assert Path(f"/proc/{payload.pid}").stat().st_uid == 100_000
    for leader in (payload, nested, stranger):
        reply = registers(BOB, leader, "yes")
        assert reply["error"] == f"{OURS}ProcessNotOwned"
    assert registers(ALICE, stranger, "yes")["parameters"] == {"pid": stranger.pid, "uid": 300_000}
    for leader in (payload, nested):
        machine = registers(ALICE, leader, "yes", **{"class": "container"})["parameters"]["machine"]
        assert machine["uid"] == ALICE
        assert control_group(leader) == "/machine.slice/machine-yes.scope"
        # A shell in there that would be one out here, issue 39102: the bus knows nobody of the namespace's numbers.
        opened = asks(ALICE, f"{THEIRS}Open", {"name": "yes", "mode": "shell", "user": "root"})
        assert opened["error"] == "io.systemd.System"
        assert opened["parameters"]["errnoName"] in {"EACCES", "EPIPE", "ECONNRESET", "EINVAL"}
        assert run("systemctl", "list-units", "--all", "--plain", "--no-legend", "container-shell@*") == ""
        assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "yes"})
    assert run("systemctl", "list-units", "--all", "--plain", "--no-legend", "moored-probe-*") == ""


# Units


@pytest.fixture
def jobs() -> Generator[None]:
    yield
    run("systemctl", "stop", "test-jobs.service")


def test_processes_are_not_taken_out_of_units_of_others(spawn: Processes, jobs: None) -> None:
    # Issue 26925. A service that runs processes for users, as cron does, is none of theirs.
    command = ("setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups", "sleep", "infinity")
    pid = in_service(ALICE, "test-jobs", argv=command)
    for unit in (True, False):
        answer = {"error": f"{OURS}UnitNotOwned", "parameters": {"unit": "test-jobs.service"}}
        assert registers(ALICE, pid, "yes", allocateUnit=unit) == answer
        assert registers(ALICE, pid, "yes", allocateUnit=unit, dryRun=True) == answer
        named = {"name": "yes", "class": "vm", "leader": pid, "allocateUnit": unit}
        assert asks(ALICE, f"{THEIRS}Register", named) == DENIED
    assert control_group(pid) == "/system.slice/test-jobs.service"

    # A process of hers in the slice of another user, in the scope of a machine, in a plain scope of the system.
    leader = spawn(user=ALICE)
    registers(0, leader, "web")
    for unit in (True, False):
        assert registers(ALICE, leader, "yes", allocateUnit=unit)["error"] == f"{OURS}MachineExists"
    stops("web")
    other = at_home(spawn, ALICE, home=BOB)
    before = control_group(other)
    assert registers(ALICE, other, "yes")["error"] == f"{OURS}UnitNotOwned"
    assert control_group(other) == before
    assert scopes() == []


def test_a_service_that_runs_as_a_user_is_that_users(spawn: Processes) -> None:
    pid = in_service(ALICE, "test-hers", f"--uid={ALICE}")
    machine = registers(ALICE, pid, "yes", allocateUnit=False)["parameters"]["machine"]
    assert (machine["unit"], machine.get("subgroup")) == ("test-hers.service", None)
    assert asks(ALICE, f"{OURS}Forget", {"name": "yes"}) == {"parameters": {}}
    assert registers(BOB, pid, "yes")["error"] == f"{OURS}ProcessNotOwned"
    assert registers(ALICE, pid, "yes")["parameters"]["machine"]["unit"] == "machine-yes.scope"
    assert control_group(pid) == "/machine.slice/machine-yes.scope"
    assert "error" not in asks(
        ALICE, f"{OURS}Stop", {"name": "yes"}
    )  # the service has ended without its process


def test_the_unit_around_a_machine_outlives_it_also_after_a_restart(spawn: Processes) -> None:
    # machined forgets the subgroup when it is restarted, and then stops the whole unit: here, all of the user's.
    run("loginctl", "enable-linger", "alice")
    run("systemctl", "start", f"user@{ALICE}.service")
    run("systemd-run", "--user", "--machine=alice@.host", "--quiet", "--unit=payload", "sleep", "infinity")
    shown = ("show", "--property=MainPID", "--value", "payload.service")
    pid = int(run("systemctl", "--user", "--machine=alice@.host", *shown))
    machine = registers(ALICE, pid, "in-place", allocateUnit=False)["parameters"]["machine"]
    unit = f"user@{ALICE}.service"
    assert (machine["unit"], machine["subgroup"]) == (unit, "/app.slice/payload.service")
    assert machine["invocationId"] == show(unit, "InvocationID")["InvocationID"]
    before = main_pid()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: main_pid() not in {0, before}, "moored is back")
    assert asks(ALICE, f"{THEIRS}Terminate", {"name": "in-place"}) == {"parameters": {}}
    assert show(unit, "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "running",
    }
    assert not Path(f"/proc/{pid}").exists()
    run("loginctl", "disable-linger", "alice")
    run("systemctl", "stop", f"user@{ALICE}.service")


def test_the_manager_survives_stops_of_what_is_just_started(spawn: Processes) -> None:
    # It aborts when a scope is stopped in START_CHOWN, the state that User= and Delegate= bring about (PR 42910,
    # CVE-2026-40223). Users cannot have that; for root the stop waits for the start.
    booted = Path("/proc/1/stat").read_text().split()[21]
    for turn in range(12):
        leader = at_home(spawn, ALICE) if turn < 4 else spawn(user=ALICE)
        user = ALICE if turn < 4 else 0
        fields: dict[str, Any] = {"name": "yes", "class": "container", "leader": {"pid": leader.pid}}
        if user == 0:
            fields["properties"] = {"User": "alice", "Delegate": True}
        with acting_as(user):
            first, second = dial(), dial()
        with first, second:
            hostile.send(first, encode(f"{OURS}Register", fields))
            hostile.send(second, encode(f"{OURS}Stop", {"name": "yes"}))
            reply = json.loads(first.recv(65536).rstrip(b"\0"))
            assert "error" not in reply, reply
            stopped = json.loads(second.recv(65536).rstrip(b"\0"))
        if "error" in stopped:  # it came first
            assert stopped["error"] == f"{OURS}NoSuchMachine"
            assert "error" not in asks(user, f"{OURS}Stop", {"name": "yes"})
        assert leader.wait(UNTIL_SECONDS) == -15
    assert Path("/proc/1/stat").read_text().split()[21] == booted
    assert run("systemctl", "show", "--property=Version").startswith("Version=2")


# Properties


@pytest.mark.parametrize(
    ("properties", "blamed"),
    [
        ({"User": "root"}, "User"),
        ({"MemoryMax": 2**30, "MemoryMin": 2**30}, "MemoryMin"),
        ({"DeviceAllow": [["/dev/mem", "rw"]]}, "DeviceAllow"),
        ({"BPFProgram": [["ingress", "/sys/fs/bpf/x"]]}, "BPFProgram"),
        ({"IPIngressFilterPath": ["/sys/fs/bpf/x"]}, "IPIngressFilterPath"),
        ({"BindsTo": ["dbus.service"]}, "BindsTo"),
        ({"Conflicts": ["dbus.service"]}, "Conflicts"),
        ({"Slice": "system.slice"}, "Slice"),
        ({"SendSIGKILL": False}, "SendSIGKILL"),
        ({"KillMode": "none"}, "KillMode"),
        ({"CPUAccounting": False}, "CPUAccounting"),
        ({"TimeoutStopUSec": "infinity"}, "TimeoutStopUSec"),
        ({"TasksMax": 16385}, "TasksMax"),
    ],
)  # fmt: skip
def test_properties_that_give_rights(spawn: Processes, properties: dict[str, Any], blamed: str) -> None:
    leader = at_home(spawn, ALICE)
    before = control_group(leader)
    for dry in (True, False):
        reply = registers(ALICE, leader, "yes", properties=properties, dryRun=dry)
        assert (reply["error"], reply["parameters"]["property"]) == (f"{OURS}InvalidProperty", blamed)
    assert (scopes(), control_group(leader)) == ([], before)


def test_places_and_helpers_that_give_rights(spawn: Processes) -> None:
    leader = at_home(spawn, ALICE)
    for slice_ in ("system.slice", "user-1001.slice", "vms.slice"):
        reply = registers(ALICE, leader, "yes", slice=slice_)
        assert (reply["error"], reply["parameters"]["property"]) == (f"{OURS}InvalidProperty", "Slice")
    # Nor does she learn what lies where she may not look.
    for path in ("/bin/sleep", "/root/none", "/etc/shadow"):
        assert registers(ALICE, leader, "yes", helpers=[{"name": "a", "execStart": [path]}]) == CHALLENGED
    assert scopes() == []
    machine = registers(ALICE, leader, "yes", slice="user-1000.slice", properties={"MemoryMax": 2**28})[
        "parameters"
    ]
    assert machine["machine"]["controlGroup"] == "/user.slice/user-1000.slice/machine-yes.scope"
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "yes"})


def test_sockets_in_a_directory_of_hers_do_not_give_her_other_files(spawn: Processes) -> None:
    # The manager would give them to her by their path, while she puts a symbolic link there.
    leader = at_home(spawn, ALICE)
    helper = {
        "name": "a",
        "execStart": ["/bin/sleep", "infinity"],
        "sockets": [{"name": "s", "mode": 0o640}],
    }
    assert "error" not in registers(ALICE, leader, "as-root", helpers=[helper])
    socket = r"machine-as\x2droot-a.socket"
    assert show(socket, "SocketUser", "SocketGroup") == {"SocketUser": "", "SocketGroup": ""}
    path = Path("/run/moorage/m/as-root/s")
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o646)
    assert (path.parent.stat().st_uid, path.parent.stat().st_mode & 0o777) == (ALICE, 0o700)
    with acting_as(ALICE):
        dial(str(path)).close()
    with acting_as(BOB), pytest.raises(PermissionError):
        dial(str(path))
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "as-root"})


def test_a_record_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "machines"))
    machine = record("web")
    store.save(machine)
    store.save(replace(machine, name="hers"))
    os.chown(tmp_path / "machines" / "hers", ALICE, ALICE)
    loaded = dict(store.load())
    assert isinstance(loaded["web"], Record)
    assert isinstance(loaded["hers"], BadRecord)
    store.close()


def test_no_user_has_root_call_anybody(spawn: Processes, tmp_path: Path) -> None:
    """Alice's machine may have Alice's socket only; root's is not hers to reach, whatever is at the path."""
    for each in (*tmp_path.parents[:-2], tmp_path):
        each.chmod(0o777)
    roots = vmm(spawn, tmp_path / "root", "obeys")
    bobs = vmm(spawn, tmp_path / "bob", "obeys", user=BOB)
    (tmp_path / "link").symlink_to("alice")
    for name, words in (
        ("root", "Permission denied"),  # it is root's, so it may be connected to; but not by Alice
        ("bob", f"belongs to uid {BOB}"),
        ("link", "symbolic link"),
        ("none", "No such file"),
    ):
        registered = registers(ALICE, at_home(spawn, ALICE), "yes", controlAddress=f"{tmp_path}/{name}")
        assert "error" not in registered
        for caller in (ALICE, 0):
            reply = asks(caller, f"{OURS}PowerOff", {"name": "yes"})
            assert reply["error"] == f"{OURS}NotSupported"
            assert words in reply["parameters"]["reason"]
        stops("yes")
    hers = vmm(spawn, tmp_path / "alice", "ignores", user=ALICE)
    registered = registers(ALICE, at_home(spawn, ALICE), "yes", controlAddress=f"{tmp_path}/alice")
    assert "error" not in registered
    for caller in (ALICE, 0):
        assert asks(caller, f"{OURS}Reboot", {"name": "yes"}) == {"parameters": {}}
        assert noted(hers) == "Reboot"
    stops("yes")
    for each in (roots, bobs):
        assert each.poll() is None
        each.terminate()
        assert each.stdout is not None
        assert each.stdout.read() == b""
