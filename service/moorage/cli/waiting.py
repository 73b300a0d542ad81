"""Waiting for a moment in the life of a machine."""

from __future__ import annotations

from typing import Final

import msgspec

from moorage.cli import service
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.cli.following import Event, Following, Told
from moorage.client.methods import Subscribe
from moorage.client.types import Machine, Timestamp
from moorage.quantities import printable
from moorage.wire.errors import TimedOut

LIFE: Final = {
    "machineNew": "running",
    "stopping": "stopping",
    "lingering": "stopping",
    "empty": "empty",
    "exited": "exited",
}
"""Where in its life a machine is after an event."""

_ORDER: Final = ("running", "stopping", "empty", "exited")
_PHASES: Final = {"stopping": "stopping", "lingering": "stopping", "exited": "empty"}


def wait(address: Address, name: str, state: str, until: float) -> Told | None:
    """Wait until a machine has come so far.

    Args:
        address: where the service listens.
        name: of the machine.
        state: running, stopping, empty or exited.
        until: time of :func:`time.monotonic`, s.

    Returns:
        Its end, if it has ended; None else.

    Raises:
        Failure: there is no such machine, it was forgotten, or the time is over.
    """
    goal, there = _ORDER.index(state), False
    try:
        for told in Following(address, Subscribe(names=[name]), until=until).events():
            event = told.event
            if event.event == "snapshotDone" and not there and goal > 0:
                return _ended(address, name)
            if event.event == "forgotten":
                raise Failure(Exit.REFUSED, f"Machine {printable(name)} was forgotten.")
            there = there or event.event in {"machine", "machineNew"}
            reached = (
                _PHASES.get(_phase(event), "running") if event.event == "machine" else LIFE.get(event.event)
            )
            if reached is not None and _ORDER.index(reached) >= goal:
                return told if event.event == "exited" else None
    except TimedOut:
        raise Failure(Exit.TIMED_OUT, f"Machine {printable(name)} is not {state} yet.") from None
    raise AssertionError("events do not end")


def _phase(event: Event) -> str:
    return msgspec.json.decode(event.data, type=Machine).phase


class _Verdicts(msgspec.Struct):
    machine: _Ended


class _Ended(msgspec.Struct, rename="camel"):
    name: str
    invocation_id: str
    verdict: msgspec.Raw


def _ended(address: Address, name: str) -> Told:
    """Return the end of a machine that is gone, while its verdict is kept.

    Raises:
        Failure: there is none.
    """
    reply = service.call(address, "Describe", {"name": name})
    try:
        machine = msgspec.json.decode(reply, type=_Verdicts).machine
    except msgspec.DecodeError:  # another one has the name by now
        raise Failure(Exit.NO_SUCH_MACHINE, f"There was no machine {printable(name)}.") from None
    event = Event("", "exited", machine.name, Timestamp(), machine.invocation_id, machine.verdict)
    return Told(event, msgspec.Raw(msgspec.json.encode(event)))
