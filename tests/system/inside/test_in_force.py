"""What is not in force as it was asked for is told; and a rehearsal refuses and tells what the call would."""

import os
from typing import Any

import pytest
from doer import doer, does
from moored import (
    OURS,
    TRANSIENT,
    USER,
    Processes,
    connect,
    control_group,
    directories,
    for_us,
    kill,
    messages,
    register,
    run,
    scopes,
    show,
    units,
    verdict,
)

from moorage.errors import HelperFailed, InvalidProperty, ProcessGone
from moorage.machines.compared.table import COMPARED, why_not
from moorage.pid1.properties import UnitProperties
from moorage.wire.client import Client

SLEEP = ["/usr/bin/sleep", "infinity"]
BUS = "org.freedesktop.systemd1"
BPF = pytest.mark.system_instance("a user's manager loads no BPF program")
SYSTEMD = int(run("systemctl", "--version").split()[1])


def told(reply: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Property, wanted value and reason of each difference."""
    assert not any("effective" in each for each in reply["differences"])
    return [(each["property"], each["wanted"], each["reason"]) for each in reply["differences"]]


# The table


@pytest.mark.parametrize("unit", ["init.scope", "systemd-journald.service", "machine.slice"])
def test_every_property_is_compared_or_has_a_reason_why_not(unit: str) -> None:
    path = f"/org/freedesktop/systemd1/unit/{unit.replace('-', '_2d').replace('.', '_2e')}"
    kind = unit.rpartition(".")[2].capitalize()
    found: dict[str, str] = {}
    for interface in (f"{BUS}.Unit", f"{BUS}.{kind}"):
        text = run("busctl", "introspect", "--xml-interface", BUS, path, interface)
        found |= UnitProperties.from_introspection(text, SYSTEMD).settable
    assert len(found) > 200
    assert [name for name in found if name not in COMPARED and why_not(name) is None] == []


def test_what_is_compared_is_a_property_of_some_version() -> None:
    known: set[str] = set()
    for unit, kind in (("init_2escope", "Scope"), ("systemd_2djournald_2eservice", "Service")):
        text = run("busctl", "introspect", "--xml-interface", BUS, f"/org/freedesktop/systemd1/unit/{unit}",
                   f"{BUS}.{kind}")  # fmt: skip
        known |= UnitProperties.from_introspection(text, SYSTEMD).settable.keys()
    removed = {"DefaultMemoryMin", "DefaultMemoryLow", "DefaultStartupMemoryLow"}
    added = {"BindNetworkInterface", "CPUSetPartition", "OOMRules"}
    assert COMPARED.keys() - known == (removed if SYSTEMD >= 262 else added)


# Devices and BPF programs


@BPF
async def test_rules_for_devices_that_match_nothing_are_told(spawn: Processes) -> None:
    asked = {
        "DevicePolicy": "strict",
        "DeviceAllow": [
            ["/dev/nvidiactl", "rw"], ["char-nvidia", "rw"], ["/dev/shm", "r"], ["/dev/null", "rw"],
            ["char-pts", "rw"], ["char-*", "r"], ["/dev/char/1:5", "r"],
        ],
    }  # fmt: skip
    async with await connect() as client:
        for dry_run in (True, False):
            reply = await register(client, "web", spawn(), properties=asked, dryRun=dry_run)
            assert told(reply) == [
                ("DeviceAllow", "/dev/nvidiactl rw", "there is no /dev/nvidiactl"),
                ("DeviceAllow", "char-nvidia rw", "there is no character device “nvidia” in /proc/devices"),
                ("DeviceAllow", "/dev/shm r", "/dev/shm is not a device"),
            ]


@BPF
async def test_the_rules_for_devices_in_force_are_described(spawn: Processes) -> None:
    asked = {
        "DevicePolicy": "strict",
        "DeviceAllow": [["/dev/nvidiactl", "rw"], ["/dev/null", "r"], ["char-pts", "rw"]],
    }
    async with await connect() as client:
        await register(client, "web", spawn(), properties=asked, slice="narrow.slice")
        found = await client.call(f"{OURS}Describe", {"name": "web"})
        assert sorted(found["devices"]) == ["/dev/null r", "char-pts rw"]
        assert found["effective"]["DevicePolicy"] == "strict"

        await client.call(f"{OURS}SetProperties", {"name": "web", "properties": {"DevicePolicy": "closed"}})
        found = await client.call(f"{OURS}Describe", {"name": "web"})
        assert "/dev/urandom rwm" in found["devices"]
        assert "/dev/nvidiactl rw" not in found["devices"]

        # Whatever a slice allows less is not looked up.
        run("systemctl", "set-property", "--runtime", "narrow.slice", "DevicePolicy=closed")
        found = await client.call(f"{OURS}Describe", {"name": "web"})
        assert "devices" not in found
        assert found["effective"]["DevicePolicy"] == "closed"


async def test_the_device_of_a_limit_has_an_absolute_path(spawn: Processes) -> None:
    asked = {"IOReadBandwidthMax": [["sda", 1000]]}
    async with await connect() as client:
        for dry_run in (True, False):
            with pytest.raises(InvalidProperty) as caught:
                await register(client, "web", spawn(), properties=asked, dryRun=dry_run)
            assert caught.value.property == "IOReadBandwidthMax"


async def change(client: Client, properties: dict[str, Any], *different: str) -> None:
    """Change properties of the machine, all of which are then in force, but for some."""
    asked = {"name": "web", "properties": properties}
    reply = await client.call(f"{OURS}SetProperties", asked)
    assert [each["property"] for each in reply["differences"]] == [*different]


TUN = "/dev/net/tun"
"""A node like /dev/kvm: of the driver "misc", and of no use to most."""
PSEUDO = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx")
"""What the policy "closed" lets everybody have (systemd.resource-control(5))."""


@BPF
async def test_what_is_listed_is_opened_and_nothing_else(spawn: Processes) -> None:
    async with await connect() as client:
        process = doer(spawn)

        def opened(how: str = "rw") -> str:
            return does(process, "open", TUN, how)

        await register(client, "web", process)
        assert opened() == "ok"
        await change(client, {"DevicePolicy": "closed"})
        assert opened() == "EPERM"
        assert [does(process, "open", path, "rw") for path in PSEUDO] == ["ok"] * len(PSEUDO)
        for path, access, read, both in (
            (TUN, "r", "ok", "EPERM"),
            (TUN, "rw", "ok", "ok"),
            ("char-misc", "rw", "ok", "ok"),
            ("char-m?s*", "rw", "ok", "ok"),
            ("char-pts", "rw", "EPERM", "EPERM"),
            ("/dev/char/10:200", "rw", "ok", "ok"),
        ):
            await change(client, {"DeviceAllow": []})
            assert opened("r") == "EPERM"
            await change(client, {"DeviceAllow": [[path, access]]})
            assert (opened("r"), opened()) == (read, both), path
        run("systemctl", "daemon-reload")
        assert opened() == "ok"
        # Of a strict policy not even those that everybody has.
        await change(client, {"DevicePolicy": "strict", "DeviceAllow": []})
        await change(client, {"DeviceAllow": [["/dev/zero", "r"]]})
        assert [does(process, "open", path, "r") for path in ("/dev/zero", "/dev/null", TUN)] == [
            "ok", "EPERM", "EPERM",
        ]  # fmt: skip
        # The manager leaves the last program where it is.
        await change(client, {"DevicePolicy": "auto", "DeviceAllow": []}, "DevicePolicy")
        assert opened() == "EPERM"
        assert "DevicePolicy" not in (await client.call(f"{OURS}Describe", {"name": "web"}))["effective"]
        await change(client, {"DeviceAllow": [["char-*", "rw"]]})
        assert opened() == "ok"


@BPF
async def test_addresses_that_are_denied_are_out_of_reach(spawn: Processes) -> None:
    one, other = [2, [127, 0, 0, 1], 32], [2, [127, 0, 0, 2], 32]
    async with await connect() as client:
        process = doer(spawn)

        def reached() -> list[str]:
            return [does(process, "send", address) for address in ("127.0.0.1", "127.0.0.2")]

        async def counted() -> dict[str, int]:
            found = (await client.call(f"{OURS}Describe", {"name": "web"}))["accounting"]
            return {name: value for name, value in found.items() if name.startswith("ip")}

        await register(client, "web", process, properties={"IPAccounting": True, "IPAddressDeny": [one]})
        assert reached() == ["EPERM", "ok"]
        # A datagram to oneself goes out and comes in: 100 bytes, and 28 of headers.
        assert await counted() == {
            "ipIngressBytes": 128, "ipIngressPackets": 1, "ipEgressBytes": 128, "ipEgressPackets": 1,
        }  # fmt: skip
        await change(client, {"IPAddressDeny": [other]})
        assert reached() == ["EPERM", "EPERM"]
        await change(client, {"IPAddressAllow": [one]})
        assert reached() == ["ok", "EPERM"]
        run("systemctl", "daemon-reload")
        assert reached() == ["ok", "EPERM"]
        names = ("IPIngressBytes", "IPIngressPackets", "IPEgressBytes", "IPEgressPackets")
        shown = show("machine-web.scope", *names)
        # 257 counts no more after a reload.
        assert await counted() == {f"ip{name[2:]}": int(n) for name, n in shown.items() if n.isdecimal()}
        await change(client, {"IPAddressAllow": [], "IPAddressDeny": []})
        assert reached() == ["ok", "ok"]
        # Where nothing is counted either, the manager leaves the last program where it is.
        await change(client, {"IPAddressDeny": [one]})
        await change(client, {"IPAccounting": False})
        await change(client, {"IPAddressDeny": []}, "IPAddressDeny")
        assert reached() == ["EPERM", "ok"]
        await change(client, {"IPAddressDeny": [], "IPAccounting": True})
        assert reached() == ["ok", "ok"]


@BPF
@pytest.mark.parametrize("how", ["Stop", "leader"])
async def test_traffic_is_told_after_the_end(spawn: Processes, how: str) -> None:
    async with await connect() as client:
        process = doer(spawn)
        await register(client, "web", process, properties={"IPAccounting": True})
        assert [does(process, "send", "127.0.0.1") for _ in range(3)] == ["ok"] * 3
        if how == "Stop":
            await client.call(f"{OURS}Stop", {"name": "web"})
        else:
            process.kill()
        counters = (await verdict(client, "web"))["accounting"]
        assert {name: value for name, value in counters.items() if name.startswith("ip")} == {
            "ipIngressBytes": 384, "ipIngressPackets": 3, "ipEgressBytes": 384, "ipEgressPackets": 3,
        }  # fmt: skip


@BPF
async def test_a_payload_may_attach_programs_of_its_own_below_those_of_its_machine(spawn: Processes) -> None:
    async with await connect() as client:
        process = doer(spawn)
        denied = [[2, [127, 0, 0, 2], 32]]
        asked = {"Delegate": True, "IPAddressDeny": denied, "DevicePolicy": "closed"}
        reply = await register(client, "web", process, properties=asked)
        assert reply["differences"] == []
        assert [does(process, "send", address) for address in ("127.0.0.1", "127.0.0.2")] == ["ok", "EPERM"]
        assert does(process, "deny", "below") == "ok"
        assert control_group(process) == f"{reply['machine']['controlGroup']}/below"
        assert [does(process, "send", address) for address in ("127.0.0.1", "127.0.0.2")] == ["EPERM"] * 2
        assert does(process, "open", TUN, "rw") == "EPERM"


@BPF
async def test_programs_that_are_in_force_are_no_difference(spawn: Processes) -> None:
    asked = {
        "DevicePolicy": "closed", "IPAccounting": True, "IPAddressDeny": [[2, [0, 0, 0, 0], 0]],
        "SocketBindDeny": [[2, 6, 1, 80]], "RestrictNetworkInterfaces": [True, ["lo"]],
    }  # fmt: skip
    helper = {"name": "fs", "execStart": SLEEP, "properties": asked}
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties=asked, helpers=[helper])
        assert reply["differences"] == []


@BPF
async def test_a_program_that_is_nowhere_is_told(spawn: Processes) -> None:
    asked = {"DevicePolicy": "closed", "BPFProgram": [["device", "/sys/fs/bpf/nosuch"]]}
    lost = {"BPFProgram": [["sock_ops", "/sys/fs/bpf/nosuch"]]}
    helper = {"name": "fs", "execStart": SLEEP, "properties": lost}
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties=asked, helpers=[helper])
        assert told(reply) == [
            (
                "BPFProgram",
                "device:/sys/fs/bpf/nosuch",
                "the kernel has not all of the BPF programs that this unit should have",
            ),
            (
                "BPFProgram",
                "sock_ops:/sys/fs/bpf/nosuch",
                "the kernel has none of the BPF programs that this unit should have",
            ),
        ]
        assert [each.get("helper") for each in reply["differences"]] == [None, "fs"]


async def test_a_subgroup_of_a_scope_is_told(spawn: Processes) -> None:
    async with await connect() as client:
        asked = {"Delegate": True, "DelegateSubgroup": "payload"}
        reply = await register(client, "web", spawn(), properties=asked)
        assert [name for name, _, _ in told(reply)] == ["DelegateSubgroup"]
        assert control_group(reply["machine"]["leader"]["pid"]) == reply["machine"]["controlGroup"]


async def test_what_systemd_oomd_would_do_is_told_where_it_does_not_run(spawn: Processes) -> None:
    async with await connect() as client:
        reply = await register(client, "web", spawn(), properties={"ManagedOOMSwap": "kill"})
        assert [name for name, _, _ in told(reply)] == ["ManagedOOMSwap"]


# Rehearsals


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OOMPolicy", "foo"),
        ("KillMode", "never"),
        ("DevicePolicy", "open"),
        ("DeviceAllow", [["null", "rw"]]),
        ("CPUWeight", 10_001),
        ("MemoryMax", 0),
        ("TasksMax", 0),
        ("ManagedOOMPreference", "perhaps"),
        ("IPAddressDeny", [[2, [1, 2, 3], 8]]),
        ("Requires", ["no unit"]),
    ],
)
async def test_a_rehearsal_refuses_what_the_call_refuses(spawn: Processes, name: str, value: Any) -> None:
    leader = spawn()
    async with await connect() as client:
        errors: list[InvalidProperty] = []
        for dry_run in (True, False):
            with pytest.raises(InvalidProperty) as caught:
                await register(
                    client, "web", leader, properties={name: value, "SendSIGHUP": True}, dryRun=dry_run
                )
            errors.append(caught.value)
        assert (errors[0].property, errors[0].reason) == (errors[1].property, errors[1].reason)
        assert name in errors[0].property.split(", ")


async def test_a_rehearsal_refuses_what_the_call_refuses_of_a_helper(spawn: Processes) -> None:
    helper = {"name": "fs", "execStart": SLEEP, "properties": {"ProtectSystem": "rather", "TasksMax": 5}}
    async with await connect() as client:
        errors: list[InvalidProperty] = []
        for dry_run in (True, False):
            with pytest.raises(InvalidProperty) as caught:
                await register(client, "web", spawn(), helpers=[helper], dryRun=dry_run)
            errors.append(caught.value)
        assert (errors[0].property, errors[0].reason) == (errors[1].property, errors[1].reason)


async def test_a_rehearsal_leaves_nothing_and_moves_nobody(spawn: Processes) -> None:
    leader = spawn()
    before = control_group(leader)
    # Of this type it has failed before it could be taken to be ready.
    helper = {"name": "fs", "type": "oneshot", "execStart": ["/usr/bin/false"], "sockets": [{"name": "s"}]}
    asked = {"MemoryMax": 2**30, "Delegate": True, "OOMPolicy": "kill", "RuntimeMaxUSec": 5_000_000}
    loaded = units()
    files = sorted(os.listdir(TRANSIENT))
    async with await connect() as client:
        for _ in range(20):
            reply = await register(client, "web", leader, properties=asked, helpers=[helper], dryRun=True)
            assert reply["machine"]["unit"] == "machine-web.scope"
            assert control_group(leader) == before
        assert (units(), scopes()) == (loaded, [])
        assert sorted(os.listdir(TRANSIENT)) == files
        assert not [line for line in messages("init.scope") if "rehearsal" in line]
        assert not directories()
        # It cannot know what a program will do.
        with pytest.raises(HelperFailed):
            await register(client, "web", leader, properties=asked, helpers=[helper])
        await register(client, "web", spawn(), properties=asked)
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_a_rehearsal_for_a_process_that_is_gone(spawn: Processes) -> None:
    leader = spawn()
    kill(leader)
    async with await connect() as client:
        with pytest.raises(ProcessGone):
            await register(client, "web", leader.pid, dryRun=True)


def test_moorctl_says_it_in_the_words_of_who_asked(spawn: Processes) -> None:
    leader = spawn()
    argv = for_us("moorctl", "register", "web", f"--leader={leader.pid}", "--dry-run")
    asked = [
        "DevicePolicy=strict",
        "DeviceAllow=/dev/nosuch rw",
        "CPUQuotaPeriodSec=50ms",
        "DelegateSubgroup=a",
        "AllowedCPUs=0",
        "TasksMax=infinity",
    ]
    text = run("sh", "-c", 'exec "$@" 2>&1', "sh", *argv, *(f"--property={each}" for each in asked))
    if USER:
        assert "Warning: DevicePolicy=strict has no effect: it takes a BPF program, which a user" in text
    else:
        assert "Warning: DeviceAllow=/dev/nosuch rw has no effect: there is no /dev/nosuch\n" in text
    assert "Warning: CPUQuotaPeriodSec=50ms has no effect: " in text
    assert "Warning: DelegateSubgroup=a has no effect: " in text
    missing = "delegated to this user's service manager" if USER else "available to this unit"
    assert f"Warning: AllowedCPUs=0 has no effect: the controller “cpuset” is not {missing}\n" in text
    assert "Warning: TasksMax" not in text  # nothing was to be limited
    # What it prints of the unit can be said again as it is.
    assert {f"  {each}" for each in asked if "Device" not in each} <= set(text.splitlines())
