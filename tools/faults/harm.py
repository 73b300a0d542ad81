"""Kinds of faults. Each is injected while the clients work, and is over when its function returns."""

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from faults.calling import sleeper
from faults.clients import Clients
from faults.world import OURS, RECORDS, SOCKET, Violation, Wanted, World, main_pid, run, show
from moorage.names import UnitNames
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

FILLER = RECORDS.parent / "filler"
ELSEWHERE = Path("/run/moorage-elsewhere")

RESTART_SECONDS = 30.0
"""Deadline for a killed moored to run again: the manager waits up to 5 s before it restarts it."""

LOOK_SECONDS = 0.01

CALLS_MEANWHILE_SECONDS = 1.0
"""How long the directory of records stays full."""

CHANGE_SECONDS = 0.04
"""Duration of a change of helpers on an idle host."""

SLOW_USEC = 3_000_000
"""Deadline for a helper that never becomes ready, µs: longer than it takes to begin a restart."""

HELD_SECONDS = (0.2, 4.0)
"""How long the manager does not reply; HELD_LONG_SECONDS in a run that is long enough."""
HELD_LONG_SECONDS = 32.0
LONG_SECONDS = 600.0


@dataclass
class Scene:
    """The place of a fault.

    Attributes:
        chance: decides about all that is left open.
        seconds: how long the whole run is.
    """

    world: World
    clients: Clients
    chance: random.Random
    seconds: float


Harm = Callable[[Scene], Awaitable[None]]


async def command(*argv: str) -> None:
    """Run a command while the clients continue."""
    await trio.to_thread.run_sync(run, *argv)


def murder() -> int:
    """Kill moored with SIGKILL if it runs, and return its PID."""
    pid = main_pid()
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pid


async def back(before: int) -> None:
    """Wait for another moored than that one, without the manager's pause before a restart."""
    with trio.move_on_after(RESTART_SECONDS):
        while True:
            # Has no effect on a start that was already killed.
            await trio.to_thread.run_sync(partial(run, "systemctl", "start", "moored.service", check=False))
            if await trio.to_thread.run_sync(main_pid) not in {0, before}:
                return
            await trio.sleep(0.05)
    raise Violation(
        f"moored is not there again: {show('moored.service', 'ActiveState', 'SubState', 'Result')}"
    )


async def begun(before: int) -> None:
    """Wait until the manager has begun to start another moored than that one."""
    for _ in range(round(RESTART_SECONDS / LOOK_SECONDS)):
        if await trio.to_thread.run_sync(main_pid) not in {0, before}:
            return
        await trio.sleep(LOOK_SECONDS)


async def nothing(_: Scene) -> None:
    """Inject nothing."""


async def kill(scene: Scene) -> None:
    """Kill moored at some moment."""
    await trio.sleep(scene.chance.uniform(0, 0.3))
    await back(murder())


async def kill_in_register(scene: Scene) -> None:
    """Kill moored within milliseconds of a Register being sent."""
    pid = await trio.to_thread.run_sync(main_pid)
    with trio.move_on_after(CALLS_MEANWHILE_SECONDS):
        await scene.clients.calls.registering.wait()
    await trio.sleep(scene.chance.uniform(0, 0.012))
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await back(pid)


async def kill_in_change(scene: Scene) -> None:
    """Kill moored within milliseconds of a change of helpers being sent."""
    pid = await trio.to_thread.run_sync(main_pid)
    with trio.move_on_after(CALLS_MEANWHILE_SECONDS):
        await scene.clients.calls.changing.wait()
    await trio.sleep(scene.chance.uniform(0, CHANGE_SECONDS))
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await back(pid)


async def kill_while_it_starts(scene: Scene) -> None:
    """Kill moored, and once more while it recovers its machines."""
    for _ in range(3):
        before = murder()
        await begun(before)
        await trio.sleep(scene.chance.uniform(0, 0.5))
    await back(murder())


async def restart(_: Scene) -> None:
    """Restart moored regularly."""
    await command("systemctl", "restart", "moored.service")


async def terminate(_: Scene) -> None:
    """Send SIGTERM, behind the manager's back."""
    pid = await trio.to_thread.run_sync(main_pid)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    await back(pid)


async def restart_while_busy(_: Scene) -> None:
    """Restart moored during a long Register, whose connection ends later than idle ones."""
    leader = sleeper()
    slow = {
        "name": "slow",
        "execStart": ["/usr/bin/sleep", "infinity"],
        "type": "notify",
        "properties": {"TimeoutStartUSec": SLOW_USEC},
    }
    call = {"name": "slow", "class": "vm", "leader": {"pid": leader.pid}, "helpers": [slow]}

    async def register() -> None:
        with suppress(OSError, VarlinkError):
            async with await Client.connect(SOCKET) as client:
                await client.call(f"{OURS}Register", call)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(register)
            for _turn in range(round(CALLS_MEANWHILE_SECONDS / LOOK_SECONDS)):
                if (RECORDS / ".start-slow").exists():
                    break
                await trio.sleep(LOOK_SECONDS)
            await command("systemctl", "restart", "moored.service")
    finally:
        leader.kill()
        await trio.to_thread.run_sync(leader.wait)


async def reload(_: Scene) -> None:
    """Reload the manager."""
    await command("systemctl", "daemon-reload")


async def reexecute(_: Scene) -> None:
    """Re-execute the manager, which closes its private socket."""
    await command("systemctl", "daemon-reexec")


async def reexecute_and_kill(scene: Scene) -> None:
    """Kill moored and re-execute the manager at once."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command, "systemctl", "daemon-reexec")
        nursery.start_soon(kill, scene)


async def broker(_: Scene) -> None:
    """Restart the message bus."""
    await command("systemctl", "restart", "dbus.service")


async def hold_manager(scene: Scene) -> None:
    """Stop PID 1 for a while."""
    seconds = scene.chance.uniform(*HELD_SECONDS)
    if scene.seconds >= LONG_SECONDS and scene.chance.random() < 0.2:
        seconds = HELD_LONG_SECONDS
    await hold(seconds)


async def hold(seconds: float) -> None:
    """Ask the host to stop PID 1, which no process of its own namespace can do."""
    print(f"\0{seconds}", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)


async def hold_manager_and_kill(scene: Scene) -> None:
    """Stop PID 1, and kill moored meanwhile."""
    pid = await trio.to_thread.run_sync(main_pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, scene.chance.uniform(0.5, 2))
        await trio.sleep(scene.chance.uniform(0.1, 0.5))
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    await back(pid)


async def fill(scene: Scene) -> None:
    """Leave no space for records. Verdicts that cannot be written are lost with the next restart."""
    scene.world.full = True
    try:
        with FILLER.open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        await trio.sleep(CALLS_MEANWHILE_SECONDS)
        if scene.chance.random() < 0.5:
            await back(murder())
            for wanted in scene.world.machines.values():
                if wanted.ended:
                    wanted.verdict = False
            await trio.sleep(CALLS_MEANWHILE_SECONDS / 2)
    finally:
        FILLER.unlink()


def _of(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def _link(path: Path) -> None:
    shutil.copy(path, ELSEWHERE)
    path.unlink()
    path.symlink_to(ELSEWHERE)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 20),
    "empty": lambda path: os.truncate(path, 0),
    "of a newer version": lambda path: _of(path, version=99),
    "of another boot": lambda path: _of(path, boot_id="0" * 32),
    "of another user": lambda path: os.chown(path, 1000, 1000),
    "a link": _link,
    "a directory": _directory,
    "a FIFO": _fifo,
    "gone": lambda path: path.unlink(),
}


async def damage(scene: Scene) -> None:
    """Damage or remove a record before moored starts again."""
    plain = [
        wanted
        for wanted in scene.world.living()
        if not wanted.reserved and not wanted.helpers and "lease" not in wanted.parameters
    ]
    before = murder()
    for wanted in scene.chance.sample(plain, min(len(plain), 2)):
        if wanted.ended or wanted.reserved:
            continue
        del scene.world.machines[wanted.name]
        scene.world.unrecorded[wanted.name] = wanted
        DAMAGE[scene.chance.choice(sorted(DAMAGE))](RECORDS / wanted.name)
    await back(before)


def _some(scene: Scene, share: float) -> list[Wanted]:
    living = [wanted for wanted in scene.world.living() if not wanted.reserved]
    return scene.chance.sample(living, round(len(living) * share))


@asynccontextmanager
async def ending(machines: Sequence[Wanted], why: str) -> AsyncGenerator[None]:
    """Expect machines to end, and wait for that; until then no client uses their names."""
    for wanted in machines:
        wanted.reserved = True
        wanted.end(why)
    yield
    for wanted in machines:
        await trio.to_thread.run_sync(wanted.process.wait)
        wanted.reserved = False


async def kill_leaders(scene: Scene) -> None:
    """Kill half of all leaders at once."""
    chosen = _some(scene, 0.5)
    async with ending(chosen, "its leader was killed"):
        for wanted in chosen:
            wanted.process.kill()


async def kill_leaders_and_moored(scene: Scene) -> None:
    """Kill leaders while moored is down."""
    before = murder()
    chosen = _some(scene, 0.3)
    async with ending(chosen, "its leader was killed"):
        for wanted in chosen:
            wanted.process.kill()
    await back(before)


async def stop_scopes(scene: Scene) -> None:
    """Stop scopes through the manager."""
    chosen = _some(scene, 0.3)
    async with ending(chosen, "its scope was stopped"):
        if chosen:
            await command("systemctl", "stop", *(each.machine["unit"] for each in chosen if each.machine))


GONE = "not loaded"
"""What systemctl says of a unit that has gone."""


async def kill_helpers(scene: Scene) -> None:
    """Kill helpers, some of which take their machine with them."""
    scene.world.stopping_helpers = True
    having = [wanted for wanted in _some(scene, 1) if _decided(wanted)]
    fatal = [wanted for wanted in having if _is_fatal(wanted)]
    for wanted in having:
        wanted.limping = wanted.reserved = True
    try:
        async with ending(fatal, "its helper was killed"):
            units = [UnitNames(wanted.name).helper(name) for wanted in having for name in _decided(wanted)]
            for unit in units:
                try:
                    await command("systemctl", "kill", "--signal=SIGKILL", unit)
                except Violation as violation:
                    if GONE not in str(violation):  # with its machine, which another of them has taken along
                        raise
    finally:
        for wanted in having:
            wanted.reserved = False


def _decided(wanted: Wanted) -> list[str]:
    return sorted(wanted.helpers.keys() - wanted.undecided)


def _is_fatal(wanted: Wanted) -> bool:
    return any(wanted.helpers[name]["onFailure"] == "stopMachine" for name in _decided(wanted))


async def drop_leases(scene: Scene) -> None:
    """End the connections of leases."""
    chosen = [wanted for wanted in _some(scene, 1) if wanted in scene.clients.calls.leases]
    async with ending(chosen, "the connection of its lease ended"):
        for wanted in chosen:
            scene.clients.calls.drop(wanted)


KINDS: dict[str, tuple[Harm, int]] = {
    "nothing": (nothing, 1),
    "moored killed": (kill, 4),
    "moored killed in a Register": (kill_in_register, 6),
    "moored killed in a change of helpers": (kill_in_change, 6),
    "moored killed while it starts": (kill_while_it_starts, 2),
    "moored restarted": (restart, 3),
    "moored restarted while a call lasts": (restart_while_busy, 2),
    "moored terminated": (terminate, 2),
    "daemon-reload": (reload, 2),
    "daemon-reexec": (reexecute, 3),
    "daemon-reexec and moored killed": (reexecute_and_kill, 2),
    "broker restarted": (broker, 2),
    "PID 1 held": (hold_manager, 3),
    "PID 1 held and moored killed": (hold_manager_and_kill, 2),
    "/run full": (fill, 2),
    "records damaged": (damage, 3),
    "leaders killed": (kill_leaders, 2),
    "leaders killed while moored is down": (kill_leaders_and_moored, 2),
    "scopes stopped by others": (stop_scopes, 1),
    "helpers killed": (kill_helpers, 2),
    "connections of leases dropped": (drop_leases, 1),
}
"""Kinds of faults, with their relative frequency."""
