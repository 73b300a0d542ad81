"""The composition root: what exists, who knows whom, and the order of coming and going."""

from __future__ import annotations

import gc
import logging
import resource
import signal
import socket
from collections.abc import Sequence
from typing import Literal

import msgspec
import trio

from moorage import __version__, activation
from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.requests import Authority
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.systemd_service import GenericService
from moorage.authz.policy import Policy
from moorage.authz.polkit import Polkit
from moorage.kernel.poller import Readiness
from moorage.kernel.system import system
from moorage.machines.helpers import Home
from moorage.machines.lifecycle import Lifecycle
from moorage.machines.store import Store
from moorage.pid1 import journal
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints
from moorage.pid1.references import BusReferences
from moorage.wire.server import Server
from moorage.wire.service import Service

DRAIN_USEC = 5_000_000
"""For how long calls under way may go on after SIGTERM, µs. What has reached the service manager is found again by the
next instance, so that nothing is lost by being short."""

IDLE_CHECK_USEC = 1_000_000
"""How often it is asked whether there is anything left to do, µs."""

_log = logging.getLogger(__name__)


class NoRecords(Exception):
    """The directory of the records cannot be made or opened."""


class Options(msgspec.Struct, frozen=True):
    """How to run.

    Attributes:
        user: uid whose service manager is asked; None for the system's.
        link: which way to the service manager.
        state_directory: where the records are kept.
        runtime_directory: where the service manager makes the runtime directories of its services.
        idle_usec: exit after so many µs with nothing to do; None for never.
        log_level: of syslog(3).
    """

    user: int | None
    link: Literal["auto", "private", "bus"]
    state_directory: str
    runtime_directory: str
    idle_usec: int | None
    log_level: int


async def run(options: Options, listeners: Sequence[socket.socket]) -> None:
    """Serve until SIGTERM, SIGINT, or until there is nothing left to do.

    Raises:
        ManagerUnavailable: the service manager cannot be reached at the start (in an exception group).
        NoRecords: there is no place for the records.
    """
    _raise_file_limit()
    notifier = activation.Notifier()
    # A user's instance serves that user, who needs nobody's leave.
    polkit = Polkit() if options.user is None else None
    authority = Authority(Policy(options.user), polkit)
    endpoints = Endpoints.of("system" if options.user is None else "user")
    manager = DBusManager(endpoints, options.link)
    references = BusReferences(None if options.link == "private" else endpoints.bus)
    try:
        store = Store(options.state_directory)
    except OSError as error:
        raise NoRecords(f"cannot keep records in {options.state_directory}: {error.strerror}") from None
    readiness = Readiness()
    lifecycle = Lifecycle(
        manager,
        store,
        Home(user=options.user is not None, root=options.runtime_directory),
        references,
        system(readiness),
        journal,
    )
    service = Service(
        vendor="The moorage project",
        product="moored",
        version=__version__,
        url="",
        interfaces=[
            SystemdMachine(lifecycle, authority),
            MoorageMachine(lifecycle, authority, manager),
            GenericService(authority, log_level=options.log_level),
        ],
    )
    server = Server()
    for listener in listeners:
        server.listen(listener, service)
    # What exists by now exists until the end: the collector need not look at it again and again.
    gc.freeze()
    gc.enable()
    async with trio.open_nursery() as background:
        await background.start(manager.run)
        background.start_soon(references.run)
        await background.start(lifecycle.run)
        background.start_soon(readiness.run)
        if polkit is not None:
            await background.start(polkit.run)
        await background.start(server.serve)
        lifecycle.serve()
        background.start_soon(_feed_watchdog, notifier)
        notifier.notify("READY=1", f"STATUS=Keeping {len(lifecycle.registry)} machines.")
        _log.debug("Serving over the %s link of systemd %d.", manager.link_kind, manager.version)
        async with trio.open_nursery() as until:
            until.start_soon(_wait_for_signal, until.cancel_scope)
            if options.idle_usec is not None:
                until.start_soon(_wait_until_idle, options.idle_usec, server, lifecycle, until.cancel_scope)
        notifier.notify("STOPPING=1")
        lifecycle.end()
        await server.drain(DRAIN_USEC / 1e6)
        background.cancel_scope.cancel()
    readiness.close()
    store.close()
    notifier.close()


def _raise_file_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _feed_watchdog(notifier: activation.Notifier) -> None:
    usec = activation.watchdog_usec()
    if usec is None:
        return
    while True:
        notifier.notify("WATCHDOG=1")
        await trio.sleep(usec / 2e6)


async def _wait_for_signal(end: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            _log.debug("Received %s, stopping.", signal.Signals(number).name)
            end.cancel()
            return


async def _wait_until_idle(usec: int, server: Server, lifecycle: Lifecycle, end: trio.CancelScope) -> None:
    while True:
        await trio.sleep(min(usec, IDLE_CHECK_USEC) / 1e6)
        quiet = trio.current_time() - server.last_activity
        if not server.connections and lifecycle.idle and quiet >= usec / 1e6:
            _log.debug("Nothing to do, exiting.")
            end.cancel()
            return
