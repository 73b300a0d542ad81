"""What is served, beside io.systemd.Machine, where moored is in machined's place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from moorage import activation
from moorage.addresses import MACHINED, MACHINED_FILES
from moorage.api.calls import Authority
from moorage.api.machine1.door import Door
from moorage.api.resolve_hook.handlers import ResolveHook
from moorage.api.resolve_hook.names import Names
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.user_database.handlers import UserDatabase
from moorage.machines.followers import Followers
from moorage.machines.registry import Registry
from moorage.machines.services import Services
from moorage.place.state_files import StateFiles
from moorage.wire.server import Server
from moorage.wire.service import Interface, Service

USERS, NAMES = "/run/systemd/userdb/io.systemd.Machine", "/run/systemd/resolve.hook/io.systemd.Machine"
"""Where machined is asked for users of containers, and for addresses of machines."""


class Shown:
    """The machines, as machined of the system would show them, for as long as its place is ours.

    Attributes:
        files: for libsystemd.
        names: for those who look them up.
    """

    def __init__(self, registry: Registry, followers: Followers) -> None:
        place = activation.identity_of(MACHINED)
        self.files = StateFiles(MACHINED_FILES, registry, lambda: activation.identity_of(MACHINED) == place)
        self.names = Names(registry)
        followers.join(self.files, self.names)


def open_door(bus: str | None, theirs: SystemdMachine, followers: Followers) -> Door:
    """Return the name on the message bus, to be run; bus: its address."""
    door = Door(bus, theirs)
    followers.join(door)
    return door


def offer_lookups(
    offers: ExitStack,
    services: Services,
    names: Names,
    authority: Authority,
    server: Server,
    named: Callable[[Interface], Service],
) -> None:
    """Answer who looks up users and machines. Not before calls are served: who waits may be the message bus."""
    interfaces = {
        USERS: UserDatabase(services.registry, services.id_maps, authority),
        NAMES: ResolveHook(names, services.networks, authority),
    }
    for path, interface in interfaces.items():
        listener = offers.enter_context(activation.offered(path, interface.name))
        if listener is not None:
            server.listen(listener, named(interface), aside=True)
