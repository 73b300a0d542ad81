"""What keeps moored in step with a machined beside it."""

from __future__ import annotations

from functools import partial

import msgspec

from moorage.addresses import MACHINED, MACHINED_FILES
from moorage.api.machine_instance.sockets import ControlSockets
from moorage.beside.adopting import Adopting
from moorage.beside.directory import Directory
from moorage.beside.following import Beside
from moorage.beside.notes import Notes
from moorage.beside.peer import Peer
from moorage.beside.publishing import Publishing
from moorage.beside.traces import Traces
from moorage.configuration.settings import Settings
from moorage.kernel.poller import Readiness
from moorage.kernel.system import System
from moorage.machines.detached import Detached
from moorage.machines.followers import Followers
from moorage.machines.leftovers import Leftovers
from moorage.machines.services import Services
from moorage.machines.starts import Starts
from moorage.machines.store import Store
from moorage.pid1.manager import Manager


class Rooms(msgspec.Struct, frozen=True):
    """What it takes of the core."""

    services: Services
    starts: Starts
    leftovers: Leftovers
    followers: Followers
    detached: Detached
    manager: Manager
    system: System


def stand_beside(
    core: Rooms, bus: str, readiness: Readiness, store: Store, sockets: ControlSockets, settings: Settings
) -> Beside:
    """Return what is in step with machined once it runs.

    Args:
        core: has the machines.
        bus: address of the message bus.
        readiness: tells when machined shows something else of itself.
        store: keeps account of what machined has, and is not to be adopted.
        sockets: make the addresses that machined is told.
        settings: what is to be done.
    """
    registry, followers, notes = core.services.registry, core.followers, Notes(store)
    machined = Peer(MACHINED, bus)
    core.leftovers.elsewhere = traces = Traces(MACHINED_FILES)
    publishing = Publishing(
        registry, notes, machined, traces, followers, core.system.processes, sockets.address,
        wanted=settings.publish,
    )  # fmt: skip
    adopting = Adopting(
        registry, core.services.registrar, core.starts, core.leftovers, core.manager, core.system
    )
    beside = Beside(
        registry, notes, machined, partial(Directory, readiness), publishing, adopting,
        core.services.retirement, core.detached, adopt=settings.adopt,
    )  # fmt: skip
    followers.join(beside)
    return beside
