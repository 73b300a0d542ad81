"""What is done about machines that both have, whatever machined answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import made
import pytest
import trio
import trio.testing

from moorage.beside import following, peer
from moorage.beside.following import Beside
from moorage.beside.listed import Listed
from moorage.beside.notes import Note, Notes
from moorage.beside.peer import Peer
from moorage.kernel.process import ProcessId, boot_id
from moorage.machines.events import Kind
from moorage.machines.followers import Follower, Followers
from moorage.machines.machine import Machine
from moorage.machines.model import Origin, Timestamp, Verdict
from moorage.machines.registry import Registry
from moorage.machines.store import Store

if TYPE_CHECKING:
    from unit.beside.conftest import Answer, Told

OK: Answer = [{"parameters": {}}]
EXISTS: Answer = [{"error": "io.systemd.Machine.MachineExists"}]
NOBODY: Answer = [{"error": "io.systemd.Machine.NoSuchMachine"}]


def leader(number: int) -> ProcessId:
    return ProcessId(number, 1000 + number, boot_id())


def machine(name: str = "web", number: int = 7, **values: Any) -> Machine:
    return made.machine(name, leader=leader(number), **values)


def entry(name: str = "web", number: int = 7) -> dict[str, Any]:
    """A machine as machined lists it."""
    found = {"pid": number, "pidfdId": 1000 + number, "bootId": boot_id()}
    return {"parameters": {"name": name, "class": "vm", "leader": found, "unit": "x.scope"}}


class Heard(Follower):
    """Takes note of what happens."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []

    def happened(self, machine: Machine, kind: Kind, fact: Any) -> None:
        self.kinds.append(kind)


class Unseen:
    """Nothing is shown: the test tells by itself."""

    def close(self) -> None:
        """Nothing to do."""

    def names(self) -> list[str]:
        """Show nothing."""
        return []


def unseen(*_: object) -> Unseen:
    """Show nothing."""
    return Unseen()


class Taking:
    """Takes note of what is to be adopted."""

    def __init__(self) -> None:
        self.found: list[Listed] = []

    async def adopt(self, found: Listed) -> None:
        self.found.append(found)


class Forgetting:
    """Takes note of what is to be forgotten."""

    def __init__(self, world: World) -> None:
        self.names: list[str] = []
        self._world = world

    def forget(self, machine: Machine) -> None:
        self.names.append(machine.name)
        self._world.forget(machine)


class World:
    """What the tests play with."""

    def __init__(self, told: Told, directory: Path, *, publish: bool = True, adopt: bool = False) -> None:
        self.told = told
        self.registry = Registry()
        self.store = Store(str(directory))
        self.notes = Notes(self.store)
        self.heard = Heard()
        self.taking = Taking()
        self.forgetting = Forgetting(self)
        followers = Followers()
        followers.join(self.heard)
        self.beside = Beside(
            self.registry, self.notes, Peer(told.path), unseen, followers,
            cast("Any", self.taking), cast("Any", self.forgetting), publish=publish, adopt=adopt,
        )  # fmt: skip

    def add(self, each: Machine) -> Machine:
        self.registry.add(each)
        self.beside.added(each)
        return each

    def forget(self, each: Machine) -> None:
        self.registry.remove(each)
        self.beside.ended(each)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[World]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.beside.run)
            yield self
            nursery.cancel_scope.cancel()

    async def settled(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110 - what is waited for is anything
                await trio.sleep(0.001)


@pytest.fixture
def world(told: Told, tmp_path: Path) -> World:
    return World(told, tmp_path / "machines")


async def test_a_machine_is_published_and_taken_back_when_it_is_forgotten(world: World) -> None:
    world.told.answer = lambda method, _: [entry()] if method == "List" else OK
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: web.published)
        world.forget(web)
        await world.settled(lambda: ("Unregister", "web") in world.told.calls)
        await world.settled(lambda: not world.notes.names)
    assert world.told.calls[0] == ("Register", "web")
    assert world.heard.kinds == [Kind.published]


async def test_what_machined_may_not_have_is_not_published(world: World) -> None:
    async with world.told.listening(), world.running():
        world.add(machine("web_1"))  # no host name
        world.add(machine("part", subgroup="/payload"))
        world.add(machine("guest", shared=True))
        world.add(made.machine("headless", leader=None))
        web = world.add(machine())
        await world.settled(lambda: web.published)
    assert world.told.calls == [("Register", "web")]


async def test_what_is_published_already_is_not_published_twice(world: World) -> None:
    """After a restart of this service."""
    world.told.answer = lambda method, _: EXISTS if method == "Register" else [entry()]
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: web.published)
        world.beside.returned()
        await world.settled(lambda: len(world.told.calls) >= 3)
        await world.settled(lambda: web.published)
    assert world.told.calls == [("Register", "web"), ("List", "web"), ("List", None)]


async def test_the_machine_that_machined_has_by_that_name_stays_there(world: World) -> None:
    world.told.answer = lambda method, _: EXISTS if method == "Register" else [entry(number=8)]
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: len(world.told.calls) == 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert web.published is None
        world.told.answer = lambda _method, _parameters: OK
        world.beside.went("web")
        await world.settled(lambda: web.published)
    assert {method for method, _ in world.told.calls} == {"Register", "List"}


async def test_what_machined_drops_is_not_published_again_until_all_is_settled_anew(world: World) -> None:
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: web.published)
        world.told.answer = lambda method, _: NOBODY if method == "List" else OK
        world.beside.went("web")
        await world.settled(lambda: web.published is False)
        world.beside.came("web")
        world.beside.went("web")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert web.published is False
        world.beside.returned()
        await world.settled(lambda: web.published)
    assert world.heard.kinds == [Kind.published, Kind.unpublished, Kind.published]


async def test_what_was_forgotten_before_a_restart_is_taken_back_after_it(
    told: Told, tmp_path: Path
) -> None:
    before = World(told, tmp_path / "machines")
    before.notes.add(Note("web", leader(7), ours=True))
    world = World(told, tmp_path / "machines")
    told.answer = lambda method, _: [entry()] if method == "List" else OK
    async with told.listening(), world.running():
        world.beside.returned()
        await world.settled(lambda: ("Unregister", "web") in told.calls)
        await world.settled(lambda: not world.notes.names)
    after = Notes(world.store)
    after.restore()
    assert not after.names


async def test_a_successor_of_what_was_forgotten_is_published_in_its_place(world: World) -> None:
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: web.published)
        there = [entry()]

        def answer(method: str, _: dict[str, Any]) -> Answer:
            if method == "Unregister":
                there.clear()
            return {"Register": EXISTS if there else OK, "List": [*there] or NOBODY}.get(method, OK)

        world.told.answer = answer
        world.forget(web)
        successor = world.add(machine(number=8))
        await world.settled(lambda: successor.published)
        await world.settled(lambda: not world.notes.names)


async def test_a_scope_that_ends_takes_its_machine_away_from_machined(world: World) -> None:
    world.told.answer = lambda method, _: [entry("unit", 8)] if method == "List" else OK
    async with world.told.listening(), world.running():
        web, other = world.add(machine()), world.add(machine("unit", 8, allocated=False))
        await world.settled(lambda: web.published and other.published)
        for each in (web, other):
            each.retire(Verdict("success", Timestamp(1, 1)))
            world.forget(each)
        await world.settled(lambda: ("Unregister", "unit") in world.told.calls)
        await world.settled(lambda: not world.notes.names)
    assert ("Unregister", "web") not in world.told.calls


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"no JSON\0",
        b"",
        b'{"parameters": 5}\0',
        [{"error": "io.systemd.System", "parameters": {"errno": 5}}],
    ],
)
async def test_whatever_it_answers_harms_nobody_and_it_is_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr(peer, "CALL_SECONDS", 0.05)
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.01)
    world.told.answer = lambda _method, _parameters: answer
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: len(world.told.calls) >= 2)
        world.told.answer = lambda method, _: NOBODY if method == "List" else OK
        world.beside.returned()
        await world.settled(lambda: web.published)


async def test_a_list_without_end_is_read_no_further(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "LISTED_MAX", 3)
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.01)
    endless: Answer = [entry(f"m{number}", 10 + number) for number in range(5)]
    world.told.answer = lambda method, _: endless if method == "List" else OK
    async with world.told.listening(), world.running():
        world.beside.returned()
        await world.settled(lambda: len(world.told.calls) >= 2)
        world.told.answer = lambda method, _: NOBODY if method == "List" else OK
        web = world.add(machine())
        await world.settled(lambda: web.published)


async def test_nothing_is_tried_where_machined_is_not_until_it_comes(world: World) -> None:
    async with world.running():
        web = world.add(machine())
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert web.published is None
        world.told.answer = lambda method, _: NOBODY if method == "List" else OK
        async with world.told.listening():
            world.beside.returned()
            await world.settled(lambda: web.published)


async def test_more_names_than_are_kept_are_settled_all_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "NAMES_MAX", 4)
    world.told.answer = lambda method, _: NOBODY if method == "List" else OK
    machines = [world.add(machine(f"m{number}", 10 + number)) for number in range(9)]
    async with world.told.listening(), world.running():
        await world.settled(lambda: all(each.published for each in machines))
    assert world.told.calls[0] == ("List", None)


# What is adopted


@pytest.fixture
def adopting(told: Told, tmp_path: Path) -> World:
    return World(told, tmp_path / "machines", adopt=True)


async def test_what_machined_has_is_adopted_and_what_is_ours_is_not(adopting: World) -> None:
    there = {"web": entry(), "theirs": entry("theirs", 8)}

    def answer(method: str, parameters: dict[str, Any]) -> Answer:
        name = parameters.get("name")
        if method == "List":
            return list(there.values()) if name is None else [there[name]] if name in there else NOBODY
        return EXISTS if name in there else OK

    adopting.told.answer = answer
    async with adopting.told.listening(), adopting.running():
        web = adopting.add(machine())
        adopting.beside.came("web")
        adopting.beside.came("theirs")
        await adopting.settled(lambda: web.published and adopting.taking.found)
        adopting.beside.returned()
        await adopting.settled(lambda: len(adopting.taking.found) == 2)
    assert {found.name for found in adopting.taking.found} == {"theirs"}


async def test_what_was_adopted_is_never_published(adopting: World) -> None:
    adopting.told.answer = lambda method, _: [entry()] if method == "List" else OK
    async with adopting.told.listening(), adopting.running():
        adopting.add(machine(origin=Origin.adopted, allocated=False))
        adopting.beside.came("web")
        adopting.beside.returned()
        await adopting.settled(lambda: ("List", None) in adopting.told.calls)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert {method for method, _ in adopting.told.calls} == {"List"}
    assert not adopting.taking.found


async def test_what_was_forgotten_is_not_adopted_again_while_machined_has_it(adopting: World) -> None:
    adopting.told.answer = lambda method, _: [entry()] if method == "List" else OK
    async with adopting.told.listening(), adopting.running():
        web = adopting.add(machine(origin=Origin.adopted, allocated=False))
        adopting.forget(web)
        adopting.beside.came("web")
        adopting.beside.returned()
        await adopting.settled(lambda: ("List", None) in adopting.told.calls)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not adopting.taking.found
        assert adopting.notes.names == {"web"}
        adopting.told.answer = lambda method, _: [entry(number=8)] if method == "List" else OK
        adopting.beside.came("web")  # another one
        await adopting.settled(lambda: adopting.taking.found)
    assert ("Unregister", "web") not in adopting.told.calls


async def test_what_machined_has_no_more_is_forgotten_unless_it_ends(
    adopting: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "DROPPED_SECONDS", 0.05)
    adopting.told.answer = lambda method, _: NOBODY if method == "List" else OK
    async with adopting.told.listening(), adopting.running():
        adopting.add(machine(origin=Origin.adopted, allocated=False))
        ends = adopting.add(machine("ends", 8, origin=Origin.adopted, allocated=False))
        adopting.beside.went("web")
        adopting.beside.went("ends")
        await adopting.settled(lambda: ends.published is False)
        ends.retire(Verdict("success", Timestamp(1, 1)))
        adopting.forget(ends)
        await adopting.settled(lambda: adopting.forgetting.names)
        await trio.testing.wait_all_tasks_blocked(0.06)
    assert adopting.forgetting.names == ["web"]
    assert not adopting.notes.names
