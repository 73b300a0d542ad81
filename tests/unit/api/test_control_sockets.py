"""The control sockets of machines: what stands in the way of one is in the way of nothing else."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import made
import pytest
import trio
import trio.testing

from moorage.api.machine_instance.sockets import GATHER_SECONDS, ControlSockets
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry
from moorage.wire.call import Call
from moorage.wire.client import Client
from moorage.wire.method import method
from moorage.wire.server import Server
from moorage.wire.service import Interface, Service
from moorage.wire.types import Empty, Reply


class Name(Reply):
    name: str


class Asked(Interface):
    """Says what a call is about."""

    def __init__(self) -> None:
        super().__init__("interface org.example.test\nmethod Who() -> (name: string)\n")

    @method("Who")
    def who(self, call: Call, params: Empty) -> Name:
        del params
        assert isinstance(call.about, Machine)
        return Name(call.about.name)


class World(NamedTuple):
    sockets: ControlSockets
    registry: Registry
    directory: Path

    def enter(self, name: str) -> Machine:
        """Have a machine that is new."""
        machine = made.machine(name, invocation_id="")
        self.registry.add(machine)
        self.sockets.added(machine)
        return machine

    def leave(self, machine: Machine) -> None:
        """End it."""
        self.registry.remove(machine)
        self.sockets.ended(machine)

    def there(self) -> list[str]:
        return sorted(os.listdir(self.directory))


@asynccontextmanager
async def running(
    directory: Path, *, most: int = 10, before: Callable[[Registry], None] = lambda _: None
) -> AsyncGenerator[World]:
    registry = Registry(frozenset({0}))
    before(registry)
    server = Server()
    service = Service(vendor="", product="", version="", url="", interfaces=(Asked(),))
    sockets = ControlSockets(server, service, registry, str(directory), most=most, mode=0o666)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        nursery.start_soon(sockets.run)
        yield World(sockets, registry, directory)
        sockets.close()
        nursery.cancel_scope.cancel()


async def made_all() -> None:
    """Wait until nothing more is made."""
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(GATHER_SECONDS)
    await trio.testing.wait_all_tasks_blocked()


async def who(path: str) -> str:
    async with await Client.connect(path) as client:
        return (await client.call("org.example.test.Who", {}))["name"]


async def test_each_machine_has_one_for_as_long_as_it_lives(tmp_path: Path) -> None:
    async with running(tmp_path / "control") as world:
        web, db = world.enter("web"), world.enter("db")
        assert web.control_socket is None  # the caller has no reply yet
        await made_all()
        assert world.there() == ["db", "web"]
        assert stat.S_IMODE((world.directory / "web").stat().st_mode) == 0o666
        assert stat.S_IMODE(world.directory.stat().st_mode) == 0o755
        assert web.control_socket is not None
        assert await who(web.control_socket) == "web"
        world.leave(web)
        assert world.there() == ["db"]
        assert web.control_socket is None
        successor = world.enter("web")
        assert world.sockets.address(successor) == str(world.directory / "web")  # at once, for who asks
        await made_all()
        assert await who(str(world.directory / "web")) == "web"
        world.leave(db)
        world.leave(successor)
        assert world.there() == []


async def test_one_that_ends_at_once_gets_none(tmp_path: Path) -> None:
    async with running(tmp_path / "control") as world:
        world.leave(world.enter("web"))
        await made_all()
        assert world.there() == []


async def test_one_with_an_address_of_its_own_gets_none(tmp_path: Path) -> None:
    async with running(tmp_path / "control") as world:
        machine = made.machine("vm", control_address="/run/vm")
        world.sockets.added(machine)
        await made_all()
        assert world.there() == []
        assert world.sockets.address(machine) == "/run/vm"


async def test_no_more_than_there_may_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path / "control", most=2) as world:
        machines = [world.enter(f"m{number}") for number in range(5)]
        await made_all()
        assert world.there() == ["m0", "m1"]
        assert [machine.control_socket is None for machine in machines] == [False, False, True, True, True]
        assert len(caplog.records) == 1
        for machine in machines:
            world.leave(machine)
        assert world.there() == []


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("taken", [a_file, a_link, open_to_all])
async def test_a_directory_that_is_taken_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, taken: Callable[[Path], None]
) -> None:
    directory = tmp_path / "control"
    taken(directory)
    async with running(directory) as world:
        web = world.enter("web")
        await made_all()
        assert web.control_socket is None
        assert len(caplog.records) == 1
        assert not any("web" in names for _, _, names in os.walk(tmp_path))
        world.leave(web)
        # It is mended, and needs no restart.
        directory.rename(tmp_path / "away")
        db = world.enter("db")
        await made_all()
        assert db.control_socket is not None


async def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "control/web").mkdir(parents=True)
    async with running(tmp_path / "control") as world:
        web, db = world.enter("web"), world.enter("db")
        await made_all()
        assert web.control_socket is None
        assert db.control_socket is not None
        assert world.there() == ["db", "web"]
        assert (world.directory / "web").is_dir()


async def test_sockets_from_before_are_replaced_or_removed(tmp_path: Path) -> None:
    directory = tmp_path / "control"
    directory.mkdir()
    for name in ("web", "old", ".new"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(directory / name))
    found = made.machine("web", invocation_id="")
    async with running(directory, before=lambda registry: registry.add(found)) as world:
        world.sockets.added(found)
        await made_all()
        assert world.there() == ["web"]
        assert await who(str(directory / "web")) == "web"


async def test_a_path_that_is_too_long_fails_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / ("x" * 100)) as world:
        web = world.enter("web")
        await made_all()
        assert web.control_socket is None
