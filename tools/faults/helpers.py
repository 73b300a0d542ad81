"""Clients that add helpers to machines, and remove them."""

import itertools
import random
from typing import Any

import trio

from faults.calling import INSIST_SECONDS, Calls, Refused
from faults.world import OURS, Violation, Wanted, World, pick, with_reserved
from moorage.names import UnitNames

HELPERS_MAX = 4
"""Maximum for one machine: enough for several changes in a row."""

HANGS_UP = 0.3
"""Share of the clients that hang up before the reply."""
HANGS_UP_SECONDS = 0.08
"""When they hang up at the latest: on an idle host a helper takes half of that to start."""

FOREIGN_HELPER = "foreign"
FOREIGN_HELPERS = {
    name: UnitNames(name).helper(FOREIGN_HELPER) for name in ("vm-0", "vm-1", "we\\b-0", "a.b:c-0")
}
"""Machines for which the unit of a helper of that name is somebody else's."""

INVALID_PARAMETER = "org.varlink.service.InvalidParameter"


def helper(chance: random.Random, name: str) -> dict[str, Any]:
    """Return parameters of a helper."""
    return {
        "name": name,
        "execStart": ["/usr/bin/sleep", "infinity"],
        "sockets": [{"name": f"{name}.sock"}],
        "onFailure": chance.choice(("ignore", "stopMachine")),
    }


class HelperChanges:
    """Changes the helpers of machines."""

    def __init__(self, world: World, calls: Calls) -> None:
        self._world = world
        self._calls = calls
        self._numbers = itertools.count()

    async def _change(
        self, chance: random.Random, method: str, parameters: dict[str, Any]
    ) -> dict[str, Any] | Refused | None:
        """Return the reply; None for a client that hung up before it came."""
        hangs_up = chance.random() < HANGS_UP
        with trio.move_on_after(chance.uniform(0, HANGS_UP_SECONDS) if hangs_up else INSIST_SECONDS * 2):
            try:
                return await self._calls.insist(f"{OURS}{method}", parameters)
            except Refused as refused:
                return refused
        self._world.count("hung up before the answer")
        return None

    async def add(self, chance: random.Random, user: int) -> None:
        """Add a helper to a machine of a user."""

        async def change(wanted: Wanted) -> None:
            # If it was registered in place after it was forgotten, it may still have its earlier directory.
            if len(wanted.helpers) >= HELPERS_MAX or wanted.parameters.get("allocateUnit") is False:
                return
            name = f"a{next(self._numbers)}"
            helpers = [helper(chance, name)]
            taken = wanted.name in FOREIGN_HELPERS and chance.random() < 0.5
            if taken:
                helpers.append(helper(chance, FOREIGN_HELPER))
            else:
                wanted.helpers[name] = helpers[0]
                wanted.undecided.add(name)
            answer = await self._change(chance, "AddHelpers", {"name": wanted.name, "helpers": helpers})
            if answer is None or wanted.ended:
                return
            if isinstance(answer, Refused):
                if taken and answer.name == f"{OURS}UnitNameTaken":
                    return
                if answer.no_space and self._world.full:
                    wanted.helpers.pop(name, None)
                elif not (answer.name == INVALID_PARAMETER and answer.again and not taken):
                    raise Violation(f"AddHelpers {helpers} of {wanted.name}: {answer}")
            elif taken:
                raise Violation(f"AddHelpers {helpers} of {wanted.name}, of which one is foreign: {answer}")
            wanted.undecided.discard(name)

        await with_reserved(pick(self._world, chance, user), change)

    async def remove(self, chance: random.Random, user: int) -> None:
        """Remove a helper from a machine of a user."""

        async def change(wanted: Wanted) -> None:
            decided = sorted(wanted.helpers.keys() - wanted.undecided)
            if not decided:
                return
            name = chance.choice(decided)
            wanted.undecided.add(name)
            answer = await self._change(chance, "RemoveHelper", {"name": wanted.name, "helper": name})
            if answer is None or wanted.ended:
                return
            if isinstance(answer, Refused):
                if answer.no_space and self._world.full:
                    return  # it may have been stopped, and is then removed later
                if not (answer.name == f"{OURS}NoSuchHelper" and answer.again):
                    raise Violation(f"RemoveHelper {name} of {wanted.name}: {answer}")
            wanted.undecided.discard(name)
            del wanted.helpers[name]

        await with_reserved(pick(self._world, chance, user), change)
