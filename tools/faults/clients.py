"""Clients: they register machines, again and again if need be, stop them, ask for them; and leaders die."""

import random
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from faults.world import OURS, SOCKET, Process, Violation, Wanted, World
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

MACHINES_MAX = 24
"""As many as there are names: small enough that names are used again and again."""

CALL_SECONDS = 120.0
"""For one call: longer than Register and Stop may take by themselves."""

INSIST_SECONDS = 180.0
"""For how long a client tries: the service may be away, and then the manager may not answer for half a minute."""

AGAIN_SECONDS = 0.05

ALICE = 1000

# What says nothing about what was done: a client asks again, and finds out.
UNDECIDED = frozenset(
    {"io.systemd.Disconnected", f"{OURS}Timeout", f"{OURS}ManagerUnavailable", f"{OURS}Busy"}
)
NO_SPACE = 28


class Refused(Exception):
    """The answer was an error.

    Attributes:
        name: of the error.
        parameters: its own.
    """

    def __init__(self, error: VarlinkError) -> None:
        super().__init__(f"{error.error} {error.parameters()}")
        self.name = error.error
        self.parameters = error.parameters()


def sleeper(argv: tuple[str, ...] = ("sleep", "infinity")) -> Process:
    """Start a process that does nothing."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def identity(machine: dict[str, Any]) -> tuple[Any, ...]:
    """What no other machine has."""
    return tuple(machine[key] for key in ("name", "unit", "invocationId", "controlGroup", "controlGroupId"))


class Clients:
    """All clients.

    Attributes:
        leases: connections that machines end with.
        registering: set and replaced whenever a Register goes out.
        full: there is no space for records: refusals for that are in order.
        stopping_helpers: helpers are being killed: refusals for that are in order.
    """

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._names = [f"{kind}-{number}" for kind in ("vm", "we\\b", "a.b:c") for number in range(8)]
        self.leases: dict[Wanted, Client] = {}
        self.registering = trio.Event()
        self.full = False
        self.stopping_helpers = False

    async def work(self, enough: trio.Event, seed: int) -> None:
        """Be one client until it is enough."""
        chance = random.Random(seed)
        while not enough.is_set():
            kind = chance.choices(
                (self._new, self._again, self._stop, self._kill, self._list, self._describe, self._abandon),
                (10, 3, 4, 2, 2, 2, 1),
            )[0]
            await kind(chance)
            await trio.sleep(chance.uniform(0, 0.02))

    async def insist(
        self, method: str, parameters: dict[str, Any], *, lease: Wanted | None = None
    ) -> dict[str, Any]:
        """Call, and call again, until the answer is one that decides.

        Raises:
            Refused: it is an error.
            Violation: there is none.
        """
        with trio.move_on_after(INSIST_SECONDS):
            while True:
                client: Client | None = None
                try:
                    client = await Client.connect(SOCKET)
                    if method.endswith("Register"):
                        self.registering.set()
                        self.registering = trio.Event()
                    reply = await client.call(method, parameters, timeout=CALL_SECONDS)
                except OSError:
                    self._world.count("no connection, tried again")
                except VarlinkError as error:
                    self._world.count(error.error.rpartition(".")[2])
                    if error.error not in UNDECIDED:
                        raise Refused(error) from None
                else:
                    self._world.count("a reply")
                    if lease is not None:
                        self.leases[lease], client = client, None
                    return reply
                finally:
                    if client is not None:
                        client.close()
                await trio.sleep(AGAIN_SECONDS)
        raise Violation(f"{method} {parameters} was not answered within {INSIST_SECONDS:.0f} s")

    # What they do

    def _pick(self, chance: random.Random) -> Wanted | None:
        free = [each for each in self._world.living() if not each.reserved]
        return chance.choice(free) if free else None

    async def _with(self, wanted: Wanted | None, do: Callable[[Wanted], Awaitable[None]]) -> None:
        if wanted is None:
            return
        wanted.reserved = True
        try:
            await do(wanted)
        finally:
            wanted.reserved = False

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

    def _parameters(self, chance: random.Random, name: str, process: Process) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "name": name,
            "class": chance.choice(("vm", "container")),
            "leader": {"pid": process.pid},
            "service": "chaos",
            "vSockCid": chance.randrange(3, 2**31),
        }
        if chance.random() < 0.3:
            parameters["slice"] = chance.choice(("chaos.slice", "chaos-deep-er.slice"))
        if chance.random() < 0.3:
            parameters["properties"] = {"TimeoutStopUSec": 3_000_000, "CPUWeight": 50}
        if chance.random() < 0.25:
            parameters["helpers"] = [
                {
                    "name": f"h{number}",
                    "execStart": ["/usr/bin/sleep", "infinity"],
                    "sockets": [{"name": f"h{number}.sock"}],
                    "onFailure": chance.choice(("ignore", "stopMachine")),
                }
                for number in range(chance.randint(1, 2))
            ]
        if chance.random() < 0.15:
            parameters["lease"] = True
        return parameters

    def _want(self, chance: random.Random) -> Wanted | None:
        if (name := self._name(chance)) is None:
            return None
        process = sleeper()
        wanted = Wanted(name, process, self._parameters(chance, name, process))
        self._world.machines[name] = wanted
        return wanted

    async def _new(self, chance: random.Random) -> None:
        await self._with(self._want(chance), self.register)

    async def register(self, wanted: Wanted) -> None:
        """Register a machine."""
        lease = wanted if wanted.parameters.get("lease") else None
        try:
            reply = await self.insist(f"{OURS}Register", wanted.parameters, lease=lease)
        except Refused as refused:
            if not self._in_order(refused, wanted):
                raise Violation(f"Register of {wanted.parameters}: {refused}") from None
            wanted.end(f"refused: {refused.name}", verdict=False)
            if (
                refused.name == f"{OURS}MachineExists"
            ):  # it is being stopped, and its name is not free before that
                await trio.to_thread.run_sync(wanted.process.wait)
        else:
            wanted.machine = reply["machine"]

    def _in_order(self, refused: Refused, wanted: Wanted) -> bool:
        if wanted.process.poll() is not None:
            return True
        if refused.name == "io.systemd.System" and refused.parameters.get("errno") == NO_SPACE:
            return self.full
        if refused.name == f"{OURS}MachineExists" and "lease" in wanted.parameters:
            return True  # the connection of an earlier attempt was lost, and with it the lease
        return refused.name == f"{OURS}HelperFailed" and self.stopping_helpers

    async def _again(self, chance: random.Random) -> None:
        async def again(wanted: Wanted) -> None:
            if wanted in self.leases:
                return
            before = wanted.machine
            assert before is not None
            try:
                reply = await self.insist(f"{OURS}Register", wanted.parameters)
            except Refused as refused:
                if not wanted.ended:
                    raise Violation(f"Register of {wanted.name}, which is there: {refused}") from None
            else:
                if identity(reply["machine"]) != identity(before):
                    raise Violation(f"Register of {wanted.name} again: {reply['machine']}, was {before}")

        await self._with(self._pick(chance), again)

    async def _stop(self, chance: random.Random) -> None:
        async def stop(wanted: Wanted) -> None:
            wanted.end("stopped")
            try:
                await self.insist(f"{OURS}Stop", {"name": wanted.name})
            except Refused as refused:
                if refused.name != f"{OURS}NoSuchMachine":
                    raise Violation(f"Stop of {wanted.name}: {refused}") from None
            await trio.to_thread.run_sync(wanted.process.wait)

        await self._with(self._pick(chance), stop)

    async def _kill(self, chance: random.Random) -> None:
        async def kill(wanted: Wanted) -> None:
            wanted.end("its leader was killed")
            wanted.process.kill()
            await trio.to_thread.run_sync(wanted.process.wait)

        await self._with(self._pick(chance), kill)

    async def _list(self, _: random.Random) -> None:
        try:
            async with await Client.connect(SOCKET) as client, client.call_more(f"{OURS}List") as replies:
                names = [reply["machine"]["name"] async for reply in replies]
        except (OSError, VarlinkError) as error:
            self._world.count(getattr(error, "error", "no connection").rpartition(".")[2])
            return
        self._world.count("a reply")
        ghosts = set(names) - self._world.machines.keys() - self._world.unrecorded.keys()
        if ghosts or len(names) != len(set(names)):
            raise Violation(f"List has {sorted(names)}, of which nobody ever registered {sorted(ghosts)}")

    async def _describe(self, chance: random.Random) -> None:
        async def describe(wanted: Wanted) -> None:
            try:
                reply = await self.insist(f"{OURS}Describe", {"name": wanted.name})
            except Refused as refused:
                if not wanted.ended:
                    raise Violation(f"Describe of {wanted.name}, which is there: {refused}") from None
            else:
                assert wanted.machine is not None
                if identity(reply["machine"]) != identity(wanted.machine):
                    raise Violation(f"Describe of {wanted.name}: {reply['machine']}, was {wanted.machine}")

        await self._with(self._pick(chance), describe)

    async def _abandon(self, chance: random.Random) -> None:
        """A client that is killed at some moment of its call; another one finds out what came of it."""

        async def abandon(wanted: Wanted) -> None:
            wanted.parameters = {key: wanted.parameters[key] for key in ("name", "class", "leader")}
            argv = ["moorctl", "register", wanted.name, "--class", wanted.parameters["class"]]
            client = sleeper((*argv, "--leader", str(wanted.process.pid)))
            await trio.sleep(chance.uniform(0.1, 0.6))
            client.kill()
            await trio.to_thread.run_sync(client.wait)
            self._world.count("killed before the answer" if client.returncode else "a reply")
            await self.register(wanted)

        await self._with(self._want(chance), abandon)
