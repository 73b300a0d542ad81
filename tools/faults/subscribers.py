"""Subscribers that go on after their last event whenever their connection ends, and what they were told.

All of them must be told the same story, and that has to be what the clients did: each machine that was registered is
new once, and has ended once, in this order, and nothing of it comes after its end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import trio

from faults.calling import AGAIN_SECONDS, Calls
from faults.world import ALICE, OURS, ROOT, Violation, Wanted, World
from moorage.wire.client import Client
from moorage.wire.errors import RemoteError, VarlinkError

SUBSCRIBERS = (*(ROOT,) * 8, *(ALICE,) * 2)
"""One each, by user."""

START_SECONDS = 60.0
"""Deadline for the first snapshots."""

HANGS_UP = 0.02
"""How likely one hangs up after an event, to go on by its cursor."""

Key = tuple[str, str]
"""A machine: its name, and the invocation ID of its unit. In the same unit there may be another one after it."""

ENDS = frozenset({"exited", "forgotten"})


@dataclass
class Subscriber:
    """One of them.

    Attributes:
        user: who it is.
        cursor: of the last event.
        told: cursors and events since the last check, of which machine each.
        machines: the last event of each machine that is there, or has ended since the last check.
        gap: since the last check it had to begin anew, which `may_expire` allows.
        may_expire: there was no room for the log of events since it began.
        wrong: what it should not have been told.
    """

    user: int
    cursor: str | None = None
    told: list[tuple[str, str, Key]] = field(default_factory=list[tuple[str, str, Key]])
    machines: dict[Key, str] = field(default_factory=dict[Key, str])
    gap: bool = False
    may_expire: bool = False
    wrong: list[str] = field(default_factory=list[str])

    def hear(self, event: dict[str, Any]) -> None:
        """Take note of an event."""
        kind, key = event["event"], (event.get("name", ""), event.get("invocationId", ""))
        if kind == "machine":
            self.machines[key] = kind
            return  # until the snapshot is done, it has to be taken again
        if self.cursor is not None and event["cursor"] <= self.cursor:
            self.wrong.append(f"{kind} of {key} is not after {self.cursor}: {event['cursor']}")
        self.cursor = event["cursor"]
        if kind == "snapshotDone":
            return
        self.told.append((event["cursor"], kind, key))
        if kind in {"lost", "registrationFailed"}:
            if kind == "lost":
                self.wrong.append(f"{event['data']} were lost")
            return
        before = self.machines.get(key)
        if kind == "machineNew":
            # It may be registered again where it is, once it was forgotten.
            if before not in {None, "forgotten"}:
                self.wrong.append(f"{key} is new, and was {before}")
        elif before is None or before in ENDS:
            self.wrong.append(f"{kind} of {key}, which was {before}")
        self.machines[key] = kind

    def begin_anew(self, *, full: bool) -> None:
        """Go on with a snapshot, as the cursor has expired; full: there is no room for the log of events."""
        if not (self.may_expire or full):
            self.wrong.append(f"the cursor {self.cursor} has expired")
        self.cursor, self.machines = None, {}
        self.told.clear()
        self.gap, self.may_expire = True, False


class Subscribers:
    """All of them."""

    def __init__(self, world: World, calls: Calls) -> None:
        self._world = world
        self._calls = calls
        self._all = [Subscriber(user) for user in SUBSCRIBERS]

    def __len__(self) -> int:
        return len(self._all)

    async def start(self, nursery: trio.Nursery, chance: random.Random) -> None:
        """Begin; return when each has its first snapshot, so that all are told the same."""
        for each in self._all:
            nursery.start_soon(self._follow, each, random.Random(chance.randrange(2**31)))
        with trio.fail_after(START_SECONDS):
            while any(each.cursor is None for each in self._all):  # noqa: ASYNC110 - all of them
                await trio.sleep(AGAIN_SECONDS)

    async def _follow(self, subscriber: Subscriber, chance: random.Random) -> None:
        while True:
            try:
                async with await self._calls.connect(subscriber.user) as client:
                    await self._read(client, subscriber, chance)
            except RemoteError as error:
                if error.error != f"{OURS}CursorExpired":
                    subscriber.wrong.append(str(error))
                else:
                    subscriber.begin_anew(full=self._world.full)
            except (OSError, VarlinkError):
                self._world.count("a subscriber connected again")
            await trio.sleep(AGAIN_SECONDS)

    async def _read(self, client: Client, subscriber: Subscriber, chance: random.Random) -> None:
        cursor = {} if subscriber.cursor is None else {"cursor": subscriber.cursor}
        if subscriber.cursor is None:
            subscriber.machines = {}
        async with client.call_more(f"{OURS}Subscribe", cursor) as replies:
            async for reply in replies:
                subscriber.hear(reply["event"])
                self._world.count("an event")
                if subscriber.cursor is not None and chance.random() < HANGS_UP:
                    return

    def problems(self) -> Iterator[str]:
        """Return in which way what was told since the last check is not what was done."""
        for number, each in enumerate(self._all):
            for wrong in each.wrong:
                yield f"subscriber {number} was told wrong: {wrong}"
            for problem in self._of_machines(each):
                yield f"subscriber {number}: {problem}"
        whole = [each for each in self._all if not each.gap]
        for each in whole[1:]:
            if each.told != whole[0].told:
                first = next(
                    (pair for pair in zip(whole[0].told, each.told, strict=False) if pair[0] != pair[1]),
                    None,
                )
                yield f"subscribers were told {len(whole[0].told)} and {len(each.told)} events, first {first}"

    def _of_machines(self, subscriber: Subscriber) -> Iterator[str]:
        expected = {key_of(wanted): wanted for wanted in self._world.registered}
        for key, last in subscriber.machines.items():
            wanted = expected.get(key)
            lost = wanted is not None and self._is_unrecorded(wanted)
            if lost and last == "machine":
                continue  # neither record nor log has a word of it: there was no room for that either
            if last not in ENDS and (wanted is None or wanted.ended or lost):
                yield f"{key} has not ended: {last}"
        for key, wanted in expected.items():
            last = subscriber.machines.get(key)
            if wanted.ended or self._is_unrecorded(wanted):
                if last is None and not subscriber.gap:
                    yield f"{key} was never new"
                if wanted.ended and wanted.verdict and last == "forgotten":
                    yield f"{key} was forgotten, and has a verdict"
            elif last is None or last in ENDS:
                yield f"{key} is there, and was told to be {last}"

    def _is_unrecorded(self, wanted: Wanted) -> bool:
        return self._world.unrecorded.get(wanted.name) is wanted

    def forget(self) -> None:
        """Begin with the next check."""
        self._world.registered = [each for each in self._world.registered if not each.ended]
        for each in self._all:
            each.may_expire |= self._world.full
            each.told.clear()
            each.gap = False
            each.machines = {key: last for key, last in each.machines.items() if last != "exited"}


def key_of(wanted: Wanted) -> Key:
    """Return what events call a machine that was registered."""
    if wanted.machine is None:
        raise Violation(f"{wanted.name} was never registered")
    return wanted.name, wanted.machine.get("invocationId", "")
