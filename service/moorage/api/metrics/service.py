"""What is told of moored itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol

from moorage.api.metrics.families import series
from moorage.machines.events import Kind
from moorage.machines.machine import Machine
from moorage.machines.model import Cause, MachineClass, Phase
from moorage.machines.services import Services
from moorage.pid1.latency import Latency, Sum
from moorage.wire.tally import Tally

_CLASSES = (MachineClass.container, MachineClass.vm)
_PHASES = (Phase.running, Phase.stopping, Phase.lingering)


class Connected(Protocol):
    """What has connections."""

    @property
    def connections(self) -> int:
        """Number of connections that count."""
        ...


class Insides:
    """What moored counts about itself.

    Args:
        services: have the machines, and what happens to them.
        server: has the connections.
        tally: of the calls.
        latency: of the service manager.
    """

    def __init__(self, services: Services, server: Connected, tally: Tally, latency: Latency) -> None:
        self._services = services
        self._server = server
        self._tally = tally
        self._latency = latency

    def messages(self, machines: list[Machine]) -> Iterator[bytes]:
        """Return the values, as they go over the wire.

        Args:
            machines: that there are.
        """
        counts = Counter((machine.record.class_, machine.phase) for machine in machines)
        for class_ in _CLASSES:
            for phase in _PHASES:
                yield series("MachinesTotal", **{"class": class_, "phase": phase}).message(
                    counts[class_, phase]
                )
        chronicle = self._services.chronicle
        yield series("Connections").message(self._server.connections)
        yield series("Subscribers").message(chronicle.subscribers)
        yield from _counted("Calls", "method", self._tally.calls)
        yield from _counted("Errors", "error", self._tally.errors)
        # Those that have not happened yet as well: of a counter that appears with 1 nobody sees that it has grown.
        yield from _counted("Events", "event", dict.fromkeys(Kind, 0) | chronicle.counts)
        yield from _counted("MachinesEnded", "cause", dict.fromkeys(Cause, 0) | chronicle.ends)
        yield from _summed("ManagerReplies", "ManagerReplyTime", self._latency.replies)
        yield from _summed("ManagerJobs", "ManagerJobTime", self._latency.jobs)


def _counted(family: str, field: str, counts: Mapping[str, int]) -> Iterator[bytes]:
    for value, count in sorted(counts.items()):
        yield series(family, **{field: value}).message(count)


def _summed(count: str, time: str, sums: Mapping[str, Sum]) -> Iterator[bytes]:
    for call, found in sorted(sums.items()):
        yield series(count, call=call).message(found.count)
        yield series(time, call=call).message(round(found.seconds * 1e6))
