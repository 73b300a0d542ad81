"""Clients: they register machines, again and again if need be, change, stop and forget them; and leaders die.

Some of them are root's, some alice's. What they ask for may be cut off at any point: they hang up, or moored goes.
"""

import errno
import itertools
import random
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from faults.alice import Alice
from faults.world import ALICE, OURS, ROOT, SOCKET, Process, Violation, Wanted, World
from moorage.machines.model import helper_unit
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

MACHINES_MAX = 24
"""As many as there are names: small enough that names are used again and again."""

CALL_SECONDS = 120.0
"""For one call: longer than Register and Stop may take by themselves."""

INSIST_SECONDS = 180.0
"""For how long a client tries: the service may be away, and then the manager may not answer for half a minute."""

AGAIN_SECONDS = 0.05

HELPERS_MAX = 4
"""Of one machine: enough for several changes one after the other."""

HANGS_UP = 0.3
"""How many of those who change helpers hang up before the answer."""
HANGS_UP_SECONDS = 0.08
"""When they do so at the latest: a helper is there after half of that on an idle machine."""

FOREIGN_HELPER = "foreign"
FOREIGN_HELPERS = {
    name: helper_unit(name, FOREIGN_HELPER) for name in ("vm-0", "vm-1", "we\\b-0", "a.b:c-0")
}
"""Machines for which the unit of a helper of that name is somebody else's."""

# What says nothing about what was done: a client asks again, and finds out.
UNDECIDED = frozenset(
    {"io.systemd.Disconnected", f"{OURS}Timeout", f"{OURS}ManagerUnavailable", f"{OURS}Busy"}
)
INVALID_PARAMETER = "org.varlink.service.InvalidParameter"

# What is answered to alice where the machine is root's; it may also have ended meanwhile.
NOT_HERS = frozenset(
    {
        "org.varlink.service.PermissionDenied",
        "io.systemd.InteractiveAuthenticationRequired",
        f"{OURS}NoSuchMachine",
    }
)


class Refused(Exception):
    """The answer was an error.

    Attributes:
        name: of the error.
        parameters: its own.
        again: the same call was made before, and not answered.
    """

    def __init__(self, error: VarlinkError, *, again: bool = False) -> None:
        super().__init__(f"{error.error} {error.parameters()}")
        self.name = error.error
        self.parameters = error.parameters()
        self.again = again

    @property
    def no_space(self) -> bool:
        """Whether it is for want of space."""
        return self.name == "io.systemd.System" and self.parameters.get("errno") == errno.ENOSPC


def sleeper(argv: tuple[str, ...] = ("sleep", "infinity"), *, user: int = ROOT) -> Process:
    """Start a process that does nothing, or what is given."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, user=user)


def _is_undecided(error: VarlinkError) -> bool:
    # Polkit is asked no more than a few questions of one user at once: all her leases are taken again in one moment.
    many = error.error == "io.systemd.System" and error.parameters().get("errno") == errno.EBUSY
    return many or error.error in UNDECIDED


def identity(machine: dict[str, Any]) -> tuple[Any, ...]:
    """What no other machine has."""
    return tuple(machine[key] for key in ("name", "unit", "invocationId", "controlGroup", "controlGroupId"))


class Lease:
    """A lease as a launcher holds it: when its connection ends, it registers the machine again.

    Attributes:
        trouble: why it could not be taken again; empty while it is held.
    """

    def __init__(self, wanted: Wanted, client: Client) -> None:
        self._wanted = wanted
        self._client = client
        self._scope = trio.CancelScope()
        self.trouble = ""

    def drop(self) -> None:
        """Let go of it on purpose."""
        self._scope.cancel()
        self._client.close()

    async def hold(self, connect: Callable[[int], Awaitable[Client]]) -> None:
        """Hold it until it is dropped, or the machine has ended."""
        with self._scope:
            while not self._wanted.ended:
                await self._client.wait_closed()
                await self._take(connect)

    async def _take(self, connect: Callable[[int], Awaitable[Client]]) -> None:
        while self._client.closed and not self._wanted.ended:
            try:
                self._client = await connect(self._wanted.owner)
                reply = await self._client.call(
                    f"{OURS}Register", self._wanted.parameters, timeout=CALL_SECONDS
                )
            except (OSError, VarlinkError) as error:
                self._client.close()
                self.trouble = repr(error)
                await trio.sleep(AGAIN_SECONDS)
            else:
                before = self._wanted.machine
                known = before is not None and identity(before) == identity(reply["machine"])
                self.trouble = "" if known else f"it is {reply['machine']} now, was {before}"


class Clients:
    """All clients.

    Attributes:
        leases: those of machines that are not known to have ended.
        registering: set and replaced whenever a Register goes out.
        changing: the same for changes of helpers.
        full: there is no space for records: refusals for that are in order.
        stopping_helpers: helpers are being killed: refusals for that are in order.
    """

    def __init__(self, world: World, alice: Alice, nursery: trio.Nursery) -> None:
        self._world = world
        self._alice = alice
        self._nursery = nursery
        self._names = [f"{kind}-{number}" for kind in ("vm", "we\\b", "a.b:c") for number in range(8)]
        self._numbers = itertools.count()
        self.leases: dict[Wanted, Lease] = {}
        self.registering = trio.Event()
        self.changing = trio.Event()
        self.full = False
        self.stopping_helpers = False

    async def work(self, enough: trio.Event, seed: int, user: int) -> None:
        """Be one client of a user's until it is enough."""
        chance = random.Random(seed)
        doings: dict[Callable[[random.Random, int], Awaitable[None]], int] = {
            self._new: 10, self._again: 3, self._stop: 4, self._kill: 2, self._list: 2, self._describe: 2,
            self._abandon: 1, self._forget: 1,
        }  # fmt: skip
        if user == ROOT:
            doings |= {self._add: 5, self._remove: 3}
        else:
            doings |= {self._trespass: 3}
        while not enough.is_set():
            do = chance.choices(list(doings), list(doings.values()))[0]
            await do(chance, user)
            await trio.sleep(chance.uniform(0, 0.02))

    async def connect(self, user: int) -> Client:
        """Connect as a user.

        Raises:
            OSError: it cannot be done.
        """
        return await (Client.connect(SOCKET) if user == ROOT else self._alice.connect())

    def _goes_out(self, method: str) -> None:
        if method.endswith("Register"):
            self.registering.set()
            self.registering = trio.Event()
        if method.endswith(("AddHelpers", "RemoveHelper")):
            self.changing.set()
            self.changing = trio.Event()

    async def insist(
        self, method: str, parameters: dict[str, Any], *, user: int = ROOT, lease: Wanted | None = None
    ) -> dict[str, Any]:
        """Call, and call again, until the answer is one that decides.

        Args:
            method: full name.
            parameters: its own.
            user: whose call it is.
            lease: the machine that is to end with the connection.

        Raises:
            Refused: it is an error.
            Violation: there is none.
        """
        again = False
        with trio.move_on_after(INSIST_SECONDS) as waiting:
            while True:
                client: Client | None = None
                try:
                    client = await self.connect(user)
                    self._goes_out(method)
                    reply = await client.call(method, parameters, timeout=CALL_SECONDS)
                except OSError:
                    self._world.count("no connection, tried again")
                except VarlinkError as error:
                    self._world.count(error.error.rpartition(".")[2])
                    if not _is_undecided(error):
                        raise Refused(error, again=again) from None
                    again = True
                else:
                    self._world.count("a reply")
                    if lease is not None:
                        lease.machine = reply["machine"]
                        self.leases[lease], client = Lease(lease, client), None
                        self._nursery.start_soon(self.leases[lease].hold, self.connect)
                    return reply
                finally:
                    if client is not None:
                        client.close()
                await trio.sleep(AGAIN_SECONDS)
        assert waiting.cancelled_caught
        raise Violation(f"{method} {parameters} was not answered within {INSIST_SECONDS:.0f} s")

    def drop(self, wanted: Wanted) -> None:
        """Let go of the lease of a machine, if it has one."""
        if wanted in self.leases:
            self.leases.pop(wanted).drop()

    # What they do

    def _pick(self, chance: random.Random, user: int) -> Wanted | None:
        free = [each for each in self._world.living() if not each.reserved and each.owner == user]
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
            parameters["helpers"] = [
                self._helper(chance, f"h{number}") for number in range(chance.randint(1, 2))
            ]
            if name in FOREIGN_HELPERS and chance.random() < 0.3:
                parameters["helpers"].append(self._helper(chance, FOREIGN_HELPER))
        if chance.random() < 0.15:
            parameters["lease"] = True
        return parameters

    def _helper(self, chance: random.Random, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "execStart": ["/usr/bin/sleep", "infinity"],
            "sockets": [{"name": f"{name}.sock"}],
            "onFailure": chance.choice(("ignore", "stopMachine")),
        }

    def _want(self, chance: random.Random, user: int) -> Wanted | None:
        if (name := self._name(chance)) is None:
            return None
        process = sleeper() if user == ROOT else self._alice.sleeper()
        wanted = Wanted(name, process, self._parameters(chance, name, process, user), owner=user)
        self._world.machines[name] = wanted
        return wanted

    async def _new(self, chance: random.Random, user: int) -> None:
        await self._with(self._want(chance, user), self.register)

    async def register(self, wanted: Wanted) -> None:
        """Register a machine."""
        lease = wanted if wanted.parameters.get("lease") else None
        try:
            reply = await self.insist(f"{OURS}Register", wanted.parameters, user=wanted.owner, lease=lease)
        except Refused as refused:
            if not self._in_order(refused, wanted):
                raise Violation(f"Register of {wanted.parameters}: {refused}") from None
            wanted.end(f"refused: {refused.name}", verdict=False)
        else:
            wanted.machine = reply["machine"]

    def _in_order(self, refused: Refused, wanted: Wanted) -> bool:
        if wanted.process.poll() is not None:
            return True
        if refused.no_space:
            return self.full
        if refused.name == f"{OURS}UnitNameTaken":
            return FOREIGN_HELPER in wanted.helpers
        return refused.name == f"{OURS}HelperFailed" and self.stopping_helpers

    async def _again(self, chance: random.Random, user: int) -> None:
        async def again(wanted: Wanted) -> None:
            if wanted in self.leases:
                return
            before = wanted.machine
            assert before is not None
            try:
                reply = await self.insist(f"{OURS}Register", wanted.parameters, user=user)
            except Refused as refused:
                if not wanted.ended:
                    raise Violation(f"Register of {wanted.name}, which is there: {refused}") from None
            else:
                if identity(reply["machine"]) != identity(before):
                    raise Violation(f"Register of {wanted.name} again: {reply['machine']}, was {before}")

        await self._with(self._pick(chance, user), again)

    async def _stop(self, chance: random.Random, user: int) -> None:
        async def stop(wanted: Wanted) -> None:
            wanted.end("stopped")
            try:
                await self.insist(f"{OURS}Stop", {"name": wanted.name}, user=user)
            except Refused as refused:
                if refused.name != f"{OURS}NoSuchMachine":
                    raise Violation(f"Stop of {wanted.name}: {refused}") from None
            await trio.to_thread.run_sync(wanted.process.wait)

        await self._with(self._pick(chance, user), stop)

    async def _kill(self, chance: random.Random, user: int) -> None:
        async def kill(wanted: Wanted) -> None:
            wanted.end("its leader was killed")
            wanted.process.kill()
            await trio.to_thread.run_sync(wanted.process.wait)

        await self._with(self._pick(chance, user), kill)

    async def _list(self, _: random.Random, user: int) -> None:
        try:
            async with await self.connect(user) as client, client.call_more(f"{OURS}List") as replies:
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
                reply = await self.insist(f"{OURS}Describe", {"name": wanted.name}, user=user)
            except Refused as refused:
                if not wanted.ended:
                    raise Violation(f"Describe of {wanted.name}, which is there: {refused}") from None
            else:
                assert wanted.machine is not None
                if identity(reply["machine"]) != identity(wanted.machine):
                    raise Violation(f"Describe of {wanted.name}: {reply['machine']}, was {wanted.machine}")

        await self._with(self._pick(chance, user), describe)

    async def _abandon(self, chance: random.Random, user: int) -> None:
        """A client that is killed at some moment of its call; another one finds out what came of it."""

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

        await self._with(self._want(chance, user), abandon)

    async def _forget(self, chance: random.Random, user: int) -> None:
        async def forget(wanted: Wanted) -> None:
            if (
                wanted in self.leases or wanted.helpers
            ):  # which would run on, and nobody would know whose they are
                return
            try:
                await self.insist(f"{OURS}Forget", {"name": wanted.name}, user=user)
            except Refused as refused:
                if not (refused.name == f"{OURS}NoSuchMachine" and refused.again):
                    raise Violation(f"Forget of {wanted.name}, which is there: {refused}") from None
            del self._world.machines[wanted.name]
            self._world.unrecorded[wanted.name] = wanted

        await self._with(self._pick(chance, user), forget)

    async def _trespass(self, chance: random.Random, user: int) -> None:
        """Do something with a machine of root's."""
        wanted = self._pick(chance, ROOT)
        if wanted is None:
            return
        own: dict[str, dict[str, Any]] = {
            "Stop": {},
            "Kill": {"signal": 9},
            "Forget": {},
            "AddHelpers": {"helpers": [self._helper(chance, "alice")]},
            "RemoveHelper": {"helper": chance.choice([*wanted.helpers, "h0"])},
            "Reload": {},
        }
        method = chance.choice(list(own))
        try:
            reply = await self.insist(f"{OURS}{method}", {"name": wanted.name, **own[method]}, user=user)
        except Refused as refused:
            if refused.name in NOT_HERS:
                return
            reply = refused
        raise Violation(f"{method} of root's machine {wanted.name} by another user: {reply}")

    # Changes of helpers

    async def _change(
        self, chance: random.Random, method: str, parameters: dict[str, Any]
    ) -> dict[str, Any] | Refused | None:
        """Return what was answered; None for a client that hung up before that."""
        hangs_up = chance.random() < HANGS_UP
        with trio.move_on_after(chance.uniform(0, HANGS_UP_SECONDS) if hangs_up else INSIST_SECONDS * 2):
            try:
                return await self.insist(f"{OURS}{method}", parameters)
            except Refused as refused:
                return refused
        self._world.count("hung up before the answer")
        return None

    async def _add(self, chance: random.Random, user: int) -> None:
        async def add(wanted: Wanted) -> None:
            # Where it was registered in place, after it was forgotten, it may still have the directory of before.
            if len(wanted.helpers) >= HELPERS_MAX or wanted.parameters.get("allocateUnit") is False:
                return
            name = f"a{next(self._numbers)}"
            helpers = [self._helper(chance, name)]
            taken = wanted.name in FOREIGN_HELPERS and chance.random() < 0.5
            if taken:
                helpers.append(self._helper(chance, FOREIGN_HELPER))
            else:
                wanted.helpers[name] = helpers[0]
                wanted.undecided.add(name)
            answer = await self._change(chance, "AddHelpers", {"name": wanted.name, "helpers": helpers})
            if answer is None or wanted.ended:
                return
            if isinstance(answer, Refused):
                if taken and answer.name == f"{OURS}UnitNameTaken":
                    return
                if answer.no_space and self.full:
                    wanted.helpers.pop(name, None)
                elif not (answer.name == INVALID_PARAMETER and answer.again and not taken):
                    raise Violation(f"AddHelpers {helpers} of {wanted.name}: {answer}")
            elif taken:
                raise Violation(f"AddHelpers {helpers} of {wanted.name}, of which one is foreign: {answer}")
            wanted.undecided.discard(name)

        await self._with(self._pick(chance, user), add)

    async def _remove(self, chance: random.Random, user: int) -> None:
        async def remove(wanted: Wanted) -> None:
            decided = sorted(wanted.helpers.keys() - wanted.undecided)
            if not decided:
                return
            name = chance.choice(decided)
            wanted.undecided.add(name)
            answer = await self._change(chance, "RemoveHelper", {"name": wanted.name, "helper": name})
            if answer is None or wanted.ended:
                return
            if isinstance(answer, Refused):
                if answer.no_space and self.full:
                    wanted.limping = True  # it may have been stopped, but is still on record
                    return
                if not (answer.name == f"{OURS}NoSuchHelper" and answer.again):
                    raise Violation(f"RemoveHelper {name} of {wanted.name}: {answer}")
            wanted.undecided.discard(name)
            del wanted.helpers[name]

        await self._with(self._pick(chance, user), remove)
