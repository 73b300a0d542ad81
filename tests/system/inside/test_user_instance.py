"""The instance of a user, under that user's manager: real ones, beside the system's."""

import json
import os
import secrets
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import her_manager
import hostile
import pytest
import trio
from authority import ALICE, BOB, DENIED, acting_as, asks, wait_for
from authority import registers as registers_at
from her_manager import RUNTIME, as_her, units
from hostile import dial, encode
from moored import (
    OURS,
    THEIRS,
    UNTIL_SECONDS,
    Process,
    Processes,
    control_group,
    process_of,
    run,
    scopes,
    until,
)

pytestmark = pytest.mark.system_instance("it becomes that user by itself, and looks at both instances")

HERS = f"{RUNTIME}/moorage/io.moorage.Machine"
HER_MANAGER = f"/user.slice/user-{ALICE}.slice/user@{ALICE}.service/"
INSTANCE = "io.systemd.MachineInstance."
SYSTEMD = int(run("systemctl", "--version").split()[1])


@pytest.fixture(scope="module")
def manager() -> Generator[None]:
    her_manager.start()
    yield
    her_manager.stop()


def her_scopes() -> list[str]:
    """Scopes of machines that her manager has loaded."""
    return units("machine-*.scope")


@pytest.fixture
def hers(spawn: Processes, manager: None) -> Generator[Processes]:
    """Start processes; afterwards nothing is left of machines in her manager, nor in the system's."""
    yield spawn
    spawn.bury()

    async def left() -> None:
        await until(lambda: not units("machine-*"), "no unit of a machine in her manager")
        await until(lambda: not _living(), "no record in her runtime directory")

    trio.run(left)


def _living() -> list[str]:
    paths = (RUNTIME / "moorage/machines").iterdir()
    return [path.name for path in paths if json.loads(path.read_bytes())["phase"] != "exited"]


def registers(user: int, leader: Process, name: str = "web", **fields: Any) -> dict[str, Any]:
    reply = registers_at(user, leader, name, path=HERS, **fields)
    assert reply is not None
    return reply


def test_it_is_hers_as_it_is_installed(hers: Processes) -> None:
    assert asks(ALICE, "io.systemd.service.Ping", path=HERS) == {"parameters": {}}
    for path, mode in (
        (Path(HERS), 0o600),
        (Path(HERS).parent, 0o700),
        (RUNTIME / "moorage/machines", 0o700),
    ):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (ALICE, mode), path
    assert os.readlink(RUNTIME / "varlink/registry/io.moorage.Machine") == HERS
    pid = int(run(*her_manager.SYSTEMCTL, "show", "--property=MainPID", "--value", "moored.service"))
    assert Path(f"/proc/{pid}").stat().st_uid == ALICE
    assert control_group(pid).startswith(HER_MANAGER)
    assert as_her("varlinkctl", "call", HERS, "io.systemd.service.Ping", "{}").returncode == 0


def test_her_machine_is_a_scope_in_her_manager(hers: Processes) -> None:
    leader = hers(user=ALICE)
    machine = registers(ALICE, leader)["parameters"]["machine"]
    assert machine["uid"] == ALICE
    assert machine["leader"] == process_of(leader)
    assert machine["unit"] == "machine-web.scope"
    assert machine["controlGroup"].startswith(HER_MANAGER)
    assert control_group(leader) == machine["controlGroup"]
    assert her_scopes() == ["machine-web.scope"]
    assert scopes() == []

    with acting_as(ALICE):
        replies = hostile.ask(encode(f"{OURS}List", more=True), path=HERS)
    assert [reply["parameters"]["machine"]["name"] for reply in replies] == ["web"]
    with acting_as(ALICE):
        replies = hostile.ask(encode(f"{THEIRS}List", more=True), path=HERS)
    assert [reply["parameters"]["name"] for reply in replies] == ["web"], "no host in there"
    found = asks(ALICE, f"{OURS}Find", {"process": {"pid": leader.pid}}, path=HERS)
    assert found["parameters"]["machine"]["name"] == "web"

    control = RUNTIME / "moorage/control/web"
    wait_for(control.exists)
    assert (control.stat().st_uid, control.stat().st_mode & 0o777) == (ALICE, 0o600)
    assert as_her("varlinkctl", "call", str(control), f"{INSTANCE}Pause", "{}").returncode == 0
    described = as_her("varlinkctl", "call", "--json=short", str(control), f"{INSTANCE}Describe", "{}")
    assert json.loads(described.stdout) == {"running": False, "status": "paused"}

    stopped = asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)
    assert stopped["parameters"]["machine"]["verdict"]["result"] == "success"
    assert leader.wait(UNTIL_SECONDS) == -15
    # And the name at once again.
    assert "error" not in registers(ALICE, hers(user=ALICE))


def test_she_may_be_a_machine_herself(hers: Processes) -> None:
    parameters = json.dumps({"name": "me", "class": "container"})
    command = ("varlinkctl", "call", "--json=short", HERS, f"{OURS}Register", parameters)
    with subprocess.Popen(command, stdout=subprocess.PIPE, user=ALICE, group=ALICE) as caller:
        output, _ = caller.communicate(timeout=UNTIL_SECONDS)
    assert caller.returncode == 0
    machine = json.loads(output)["machine"]
    assert machine["leader"]["pid"] == caller.pid
    assert "supervisor" not in machine
    assert machine["controlGroup"].startswith(HER_MANAGER)


@pytest.mark.parametrize("owner", [0, BOB])
def test_she_cannot_register_what_is_not_hers(hers: Processes, owner: int) -> None:
    leader = hers(user=owner)
    before = control_group(leader)
    not_owned = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": owner}}
    assert registers(ALICE, leader) == not_owned
    pidfd = os.pidfd_open(leader.pid)
    by_fd = {"name": "web", "class": "vm", "leaderFileDescriptor": 0}
    assert asks(ALICE, f"{OURS}Register", by_fd, [pidfd], path=HERS) == not_owned
    os.close(pidfd)
    for unit in (True, False):
        named = {"name": "web", "class": "vm", "leader": leader.pid, "allocateUnit": unit}
        assert asks(ALICE, f"{THEIRS}Register", named, path=HERS) == DENIED
    assert control_group(leader) == before


async def test_she_cannot_register_what_she_runs_with_the_rights_of_another(hers: Processes) -> None:
    # Set-user-ID: hers as to who started it, root's as to what it may do.
    leader = hers(
        ("/usr/bin/su", "-c", "true", "bob"), user=ALICE, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    await until(lambda: Path(f"/proc/{leader.pid}/comm").read_text() == "su\n")
    not_owned = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": 0}}
    assert registers(ALICE, leader) == not_owned


def test_she_cannot_reach_beyond_her_manager(hers: Processes) -> None:
    leader = hers(user=ALICE)  # in a unit of the system's manager, as this test is
    reply = asks(
        ALICE,
        f"{OURS}Register",
        {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "allocateUnit": False},
        path=HERS,
    )
    assert reply == {"error": f"{OURS}UnitNotOwned", "parameters": {"unit": "no unit"}}
    assert her_scopes() == []


def test_others_do_not_even_reach_her_socket(hers: Processes) -> None:
    with acting_as(BOB), pytest.raises(PermissionError):
        dial(HERS)
    # Nor would they be listened to if they did.
    RUNTIME.chmod(0o711)
    (RUNTIME / "moorage").chmod(0o711)
    Path(HERS).chmod(0o666)
    try:
        assert asks(BOB, "io.systemd.service.Ping", path=HERS) == {"parameters": {}}
        assert registers(BOB, hers(user=BOB)) == DENIED
        assert registers(BOB, hers(user=ALICE)) == DENIED
        with acting_as(BOB):
            replies = hostile.ask(encode(f"{OURS}List", more=True), path=HERS)
        assert replies == [DENIED]
    finally:
        Path(HERS).chmod(0o600)
        (RUNTIME / "moorage").chmod(0o700)
        RUNTIME.chmod(0o700)


def test_root_may_look_after_her_machines(hers: Processes) -> None:
    leader = hers(user=ALICE)
    assert "error" not in registers(ALICE, leader)
    replies = hostile.ask(encode(f"{OURS}List", more=True), path=HERS)
    assert [reply["parameters"]["machine"]["uid"] for reply in replies] == [ALICE]
    assert "error" not in asks(0, f"{OURS}Stop", {"name": "web"}, path=HERS)
    assert leader.wait(UNTIL_SECONDS) == -15


def test_root_cannot_put_its_own_into_her_manager(hers: Processes) -> None:
    # Her manager has no rights to root's processes, whoever asks.
    leader = hers()
    before = control_group(leader)
    not_owned = {"error": f"{OURS}ProcessNotOwned", "parameters": {"pid": leader.pid, "uid": 0}}
    assert registers(0, leader) == not_owned
    assert registers(0, leader, dryRun=True) == not_owned
    assert (leader.poll(), control_group(leader)) == (None, before)


def test_her_machine_has_helpers(hers: Processes) -> None:
    leader = hers(user=ALICE)
    served: dict[str, Any] = {
        "name": "fs",
        "execStart": ["/bin/sleep", "infinity"],
        "sockets": [{"name": "s"}],
    }
    served["onFailure"] = "stopMachine"
    machine = registers(ALICE, leader, helpers=[served])["parameters"]["machine"]
    directory = RUNTIME / "moorage/m/web"
    assert machine["runtimeDirectory"] == str(directory)
    for path, mode in ((directory, 0o700), (directory / "s", 0o600)):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (ALICE, mode)
    with acting_as(ALICE):
        dial(str(directory / "s")).close()
    (helper,) = machine["helpers"]
    assert (helper["unit"], helper["activeState"]) == ("machine-web-fs.service", "active")
    assert control_group(helper["mainProcess"]["pid"]).startswith(HER_MANAGER)

    # All properties are hers to set: her manager has no other rights than she. Why one failed is in her journal.
    fails = {
        "name": "bad", "execStart": ["/bin/sh", "-c", "exit $STATUS"], "type": "oneshot",
        "properties": {"Environment": ["STATUS=3"], "WorkingDirectory": "/"},
    }  # fmt: skip
    reply = asks(ALICE, f"{OURS}AddHelpers", {"name": "web", "helpers": [fails]}, path=HERS)
    assert (reply["error"], reply["parameters"]["helper"]) == (f"{OURS}HelperFailed", "bad")
    assert reply["parameters"]["result"] == "exit-code"

    # One that fails later ends the machine with all that is its.
    os.kill(helper["mainProcess"]["pid"], 9)
    assert leader.wait(UNTIL_SECONDS) == -15
    wait_for(lambda: not directory.exists())


@contextmanager
def journald_is_slow() -> Generator[None]:
    """Have journald look only afterwards at who has written to it: who is gone by then has no unit."""
    run("systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service")
    try:
        yield
    finally:
        run("systemctl", "kill", "--signal=SIGCONT", "systemd-journald.service")


def test_what_a_short_lived_helper_of_hers_wrote_is_known_as_its_words(hers: Processes) -> None:
    word = secrets.token_hex(8)
    says = {"name": "says", "execStart": ["/bin/sh", "-c", f"echo {word}"], "type": "oneshot"}
    with journald_is_slow():
        registers(ALICE, hers(user=ALICE), helpers=[says])
    wait_for(lambda: f" {word}\n" in as_her("moorctl", "--user", "log", "web").stdout)

    script = f"sleep 1; echo last {word} >&2; exit 3"
    bad = {"name": "bad", "execStart": ["/bin/sh", "-c", script], "type": "oneshot"}
    call = json.dumps({"name": "web", "helpers": [bad]})

    def lives() -> bool:
        return script in run("ps", "-e", "-o", "args")

    with journald_is_slow():
        adding = subprocess.Popen(
            ["varlinkctl", "call", HERS, f"{OURS}AddHelpers", call],
            user=ALICE, group=ALICE, extra_groups=(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(lives)
        wait_for(lambda: not lives())
    error = json.loads(adding.communicate(timeout=UNTIL_SECONDS)[0])
    assert (error["helper"], error["log"]) == ("bad", [f"last {word}"])


LOOK_AROUND = """
{ ls -A /home /tmp; touch /var/probe; touch /tmp/probe && echo own; readlink /proc/self/ns/net; ls %s; } >%s 2>&1
systemd-notify --ready
exec sleep infinity
"""


def looks_around() -> dict[str, Any]:
    """A helper that reports what it sees."""
    script = LOOK_AROUND % (RUNTIME, RUNTIME / "moorage/m/web/report")
    return {
        "name": "fs", "execStart": ["/bin/sh", "-c", script], "type": "notify", "properties": {"NotifyAccess": "all"},
    }  # fmt: skip


def test_her_helpers_have_a_sandbox(hers: Processes) -> None:
    reply = registers(ALICE, hers(user=ALICE), helpers=[looks_around()])["parameters"]
    home, tmp, read_only, own, net, *directories = [
        line for line in (RUNTIME / "moorage/m/web/report").read_text().splitlines() if line
    ]
    assert (home, tmp, own) == ("/home:", "/tmp:", "own")
    assert "Read-only file system" in read_only
    assert net != os.readlink("/proc/self/ns/net")
    assert directories == ["moorage", "systemd"]
    told = [(each["property"], each["helper"], each.get("effective")) for each in reply["differences"]]
    assert told == [("DynamicUser", "fs", None), ("PrivateDevices", "fs", None)]


def test_her_lease_ends_with_her_connection(hers: Processes) -> None:
    leader = hers(user=ALICE)
    with acting_as(ALICE):
        connected = dial(HERS)
    with connected:
        parameters = {"name": "web", "class": "vm", "leader": {"pid": leader.pid}, "lease": True}
        hostile.send(connected, encode(f"{OURS}Register", parameters))
        assert "error" not in json.loads(connected.recv(65536).rstrip(b"\0"))
    assert leader.wait(UNTIL_SECONDS) == -15


def test_limits_hold_or_a_difference_says_why_not(hers: Processes) -> None:
    controllers = Path(f"/sys/fs/cgroup{HER_MANAGER}cgroup.controllers").read_text().split()
    asked = {"MemoryMax": 2**28, "TasksMax": 64, "CPUWeight": 50}
    attributes = {"memory.max": 2**28, "pids.max": 64, "cpu.weight": 50}
    reply = registers(ALICE, hers(user=ALICE), properties=asked)["parameters"]
    group = Path(f"/sys/fs/cgroup{reply['machine']['controlGroup']}")
    expected: list[dict[str, str]] = []
    for (name, wanted), attribute in zip(asked.items(), attributes, strict=True):
        controller = attribute.partition(".")[0]
        if controller in controllers:
            assert (group / attribute).read_text() == f"{wanted}\n"
        else:
            reason = f"the controller “{controller}” is not delegated to this user's service manager"
            expected.append({"property": name, "wanted": str(wanted), "reason": reason})
    assert [
        {key: each[key] for key in each if key != "effective"} for each in reply["differences"]
    ] == expected
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)


BPF: dict[str, Any] = {
    "IPAddressDeny": [[2, [0, 0, 0, 0], 0]], "IPAddressAllow": [[2, [192, 0, 2, 0], 24]], "IPAccounting": True,
    "DevicePolicy": "strict", "DeviceAllow": [["/dev/null", "rw"]], "SocketBindDeny": [[2, 6, 1, 80]],
    "RestrictNetworkInterfaces": [True, ["lo"]],
}  # fmt: skip


def test_protections_that_her_manager_cannot_give_are_told(hers: Processes) -> None:
    reason = "it takes a BPF program, which a user's service manager may not load"
    leader = hers(user=ALICE)
    for dry_run in (True, False):
        reply = registers(ALICE, leader, properties=BPF, dryRun=dry_run)["parameters"]
        assert {each["property"]: each["reason"] for each in reply["differences"]} == dict.fromkeys(
            BPF, reason
        )
        assert not any("effective" in each for each in reply["differences"])
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)


def test_what_her_manager_may_not_give_to_a_helper_is_told(hers: Processes) -> None:
    asked = {
        "Nice": -5,
        "OOMScoreAdjust": -900,
        "LimitNOFILE": 2**40,
        "IPAddressDeny": [[2, [0, 0, 0, 0], 0]],
    }
    helper = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], "properties": asked}
    reply = registers(ALICE, hers(user=ALICE), helpers=[helper])["parameters"]
    pid = reply["machine"]["helpers"][0]["mainProcess"]["pid"]
    told = {each["property"]: each for each in reply["differences"]}
    assert told.keys() == {*asked, "DynamicUser", "PrivateDevices"}
    assert {each["helper"] for each in told.values()} == {"fs"}
    assert told["Nice"]["effective"] == str(os.getpriority(os.PRIO_PROCESS, pid))
    assert told["OOMScoreAdjust"]["effective"] == Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert [told["LimitNOFILE"]["effective"]] == [line.split()[4] for line in limits if "open files" in line]
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)


def test_moorctl_for_her(hers: Processes) -> None:
    script = "grep 0:: /proc/self/cgroup; read word; echo $word; exit 7"
    done = as_her("moorctl", "--user", "run", "--name", "web", "--", "sh", "-c", script, stdin="hello\n")
    assert done.returncode == 7, done
    group, word = done.stdout.splitlines()
    assert group == f"0::{HER_MANAGER}machine.slice/machine-web.scope"
    assert word == "hello"

    leader = hers(user=ALICE)
    done = as_her("moorctl", "--user", "register", "web", "--leader", str(leader.pid))
    assert (done.returncode, done.stdout) == (0, "machine-web.scope\n"), done
    done = as_her("moorctl", "--user", "list", "--json")
    assert "web" in done.stdout, done
    assert as_her("moorctl", "--user", "stop", "web").returncode == 0
    assert leader.wait(UNTIL_SECONDS) == -15


def test_a_payload_in_a_user_namespace_of_hers(hers: Processes) -> None:
    outer = hers(
        ("unshare", "--user", "sh", "-c", "echo; exec sleep infinity"), user=ALICE, stdout=subprocess.PIPE
    )
    assert outer.stdout is not None
    assert outer.stdout.readline() == b"\n"
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{outer.pid}/{kind}").write_text("0 100000 65536\n")
    command = (
        "nsenter",
        f"--user=/proc/{outer.pid}/ns/user",
        "--setuid=0",
        "--setgid=0",
        "sleep",
        "infinity",
    )
    payload = hers(command)
    wait_for(lambda: Path(f"/proc/{payload.pid}/comm").read_text() == "sleep\n")
    assert Path(f"/proc/{payload.pid}").stat().st_uid == 100_000
    before = control_group(payload)
    reply = registers(ALICE, payload)
    if SYSTEMD < 258:  # the system's manager, which hers asks to move it, looks at the uid only
        assert reply["error"] == f"{OURS}JobFailed"
        assert (payload.poll(), control_group(payload)) == (None, before)
        return
    machine = reply["parameters"]["machine"]
    assert machine["controlGroup"].startswith(HER_MANAGER)
    assert control_group(payload) == machine["controlGroup"]
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)


def test_a_payload_below_its_control_group(hers: Processes) -> None:
    script = "cat /proc/self/cgroup"
    run_ = ("moorctl", "--user", "run", "--name", "web", "--subgroup", "init")
    done = as_her(*run_, "--class", "container", "--", "sh", "-c", script)
    assert done.returncode == 0, done
    assert done.stdout.strip().endswith("/machine-web.scope/init")
    done = as_her(*run_, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (125, ""), done
    assert "needs a delegated machine" in done.stderr


def test_she_reaches_into_her_container(hers: Processes) -> None:
    leader = hers(("unshare", "--user", "--map-root-user", "--mount", "sleep", "infinity"), user=ALICE)
    wait_for(lambda: Path(f"/proc/{leader.pid}/comm").read_text() == "sleep\n")
    assert "error" not in registers(ALICE, leader, **{"class": "container"})
    for method, parameters in (("OpenRootDirectory", {}), ("Open", {"mode": "tty"})):
        reply = asks(ALICE, f"{THEIRS}{method}", {"name": "web", **parameters}, path=HERS)
        assert "error" not in reply, reply
    assert units("moored-inside-*") == ["moored-inside-0.service"]
    assert run("systemctl", "list-units", "--all", "--plain", "--no-legend", "moored-inside-*") == ""
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)


def test_both_instances_keep_machines_of_one_name(hers: Processes) -> None:
    system, own = hers(), hers(user=ALICE)
    assert "error" not in registers_at(0, system, "web")
    assert "error" not in registers(ALICE, own)
    assert (scopes(), her_scopes()) == (["machine-web.scope"], ["machine-web.scope"])
    assert "error" not in asks(ALICE, f"{OURS}Stop", {"name": "web"}, path=HERS)
    assert system.poll() is None
    assert "error" not in asks(0, f"{OURS}Stop", {"name": "web"})
