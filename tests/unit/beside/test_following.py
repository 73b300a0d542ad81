"""What is done about machines that both have, whatever machined answers."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import made
import pytest
import trio
import trio.testing

from moorage.beside import following, peer, traces
from moorage.beside.following import Beside
from moorage.beside.listed import Listed
from moorage.beside.notes import Note, Notes
from moorage.beside.peer import Peer
from moorage.beside.publishing import Publishing
from moorage.beside.traces import Traces
from moorage.kernel.process import ProcessId, boot_id
from moorage.machines.detached import Detached
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
        self.dead: set[int] = set()
        self.registry = Registry()
        self.store = Store(str(directory))
        self.notes = Notes(self.store)
        self.heard = Heard()
        self.taking = Taking()
        self.forgetting = Forgetting(self)
        followers = Followers()
        followers.join(self.heard)
        machined, files = Peer(told.path, os.devnull), Traces(str(directory.parent))
        self.detached = Detached()
        self.publishing = Publishing(
            self.registry, self.notes, machined, files, followers, cast("Any", self),
            lambda each: f"/run/{each.name}", wanted=publish,
        )  # fmt: skip
        self.beside = Beside(
            self.registry, self.notes, machined, unseen, self.publishing, cast("Any", self.taking),
            cast("Any", self.forgetting), self.detached, adopt=adopt,
        )  # fmt: skip

    def is_alive(self, leader: ProcessId) -> bool:
        """See `Processes`."""
        return leader.pid not in self.dead

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
            await nursery.start(self.detached.run)
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
    asked: list[dict[str, Any]] = []

    def answer(method: str, parameters: dict[str, Any]) -> Answer:
        asked.append(parameters)
        return [entry()] if method == "List" else OK

    world.told.answer = answer
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: web.published)
        assert asked[0]["controlAddress"] == "/run/web"
        world.forget(web)
        await world.settled(lambda: ("Unregister", "web") in world.told.calls)
        await world.settled(lambda: not world.notes.names)
    assert world.told.calls[0] == ("Register", "web")
    assert world.heard.kinds == [Kind.published]


async def test_an_older_machined_is_not_told_the_control_address(world: World) -> None:
    """That of systemd 257 refuses the parameter that it does not know."""
    refused = {
        "error": "org.varlink.service.InvalidParameter",
        "parameters": {"parameter": "controlAddress"},
    }
    world.told.answer = lambda _, parameters: [refused] if "controlAddress" in parameters else OK
    async with world.told.listening(), world.running():
        web, db = world.add(machine()), world.add(machine("db"))
        await world.settled(lambda: web.published and db.published)
    assert world.told.calls == [("Register", "web"), ("Register", "web"), ("Register", "db")]


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
        assert world.notes.get("web") == Note("web", leader(8), ours=True)


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


async def test_nothing_is_noted_of_what_a_machined_that_is_not_there_cannot_have(
    world: World, tmp_path: Path
) -> None:
    """A note would stay for as long as there is no machined."""
    async with world.running():
        web, launched = world.add(machine()), world.add(machine("launched", 8))
        await trio.testing.wait_all_tasks_blocked(0.01)
        (tmp_path / f"unit:{launched.unit}").symlink_to(
            "launched"
        )  # by its launcher, when machined last ran
        for each in (web, launched):
            world.forget(each)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert [world.notes.get(name) is not None for name in ("web", "launched")] == [False, True]


async def test_more_names_than_are_kept_are_settled_all_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "NAMES_MAX", 4)
    world.told.answer = lambda method, _: NOBODY if method == "List" else OK
    machines = [world.add(machine(f"m{number}", 10 + number)) for number in range(9)]
    async with world.told.listening(), world.running():
        await world.settled(lambda: all(each.published for each in machines))
    assert world.told.calls[0] == ("List", None)


async def test_nothing_is_published_that_is_not_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.01)
    write, tried = world.store.write, 0

    def full(*args: Any) -> None:
        nonlocal tried
        tried += 1
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(world.store, "write", full)
    world.told.answer = lambda method, _: NOBODY if method == "List" else OK
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: tried >= 2)
        assert ("Register", "web") not in world.told.calls
        monkeypatch.setattr(world.store, "write", write)
        await world.settled(lambda: web.published)


async def test_what_others_have_registered_of_a_leader_of_ours_is_left_alone(world: World) -> None:
    """A launcher may call both."""
    world.told.answer = lambda method, _: EXISTS if method == "Register" else [entry()]
    async with world.told.listening(), world.running():
        web = world.add(machine(allocated=False))
        await world.settled(lambda: web.published)
        world.forget(web)
        world.beside.returned()
        await world.settled(lambda: ("List", None) in world.told.calls)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert ("Unregister", "web") not in world.told.calls


async def test_it_is_watched_as_soon_as_that_is_possible(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.01)
    refusals = [OSError(errno.EMFILE, "no fd"), OSError(errno.ENOSPC, "no watch")]

    def watch(*_: object) -> Unseen:
        if refusals:
            raise refusals.pop()
        return Unseen()

    monkeypatch.setattr(world.beside, "_watch", watch)
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.beside.first.wait()  # no call waits for that
        await world.settled(lambda: web.published)


async def test_a_machine_that_goes_on_without_its_leader_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """machined would stop its unit when it is started again."""
    monkeypatch.setattr(following, "LEADERLESS_SECONDS", 0.01)
    there: list[Any] = []

    def answer(method: str, _: dict[str, Any]) -> Answer:
        if method == "Register":
            there.append(entry())
        if method == "Unregister":
            there.clear()
        return ([*there] or NOBODY) if method == "List" else OK

    world.told.answer = answer
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: web.published)
        world.dead.add(7)
        world.beside.happened(web, Kind.leader_exited, {})
        await world.settled(lambda: web.published is False)
        assert not there
        world.beside.returned()
        await world.settled(lambda: ("List", None) in world.told.calls)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not there
    assert not world.notes.names


# What is left below /run of machines that are no more


def leave_traces(directory: Path, name: str = "web") -> tuple[Path, Path]:
    """Have machined's files of a machine."""
    file, link = directory / name, directory / f"unit:machine-{name}.scope"
    file.touch()
    link.symlink_to(name)
    return link, file


async def test_nothing_of_a_machine_is_left_that_machined_does_not_know_to_be_over(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "GONE_SECONDS", 0.01)
    async with world.told.listening(), world.running():
        web = world.add(machine())
        await world.settled(lambda: web.published)
        others = leave_traces(tmp_path, "theirs")
        left = leave_traces(tmp_path)
        web.retire(Verdict("success", Timestamp(1, 1)))
        world.forget(web)
        await world.settled(lambda: not any(map(os.path.lexists, left)))
        assert all(map(os.path.lexists, others))


async def test_what_machined_has_again_stays(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "GONE_SECONDS", 0.05)
    world.told.answer = lambda method, _: [entry()] if method == "List" else OK
    async with world.told.listening(), world.running():
        web = world.add(in_place())
        await world.settled(lambda: web.published)
        left = leave_traces(tmp_path)
        world.forget(web)
        world.add(in_place())  # it was registered again
        with trio.fail_after(10):
            await world.publishing.see_off(web)
        assert all(map(os.path.lexists, left))

        async def come() -> None:
            await trio.testing.wait_all_tasks_blocked(0.01)
            left[0].unlink()
            left[0].symlink_to("web")

        monkeypatch.setattr(traces, "GONE_SECONDS", 60.0)  # it comes before, however busy this machine is
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            assert not await Traces(str(tmp_path)).remain("machine-web.scope")
        assert all(map(os.path.lexists, left))


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


# Nothing comes back that was published, however this service ends


class Machined:
    """What machined has by one name, and what it says.

    Attributes:
        there: the leader's number; None for nothing.
        refuses: what it refuses to do.
    """

    def __init__(self, told: Told, there: int | None = None) -> None:
        self.there = there
        self.refuses = ""
        told.answer = self.answer

    def answer(self, method: str, _: dict[str, Any]) -> Answer:
        if method == self.refuses:
            return [{"error": "io.systemd.System", "parameters": {"errno": 5}}]
        if method == "List":
            return NOBODY if self.there is None else [entry(number=self.there)]
        if method == "Register":
            return OK if self.there is None else EXISTS
        self.there = None
        return OK


def again(told: Told, directory: Path) -> World:
    """Another instance, with the records of the one before."""
    return World(told, directory / "machines", adopt=True)


def in_place(number: int = 7) -> Machine:
    """A machine in somebody else's unit, which no mark tells from a machine of machined's."""
    return machine(number=number, allocated=False)


async def published(told: Told, directory: Path) -> None:
    """Publish a machine, and be killed."""
    world = again(told, directory)
    async with world.running():
        web = world.add(in_place())
        await world.settled(lambda: web.published)


async def taken_back(world: World, has: Machined) -> None:
    """Wait until machined has the machine no more, and check that it was adopted at no time."""
    await world.settled(lambda: has.there is None)
    world.beside.went("web")
    await world.settled(lambda: not world.notes.names)
    assert not world.taking.found


async def test_a_lost_record_does_not_make_a_machine_machineds(told: Told, tmp_path: Path) -> None:
    has = Machined(told)
    async with told.listening():
        await published(told, tmp_path)
        has.there = 7
        world = again(told, tmp_path)
        async with world.running():
            world.beside.returned()
            await taken_back(world, has)


async def test_nor_does_an_end_before_the_reply_of_machined(told: Told, tmp_path: Path) -> None:
    has = Machined(told)

    def hang(method: str, parameters: dict[str, Any]) -> Answer:
        has.answer(method, parameters)
        has.there = 7
        return None

    async with told.listening():
        world = again(told, tmp_path)
        told.answer = hang
        async with world.running():
            world.add(in_place())
            await world.settled(lambda: ("Register", "web") in told.calls)
        told.answer = has.answer
        world = again(told, tmp_path)
        async with world.running():
            world.beside.came("web")
            await taken_back(world, has)


async def test_nor_to_be_forgotten_while_machined_is_called(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "CALL_SECONDS", 0.05)
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.01)
    has, world = Machined(told), again(told, tmp_path)
    answer = has.answer

    def late(method: str, parameters: dict[str, Any]) -> Answer:
        if method == "Register":
            has.there = 7
            return None
        return answer(method, parameters)

    told.answer = late
    async with told.listening(), world.running():
        web = world.add(in_place())
        await world.settled(lambda: ("Register", "web") in told.calls)
        world.forget(web)
        world.beside.came("web")
        await taken_back(world, has)


async def test_nor_to_be_forgotten_before_anything_is_settled(told: Told, tmp_path: Path) -> None:
    has = Machined(told)
    async with told.listening():
        await published(told, tmp_path)
        has.there, has.refuses = 7, "List"
        told.calls.clear()
        world = again(told, tmp_path)
        async with world.running():
            web = world.add(in_place())
            await world.settled(lambda: ("List", None) in told.calls)
            world.forget(web)
        has.refuses = ""
        world = again(told, tmp_path)
        async with world.running():
            world.beside.returned()
            await taken_back(world, has)


async def test_nor_does_a_machined_that_does_not_give_it_back(told: Told, tmp_path: Path) -> None:
    has = Machined(told)
    async with told.listening():
        await published(told, tmp_path)
        has.there, has.refuses = 7, "Unregister"
        for _ in range(2):
            world = again(told, tmp_path)
            async with world.running():
                told.calls.clear()
                world.beside.returned()
                await world.settled(lambda: ("Unregister", "web") in told.calls)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not world.taking.found


async def test_nor_do_a_lost_record_and_a_damaged_note(told: Told, tmp_path: Path) -> None:
    has = Machined(told)
    async with told.listening():
        await published(told, tmp_path)
        has.there = 7
        note = tmp_path / "machines" / ".beside-web"
        for damage in (b"", note.read_bytes()[:-20], b"[" * 2000):
            note.write_bytes(damage)
            world = again(told, tmp_path)
            async with world.running():
                told.calls.clear()
                world.beside.returned()
                await world.settled(lambda: told.calls == [("List", None)])
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not world.taking.found
        world = again(told, tmp_path)
        async with world.running():
            has.there = None
            world.beside.returned()
            await world.settled(lambda: not note.exists())
            has.there = 8
            world.beside.came("web")  # another one
            await world.settled(lambda: world.taking.found)


async def test_nor_does_a_successor_that_takes_its_name(told: Told, tmp_path: Path) -> None:
    has = Machined(told)
    async with told.listening():
        await published(told, tmp_path)
        has.there = 7
        world = again(told, tmp_path)
        async with world.running():
            successor = world.add(in_place(8))
            await world.settled(lambda: successor.published)
            assert ("Unregister", "web") in told.calls
            has.there = 8
            world.forget(successor)
            await taken_back(world, has)
