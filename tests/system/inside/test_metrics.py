"""io.systemd.Metrics: what it tells of machines and of moored, to whom, and what it costs others."""

import json
import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import (
    OURS,
    RUNTIME,
    Processes,
    configure,
    connect,
    main_pid,
    register,
    run,
    show,
    start_listening,
    until,
)

from moorage.wire.client import Client
from moorage.wire.errors import ExpectedMore, InvalidParameter

METRICS = f"{RUNTIME}/systemd/report/io.moorage.Machine"
LIST, DESCRIBE = "io.systemd.Metrics.List", "io.systemd.Metrics.Describe"
BUSY = ("sh", "-c", "while :; do :; done")
MACHINES = 30
CONTROLLERS = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()

Key = tuple[str, str | None, tuple[tuple[str, str], ...]]


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


async def scrape(path: str = METRICS) -> dict[Key, Any]:
    """All values, by family, object and fields."""
    async with await connect(path) as client, client.call_more(LIST) as replies:
        found = [reply async for reply in replies]
    values = {
        (
            reply["name"].removeprefix(OURS),
            reply.get("object"),
            tuple(sorted(reply.get("fields", {}).items())),
        ): reply["value"]
        for reply in found
    }
    assert len(values) == len(found), "each value comes once"
    return values


def of(values: dict[Key, Any], family: str, about: str | None = None, **fields: str) -> Any:
    """One value; None if it is left out."""
    return values.get((family, about, tuple(sorted(fields.items()))))


def kernel(group: str, attribute: str) -> dict[str, int]:
    text = Path(f"/sys/fs/cgroup{group}/{attribute}").read_text()
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


async def test_what_is_told_of_a_machine_is_what_the_kernel_says(spawn: Processes) -> None:
    async with await connect() as client:
        group = (await register(client, "web", spawn(BUSY)))["machine"]["controlGroup"]
        before = kernel(group, "cpu.stat")
        values = await scrape()
        after = kernel(group, "cpu.stat")
        for type_, key in (("total", "usage_usec"), ("user", "user_usec"), ("system", "system_usec")):
            usec = of(values, "CpuUsage", "web", type=type_) / 1000
            assert before[key] <= usec <= after[key]
        assert of(values, "Phase", "web") == "running"
        assert of(values, "FreezerState", "web") == "running"
        assert of(values, "PressureTime", "web", resource="cpu", type="some") is not None
        assert of(values, "MachinesTotal", **{"class": "vm", "phase": "running"}) == 1
        timestamp = (await client.call(f"{OURS}Describe", {"name": "web"}))["machine"]["timestamp"]
        assert of(values, "StartTimestamp", "web") == timestamp["realtime"]
        assert 0 < of(values, "Uptime", "web") < 600_000_000
        assert (of(values, "MemoryUsage", "web", type="current") is not None) == ("memory" in CONTROLLERS)
        await client.call(f"{OURS}Stop", {"name": "web"})
    assert {about for _, about, _ in await scrape()} == {None}


async def test_helpers_and_how_often_they_were_restarted(spawn: Processes) -> None:
    command = ["/bin/sh", "-c", "sleep 0.2; exit 1"]
    helper = {"name": "fs", "execStart": command, "restart": "on-failure"}
    async with await connect() as client:
        await register(client, "web", spawn(), helpers=[helper])

        async def restarted() -> bool:
            values = await scrape()
            assert of(values, "HelperState", "web", helper="fs") in {"active", "activating"}
            return of(values, "HelperRestarts", "web", helper="fs") >= 2

        await until(restarted)
        counted = of(await scrape(), "HelperRestarts", "web", helper="fs")
        assert counted <= int(show("machine-web-fs.service", "NRestarts")["NRestarts"])


async def test_what_is_told_of_moored_itself(spawn: Processes) -> None:
    async with await connect() as client, await connect() as other:
        before = await scrape()
        await register(client, "web", spawn())
        await register(client, "db", spawn(), **{"class": "container"})
        with pytest.raises(InvalidParameter):
            await client.call(f"{OURS}Stop", {"name": "/"})
        async with other.call_more(
            f"{OURS}Subscribe", {"events": ["machine", "snapshotDone", "exited"], "names": ["web"]}
        ) as events:
            assert [(await anext(events))["event"]["event"] for _ in range(2)] == ["machine", "snapshotDone"]
            async with await connect(METRICS):
                during = await scrape()
            await client.call(f"{OURS}Stop", {"name": "web"})
            assert (await anext(events))["event"]["event"] == "exited"
        after = await scrape()
    assert (of(during, "Subscribers"), of(during, "Connections")) == (1, 2), "who scrapes is not counted"
    for class_ in ("container", "vm"):
        assert of(during, "MachinesTotal", **{"class": class_, "phase": "running"}) == 1

    def grown(family: str, **fields: str) -> int:
        return of(after, family, **fields) - (of(before, family, **fields) or 0)

    assert grown("Calls", method=f"{OURS}Register") == 2
    assert grown("Errors", error="org.varlink.service.InvalidParameter") == 1
    assert grown("Events", event="machineNew") == 2
    assert grown("Events", event="exited") == grown("MachinesEnded", cause="stopped") == 1
    assert grown("ManagerJobs", call="StartTransientUnit") == 2
    assert grown("ManagerReplies", call="StartTransientUnit") == 2
    assert grown("ManagerJobTime", call="StartTransientUnit") > 0


async def test_every_value_is_of_a_family_that_is_described(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        values = await scrape()
        async with await connect(METRICS) as looking, looking.call_more(DESCRIBE) as replies:
            described = {reply["name"].removeprefix(OURS): reply async for reply in replies}
    kinds = {"counter": int, "gauge": int, "string": str}
    for (family, _, _), value in values.items():
        assert isinstance(value, kinds[described[family]["type"]]), family


@pytest.mark.system_instance("of a user's instance there is no other user")
async def test_everybody_may_look(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        argv = ("varlinkctl", "call", "--more", "--json=short", METRICS, LIST, "{}")
        told = run("setpriv", "--reuid=alice", "--regid=alice", "--clear-groups", *argv)
    values = [json.loads(line) for line in told.replace("\x1e", "").splitlines() if line]
    assert {value.get("object") for value in values} == {None, "web"}


async def test_wrong_calls() -> None:
    await started()
    async with await connect(METRICS) as client:
        for method in (LIST, DESCRIBE):
            with pytest.raises(ExpectedMore):
                await client.call(method)
            with pytest.raises(InvalidParameter):
                async with client.call_more(method, {"name": "web"}) as replies:
                    await anext(replies)
    assert "io.systemd.Metrics" in run("varlinkctl", "list-interfaces", METRICS)


async def test_scrapes_that_hang_keep_nobody_from_anything(spawn: Processes) -> None:
    async with await connect() as client:
        for number in range(MACHINES):
            await register(client, f"m{number}", spawn())
        call = json.dumps({"method": LIST, "more": True}).encode() + b"\0"
        hanging = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
        for each in hanging:
            each.connect(METRICS)
            each.send(call)
        values = await scrape()
        assert len({about for _, about, _ in values} - {None}) == MACHINES
        await client.call("io.systemd.service.Ping")
        for each in hanging:
            each.close()
        for number in range(MACHINES):
            await client.call(f"{OURS}Stop", {"name": f"m{number}"})


async def started() -> Client:
    """Have moored started by a call of who does not only look on; metrics come after its answer."""
    async with await connect() as client:
        await client.call("org.varlink.service.GetInfo")
    await until(lambda: show("moored.service", "ActiveState") == {"ActiveState": "active"})
    return client


@pytest.fixture
def hurried() -> Generator[None]:
    """A service that goes as soon as it has nothing to do."""
    configure("--idle-timeout=0.5")
    run("systemctl", "stop", "moored.service")
    yield
    configure()
    run("systemctl", "stop", "moored.service")


async def test_who_looks_on_neither_keeps_an_idle_service_nor_starts_it(hurried: None) -> None:
    await started()
    async with await connect(METRICS):  # which stays connected

        async def gone() -> bool:
            try:
                await scrape()
            except (FileNotFoundError, ConnectionError, OSError):
                pass
            except Exception:  # noqa: BLE001 - it went in the middle
                await trio.lowlevel.checkpoint()
            return show("moored.service", "ActiveState") == {"ActiveState": "inactive"}

        await until(gone, "the service is gone")
    with pytest.raises(FileNotFoundError):
        await connect(METRICS)
    assert show("moored.service", "Result") == {"Result": "success"}
    await started()
    assert of(await scrape(), "Version")


async def test_what_is_in_the_way_of_the_socket(mortal: None) -> None:
    await started()
    pid = main_pid()
    os.kill(pid, 9)
    await until(lambda: main_pid() != pid)
    start_listening()
    await started()
    assert of(await scrape(), "Version"), "a socket that was left is replaced"
    run("systemctl", "stop", "moored.service")
    os.mkdir(METRICS)
    try:
        await started()
        with pytest.raises(OSError, match="refused"):
            await connect(METRICS)
    finally:
        os.rmdir(METRICS)
        run("systemctl", "stop", "moored.service")
