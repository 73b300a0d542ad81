"""Who are told what happens: each reads as it likes, is cut off now and then, and goes on with its cursor.

What each was told has to be the whole story: in order, nothing twice, over all restarts. Only where the host had no
space may a reader be sent back to take a snapshot.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from moorage.errors import CursorExpired

if TYPE_CHECKING:
    from simulation.world import Instance, World

ROOM: Final = 16 * 1024
"""Bytes that a reader takes at once, at most."""

LAST: Final = frozenset({"exited", "forgotten"})
ONCE: Final = frozenset({"machineNew", "leaderExited", "lingering"}) | LAST

Key: TypeAlias = tuple[str, str]


class Reader:
    """Somebody who is told everything, from some time on.

    Attributes:
        told: events, oldest first, since the last snapshot.
        there: the machines of that snapshot.
        whole: it has not been sent back to take another snapshot.
    """

    def __init__(self, number: int, random: Random, pauses: Sequence[float]) -> None:
        self.told: list[dict[str, Any]] = []
        self.there: set[Key] = set()
        self.whole = True
        self._number = number
        self._random = random
        self._pauses = pauses
        self._cursor: str | None = None

    async def run(self, world: World) -> None:
        """Read for ever, from whichever instance is there."""
        while True:
            await world.up.wait()
            instance = world.living()
            if instance is None:
                await trio.sleep(0.01)
                continue
            try:
                await self._read(world, instance, self._random.choice((0.001, 1.0, 5000.0)))
            except CursorExpired:
                if not world.may_expire:
                    world.wrong("expired", f"reader {self._number} lost its place")
                self.whole, self._cursor = False, None
            await trio.sleep(self._random.choice((0.0, 0.0, 0.3, 8.0)))

    async def _read(self, world: World, instance: Instance, seconds: float) -> None:
        """Read until the instance ends, or the connection does."""
        feed = instance.core.subscribe(self._cursor)
        if self._cursor is None:
            self.there.clear()
        world.note(f"reader {self._number} follows from {self._cursor}")
        news = trio.Event()

        def woken() -> None:
            news.set()

        feed.follow(woken)
        try:
            with trio.move_on_after(seconds):
                while not instance.over.is_set() and not instance.files.killed:
                    news = trio.Event()
                    messages = feed.take(self._random.choice((1, 500, ROOM)))
                    for message in messages:
                        self._note(json.loads(message[:-1])["parameters"]["event"])
                    if messages:
                        await trio.sleep(self._random.choice(self._pauses))
                    else:
                        await _either(news.wait, instance.over.wait)
        finally:
            feed.close()

    def _note(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "machine":
                if not event["cursor"].endswith("-snapshot"):
                    raise AssertionError("a part of a snapshot has a cursor to go on from")
                if self._cursor is None:
                    self.there.add(_key(event))
            case "snapshotDone":
                self._cursor = event["cursor"]
                self.told.clear()
            case "lost":
                raise CursorExpired
            case _:
                self._cursor = event["cursor"]
                self.told.append(event)


async def _either(*waits: Callable[[], Any]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Any]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for each in waits:
            nursery.start_soon(wait, each)


def _key(event: dict[str, Any]) -> Key:
    return event["name"], event.get("invocationId", "")


def look_at_stories(world: World) -> None:
    """Check what each reader was told, when all machines have ended."""
    for reader in world.readers:
        _look_at(world, reader)
    whole = [reader for reader in world.readers if reader.whole]
    for reader in whole[1:]:
        first, other = ([event["cursor"] for event in each.told] for each in (whole[0], reader))
        if first[len(first) - len(other) :] != other:
            world.wrong("story", "two readers were told different stories")


def _look_at(world: World, reader: Reader) -> None:
    cursors = [event["cursor"] for event in reader.told]
    if cursors != sorted(set(cursors)):
        world.wrong("story", "a reader was told something out of order, or twice")
    machines: defaultdict[Key, list[str]] = defaultdict(list)
    for event in reader.told:
        if event["event"] != "registrationFailed":
            machines[_key(event)].append(event["event"])
    look_at_kills(world, reader)
    for key in reader.there - machines.keys():
        world.wrong("story", f"{key[0]} was there, and was told nothing more")
    for key, kinds in machines.items():
        lives = "\n".join(kinds).split("machineNew")
        if lives[0].strip() and key not in reader.there:
            world.wrong("story", f"{key[0]} was never introduced: {kinds}")
        for life in [lives[0].split(), *(["machineNew", *life.split()] for life in lives[1:])]:
            _look_at_life(world, key, life)
    if reader.whole and reader is world.readers[0]:
        _look_for_all(world, reader, machines)


def look_at_kills(world: World, reader: Reader) -> None:
    """Check that each kill for lack of memory was told once, and for whose limit it was."""
    told: Counter[tuple[Key, str]] = Counter()
    lives: Counter[Key] = Counter()
    for event in reader.told:
        key, data = _key(event), event.get("data", {})
        match event["event"]:
            case "machineNew":
                lives[key] += 1
            case "oomKill":
                told[key, data["by"]] += data.get("count", 0)
                told[key, "events"] += 1
                group = data.get("controlGroup")
                if group is not None and group not in world.short_of[key[1]]:
                    world.wrong("limit", f"{key[0]} ran out of memory, but not for the limit of {group}")
            case "exited" if lives[key] == 1 and key[1]:
                _compare_kills(world, key, data, told)
            case _:
                pass


def _compare_kills(world: World, key: Key, verdict: dict[str, Any], told: Counter[tuple[Key, str]]) -> None:
    """Compare what was told of a machine whose scope is its own with what happened, and with its verdict."""
    if verdict.get("oomKilled") and not told[key, "events"]:
        world.wrong("kills", f"{key[0]} was killed for lack of memory, and that was not told before its end")
    for by, counter in (("kernel", "oomKills"), ("oomd", "managedOomKills")):
        count, known = told[key, by], verdict["accounting"].get(counter)
        if count > world.killed[key[1], by]:
            world.wrong("kills", f"of {key[0]} {count} processes were killed by {by}: that is too many")
        if known is not None and known != count:
            world.wrong("kills", f"of {key[0]} {known} processes were killed by {by}, and {count} told")


def _look_at_life(world: World, key: Key, kinds: list[str]) -> None:
    if not kinds:
        return
    counts = Counter(kinds)
    if doubled := [kind for kind in ONCE if counts[kind] > 1]:
        world.wrong("story", f"{key[0]} was told {', '.join(doubled)} twice: {kinds}")
    flips = [kind for kind in kinds if kind in {"frozen", "thawed"}]
    if any(first == second for first, second in itertools.pairwise(flips)):
        world.wrong("story", f"{key[0]} was told twice that it is {flips}")
    if not counts.keys() & LAST:
        world.wrong("story", f"{key[0]} has no end: {kinds}")
    elif kinds[-1] == "forgotten" and key in _ended(world):
        world.wrong("story", f"{key[0]} has ended, and was told to be forgotten: {kinds}")
    elif kinds[-1] not in LAST:
        world.wrong("story", f"{key[0]} was told more after its end: {kinds}")


def _ended(world: World) -> set[Key]:
    """Return the machines that have ended, and that nobody has forgotten."""
    return {key[:2] for key in world.ended} - {key[:2] for key in world.forgotten}


def _look_for_all(world: World, reader: Reader, machines: dict[Key, list[str]]) -> None:
    """Check that a reader who was there from the beginning knows every machine that was answered."""
    answered = Counter((name, invocation) for name, invocation, _ in world.answered_keys())
    for key, count in answered.items():
        told = machines.get(key, []).count("machineNew") + (key in reader.there)
        if told < count:
            world.wrong("story", f"{key[0]} was answered, and not told")
