"""Clients that register machines, stop and forget them, and change helpers; and leaders that die.

Some are root's, some alice's. Calls may be cut off at any point: a client hangs up, or moored ends.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from faults.alice import Alice
from faults.calling import Calls, Refused, identity, sleeper
from faults.helpers import FOREIGN_HELPER, FOREIGN_HELPERS, HelperChanges, helper
from faults.world import ALICE, OURS, ROOT, Process, Violation, Wanted, World, pick, with_reserved
from moorage.wire.errors import VarlinkError

MACHINES_MAX = 24
"""Number of names: small enough that names are used again and again."""

NOT_HERS = frozenset(
    {
        "org.varlink.service.PermissionDenied",
        "io.systemd.InteractiveAuthenticationRequired",
        f"{OURS}NoSuchMachine",
    }
)
"""Errors for alice if the machine is root's, and may have ended meanwhile."""


class Clients:
    """All clients.

    Attributes:
        calls: makes their calls, and holds their leases.
    """

    def __init__(self, world: World, alice: Alice, nursery: trio.Nursery) -> None:
        self._world = world
        self._alice = alice
        self.calls = Calls(world, alice, nursery)
        self._helpers = HelperChanges(world, self.calls)
        self._names = [f"{kind}-{number}" for kind in ("vm", "we\\b", "a.b:c") for number in range(8)]

    async def work(self, enough: trio.Event, seed: int, user: int) -> None:
        """Act as one client of a user until told to stop."""
        chance = random.Random(seed)
        doings: dict[Callable[[random.Random, int], Awaitable[None]], int] = {
            self._new: 10, self._again: 3, self._stop: 4, self._kill: 2, self._list: 2, self._describe: 2,
            self._abandon: 1, self._forget: 1,
        }  # fmt: skip
        if user == ROOT:
            doings |= {self._helpers.add: 5, self._helpers.remove: 3}
        else:
            doings |= {self._trespass: 3}
        while not enough.is_set():
            do = chance.choices(list(doings), list(doings.values()))[0]
            await do(chance, user)
            await trio.sleep(chance.uniform(0, 0.02))

    def _name(self, chance: random.Random) -> str | None:
        world = self._world
        free = [
            name
            for name in self._names
            if name not in world.unrecorded
            and (
                name not in world.machines
                or (world.machines[name].ended and not world.machines[name].reserved)
            )
        ]
        return chance.choice(free) if free else None

    def _parameters(self, chance: random.Random, name: str, process: Process, user: int) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "name": name,
            "class": chance.choice(("vm", "container")),
            "leader": {"pid": process.pid},
            "service": "chaos",
            "vSockCid": chance.randrange(3, 2**31),
        }
        if chance.random() < 0.3:
            slices = {ROOT: ("chaos.slice", "chaos-deep-er.slice"), ALICE: (f"user-{ALICE}.slice",)}
            parameters["slice"] = chance.choice(slices[user])
        if chance.random() < 0.3:
            parameters["properties"] = {"TimeoutStopUSec": 3_000_000, "CPUWeight": 50}
        if user == ROOT and chance.random() < 0.25:
            parameters["helpers"] = [helper(chance, f"h{number}") for number in range(chance.randint(1, 2))]
            if name in FOREIGN_HELPERS and chance.random() < 0.3:
                parameters["helpers"].append(helper(chance, FOREIGN_HELPER))
        if chance.random() < 0.15:
            parameters["lease"] = True
        return parameters

    def _want(self, chance: random.Random, user: int) -> Wanted | None:
        if (name := self._name(chance)) is None:
            return None
        process = sleeper() if user == ROOT else self._alice.sleeper()
        wanted = Wanted(name, process, self._parameters(chance, name, process, user), owner=user)
        self._world.machines[name] = wanted
        return wanted

    async def _new(self, chance: random.Random, user: int) -> None:
        await with_reserved(self._want(chance, user), self.register)

    async def register(self, wanted: Wanted) -> None:
        """Register a machine."""
        lease = wanted if wanted.parameters.get("lease") else None
        try:
            reply = await self.calls.insist(
                f"{OURS}Register", wanted.parameters, user=wanted.owner, lease=lease
            )
        except Refused as refused:
            if not self._in_order(refused, wanted):
                raise Violation(f"Register of {wanted.parameters}: {refused}") from None
            wanted.end(f"refused: {refused.name}", verdict=False)
        else:
            wanted.machine = reply["machine"]
            self._world.registered.append(wanted)

    def _in_order(self, refused: Refused, wanted: Wanted) -> bool:
        if wanted.process.poll() is not None:
            return True
        if refused.no_space:
            return self._world.full
        if refused.name == f"{OURS}UnitNameTaken":
            return FOREIGN_HELPER in wanted.helpers
        return refused.name == f"{OURS}HelperFailed" and self._world.stopping_helpers

    async def _again(self, chance: random.Random, user: int) -> None:
        async def again(wanted: Wanted) -> None:
            if wanted in self.calls.leases:
                return
            before = wanted.machine
            assert before is not None
            try:
                reply = await self.calls.insist(f"{OURS}Register", wanted.parameters, user=user)
            except Refused as refused:
                if not wanted.ended:
                    raise Violation(f"Register of {wanted.name}, which is there: {refused}") from None
            else:
                if identity(reply["machine"]) != identity(before):
                    raise Violation(f"Register of {wanted.name} again: {reply['machine']}, was {before}")

        await with_reserved(pick(self._world, chance, user), again)

    async def _stop(self, chance: random.Random, user: int) -> None:
        async def stop(wanted: Wanted) -> None:
            wanted.end("stopped")
            try:
                await self.calls.insist(f"{OURS}Stop", {"name": wanted.name}, user=user)
            except Refused as refused:
                if refused.name != f"{OURS}NoSuchMachine":
                    raise Violation(f"Stop of {wanted.name}: {refused}") from None
            await trio.to_thread.run_sync(wanted.process.wait)

        await with_reserved(pick(self._world, chance, user), stop)

    async def _kill(self, chance: random.Random, user: int) -> None:
        async def kill(wanted: Wanted) -> None:
            wanted.end("its leader was killed")
            wanted.process.kill()
            await trio.to_thread.run_sync(wanted.process.wait)

        await with_reserved(pick(self._world, chance, user), kill)

    async def _list(self, _: random.Random, user: int) -> None:
        try:
            async with await self.calls.connect(user) as client, client.call_more(f"{OURS}List") as replies:
                names = [reply["machine"]["name"] async for reply in replies]
        except (OSError, VarlinkError) as error:
            self._world.count(getattr(error, "error", "no connection").rpartition(".")[2])
            return
        self._world.count("a reply")
        ghosts = set(names) - self._world.machines.keys() - self._world.unrecorded.keys()
        if ghosts or len(names) != len(set(names)):
            raise Violation(f"List has {sorted(names)}, of which nobody ever registered {sorted(ghosts)}")

    async def _describe(self, chance: random.Random, user: int) -> None:
        async def describe(wanted: Wanted) -> None:
            try:
                reply = await self.calls.insist(f"{OURS}Describe", {"name": wanted.name}, user=user)
            except Refused as refused:
                if not wanted.ended:
                    raise Violation(f"Describe of {wanted.name}, which is there: {refused}") from None
            else:
                assert wanted.machine is not None
                if identity(reply["machine"]) != identity(wanted.machine):
                    raise Violation(f"Describe of {wanted.name}: {reply['machine']}, was {wanted.machine}")

        await with_reserved(pick(self._world, chance, user), describe)

    async def _abandon(self, chance: random.Random, user: int) -> None:
        """Kill a client at some moment of its call; another one finds out what became of it."""

        async def abandon(wanted: Wanted) -> None:
            wanted.parameters = {key: wanted.parameters[key] for key in ("name", "class", "leader")}
            wanted.helpers = {}
            argv = ["moorctl", "register", wanted.name, "--class", wanted.parameters["class"]]
            client = sleeper((*argv, "--leader", str(wanted.process.pid)), user=user)
            await trio.sleep(chance.uniform(0.1, 0.6))
            client.kill()
            await trio.to_thread.run_sync(client.wait)
            self._world.count("killed before the answer" if client.returncode else "a reply")
            await self.register(wanted)

        await with_reserved(self._want(chance, user), abandon)

    async def _forget(self, chance: random.Random, user: int) -> None:
        async def forget(wanted: Wanted) -> None:
            if wanted in self.calls.leases or wanted.helpers:  # they would run on, unknown to anybody
                return
            try:
                await self.calls.insist(f"{OURS}Forget", {"name": wanted.name}, user=user)
            except Refused as refused:
                if not (refused.name == f"{OURS}NoSuchMachine" and refused.again):
                    raise Violation(f"Forget of {wanted.name}, which is there: {refused}") from None
            del self._world.machines[wanted.name]
            self._world.unrecorded[wanted.name] = wanted

        await with_reserved(pick(self._world, chance, user), forget)

    async def _trespass(self, chance: random.Random, user: int) -> None:
        """Try to do something with a machine of root."""
        wanted = pick(self._world, chance, ROOT)
        if wanted is None:
            return
        own: dict[str, dict[str, Any]] = {
            "Stop": {},
            "Kill": {"signal": 9},
            "Forget": {},
            "AddHelpers": {"helpers": [helper(chance, "alice")]},
            "RemoveHelper": {"helper": chance.choice([*wanted.helpers, "h0"])},
            "Reload": {},
        }
        method = chance.choice(list(own))
        try:
            reply = await self.calls.insist(
                f"{OURS}{method}", {"name": wanted.name, **own[method]}, user=user
            )
        except Refused as refused:
            if refused.name in NOT_HERS:
                return
            reply = refused
        raise Violation(f"{method} of root's machine {wanted.name} by another user: {reply}")
