"""What happens in one run: steps drawn from a seed, which can be left out one by one to find those that matter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

NAMES: Final = ("a", "b", "c")
"""Few, so that machines get in each other's way."""

STEPS: Final = 14
"""At most so many in one run: what goes wrong takes few, and a run is short."""

PAUSES: Final = (0.0, 0.0, 0.0005, 0.002, 0.005, 0.02, 0.1, 1.0, 6.0, 40.0)
"""Seconds between two steps: many at once, some after each of the timeouts that there are."""

WEIGHTS: Final = {
    "register": 10, "stop": 4, "die": 4, "forget": 1.5, "kill": 1, "hang_up": 2, "find": 0.5,
    "await_stop": 1, "power": 0.7, "measure": 0.7, "reset": 0.7,
    "add_helper": 2, "remove_helper": 1.5, "helper_dies": 2, "freeze": 1.5, "thaw": 1, "set": 1.5,
    "stop_unit": 1, "stranger": 1, "reload": 1, "reexec": 1.5, "lose_link": 1.5, "stall": 1.5,
    "subscribe": 1, "without": 1.5, "overflow": 0.7, "restart": 1, "killed": 2.5, "damage": 1, "fail_start": 0.7,
    "deaf_journal": 0.5, "oom": 2, "oomd": 1, "limit": 1,
}  # fmt: skip
"""What happens how often."""

FAULTS: Final = frozenset(
    {"reload", "reexec", "lose_link", "stall", "without", "overflow", "restart", "killed", "damage", "fail_start",
     "deaf_journal", "stranger"}
)  # fmt: skip
"""What nobody has asked for."""


def _of(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _of_another_user(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, 1000, 1000)
    else:
        path.unlink()


DAMAGE: Final[dict[str, Callable[[Path], None]]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 20),
    "empty": lambda path: os.truncate(path, 0),
    "newer": lambda path: _of(path, version=99),
    "of_another_boot": lambda path: _of(path, boot_id="0" * 32),
    "of_another_user": _of_another_user,
    "fifo": _fifo,
    "gone": lambda path: path.unlink(),
}
"""What may become of a record while moored does not run."""


@dataclass(frozen=True)
class Step:
    """Something that happens.

    Attributes:
        at: when, in seconds since the beginning.
        kind: what.
        name: of the machine that it is about.
        values: the rest.
    """

    at: float
    kind: str
    name: str = ""
    values: dict[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        values = " ".join(f"{key}={value}" for key, value in self.values.items())
        return f"{self.at:9.4f} {self.kind} {self.name} {values}".rstrip()


def draw(seed: int) -> list[Step]:
    """Draw the steps of a run."""
    random = Random(seed)
    names = NAMES[: random.choice((1, 1, 2, 3))]
    weights = dict(WEIGHTS)
    if random.random() < 0.4:  # runs without faults find what is wrong without any
        weights = {kind: weight for kind, weight in weights.items() if kind not in FAULTS}
    elif random.random() < 0.5:  # or with one kind of them only
        fault = random.choice(sorted(FAULTS))
        weights = {kind: weight for kind, weight in weights.items() if kind not in FAULTS or kind == fault}
        weights[fault] *= 3
    steps = [Step(0.0, "register", names[0], _registration(random))]
    at = 0.0
    for _ in range(random.randrange(2, STEPS)):
        at += random.choice(PAUSES) * random.random()
        kind = random.choices(list(weights), list(weights.values()))[0]
        steps.append(Step(at, kind, random.choice(names), _values(random, kind)))
    return steps


def _values(random: Random, kind: str) -> dict[str, Any]:
    match kind:
        case "register":
            return _registration(random)
        case "stop":
            wait, power_off = random.choice((200, 200, 1, 0)), random.random() < 0.2
            return {"wait": wait, "power_off": power_off, **_hang_up(random)}
        case "await_stop":
            return {
                "grace": random.choice((0.01, 2.0, 60.0)),
                "obeys": random.random() < 0.5,
                **_hang_up(random),
            }
        case "power":
            return {"power": random.choice(("off", "reboot"))}
        case "add_helper":
            return {"helper": _helper(random), **_hang_up(random)}
        case "remove_helper" | "helper_dies":
            return {"helper": random.choice("fg"), **_hang_up(random)}
        case "freeze":
            by = random.choice(("caller", "caller", "manager"))
            return {"by": by, "helpers": random.random() < 0.5, **_wait(random), **_hang_up(random)}
        case "thaw":
            return {"by": random.choice(("caller", "manager")), **_wait(random), **_hang_up(random)}
        case "set":
            bad, dry_run = random.random() < 0.2, random.random() < 0.2
            return {"value": random.randrange(1, 999), "bad": bad, "dry_run": dry_run, **_hang_up(random)}
        case "kill":
            subgroup = random.choice((None, "payload", "none"))
            whom = "all" if subgroup else random.choice(("leader", "all"))
            return {"whom": whom, "signal": random.choice((9, 15)), "subgroup": subgroup}
        case "die":
            return {"signal": random.choice((9, 15, 0)), "reaped": random.choice((0.0, 0.001, 3.0))}
        case "reload" | "reexec" | "stall":
            return {"seconds": random.choice((0.01, 0.2, 3.0, 12.0))}
        case "lose_link":
            return {"unread": random.random() < 0.5}
        case "oom":
            whose = random.choice(("own", "own", "below", "above", "host"))
            return {"whose": whose, **_times(random), "ends": random.random() < 0.4}
        case "oomd":
            return {**_times(random), "ends": random.random() < 0.4, "noted": random.random() < 0.7}
        case "limit":
            return {"resource": random.choice(("memory_high", "memory_max", "tasks_max")), **_times(random)}
        case "without":
            what = random.choice(("fd", "memory", "watch", "space"))
            return {"what": what, "seconds": random.choice((0.002, 0.05, 2.0, 15.0))}
        case "stranger":
            return {"seconds": random.choice((0.01, 1.0, 30.0)), "unit": random.choice(("scope", "helper"))}
        case "restart" | "killed":
            return {"down": random.choice((0.0, 0.05, 3.0, 20.0))}
        case "damage":
            return {"down": random.choice((0.0, 0.05, 3.0)), "what": random.choice(sorted(DAMAGE))}
        case _:
            return {}


def _times(random: Random) -> dict[str, Any]:
    return {"times": random.choice((1, 1, 2, 30)), "pause": random.choice((0.0, 0.001, 0.4, 3.0))}


def _wait(random: Random) -> dict[str, Any]:
    return {"wait": random.choice((25, 25, 1, 0.001))}


def _hang_up(random: Random) -> dict[str, Any]:
    if random.random() < 0.7:
        return {}
    return {"hang_up": random.choice((0.0, 0.0005, 0.003, 0.02, 1.0)) * random.random()}


def _helper(random: Random) -> dict[str, Any]:
    return {
        "name": random.choice("fg"),
        "does": random.choice(("serve", "serve", "serve", "fail", "end", "hang", "late", "deaf")),
        "type": random.choice(("exec", "exec", "notify", "oneshot")),
        "vital": random.random() < 0.5,
        "socket": random.random() < 0.3,
        "restart": random.choice((None, None, "on-failure", "always")),
    }


def _registration(random: Random) -> dict[str, Any]:
    values: dict[str, Any] = {"timeout": random.choice((30, 30, 30, 2, 0.05)), **_hang_up(random)}
    values["place"] = random.choice(("scope",) * 8 + ("whole", "part", "remains"))
    if values["place"] == "scope":
        if random.random() < 0.35:
            values["helpers"] = [_helper(random) for _ in range(random.choice((1, 1, 2)))]
        if random.random() < 0.1:
            values["exec_stop"] = random.choice((0.01, 5.0))
    if random.random() < 0.2:
        values["container"] = True
    if random.random() < 0.3:
        values["lease"] = True
    if random.random() < 0.35:
        values["dies"] = random.choice((0.0, 0.001, 0.003, 0.01, 0.5)) * random.random()
    if random.random() < 0.15:
        values["deaf"] = True
    if random.random() < 0.15:
        values["again"] = True
    if random.random() < 0.1:
        values["uid"] = 1000
    return values
