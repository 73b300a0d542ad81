"""Numbers of users of containers, whose leaders are real processes in user namespaces of this one's own users."""

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
import trio
from made import machine

from moorage.kernel.process import identify
from moorage.machines import id_maps
from moorage.machines.id_maps import IdMaps, NoSuchId
from moorage.machines.inside import InsideFailed
from moorage.machines.machine import Machine
from moorage.machines.model import MachineClass
from moorage.machines.registry import Registry


@pytest.fixture
def leaders() -> Generator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for each in found:
        each.kill()
        each.wait()


def sleep(leaders: list[subprocess.Popen[bytes]]) -> int:
    leaders.append(subprocess.Popen(["sleep", "infinity"]))
    return leaders[-1].pid


async def find(maps: IdMaps, kind: id_maps.Kind, number: int) -> tuple[Machine, int]:
    """Look for a number as handlers do."""
    if not maps.is_ready(kind):
        await maps.read(kind)
    return maps.from_host(kind, number)


class Maps:
    """What the kernel says of each process, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: dict[int, str] = {}
        self.reads = 0
        monkeypatch.setattr(id_maps, "_text", self._text)

    def _text(self, pid: int, kind: str) -> bytes:
        del kind
        self.reads += 1
        return self.texts.get(pid, "").encode()


def container(registry: Registry, name: str, pid: int) -> Machine:
    made = machine(
        name, class_=MachineClass.container, leader=identify(pid), control_group=f"/none/{name}",
        invocation_id=f"{len(registry):032x}",
    )  # fmt: skip
    registry.add(made)
    return made


def test_the_kernel_is_asked(leaders: list[subprocess.Popen[bytes]]) -> None:
    registry = Registry()
    here = container(registry, "here", sleep(leaders))
    expected = int(Path("/proc/self/uid_map").read_text().split()[1])
    assert IdMaps(registry).to_host(here, "uid", 5) == expected + 5
    leaders[0].kill()
    leaders[0].wait()
    with pytest.raises(InsideFailed):
        IdMaps(registry).to_host(here, "uid", 5)


async def test_what_is_found_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    """Without a leader that is watched each time, else once it may be old."""
    kernel, registry = Maps(monkeypatch), Registry()
    web, pid = container(registry, "web", sleep(leaders)), leaders[0].pid
    maps = IdMaps(registry)
    kernel.texts[pid] = "0 100000 1000"
    assert await find(maps, "uid", 100_007) == (web, 7)
    kernel.reads = 0
    with pytest.raises(NoSuchId):
        await find(maps, "uid", 200_000)
    assert kernel.reads == 0  # it is remembered who is not there
    kernel.texts[pid] = "0 300000 1000"
    with pytest.raises(NoSuchId):
        await find(maps, "uid", 100_007)
    monkeypatch.setattr(id_maps, "REMEMBERED_SECONDS", 0.0)
    web.gone.set()


async def test_maps_are_read_once_for_all_who_ask(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(id_maps, "REMEMBERED_SECONDS", 1000.0)
    kernel, registry = Maps(monkeypatch), Registry()
    count = 2 * id_maps.AT_ONCE
    for number in range(count):
        pid = sleep(leaders)
        kernel.texts[pid] = f"0 {100_000 + 1000 * number} 1000"
        container(registry, f"c{number}", pid)
    maps = IdMaps(registry)
    assert not maps.is_ready("uid")
    found: list[str] = []

    async def look(number: int) -> None:
        one, inside = await find(maps, "uid", 100_000 + 1000 * number + 5)
        assert inside == 5
        found.append(one.name)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(look, number)
    assert sorted(found) == sorted(f"c{number}" for number in range(count))
    assert kernel.reads == 2 * count  # each map once, and once more for the one who asked for its user
    assert maps.is_ready("uid")


async def test_nobody_who_is_gone_is_remembered(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    kernel, registry = Maps(monkeypatch), Registry()
    pid = sleep(leaders)
    old = container(registry, "web", pid)
    kernel.texts[pid] = "0 100000 1000"
    maps = IdMaps(registry)
    assert (await find(maps, "gid", 100_000))[0] is old
    registry.remove(old)
    with pytest.raises(NoSuchId):
        await find(maps, "gid", 100_000)
    new = container(registry, "web", pid)
    assert (await find(maps, "gid", 100_000))[0] is new


def test_our_own_numbers_are_nobodys(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    kernel, registry = Maps(monkeypatch), Registry()
    pid = sleep(leaders)
    container(registry, "host", pid)
    kernel.texts[pid] = "0 0 4294967295"
    maps = IdMaps(registry)
    assert maps.is_ready("uid")
    with pytest.raises(NoSuchId):
        maps.from_host("uid", os.getuid() + 70_000)


class Watched:
    """A leader that is watched, and lives until it is said to have ended."""

    def __init__(self) -> None:
        self.ended = False


def watched(registry: Registry, name: str, pid: int) -> Machine:
    made = container(registry, name, pid)
    made.leader = Watched()  # pyright: ignore[reportAttributeAccessIssue]
    return made


async def test_a_map_that_was_just_read_is_not_read_again(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(id_maps, "REMEMBERED_SECONDS", 1000.0)
    monkeypatch.setattr(id_maps, "FRESH_SECONDS", 1000.0)
    kernel, registry = Maps(monkeypatch), Registry()
    web, pid = watched(registry, "web", sleep(leaders)), leaders[0].pid
    maps = IdMaps(registry)
    kernel.texts[pid] = "0 100000 1000"
    for number in (7, 8, 7):
        assert await find(maps, "uid", 100_000 + number) == (web, number)
        assert maps.to_host(web, "uid", number) == 100_000 + number
    assert kernel.reads == 1
    web.leader.ended = True  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    with pytest.raises(NoSuchId):
        await find(maps, "uid", 100_007)
    with pytest.raises(InsideFailed):
        maps.to_host(web, "uid", 7)


async def test_one_whose_number_is_known_is_found_without_a_look_at_the_others(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(id_maps, "REMEMBERED_SECONDS", 1000.0)
    monkeypatch.setattr(id_maps, "FRESH_SECONDS", 0.0)
    kernel, registry = Maps(monkeypatch), Registry()
    made = [watched(registry, f"c{number}", sleep(leaders)) for number in range(3)]
    for number, leader in enumerate(leaders):
        kernel.texts[leader.pid] = f"0 {100_000 + 1000 * number} 1000"
    maps = IdMaps(registry)
    assert await find(maps, "uid", 102_007) == (made[2], 7)
    kernel.reads = 0
    assert await find(maps, "uid", 102_007) == (made[2], 7)
    assert kernel.reads == 1  # its own
    # It has moved elsewhere, and another one has its numbers.
    kernel.texts[leaders[2].pid] = "0 300000 1000"
    with pytest.raises(NoSuchId):
        await find(maps, "uid", 102_007)
    registry.remove(made[2])
    other = watched(registry, "c2", leaders[2].pid)
    kernel.texts[leaders[2].pid] = "0 102000 1000"
    assert await find(maps, "uid", 102_007) == (other, 7)


async def test_an_unmapped_container_is_looked_at_each_time(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    """Its leader may be about to get users."""
    monkeypatch.setattr(id_maps, "FRESH_SECONDS", 1000.0)
    kernel, registry = Maps(monkeypatch), Registry()
    web, pid = watched(registry, "web", sleep(leaders)), leaders[0].pid
    maps = IdMaps(registry)
    with pytest.raises(NoSuchId):
        maps.to_host(web, "uid", 7)
    kernel.texts[pid] = "0 100000 1000"
    assert maps.to_host(web, "uid", 7) == 100_007


async def test_what_is_remembered_of_those_who_are_gone_is_let_go(
    monkeypatch: pytest.MonkeyPatch, leaders: list[subprocess.Popen[bytes]]
) -> None:
    kernel, registry = Maps(monkeypatch), Registry()
    pid = sleep(leaders)
    kernel.texts[pid] = "0 100000 1000"
    maps = IdMaps(registry)
    for number in range(3 * id_maps.AT_ONCE):
        made = container(registry, f"c{number}", pid)
        maps.to_host(made, "uid", 7)
        registry.remove(made)
        made.gone.set()
    assert len(maps._remembered["uid"]) <= id_maps.AT_ONCE + 1
