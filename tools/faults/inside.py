"""The part that runs in the sandbox: python3 -m faults.inside OPTIONS (JSON).

Prints what it does, and at last a table; the exit status is 1 if something was not as it must be.
"""

import json
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import trio

from faults import harm
from faults.alice import Alice
from faults.checks import Checks, Foreign
from faults.clients import Clients
from faults.subscribers import Subscribers
from faults.world import ALICE, ROOT, Violation, World, run

CLIENTS = (ROOT, ROOT, ROOT, ROOT, ALICE, ALICE)
"""One client each, by user."""
BUSY_SECONDS = (0.2, 0.8)
"""How long the clients work before a fault, and after it."""

DROP_IN = Path("/run/systemd/system/moored.service.d/chaos.conf")
STEP_SECONDS = 400.0
"""Deadline of a step: half a minute without a manager, and every deadline in it twice."""

LOG_LINES = 400


async def step(scene: harm.Scene, checks: Checks, kind: str) -> None:
    """Let the clients work, inject one fault, let them finish, and check.

    Raises:
        Violation: something is not as it must be.
    """
    enough = trio.Event()
    with trio.move_on_after(STEP_SECONDS) as scope:
        async with trio.open_nursery() as nursery:
            for user in CLIENTS:
                nursery.start_soon(scene.clients.work, enough, scene.chance.randrange(2**31), user)
            await trio.sleep(scene.chance.uniform(*BUSY_SECONDS))
            await harm.KINDS[kind][0](scene)
            await trio.sleep(scene.chance.uniform(*BUSY_SECONDS))
            enough.set()
        await checks.settle()
        scene.world.full = scene.world.stopping_helpers = False
    if scope.cancelled_caught:
        raise Violation(f"the step was not over within {STEP_SECONDS:.0f} s")


def violation(error: BaseException) -> Violation | None:
    """Return the first violation among the exceptions of a nursery; None if there is none."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return next(filter(None, map(violation, group.exceptions)), None)
    return error if isinstance(error, Violation) else None


def table(injected: Counter[str], survived: Counter[str], world: World) -> str:
    """Return a summary."""
    lines = [f"{'fault':<40} {'injected':>8} {'survived':>8}"]
    lines += [f"{kind:<40} {injected[kind]:>8} {survived[kind]:>8}" for kind in harm.KINDS if injected[kind]]
    lines.append(f"{'in all':<40} {injected.total():>8} {survived.total():>8}")
    lines.append("answers: " + ", ".join(f"{count} {what}" for what, count in sorted(world.calls.items())))
    return "\n".join(lines)


async def chaos(options: dict[str, Any]) -> int:
    """Run all steps, and return the exit status."""
    async with trio.open_nursery() as nursery:
        status = await _chaos(options, nursery)
        nursery.cancel_scope.cancel()
        return status
    raise AssertionError("nobody else cancels that")


async def _chaos(options: dict[str, Any], nursery: trio.Nursery) -> int:
    chance = random.Random(options["seed"])
    world = World()
    clients = Clients(world, Alice(), nursery)
    scene = harm.Scene(world, clients, chance, options["seconds"])
    kinds = options["only"] or list(harm.KINDS)
    weights = [harm.KINDS[kind][1] for kind in kinds]
    each_once = chance.sample(kinds, len(kinds))
    subscribers = Subscribers(world, clients.calls)
    checks = Checks(world, clients, Foreign(), subscribers)
    injected: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    end = time.monotonic() + options["seconds"]
    status = 0
    await checks.settle()  # before there are any machines
    await subscribers.start(nursery, chance)
    while time.monotonic() < end:
        kind = each_once.pop() if each_once else chance.choices(kinds, weights)[0]
        injected[kind] += 1
        began = time.monotonic()
        print(f"{injected.total():4} {kind} …", flush=True)
        try:
            await step(scene, checks, kind)
            if time.monotonic() >= end:
                await checks.settle_leases()
        except BaseException as error:
            found = violation(error)
            if found is None:
                raise
            print(
                f"VIOLATION with seed {options['seed']} at step {injected.total()} ({kind}): {found}",
                flush=True,
            )
            status = 1
            break
        survived[kind] += 1
        print(
            f"     {len(world.machines)} machines, all is well after {time.monotonic() - began:.1f} s",
            flush=True,
        )
    print(table(injected, survived, world), flush=True)
    if status:
        argv = ("journalctl", "--no-pager", f"--lines={LOG_LINES}", "--output=short-monotonic")
        print(run(*argv, check=False), flush=True)
    return status


def main() -> int:
    """Start moored, and begin."""
    options = json.loads(sys.argv[1])
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    # The requested link; and the manager restarts moored at once, however often it was killed.
    text = "[Service]\nExecStart=\nExecStart=/usr/bin/moored --link={link}\nRestartSteps=0\n"
    DROP_IN.write_text(text.format(link=options["link"]))
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "moored.socket")
    with suppress(KeyboardInterrupt):
        return trio.run(chaos, options)
    return 130


if __name__ == "__main__":
    sys.exit(main())
