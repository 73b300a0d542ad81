"""Limits that others have set too, and what of ours is in force after a reload of the service manager."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from moored import KEPT_UNIT_FILES, OURS, Processes, connect, register, run, show

from moorage.wire.client import Client

MIB = 1024 * 1024
SCOPE, SERVICE = "machine-web.scope", "machine-web-fs.service"
HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"]}
SHARED = ("MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "MemoryZSwapMax", "TasksMax")
RELOADS = ("daemon-reload", "daemon-reexec")


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


async def change(client: Client, properties: Any, **parameters: Any) -> dict[str, dict[str, Any]]:
    """What is told of a reload, by property."""
    asked = {"name": "web", "properties": properties, **parameters}
    found = (await client.call(f"{OURS}SetProperties", asked))["differences"]
    return {each["property"]: each for each in found if "next reload" in each["reason"]}


def shown(unit: str, *names: str) -> list[str]:
    """What the manager says, in the order of the names."""
    found = show(unit, *names)
    return [found.get(name, "") for name in names]


@pytest.mark.parametrize("helper", [None, "fs"])
async def test_a_size_replaces_a_share_of_somebody_else(spawn: Processes, helper: str | None) -> None:
    """The manager reads the share last: it is one that is ignored, or the nearest to the size."""
    unit, to = (SERVICE, {"helper": helper}) if helper else (SCOPE, {})
    sizes = {**dict.fromkeys(SHARED, 512 * MIB), "TasksMax": 77}
    asked = {"infinity": dict.fromkeys(SHARED, "infinity"), "sizes": sizes, "nothing": {"MemoryLow": 0}}
    async with await connect() as client:
        await register(client, "web", spawn(), helpers=[HELPER])
        for properties in asked.values():
            run("systemctl", "set-property", unit, *(f"{name}=50%" for name in SHARED))
            halves = shown(unit, *SHARED)
            rehearsed = await change(client, properties, dryRun=True, **to)
            assert shown(unit, *SHARED) == halves
            told = await change(client, properties, **to)
            assert told == rehearsed
            assert not told.keys() & {"MemoryHigh", "MemoryMax"}
            assert shown(unit, *properties) == [str(value) for value in properties.values()]
            for command in RELOADS:
                run("systemctl", command)
                for name, value in properties.items():
                    then = told[name]["effective"] if name in told else str(value)
                    assert shown(unit, name) == [then], name
            assert all(each.get("helper") == helper for each in told.values())
            # It is as near as a share comes.
            if properties is sizes:
                whole = 2 * int(halves[SHARED.index("MemoryLow")])
                assert abs(int(shown(unit, "MemoryLow")[0]) - 512 * MIB) <= whole / 10_000
                assert abs(int(shown(unit, "MemorySwapMax")[0]) - 512 * MIB) <= whole / 10_000


async def test_a_share_replaces_a_share_of_somebody_else(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        run("systemctl", "set-property", SCOPE, *(f"{name}=25%" for name in SHARED))
        quarters = shown(SCOPE, *SHARED)
        run("systemctl", "set-property", SCOPE, *(f"{name}=75%" for name in SHARED))
        assert await change(client, {f"{name}Scale": 2**30 for name in SHARED}) == {}
        for command in RELOADS:
            assert shown(SCOPE, *SHARED) == quarters
            run("systemctl", command)
        assert shown(SCOPE, *SHARED) == quarters
        # And of two who set a share, or a size, the last one wins as before.
        await change(client, {"MemoryMax": 512 * MIB})
        run("systemctl", "set-property", SCOPE, "MemoryMax=25%")
        run("systemctl", "daemon-reload")
        assert shown(SCOPE, *SHARED) == quarters


@contextmanager
def drop_in(directory: str, name: str, text: str) -> Generator[Path]:
    """One of the administrator's, which the manager knows."""
    where = Path(directory)
    where.mkdir(parents=True, exist_ok=True)
    path = where / name
    path.write_text(f"[Scope]\n{text}\n")
    run("systemctl", "daemon-reload")
    try:
        yield path
    finally:
        path.unlink()
        where.rmdir()
        run("systemctl", "daemon-reload")


CONFIGURED = str(KEPT_UNIT_FILES)


@pytest.mark.parametrize(
    ("directory", "name", "wins"),
    [
        ("/machine-.scope.d", "90-limits.conf", True),
        ("/machine-web.scope.d", "90-limits.conf", True),
        ("/machine-.scope.d", "10-limits.conf", False),
        ("/machine-web.scope.d", "50-TasksMax.conf", False),
        (".control/machine-web.scope.d", "50-TasksMax.conf", True),
        (".control/machine-.scope.d", "50-TasksMax.conf", True),
    ],
)
async def test_drop_ins_of_the_administrator(
    spawn: Processes, directory: str, name: str, wins: bool
) -> None:
    async with await connect() as client:
        with drop_in(CONFIGURED + directory, name, "TasksMax=555\nMemoryMax=100M") as path:
            await register(client, "web", spawn())
            for dry_run in (True, False):
                told = await change(client, {"TasksMax": 444, "CPUWeight": 50}, dryRun=dry_run)
                assert told.keys() == ({"TasksMax"} if wins else set())
                for each in told.values():
                    assert (each["wanted"], each["effective"]) == ("444", "555")
                    assert str(path) in each["reason"]
            assert shown(SCOPE, "TasksMax") == ["444"]
            for command in RELOADS:
                run("systemctl", command)
                assert shown(SCOPE, "TasksMax", "CPUWeight") == ["555" if wins else "444", "50"]
        assert shown(SCOPE, "TasksMax") == ["444"]
        with drop_in(CONFIGURED + directory, name, "TasksMax=444"):
            # What is the same anyhow is no difference.
            assert await change(client, {"TasksMax": 444}) == {}


async def test_lists(spawn: Processes) -> None:
    """What a later one adds to a list takes nothing away."""
    text = "DeviceAllow=/dev/null r\nIPAddressAllow=\nIPAddressAllow=::1\nCPUQuota=20%\nAllowedCPUs=0"
    with drop_in(f"{CONFIGURED}/machine-.scope.d", "90-lists.conf", text) as path:
        async with await connect() as client:
            await register(client, "web", spawn())
            told = await change(
                client,
                {
                    "DeviceAllow": [["/dev/zero", "rw"]],
                    "IPAddressAllow": [[2, [127, 0, 0, 1], 32]],
                    "CPUQuotaPerSecUSec": 300_000,
                    "AllowedCPUs": [2],
                },
            )
            assert told.keys() == {"IPAddressAllow", "CPUQuotaPerSecUSec", "AllowedCPUs"}
            assert "effective" not in told["IPAddressAllow"]
            assert str(path) in told["IPAddressAllow"]["reason"]
            quota, cpus = told["CPUQuotaPerSecUSec"], told["AllowedCPUs"]
            assert (quota["wanted"], quota["effective"]) == ("300000", "20%")
            assert (cpus["wanted"], cpus["effective"]) == ("1", "0")
            await client.call(f"{OURS}Stop", {"name": "web"})
