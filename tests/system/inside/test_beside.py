"""Beside machined: what is registered here is seen by whoever asks machined, and by nobody twice.

Of machined 257 and 262 alike, but for the socket that starts the latter.
"""

import json
import signal
import subprocess
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hostile import ask, encode
from moored import (
    NOTE,
    OURS,
    RECORDS,
    SOCKET,
    THEIRS,
    UNTIL_SECONDS,
    Processes,
    connect,
    control_group,
    describe,
    kill,
    listed,
    members,
    move,
    process_of,
    register,
    run,
    scopes,
    show,
    signal_moored,
    until,
    verdict,
)

from moorage.errors import MachineExists
from moorage.wire.client import Client

pytestmark = [
    pytest.mark.usefixtures("beside"),
    pytest.mark.system_instance("the instance of a user has nothing to do with machined"),
]

MACHINED = "/run/systemd/machine/io.systemd.Machine"
SERVICE = "systemd-machined.service"
BY_ADDRESS = int(run("systemctl", "--version").split()[1]) >= 262
"""machinectl goes to the control address of a machine, which is ours."""
UNITS = (SERVICE, "systemd-machined.socket")


@pytest.fixture(autouse=True)
def machined(moored: None) -> Generator[None]:
    run("systemctl", "start", SERVICE)
    yield
    subprocess.run(["systemctl", "kill", "-s", "CONT", SERVICE], check=False, capture_output=True)
    run("systemctl", "unmask", "--runtime", *UNITS)
    subprocess.run(["systemctl", "reset-failed", *UNITS], check=False, capture_output=True)
    run("systemctl", "start", SERVICE)


def there() -> dict[str, dict[str, Any]]:
    """The machines that machined has, by name."""
    replies = [
        reply["parameters"] for reply in ask(encode(f"{THEIRS}List", {}, more=True), path=MACHINED) if reply
    ]
    return {reply["name"]: reply for reply in replies if reply["name"] != ".host"}


async def published(client: Client, name: str = "web") -> bool:
    return (await client.call(f"{OURS}Describe", {"name": name}))["machine"].get("published", False)


def kinds(invocation_id: str) -> list[str]:
    """What has happened to a machine."""
    events = [json.loads(line) for line in run("moorctl", "events", "--json").splitlines()]
    return [event["event"] for event in events if event.get("invocationId") == invocation_id]


async def test_machinectl_sees_a_machine_for_as_long_as_it_is_here(spawn: Processes) -> None:
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader, service="tests", **{"class": "container"})
        await until(lambda: published(client))
        listed = json.loads(run("machinectl", "list", "--output=json"))
        assert [(each["machine"], each["class"], each["service"]) for each in listed] == [
            ("web", "container", "tests")
        ]
        assert run("machinectl", "show", "web", "-P", "Leader").strip() == str(leader.pid)
        assert run("machinectl", "show", "web", "-P", "Unit").strip() == "machine-web.scope"
        assert there()["web"]["leader"] == process_of(leader)
        assert (
            run("ps", "-o", "machine=", str(leader.pid)).strip() == "web"
        )  # libsystemd, by machined's files
        if BY_ADDRESS:
            assert there()["web"]["controlAddress"] == "/run/moorage/control/web"
            run("machinectl", "pause", "web")
            assert (await describe(client, "web"))["freezer"] == "frozen"
            run("machinectl", "resume", "web")
        run("machinectl", "terminate", "web")
        assert (await verdict(client, "web"))["cause"] == ("stopped" if BY_ADDRESS else "unitStopped")
        await until(lambda: not there())


async def test_it_is_taken_back_when_it_is_forgotten(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await until(lambda: published(client))
        await client.call(f"{OURS}Forget", {"name": "web"})
        await until(lambda: not there())
    run("systemctl", "stop", "machine-web.scope")


async def test_what_machined_could_do_harm_with_it_does_not_get(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web_1", spawn())  # no host name
        await register(client, "web", spawn())
        await until(lambda: published(client))
        assert not await published(client, "web_1")
        for name in ("web", "web_1"):
            await client.call(f"{OURS}Stop", {"name": name})


async def test_neither_restart_makes_it_twice(spawn: Processes) -> None:
    async with await connect() as client:
        told = await register(client, "web", spawn())
        await until(lambda: published(client))
    before = there()
    signal_moored(signal.SIGKILL)
    async with await connect() as client:
        await until(lambda: published(client))
        assert there() == before
        run("systemctl", "restart", SERVICE)
        assert there().keys() == before.keys()
        assert await published(client)
        await client.call(f"{OURS}Stop", {"name": "web"})
        await verdict(client, "web")
    found = kinds(told["machine"]["invocationId"])
    assert found.count("published") == 1
    assert "unpublished" not in found


@pytest.mark.parametrize("noted", [True, False])
async def test_what_was_published_is_not_adopted_if_its_record_is_lost(
    spawn: Processes, noted: bool
) -> None:
    """What is noted is taken back; the rest is known by what moored has written on its scope."""
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
        await until(lambda: published(client))
    signal_moored(signal.SIGSTOP)
    (RECORDS / "web").unlink()
    if not noted:
        (RECORDS / f"{NOTE}web").unlink()
    signal_moored(signal.SIGKILL)
    async with await connect() as client:
        assert await listed(client) == {}
        if noted:
            await until(lambda: not there())
        await register(client, "web", leader, allocateUnit=False)
        await until(lambda: published(client))
        assert (await describe(client, "web"))["origin"] == "registered"
        await client.call(f"{OURS}Stop", {"name": "web"})
        await verdict(client, "web")


async def test_a_machined_that_is_masked_or_hangs_delays_nobody(spawn: Processes) -> None:
    mask()
    async with await connect() as client:
        await register(client, "web", spawn())
        assert not await published(client)
        unmask()
        await until(lambda: published(client))
        run("systemctl", "kill", "-s", "STOP", SERVICE)
        await register(client, "two", spawn())
        await client.call(f"{OURS}Stop", {"name": "web"})
        run("systemctl", "kill", "-s", "CONT", SERVICE)
        await until(lambda: published(client, "two"))
        await until(lambda: there().keys() == {"two"})
        await client.call(f"{OURS}Stop", {"name": "two"})


def mask() -> None:
    run("systemctl", "mask", "--runtime", "--now", *UNITS)


def unmask() -> None:
    run("systemctl", "unmask", "--runtime", *UNITS)
    run("systemctl", "start", SERVICE)


@pytest.mark.parametrize("seen", [True, False])
async def test_a_machined_that_missed_an_end_does_not_stop_the_successor(
    spawn: Processes, seen: bool
) -> None:
    """It stops the units of machines whose leaders it does not find when it starts, by their names."""
    first, second = spawn(), spawn()
    async with await connect() as client:
        await register(client, "web", first)
        await until(lambda: published(client))
    mask()
    if seen:
        kill(first)
    else:
        signal_moored(signal.SIGSTOP)
        kill(first)
        signal_moored(signal.SIGKILL)
    async with await connect() as client:
        await verdict(client, "web")
        await register(client, "web", second)
        unmask()
        await until(lambda: published(client))
        assert there()["web"]["leader"] == process_of(second)
        await client.call(f"{OURS}Stop", {"name": "web"})
        await verdict(client, "web")


async def test_nor_the_unit_of_a_machine_that_goes_on_without_its_leader(spawn: Processes) -> None:
    async with await connect() as client:
        leader, other = spawn(), spawn()
        await register(client, "web", leader)
        await until(lambda: published(client))
        move(other, control_group(leader))
        kill(leader)

        async def taken_back() -> bool:
            return not await published(client) and not there()

        await until(taken_back)
        run("systemctl", "restart", SERVICE)
        assert not there()
        assert (await describe(client, "web"))["phase"] == "running"
        await client.call(f"{OURS}Stop", {"name": "web"})
        await verdict(client, "web")


# Adopted


NSPAWN = ("systemd-run", "--quiet", "--collect", "--unit=nspawn", "--property=KillMode=mixed",
          "systemd-nspawn", "--quiet", "--register=yes", "--machine=box", "--directory=/", "--volatile=yes",
          "--private-users=no", "--", "sleep", "infinity")  # fmt: skip


@pytest.fixture
def box(machined: None) -> Generator[None]:
    """A container of systemd-nspawn, which knows nothing of moored."""
    run(*NSPAWN)
    yield
    subprocess.run(["systemctl", "stop", "nspawn.service"], check=False, capture_output=True)


async def adopted(client: Client, name: str) -> dict[str, Any]:
    """Wait until a machine is listed, and return it."""

    async def found() -> dict[str, Any] | None:
        return (await listed(client)).get(name)

    machine = await until(found, f"{name} is adopted")
    assert machine is not None
    assert machine["origin"] == "adopted"
    assert await published(client, name)
    return machine


async def test_a_container_of_nspawn_is_a_machine_like_others(box: None) -> None:
    async with await connect() as client:
        machine = await adopted(client, "box")
        theirs = there()["box"]
        assert (machine["unit"], machine["leader"], machine["service"]) == (
            theirs["unit"],
            theirs["leader"],
            "systemd-nspawn",
        )
        assert machine["phase"] == "running"
        await client.call(f"{OURS}SetProperties", {"name": "box", "properties": {"CPUWeight": 50}})
        assert show(machine["unit"], "CPUWeight") == {"CPUWeight": "50"}
        await client.call(f"{OURS}Freeze", {"name": "box"})
        assert (await describe(client, "box"))["freezer"] == "frozen"
        await client.call(f"{OURS}Thaw", {"name": "box"})
        helper = {"name": "fs", "execStart": ["/bin/sleep", "infinity"]}
        await client.call(f"{OURS}AddHelpers", {"name": "box", "helpers": [helper]})
        signal_moored(signal.SIGKILL)  # it finds again what it had adopted, and does so once
    async with await connect() as client:
        assert (await adopted(client, "box"))["invocationId"] == machine["invocationId"]
        run("machinectl", "terminate", "box")
        found = await verdict(client, "box")
        assert found["cause"] == "unitStopped"
        assert found["accounting"]["cpuUsageNSec"] > 0
    assert kinds(machine["invocationId"]).count("machineNew") == 1
    await until(lambda: show("machine-box-fs.service", "ActiveState") == {"ActiveState": "inactive"})


async def test_a_container_that_was_forgotten_is_left_alone(box: None) -> None:
    async with await connect() as client:
        machine = await adopted(client, "box")
        await client.call(f"{OURS}Forget", {"name": "box"})
    signal_moored(signal.SIGKILL)
    run("systemctl", "restart", SERVICE)
    async with await connect() as client:
        assert await listed(client) == {}
        assert there().keys() == {"box"}
        assert show(machine["unit"], "ActiveState") == {"ActiveState": "active"}
        run("systemctl", "stop", "nspawn.service")
        await until(lambda: not there())
        run(*NSPAWN)  # another one
        await adopted(client, "box")
        run("systemctl", "stop", "nspawn.service")
        await verdict(client, "box")


async def test_the_name_of_a_container_is_free_the_moment_it_ends(box: None) -> None:
    async with await connect() as client:
        machine = await adopted(client, "box")
        for _ in range(5):
            run("systemctl", "stop", "nspawn.service")
            run(*NSPAWN)

            async def came(before: str) -> dict[str, Any] | None:
                there = (await listed(client)).get("box")
                return there if there is not None and there["invocationId"] != before else None

            found = await until(partial(came, machine["invocationId"]), "the next one is adopted")
            assert found is not None
            machine = found


async def test_of_two_names_the_first_is_here(box: None, spawn: Processes) -> None:
    async with await connect() as client:
        await adopted(client, "box")
        with pytest.raises(MachineExists):
            await register(client, "box", spawn())
        run("systemctl", "stop", "nspawn.service")
        await verdict(client, "box")
        await until(lambda: not there())
        run("systemctl", "kill", "-s", "STOP", SERVICE)
        await register(client, "box", spawn())  # before machined is told
        run("systemctl", "kill", "-s", "CONT", SERVICE)
        await until(lambda: published(client, "box"))
        assert (await describe(client, "box"))["origin"] == "registered"
        await client.call(f"{OURS}Stop", {"name": "box"})
        await until(lambda: not there())
        await until(lambda: not scopes())  # before 262 its scope has the name that ours had
        run(*NSPAWN)
        await adopted(client, "box")
        await client.call(f"{OURS}Stop", {"name": "box"})


RULE = Path("/etc/polkit-1/rules.d/10-machined.rules")


@pytest.fixture(scope="module")
def permitted() -> Generator[None]:
    """Have polkit let alice register machines with machined."""
    RULE.parent.mkdir(parents=True, exist_ok=True)
    RULE.write_text(
        "polkit.addRule(function(action, subject) {\n"
        '  if (action.id.startsWith("org.freedesktop.machine1.") && subject.user == "alice") return "yes";\n'
        "});\n"
    )
    RULE.chmod(0o644)
    run("systemctl", "restart", "polkit.service")
    yield
    RULE.unlink()


ALICE = 1000


def called(user: str, socket: str, method: str, parameters: dict[str, Any]) -> int:
    """Make a call as a user, and return the status of varlinkctl."""
    argv = ("varlinkctl", "call", socket, method, json.dumps(parameters))
    done = subprocess.run(
        ("runuser", "-u", user, "--", *argv), capture_output=True, check=False, timeout=UNTIL_SECONDS
    )
    return done.returncode


MANAGING: dict[str, dict[str, Any]] = {
    "SetProperties": {"properties": {"CPUWeight": 50}},
    "Freeze": {},
    "Thaw": {},
    "Kill": {"whom": "leader", "signal": signal.SIGCONT},
    "Stop": {},
}
"""What the owner of a machine may do with it, and its end at last."""


@pytest.mark.parametrize("allocate", [True, False])
async def test_a_machine_of_a_user_is_that_users(permitted: None, spawn: Processes, allocate: bool) -> None:
    leader = spawn(
        ("systemd-run", "--quiet", "--scope", "--slice=user-1000.slice", "--uid=1000", "sleep", "infinity")
    )
    await until(lambda: "user-1000.slice" in Path(f"/proc/{leader.pid}/cgroup").read_text())
    parameters = {"name": "hers", "class": "container", "leader": leader.pid, "allocateUnit": allocate}
    assert called("alice", MACHINED, f"{THEIRS}Register", parameters) == 0
    async with await connect() as client:
        machine = await adopted(client, "hers")
        tells = "UID" in there()["hers"]
        assert machine["uid"] == (ALICE if tells else 0)

        def may(user: str, method: str, **parameters: Any) -> bool:
            return called(user, SOCKET, f"{OURS}{method}", {"name": "hers", **parameters}) == 0

        for method, parameters in MANAGING.items():
            assert not may("bob", method, **parameters)
            assert may("alice", method, **parameters) is tells
        if not tells:
            await client.call(f"{OURS}Stop", {"name": "hers"})
        assert (await verdict(client, "hers"))["cause"] == "stopped"


async def test_a_machine_in_a_unit_that_is_not_the_users_is_roots(permitted: None) -> None:
    """Whoever could have it called hers could stop what others have in that unit."""
    run(
        "systemd-run",
        "--quiet",
        "--collect",
        "--unit=ours",
        "sh",
        "-c",
        "setpriv --reuid 1000 sleep infinity & wait",
    )

    def hers() -> int | None:
        pids = members(show("ours.service", "ControlGroup")["ControlGroup"])
        return next((pid for pid in pids if Path(f"/proc/{pid}").stat().st_uid == ALICE), None)

    leader = await until(hers, "her process")
    parameters = {"name": "hers", "class": "container", "leader": leader}
    assert called("alice", MACHINED, f"{THEIRS}Register", parameters) == 0
    async with await connect() as client:
        machine = await adopted(client, "hers")
        assert machine["uid"] == 0
        await client.call(f"{OURS}Stop", {"name": "hers"})
        await verdict(client, "hers")
