"""Metrics, for those who only look on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from moorage import activation
from moorage.api.calls import Authority
from moorage.api.metrics.handlers import Metrics
from moorage.api.metrics.service import Insides
from moorage.machines.services import Services
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.wire.server import Server
from moorage.wire.service import Interface, Service
from moorage.wire.tally import Tally


def offer_metrics(
    offers: ExitStack,
    address: str | None,
    services: Services,
    authority: Authority,
    manager: DBusManager,
    server: Server,
    tally: Tally,
    named: Callable[[Interface], Service],
) -> None:
    """Serve metrics.

    Args:
        offers: ends it.
        address: path of the socket; None for none.
        services: have the machines.
        authority: says who may see which.
        manager: how long it takes is told.
        server: serves them, and is told of.
        tally: of the calls.
        named: makes a service of an interface.
    """
    listener = offers.enter_context(activation.offered(address, "metrics"))
    if listener is not None:
        insides = Insides(services, server, tally, manager.latency)
        server.listen(listener, named(Metrics(services, authority, insides)), aside=True)
