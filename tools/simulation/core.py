"""The seam: how the core of moored is built from fakes, and what the simulation asks of it.

Nothing else of the simulation knows how the core is made up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import trio
from fakes.journal import FakeJournal
from fakes.kernel import FakeClock, FakeHierarchy, FakeProcesses
from fakes.manager import FakeManager, FakeReferences

from moorage import app
from moorage.api.calls import Authority
from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.moorage_machine.types import AwaitStopIn, AwaitStopOut, EventOut, MeasureIn, SubscribeIn
from moorage.api.moorage_machine.wording import Wording
from moorage.authz.policy import Policy
from moorage.configuration.current import Configuration
from moorage.configuration.settings import Loaded, Settings
from moorage.kernel.system import System
from moorage.machines.event_files import EventFiles
from moorage.machines.followers import Follower
from moorage.machines.helpers.units import RuntimeDirectories
from moorage.machines.machine import Machine
from moorage.machines.model import HelperSpec, KillWhom, Registration
from moorage.machines.powering import Power
from moorage.machines.store import Store
from moorage.pid1.manager import Json
from moorage.wire.types import Feed


class Ends(Follower):
    """Passes on which machines have ended, but not those that were forgotten."""

    def __init__(self, ended: Callable[[Machine], None]) -> None:
        self._ended = ended

    def ended(self, machine: Machine) -> None:
        """See `Follower`."""
        if machine.record.verdict is not None:
            self._ended(machine)


def _call(method: str) -> Any:
    """Return a call of root's, as far as handlers look at it."""
    return SimpleNamespace(method=f"io.moorage.Machine.{method}", peer=SimpleNamespace(uid=0))


class Core:
    """One instance of the core.

    Args:
        manager: its connection to the service manager.
        references: to units.
        hierarchy: its view of control groups.
        processes: its pidfds.
        journal: of the host.
        store: its records.
        files: its events.
        ended: called with each machine whose end it has found.
    """

    def __init__(
        self,
        manager: FakeManager,
        references: FakeReferences,
        hierarchy: FakeHierarchy,
        processes: FakeProcesses,
        journal: FakeJournal,
        store: Store,
        files: EventFiles,
        ended: Callable[[Machine], None],
    ) -> None:
        system = System(hierarchy, processes, FakeClock())
        home = RuntimeDirectories(user=False, root="/run")
        self._core = app.Core(manager, store, files, Wording(), home, references, system, journal)
        self._services = self._core.services
        self._core.followers.join(Ends(ended))
        configuration = Configuration(lambda: Loaded(Settings(), {}, ()))
        self._door = MoorageMachine(self._services, Authority(Policy(None)), manager, configuration)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run for ever."""
        await self._core.run(task_status=task_status)

    def serve(self) -> None:
        """Take note that calls are served from now on."""
        self._core.serve()

    def end(self) -> None:
        """Take note of the order to end."""
        self._core.end()

    @property
    def idle(self) -> bool:
        """Whether it says that there is nothing to do."""
        return self._core.idle

    def subscribe(self, cursor: str | None) -> Feed[EventOut]:
        """Begin to tell somebody what happens, as the handler of Subscribe does.

        Raises:
            CursorExpired: what came after the cursor is not known any more.
        """
        return self._door.subscribe(_call("Subscribe"), SubscribeIn(cursor=cursor))

    def machines(self) -> list[Machine]:
        """Return the machines that it keeps."""
        return list(self._services.registry)

    def get(self, name: str) -> Machine | None:
        """Return a machine that it keeps."""
        return self._services.registry.get(name)

    def claims(self) -> int:
        """Return how many names are held by registrations."""
        return self._services.registry.claims

    def is_claimed(self, name: str) -> bool:
        """Whether a machine of that name is being registered."""
        return self._services.registry.claim(name) is not None

    async def register(
        self, registration: Registration, seconds: float, lease: Callable[[], Awaitable[None]] | None
    ) -> Machine:
        """Register a machine, as the handler of Register does."""
        await self._services.changing.check(registration.helpers, registration.name)
        registrar = self._services.registrar
        return (await registrar.find_or_register(registration, timeout=seconds, lease=lease)).machine

    async def stop(self, machine: Machine, seconds: float, *, power_off: bool) -> bool:
        """Stop a machine, as the handler of Stop does; return whether it is gone."""
        await self._services.registrar.wait(machine.name)
        control, grace = self._services.control, self._services.grace
        given = grace.begin(machine, power_off=power_off, insist_after=None)
        if given is None:
            return await control.begin_stop(machine, wait=seconds)
        await grace.wait(machine, given, timeout=seconds)
        return True

    def await_stop(self, machine: Machine, seconds: float) -> Feed[AwaitStopOut]:
        """Wait until a machine is to be stopped, as the handler of AwaitStop does; it gives so much time."""
        params = AwaitStopIn(name=machine.name, graceUSec=round(seconds * 1e6))
        return self._door.await_stop(_call("AwaitStop"), params)

    def measure(self, names: list[str] | None) -> list[str]:
        """Measure machines, as the handler of Measure does; return their names."""
        return [each.sample.name for each in self._door.measure(_call("Measure"), MeasureIn(names=names))]

    async def reset(self, machine: Machine) -> None:
        """Have its counters begin at zero again."""
        await self._services.registrar.wait(machine.name)
        await self._services.resetting.reset(machine)

    async def power(self, machine: Machine, power: Power) -> None:
        """Ask a guest to power off, or to boot again."""
        await self._services.registrar.wait(machine.name)
        await self._services.powering.ask(machine, power)

    async def kill(self, machine: Machine, whom: KillWhom, signal: int, subgroup: str | None) -> None:
        """Send a signal."""
        await self._services.control.kill(machine, whom, signal, subgroup=subgroup)

    async def set(self, machine: Machine, properties: dict[str, Json], *, dry_run: bool) -> None:
        """Set properties of its scope."""
        await self._services.registrar.wait(machine.name)
        await self._services.limits.set(machine, properties, dry_run=dry_run)

    async def freeze(self, machine: Machine, seconds: float, *, helpers: bool) -> None:
        """Freeze a machine."""
        await self._services.registrar.wait(machine.name)
        await self._services.freezing.freeze(machine, helpers=helpers, timeout=seconds)

    async def thaw(self, machine: Machine, seconds: float) -> None:
        """Thaw a machine."""
        await self._services.registrar.wait(machine.name)
        await self._services.freezing.thaw(machine, timeout=seconds)

    def forget(self, machine: Machine) -> None:
        """Forget a machine, but not its unit."""
        self._services.retirement.forget(machine)

    async def add_helper(self, machine: Machine, spec: HelperSpec, seconds: float) -> None:
        """Add a helper."""
        changes = self._services.changing.add(machine, [spec], timeout=seconds)
        try:
            async for _ in changes:
                pass
        finally:
            with trio.CancelScope(shield=True):
                await changes.aclose()

    async def remove_helper(self, machine: Machine, name: str) -> None:
        """Remove a helper."""
        await self._services.changing.remove(machine, name)
