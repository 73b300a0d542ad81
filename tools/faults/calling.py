"""Calls of clients, again and again if need be, and the leases that they hold."""

import errno
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from faults.alice import Alice
from faults.world import OURS, ROOT, SOCKET, Process, Violation, Wanted, World
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

CALL_SECONDS = 120.0
"""Deadline of one call: longer than Register and Stop take by themselves."""

INSIST_SECONDS = 180.0
"""How long a client tries: the service may be away, and then the manager may not answer for half a minute."""

AGAIN_SECONDS = 0.05
"""Pause between two attempts."""

UNDECIDED = frozenset(
    {"io.systemd.Disconnected", f"{OURS}Timeout", f"{OURS}ManagerUnavailable", f"{OURS}Busy"}
)
"""Errors that do not tell whether anything was done: a client calls again to find out."""


class Refused(Exception):
    """The reply was an error.

    Attributes:
        name: of the error.
        parameters: of the error.
        again: the same call was made before, without a reply.
    """

    def __init__(self, error: VarlinkError, *, again: bool = False) -> None:
        super().__init__(f"{error.error} {error.parameters()}")
        self.name = error.error
        self.parameters = error.parameters()
        self.again = again

    @property
    def no_space(self) -> bool:
        """Whether the reason is a lack of space."""
        return self.name == "io.systemd.System" and self.parameters.get("errno") == errno.ENOSPC


def sleeper(argv: tuple[str, ...] = ("sleep", "infinity"), *, user: int = ROOT) -> Process:
    """Start a command, by default one that does nothing."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, user=user)


def _is_undecided(error: VarlinkError) -> bool:
    # moored asks polkit only a few questions at once for each user, but all of her leases are taken again at once.
    many = error.error == "io.systemd.System" and error.parameters().get("errno") == errno.EBUSY
    return many or error.error in UNDECIDED


def identity(machine: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a machine from all others."""
    return tuple(machine[key] for key in ("name", "unit", "invocationId", "controlGroup", "controlGroupId"))


class Lease:
    """A lease as launchers hold it: when its connection ends, it registers the machine again.

    Attributes:
        trouble: why it could not be taken again; empty while it is held.
    """

    def __init__(self, wanted: Wanted, client: Client) -> None:
        self._wanted = wanted
        self._client = client
        self._scope = trio.CancelScope()
        self.trouble = ""

    def drop(self) -> None:
        """Give the lease up on purpose."""
        self._scope.cancel()
        self._client.close()

    async def hold(self, connect: Callable[[int], Awaitable[Client]]) -> None:
        """Hold the lease until it is dropped, or the machine has ended."""
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


class Calls:
    """Makes calls for all clients.

    Attributes:
        leases: those of machines that are not known to have ended.
        registering: set and replaced whenever a Register is sent.
        changing: the same for changes of helpers.
    """

    def __init__(self, world: World, alice: Alice, nursery: trio.Nursery) -> None:
        self._world = world
        self._alice = alice
        self._nursery = nursery
        self.leases: dict[Wanted, Lease] = {}
        self.registering = trio.Event()
        self.changing = trio.Event()

    async def connect(self, user: int) -> Client:
        """Connect as a user.

        Raises:
            OSError: there is no connection.
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
        """Call, and call again, until a reply tells what was done.

        Args:
            method: full name.
            parameters: of the call.
            user: UID of the caller.
            lease: the machine that ends with the connection.

        Raises:
            Refused: the reply is an error.
            Violation: there was no reply in time.
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
        """Drop the lease of a machine, if it has one."""
        if wanted in self.leases:
            self.leases.pop(wanted).drop()
