"""The composition root: what exists, who knows whom, and the order of coming and going."""

from __future__ import annotations

import gc
import logging
import os
import resource
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio

from moorage import __version__, activation
from moorage.addresses import MACHINED
from moorage.api.calls import Authority
from moorage.api.machine_instance.handlers import MachineInstance
from moorage.api.machine_instance.sockets import ControlSockets, share
from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.moorage_machine.wording import Wording
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.systemd_service import GenericService
from moorage.authz.policy import Policy
from moorage.authz.polkit import Polkit
from moorage.configuration.current import Configuration
from moorage.configuration.reloading import reload_at_hangup
from moorage.configuration.settings import Settings
from moorage.kernel.memory import keep_small
from moorage.kernel.poller import Readiness
from moorage.kernel.process import boot_id
from moorage.kernel.system import System, system
from moorage.machines.agenda import Agenda
from moorage.machines.asking import Asking
from moorage.machines.changing_limits import ChangingLimits
from moorage.machines.chronicle import Chronicle, Scribe
from moorage.machines.control import Control
from moorage.machines.detached import Detached
from moorage.machines.diary import Diary
from moorage.machines.directories import Directories
from moorage.machines.event_files import EventFiles
from moorage.machines.final_account import FinalAccounts
from moorage.machines.followers import FollowedHelpers, Followers, HeldUnits
from moorage.machines.freezing import Freezing
from moorage.machines.grace import Grace
from moorage.machines.helpers.changes import Changes
from moorage.machines.helpers.changing import Changing
from moorage.machines.helpers.start import HelperStarts
from moorage.machines.helpers.status import HelperStates
from moorage.machines.helpers.units import RuntimeDirectories
from moorage.machines.helpers.watch import StartWatcher
from moorage.machines.holders import Holders
from moorage.machines.id_maps import IdMaps
from moorage.machines.intents import Intents
from moorage.machines.leases import Leases
from moorage.machines.left_units import LeftUnits
from moorage.machines.leftovers import Leftovers
from moorage.machines.limit_watch import LimitWatch
from moorage.machines.looking import Looking
from moorage.machines.lookup import Lookup
from moorage.machines.networks import Networks
from moorage.machines.observer import Observer
from moorage.machines.places import Places
from moorage.machines.powering import Powering
from moorage.machines.recovery import Recovery
from moorage.machines.registration import Registrar
from moorage.machines.registry import Registry
from moorage.machines.resetting import Resetting
from moorage.machines.retirement import Retirement
from moorage.machines.sampling import Sampling
from moorage.machines.scopes import Scopes
from moorage.machines.services import Services
from moorage.machines.started import StartedUnits
from moorage.machines.starts import Starts
from moorage.machines.store import Store
from moorage.machines.terminals import Terminals
from moorage.machines.thawing import FrozenHelpers
from moorage.machines.watching import Watching
from moorage.pid1 import journal
from moorage.pid1.fork_server import ForkServer
from moorage.pid1.hints import Hints
from moorage.pid1.journal import Journal
from moorage.pid1.journal_writer import JournalWriter
from moorage.pid1.manager import Manager
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints
from moorage.pid1.references import BusReferences, References
from moorage.running import Options, wait_for_signal, wait_until_idle
from moorage.wire.server import Server
from moorage.wire.service import Interface, Service

if TYPE_CHECKING:
    from moorage.api.machine1.door import Door
    from moorage.beside.following import Beside
    from moorage.parts.in_place import Shown

# What is not there at each start is in moorage.parts, and imported by whoever wants it, below: the first caller waits
# for every module that is imported before it is answered.

DRAIN_SECONDS = 5.0
"""For how long calls under way may go on after SIGTERM, s. What has reached the service manager is found again by the
next instance, so that nothing is lost by being short."""

NOTED_AT_ONCE = 4
"""Ends of processes noted before callers get their turn: counters are read, and what has happened is told."""

FIRST_SECONDS = 0.5
"""For how long the first calls wait for machines that machined has already, s, which takes a tenth of that."""

HER_ADDRESS = "systemd/machine/io.systemd.Machine"
"""Where the machined of a user listens, below the user's runtime directory."""

_log = logging.getLogger(__name__)


class NoRecords(Exception):
    """The directory of the records cannot be made or opened."""


class Core:
    """All that keeps the machines of one service manager; each service is given its neighbours here.

    Attributes:
        services: what interfaces call.
        followers: who is told of machines; more may join before it runs.
        leases: what holds machines.
        shown: the machines as machined would show them; None unless it is in machined's place.
    """

    _beside: Beside | None = None
    _sockets: ControlSockets | None = None
    _writer: JournalWriter | None = None
    shown: Shown | None = None

    def __init__(
        self, manager: Manager, store: Store, files: EventFiles, scribe: Scribe,
        directories: RuntimeDirectories, references: References, system: System, journal: Journal,
        settings: Settings = Settings(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        # Those who have the rights of the manager anyway.
        trusted = frozenset({0, os.geteuid()})
        processes, hierarchy, clock = system.processes, system.hierarchy, system.clock
        self._detached, self._agenda = detached, agenda = Detached(), Agenda()
        self.followers = followers = Followers()
        registry, hints, intents = Registry(trusted, settings.bounds), Hints(manager), Intents(store)
        self._states = states = HelperStates(manager, hints, processes, journal, user=directories.user)
        watcher = StartWatcher(states, hints, system, journal, user=directories.user)
        self._manager, self._system = manager, system
        self._leftovers = leftovers = Leftovers(manager, hints, hierarchy, intents.marks)
        started = StartedUnits(manager, hints, leftovers, references)
        scopes = Scopes(manager, hints, leftovers, started, states, watcher, directories, system)
        helper_starts = HelperStarts(manager, leftovers, started, watcher, directories)
        self._limits = limits = LimitWatch(registry, followers, system)
        self._accounts = accounts = FinalAccounts(system, journal, limits, followers, user=directories.user)
        self._observer = observer = Observer(
            registry, agenda, accounts, states, followers, system, hints, references)  # fmt: skip
        self._chronicle = chronicle = Chronicle(files, scribe, registry, states, system)
        asking = Asking(registry, store, system, detached)
        left = LeftUnits(registry, store, manager, hints, leftovers)
        followers.join(
            chronicle, observer, limits, HeldUnits(references),
            FrozenHelpers(states, manager, hierarchy, detached), asking, FollowedHelpers(states))  # fmt: skip
        self._retirement = retirement = Retirement(
            registry, store, agenda, accounts, left, followers, clock)  # fmt: skip
        control = Control(
            registry, store, agenda, accounts, states, followers, asking, manager, system, detached)  # fmt: skip
        powering = Powering(control, manager)
        self._grace = grace = Grace(registry, store, control, powering, manager, trusted, clock, detached)
        followers.join(grace)
        self._changes = changes = Changes(
            helper_starts, store, intents, registry, states, followers, directories, clock, detached)  # fmt: skip
        self._watching = Watching(
            registry, agenda, observer, accounts, retirement, control, changes, states, followers, manager,
            system, detached)  # fmt: skip
        self.leases = leases = Leases(control, followers, detached, settings.lease_grace_usec / 1e6)
        self._starts = starts = Starts(registry, store, intents, agenda, observer, scopes, followers, system)
        registrar = Registrar(
            registry, intents, Holders(registry, agenda, manager, system), scopes, states, directories, starts,
            leases, Places(trusted), references, followers, manager, system, detached)  # fmt: skip
        self._recovery = Recovery(
            registry, store, intents, agenda, observer, retirement, left, starts, leases, leftovers, states,
            followers, manager, hierarchy, references)  # fmt: skip
        looking = Looking(accounts, manager, hierarchy, clock, user=directories.user)
        self._inside = inside = ForkServer(manager)
        self.services = Services(
            registry, Lookup(registry, processes), registrar, control,
            Changing(registry, changes, states, followers, manager, hierarchy, directories, detached),
            ChangingLimits(registry, intents.marks_of, manager, followers, detached, user=directories.user),
            Freezing(registry, agenda, manager, hierarchy, detached),
            grace, powering, looking, Sampling(accounts, hierarchy, clock),
            Resetting(registry, store, agenda, looking, hierarchy), retirement, chronicle,
            Terminals(inside, processes), Directories(inside), IdMaps(registry),
            Networks(inside, detached))  # fmt: skip

    def stand_beside(
        self, bus: str, readiness: Readiness, store: Store, sockets: ControlSockets, settings: Settings
    ) -> None:
        """Be in step with machined once it runs; the arguments are those of :func:`parts.beside.stand_beside`."""
        from moorage.parts.beside import Rooms, stand_beside

        rooms = Rooms(
            self.services, self._starts, self._leftovers, self.followers, self._detached, self._manager,
            self._system)  # fmt: skip
        self._beside = stand_beside(rooms, bus, readiness, store, sockets, settings)

    def stand_in_place(self) -> None:
        """Show the machines to the rest of the system as machined would, for as long as its place is ours."""
        from moorage.parts.in_place import Shown

        self.shown = Shown(self.services.registry, self.followers)

    def listen(self, sockets: ControlSockets) -> None:
        """Have each machine controlled at a socket of its own."""
        self._sockets = sockets
        self.followers.join(sockets)

    def keep_diary(self, writer: JournalWriter, *, user: bool) -> None:
        """Have what happens written to the journal; user: the machines are those of a user's manager."""
        self._writer = writer
        self._chronicle.join(Diary(writer, user=user))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the machines; started once what was kept on disk has been compared with what is there.

        Raises:
            ManagerError: the manager cannot be asked about them.
        """
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._detached.run)
                nursery.start_soon(self._chronicle.run)
                self._chronicle.open()
                self._recovery.restore()
                self._chronicle.opened()
                if self.shown is not None:
                    self.shown.files.sweep()
                await self._watching.look()
                self._states.miss()
                await nursery.start(self._states.run)
                leased = [machine for machine in self.services.registry if machine.record.lease]
                nursery.start_soon(self.leases.spare, leased)
                nursery.start_soon(self._recovery.run, self._recovery.claim())
                for change in self._changes.begun():
                    await nursery.start(self._changes.resume, change)
                nursery.start_soon(self._accounts.run, self._retirement.complete)
                nursery.start_soon(self._watching.run)
                nursery.start_soon(self._limits.run)
                nursery.start_soon(self._retirement.run)
                if self._writer is not None:
                    nursery.start_soon(self._writer.run)
                if self.shown is not None:
                    nursery.start_soon(self.shown.names.run)
                if self._sockets is not None:
                    await nursery.start(self._sockets.run)
                if self._beside is not None:
                    nursery.start_soon(self._beside.run)
                    with trio.move_on_after(FIRST_SECONDS):
                        await self._beside.first.wait()
                task_status.started()
        finally:
            self._observer.close()
            self._limits.close()
            self._chronicle.close()
            self._inside.close()
            if self._writer is not None:
                self._writer.close()
            if self._sockets is not None:
                self._sockets.close()

    def apply(self, settings: Settings) -> None:
        """Have other limits from now on."""
        self.services.registry.bounds = settings.bounds

    def serve(self) -> None:
        """Take note that calls are served from now on."""
        self.leases.serve()

    def end(self) -> None:
        """Take note of the order to end: connections that close from now on are not the end of who made them."""
        self.leases.close()
        self._grace.close()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to watch and nothing under way."""
        registry = self.services.registry
        awaits = self._beside is not None and self._beside.stays
        waits = len(registry) or registry.claims or len(self._accounts) or awaits
        return not waits and self._agenda.is_empty


async def run(options: Options, configuration: Configuration, listeners: Sequence[socket.socket]) -> None:
    """Serve, metrics as well, until there is a reason to end.

    Raises:
        ManagerUnavailable, NoRecords: as :func:`serve` says.
    """
    with ExitStack() as offers:
        await serve(options, configuration, listeners, offers)


async def serve(
    options: Options,
    configuration: Configuration,
    listeners: Sequence[socket.socket],
    offers: ExitStack,
) -> None:
    """Serve until SIGTERM, SIGINT, or until there is nothing left to do; read the configuration again at SIGHUP.

    Raises:
        ManagerUnavailable: the service manager cannot be reached at the start (in an exception group).
        NoRecords: there is no place for the records.
    """
    notifier = activation.Notifier()
    polkit = Polkit() if options.user is None else None  # a user's instance serves that user
    authority = Authority(Policy(options.user), polkit)
    endpoints = Endpoints.of("system" if options.user is None else "user")
    manager = DBusManager(endpoints, options.link)
    bus = None if options.link == "private" else endpoints.bus
    references = BusReferences(bus, activation.descriptor_store(notifier, options.stored))
    store = _open_store(options.state_directory)
    readiness = Readiness(NOTED_AT_ONCE)
    settings = configuration.settings
    core = Core(
        manager, store, EventFiles(options.events_directory, boot_id(), settings.events), Wording(),
        _directories(options, settings), references, system(readiness), journal, settings)  # fmt: skip
    core.keep_diary(JournalWriter(), user=options.user is not None)
    theirs = SystemdMachine(core.services, authority, configuration)
    service = _service(theirs, core, authority, manager, configuration)
    server = _server(configuration, listeners, service)
    core.listen(sockets := _control_sockets(options, core, authority, server))
    if (in_place := _in_place(options, listeners)) and options.user is None:
        core.stand_in_place()
    elif options.user is None and (settings.publish or settings.adopt):
        core.stand_beside(endpoints.bus, readiness, store, sockets, settings)
    door = _door(endpoints.bus, core, theirs) if in_place else None
    _collect_what_comes()
    async with trio.open_nursery() as background:
        await background.start(manager.run)
        background.start_soon(references.run)
        await background.start(core.run)
        background.start_soon(readiness.run)
        if polkit is not None:
            await background.start(polkit.run)
        await background.start(server.serve)
        core.serve()
        if core.shown is not None:
            _offer_lookups(offers, core, core.shown, authority, server)
        if door is not None:
            await background.start(door.run)
        _offer_metrics(offers, options, core, authority, manager, server, service)
        background.start_soon(activation.feed_watchdog, notifier)
        await background.start(reload_at_hangup, configuration, notifier)
        background.start_soon(keep_small)
        _tell_ready(notifier, core, manager)
        await _until_the_end(configuration, server, door, core)
        await _end(notifier, core, door, server)
        background.cancel_scope.cancel()
    for each in (readiness, store, notifier):
        each.close()


def _in_place(options: Options, listeners: Sequence[socket.socket]) -> bool:
    """Whether this service is called where machined is otherwise, that of the system or of the same user."""
    place = MACHINED
    if options.user is not None:  # as machined --user has it
        place = f"{os.environ.get('XDG_RUNTIME_DIR', '')}/{HER_ADDRESS}"
    return any(listener.getsockname() == place for listener in listeners)


def _door(bus: str, core: Core, theirs: SystemdMachine) -> Door:
    from moorage.parts.in_place import open_door

    return open_door(bus, theirs, core.followers)


def _offer_lookups(
    offers: ExitStack, core: Core, shown: Shown, authority: Authority, server: Server
) -> None:
    from moorage.parts.in_place import offer_lookups

    offer_lookups(offers, core.services, shown.names, authority, server, _named)


def _open_store(path: str) -> Store:
    try:
        return Store(path)
    except OSError as error:
        raise NoRecords(f"cannot keep records in {path}: {error.strerror}") from None


def _directories(options: Options, settings: Settings) -> RuntimeDirectories:
    return RuntimeDirectories(
        user=options.user is not None,
        root=options.runtime_directory,
        bytes_max=settings.runtime_directory_size_bytes,
    )


def _service(
    theirs: SystemdMachine,
    core: Core,
    authority: Authority,
    manager: Manager,
    configuration: Configuration,
) -> Service:
    configuration.follow(core.apply)
    ours = MoorageMachine(core.services, authority, manager, configuration)
    return _named(theirs, ours, GenericService(authority, configuration))


def _server(configuration: Configuration, listeners: Sequence[socket.socket], service: Service) -> Server:
    server = Server(limits=configuration.settings.limits)
    configuration.follow(lambda settings: server.limit(settings.limits))
    for listener in listeners:
        server.listen(listener, service)
    return server


def _offer_metrics(
    offers: ExitStack, options: Options, core: Core, authority: Authority, manager: DBusManager, server: Server,
    service: Service,
) -> None:  # fmt: skip
    from moorage.parts.metrics import offer_metrics

    offer_metrics(
        offers, options.metrics_address, core.services, authority, manager, server, service.tally, _named)  # fmt: skip


def _control_sockets(options: Options, core: Core, authority: Authority, server: Server) -> ControlSockets:
    # Everybody may connect, but to those of a user's instance.
    return ControlSockets(
        server,
        _named(MachineInstance(core.services, authority)),
        core.services.registry,
        options.control_directory,
        most=share(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        mode=0o666 if options.user is None else 0o600,
    )


def _named(*interfaces: Interface) -> Service:
    return Service(
        vendor="The moorage project", product="moored", version=__version__, url="", interfaces=interfaces
    )


def _collect_what_comes() -> None:
    # What exists by now exists until the end: the collector need not look at it again and again.
    gc.freeze()
    gc.enable()


def _tell_ready(notifier: activation.Notifier, core: Core, manager: DBusManager) -> None:
    notifier.notify("READY=1", f"STATUS=Keeping {len(core.services.registry)} machines.")
    _log.debug("Serving over the %s link of systemd %d.", manager.link_kind, manager.version)


async def _end(notifier: activation.Notifier, core: Core, door: Door | None, server: Server) -> None:
    notifier.notify("STOPPING=1")
    core.end()
    if door is not None:
        await door.end()
    await server.drain(DRAIN_SECONDS)


async def _until_the_end(
    configuration: Configuration, server: Server, door: Door | None, core: Core
) -> None:
    async with trio.open_nursery() as until:
        until.start_soon(wait_for_signal, until.cancel_scope)
        until.start_soon(wait_until_idle, configuration, server, door, lambda: core.idle, until.cancel_scope)
