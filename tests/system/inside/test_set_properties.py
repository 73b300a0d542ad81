"""Properties of machines that run, changed on a real service manager: all or none, for as long as the unit lives."""

import os
import signal
from collections import Counter
from typing import Any

import pytest
import trio
from moored import (
    OURS,
    TRANSIENT,
    Processes,
    assert_everything_gone,
    connect,
    kill,
    main_pid,
    register,
    run,
    show,
    state,
    until,
    verdict,
)
from service_manager import property_of

from moorage.errors import (
    Busy,
    InvalidProperty,
    MachineExists,
    NoSuchHelper,
    NoSuchMachine,
    NoSuchProperty,
    NotSupported,
)
from moorage.wire.client import Client
from moorage.wire.errors import InvalidParameter

MIB = 1024 * 1024
SCOPE, SERVICE = "machine-web.scope", "machine-web-fs.service"
HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}
CALLERS = 100


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing, no drop-in either."""


async def change(
    client: Client, properties: Any, name: str = "web", **parameters: Any
) -> list[dict[str, Any]]:
    asked = {"name": name, "properties": properties, **parameters}
    return (await client.call(f"{OURS}SetProperties", asked))["differences"]


def shown(unit: str, *names: str) -> list[str]:
    """What the manager says, in the order of the names."""
    found = show(unit, *names)
    return [found.get(name, "") for name in names]


NAMES = ("MemoryMax", "TasksMax", "CPUWeight", "DevicePolicy")
WANTED = {"MemoryMax": 512 * MIB, "TasksMax": 77, "CPUWeight": 50, "DevicePolicy": "closed"}
THERE = [str(512 * MIB), "77", "50", "closed"]


async def test_set_and_kept_whatever_is_restarted(spawn: Processes) -> None:
    async with await connect() as client:
        machine = (await register(client, "web", spawn(), properties={"MemoryMax": 256 * MIB}))["machine"]
        before = shown(SCOPE, *NAMES)
        await change(client, WANTED, dryRun=True)
        assert shown(SCOPE, *NAMES) == before
        await change(client, WANTED, ifInvocationId=machine["invocationId"])
        assert shown(SCOPE, *NAMES) == THERE
        assert sorted(os.listdir(TRANSIENT / f"{SCOPE}.d")) == [f"50-{name}.conf" for name in sorted(NAMES)]
        pid = main_pid()
    for command in ("daemon-reload", "daemon-reexec"):
        run("systemctl", command)
        assert shown(SCOPE, *NAMES) == THERE
    os.kill(pid, signal.SIGKILL)
    await until(lambda: main_pid() not in {0, pid})
    async with await connect() as client:
        assert shown(SCOPE, *NAMES) == THERE
        limits = (await client.call(f"{OURS}Describe", {"name": "web"}))["limits"]
        assert WANTED.items() <= limits.items()
        await change(client, {"MemoryMax": "infinity"})
        assert shown(SCOPE, "MemoryMax", "TasksMax") == ["infinity", "77"]
        # What systemctl sets is set in the same way.
        run("systemctl", "set-property", "--runtime", SCOPE, "TasksMax=99")
        assert shown(SCOPE, "TasksMax") == ["99"]
        await change(client, {"TasksMax": 98})
        run("systemctl", "daemon-reload")
        assert shown(SCOPE, "TasksMax") == ["98"]


@pytest.mark.parametrize("helper", [None, "fs"])
async def test_a_size_replaces_a_share(spawn: Processes, helper: str | None) -> None:
    """The manager writes both to drop-ins of their own, and reads that of the share last."""
    names = ("MemoryLow", "MemoryMax", "TasksMax")
    unit = SERVICE if helper else SCOPE
    half = {f"{name}Scale": 2**31 for name in names}
    async with await connect() as client:
        as_registered = (await register(client, "half", spawn(), properties=half))["machine"]["unit"]
        await register(client, "web", spawn(), helpers=[HELPER])
        to = {"helper": helper} if helper else {}
        await change(client, {"MemoryLowScale": 0}, **to)
        await change(client, half, **to)
        # What the manager makes of a share itself.
        assert shown(unit, *names) == shown(as_registered, *names)
        await change(client, {"MemoryLow": MIB, "MemoryMax": 512 * MIB, "TasksMax": "infinity"}, **to)
        for command in ("daemon-reload", "daemon-reexec"):
            run("systemctl", command)
            assert shown(unit, *names) == [str(MIB), str(512 * MIB), "infinity"]


async def test_helpers(spawn: Processes) -> None:
    async with await connect() as client:
        done = {"name": "done", "type": "oneshot", "execStart": ["/bin/true"]}
        await register(client, "web", spawn(), helpers=[HELPER, done])
        before = shown(SCOPE, *NAMES)
        await change(client, WANTED, helper="fs")
        assert shown(SERVICE, *NAMES) == THERE
        assert shown(SCOPE, *NAMES) == before
        run("systemctl", "daemon-reload")
        assert shown(SERVICE, *NAMES) == THERE
        for properties, error in (
            ({"Slice": "a.slice"}, InvalidProperty),
            ({"ExecStart": []}, InvalidProperty),
            ({"NoNewPrivileges": False}, InvalidProperty),  # fixed by the start
            ({"TasksMx": 5}, NoSuchProperty),
        ):
            with pytest.raises(error) as caught:
                await change(client, {"TasksMax": 5, **properties}, helper="fs")
            assert caught.value.helper == "fs"
            assert caught.value.property == next(iter(properties))
        assert shown(SERVICE, *NAMES) == THERE
        with pytest.raises(NoSuchHelper):
            await change(client, WANTED, helper="none")
        await change(client, WANTED, helper="done")  # it has done its work, and is active
        run("systemctl", "kill", "--signal=KILL", SERVICE)
        await until(lambda: state(SERVICE) in {"failed", "inactive"})
        with pytest.raises(Busy):
            await change(client, WANTED, helper="fs")


# Wrong types, out of range, what is not to be set; each of them beside one that is right.
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(
        ({"MemoryMax": value}, InvalidProperty, "MemoryMax")
        for value in (-1, 2**64, 1.5, "1G", None, True, [], {}, [1], "Infinity", "")
    ),
    *(({"TasksMaxScale": value}, InvalidProperty, "TasksMaxScale") for value in (2**32, -1, "10%", 0.5)),
    *(({"AllowedCPUs": value}, InvalidProperty, "AllowedCPUs") for value in ("0-3", [256], [-1], 3, [[1]])),
    *(
        ({"IOReadBandwidthMax": value}, InvalidProperty, "IOReadBandwidthMax")
        for value in (
            "/dev/sda 1M",
            [["/dev/sda"]],
            [["/dev/sda", 0]],
            [["/dev/sda", -5]],
        )
    ),
    *(
        ({"DevicePolicy": value}, InvalidProperty, "DevicePolicy")
        for value in ("open", "", 1, "closed\nTasksMax=1")
    ),
    ({"DeviceAllow": [["/dev/null", "xyz"]]}, InvalidProperty, "DeviceAllow"),
    ({"CPUWeight": 10_001}, InvalidProperty, "CPUWeight"),
    ({"CPUQuotaPerSecUSec": 0}, InvalidProperty, "CPUQuotaPerSecUSec"),
    ({"IPAddressDeny": [[2, [1, 2, 3], 32]]}, InvalidProperty, "IPAddressDeny"),
    ({"Slice": "other.slice"}, InvalidProperty, "Slice"),
    ({"Description": "another"}, InvalidProperty, "Description"),
    ({"PIDs": [1]}, InvalidProperty, "PIDs"),
    ({"AddRef": True}, InvalidProperty, "AddRef"),
    # Fixed by the start.
    ({"TimeoutStopUSec": 5_000_000}, InvalidProperty, "TimeoutStopUSec"),
    ({"KillMode": "process"}, InvalidProperty, "KillMode"),
    ({"Delegate": True}, InvalidProperty, "Delegate"),
    ({"After": ["a.service"]}, InvalidProperty, "After"),
    ({"ActiveState": "inactive"}, InvalidProperty, "ActiveState"),
    ({"MemoryMx": 5}, NoSuchProperty, "MemoryMx"),
    ({"": 5}, NoSuchProperty, ""),
    ({"x" * 5000: 5}, NoSuchProperty, "x" * 5000),
]


@pytest.mark.parametrize("dry_run", [False, True])
async def test_bad_values_change_nothing(spawn: Processes, dry_run: bool) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        names = [*NAMES, "AllowedCPUs", "IOReadBandwidthMax", "DeviceAllow"]
        before = shown(SCOPE, *names)
        wrong: list[Any] = []
        for properties, error, name in BAD:
            for asked in ({"CPUWeight": 5, **properties}, {**properties, "TasksMax": 5}):
                try:
                    wrong.append((asked, await change(client, asked, dryRun=dry_run)))
                except (NoSuchProperty, InvalidProperty) as refusal:
                    if not isinstance(refusal, error) or refusal.property not in {name, ", ".join(asked)}:
                        wrong.append((asked, refusal))
        assert wrong == []
        for properties in ({}, [], None, 1, "MemoryMax=1"):
            with pytest.raises(InvalidParameter):
                await change(client, properties, dryRun=dry_run)
        with pytest.raises(InvalidProperty):
            await change(client, {"CPUWeight": 5, **{f"X{n}": n for n in range(600)}}, dryRun=dry_run)
        assert shown(SCOPE, *names) == before
        assert not (TRANSIENT / f"{SCOPE}.d").exists()


# Of every type in JSON, at the ends of every type on D-Bus, and shaped like the lists that some properties take.
ANY: list[Any] = [
    None, True, -1, 2**32, 2**64 - 1, 2**64, 1.5, 1e300, "", "nan", "infinity", "10%", "a\nb", [], [-1], ["x"], {},
    [["x", 1]], [["/dev/gone", 2**64]], [["/dev/null", "rwx"]], [[2, [127, 0, 0, 1], 99]], [True, ["x"]],
]  # fmt: skip


async def test_every_property_with_values_of_every_kind(spawn: Processes) -> None:
    """Whatever is refused is refused by its name, with all that was asked for beside it."""
    wrong: list[Any] = []
    taken = 0
    async with await connect() as client:
        await register(client, "web", spawn())
        known = (await client.call(f"{OURS}DescribeProperties", {"type": "scope"}))["properties"]
        assert len(known) > 200
        for name in known:
            beside = "MemoryMax" if name.startswith("TasksMax") else "TasksMax"
            there = property_of(SCOPE, "Scope", beside)
            for number, value in enumerate(ANY, 1):
                asked = {name: value, beside: number * 4096}
                try:
                    await change(client, asked)
                except InvalidProperty as refusal:
                    if refusal.property not in {name, ", ".join(asked)}:
                        wrong.append((name, value, refusal))
                else:
                    there = number * 4096
                    taken += 1
            if property_of(SCOPE, "Scope", beside) != there:
                wrong.append((name, beside))
    assert wrong == []
    assert taken > 50


async def test_whom_it_is_not_for(spawn: Processes) -> None:
    async with await connect() as client, await connect() as other:
        with pytest.raises(NoSuchMachine):
            await change(client, WANTED)
        leader = spawn(("sh", "-c", "trap '' TERM; while :; do sleep 0.01; done"))
        await register(client, "web", leader, properties={"TimeoutStopUSec": 1_000_000})
        with pytest.raises(NoSuchMachine):
            await change(client, WANTED, ifInvocationId="0" * 32)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, f"{OURS}Stop", {"name": "web"})
            await until(lambda: state(SCOPE) == "deactivating")
            with pytest.raises(Busy) as caught:
                await change(other, WANTED)
            assert caught.value.operation == "the machine is stopping"
        with pytest.raises(NoSuchMachine):
            await change(client, WANTED)
    run("systemd-run", "--quiet", "--unit=own.service", "sleep", "infinity")
    try:
        async with await connect() as client:
            await register(client, "web", int(show("own.service", "MainPID")["MainPID"]), allocateUnit=False)
            with pytest.raises(NotSupported):
                await change(client, WANTED)
    finally:
        run("systemctl", "stop", "own.service")


async def test_a_frozen_machine(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        await client.call(f"{OURS}Freeze", {"name": "web"})
        await change(client, WANTED)
        assert shown(SCOPE, *NAMES) == THERE


async def test_a_repeated_registration(spawn: Processes) -> None:
    """It is compared with what was registered, not with what was made of it."""
    leader = spawn()
    async with await connect() as client:
        machine = (await register(client, "web", leader, properties={"TasksMax": 500}))["machine"]
        await change(client, {"TasksMax": 77})
        again = await register(client, "web", leader, properties={"TasksMax": 500})
        assert again["machine"]["invocationId"] == machine["invocationId"]
        with pytest.raises(MachineExists) as caught:
            await register(client, "web", leader, properties={"TasksMax": 77})
        assert caught.value.differs == ["properties"]
        assert shown(SCOPE, "TasksMax") == ["77"]


async def test_a_hundred_callers_at_once(spawn: Processes) -> None:
    """Whoever is the last wins, with all that it has set."""
    answers: Counter[str] = Counter()
    async with await connect() as client:
        await register(client, "web", spawn())

        async def call(number: int) -> None:
            async with await connect() as mine:
                wanted = {
                    "TasksMax": 100 + number,
                    "MemoryMax": (100 + number) * MIB,
                    "CPUWeight": 100 + number,
                }
                await change(mine, wanted)
                answers["done"] += 1

        async def look() -> None:
            while answers.total() < CALLERS:
                tasks, memory, weight = shown(SCOPE, "TasksMax", "MemoryMax", "CPUWeight")
                if memory != "infinity":
                    assert int(memory) == int(tasks) * MIB == int(weight) * MIB
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for number in range(CALLERS):
                nursery.start_soon(call, number)
        assert answers == {"done": CALLERS}
        run("systemctl", "daemon-reload")
        tasks, memory, weight = shown(SCOPE, "TasksMax", "MemoryMax", "CPUWeight")
        assert int(memory) == int(tasks) * MIB == int(weight) * MIB


async def test_killed_in_between(spawn: Processes) -> None:
    """Whenever moored dies, all of a call is set or none of it."""
    leader = spawn()
    async with await connect() as client:
        await register(client, "web", leader)
    for turn in range(10):
        pid = main_pid()
        async with trio.open_nursery() as nursery:

            async def call(turn: int = turn) -> None:
                try:
                    async with await connect() as client:
                        for number in range(1, 1000):
                            value = 1000 * (turn + 1) + number
                            await change(client, {"TasksMax": value, "MemoryMax": value * MIB})
                except Exception:  # noqa: BLE001 - however it notices
                    return

            nursery.start_soon(call)
            await until(lambda turn=turn: int(shown(SCOPE, "TasksMax")[0]) // 1000 == turn + 1)
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: main_pid() != pid)
            nursery.cancel_scope.cancel()
        tasks, memory = shown(SCOPE, "TasksMax", "MemoryMax")
        assert int(memory) == int(tasks) * MIB
        run("systemctl", "reset-failed", "moored.service")
        run("systemctl", "start", "moored.service")
    kill(leader)
    async with await connect() as client:
        await verdict(client, "web")
    await assert_everything_gone()


@pytest.mark.system_instance("a user's manager has no programs for devices")
async def test_differences_are_told(spawn: Processes) -> None:
    """A sandbox has no controllers, but the devices of everybody."""
    async with await connect() as client:
        await register(client, "web", spawn())
        for dry_run in (False, True):
            found = await change(
                client,
                {"MemoryMax": 64 * MIB, "DeviceAllow": [["/dev/nothing-there", "rw"], ["/dev/null", "rw"]]},
                dryRun=dry_run,
            )
            by_name = {each["property"]: each for each in found}
            assert "effective" not in by_name["MemoryMax"]
            assert "memory" in by_name["MemoryMax"]["reason"]
            assert by_name["DeviceAllow"]["wanted"].startswith("/dev/nothing-there")


def test_the_words_of_moorctl(spawn: Processes) -> None:
    trio.run(_registered, spawn)
    run(
        "moorctl",
        "set-property",
        "web",
        "MemoryMax=512M",
        "TasksMax=77",
        "CPUWeight=50",
        "DevicePolicy=closed",
    )
    assert shown(SCOPE, *NAMES) == THERE
    run("moorctl", "set-property", "web", "--helper", "fs", "MemoryMax=512M", "TasksMax=77", "CPUWeight=50",
        "DevicePolicy=closed")  # fmt: skip
    assert shown(SERVICE, *NAMES) == THERE
    assert "50-MemoryMax.conf" in run("systemctl", "cat", SCOPE)


async def _registered(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn(), helpers=[HELPER])
