"""Events in words, a line each, and the exit status that the end of a machine stands for."""

from __future__ import annotations

import time
from typing import Any, Final, TypeVar

import click
import msgspec

from moorage.cli import views
from moorage.cli.endings import leader_end, reason, signal_name
from moorage.cli.following import Event, Told
from moorage.client.types import Machine, Verdict
from moorage.quantities import printable

T = TypeVar("T")

SIGNALLED: Final = 128
"""Added to the number of a signal for an exit status, as shells do."""

_COLOURS: Final = {
    "machineNew": "green",
    "registrationFailed": "red",
    "helperFailed": "red",
    "helperRestarted": "yellow",
    "stopping": "yellow",
    "lingering": "red",
    "limitReached": "yellow",
    "oomKill": "red",
    "leaseLost": "yellow",
    "lost": "red",
    "machine": "bright_black",
    "snapshotDone": "bright_black",
}


def show_json(told: Told, host: str | None = None) -> None:
    """Print an event as received, on one line."""
    views.show_json(views.on_host(told.text, host))


def show(event: Event, host: str | None = None) -> None:
    """Print an event on one line: when, on which of several hosts, what, of which machine, and what else is known."""
    words = (
        _time(event.timestamp.realtime),
        host or "",
        click.style(printable(event.event), fg=_colour(event)),
        printable(event.name),
        printable(_words(event)),
    )
    click.echo("  ".join(word for word in words if word))


def _time(usec: int | None) -> str:
    if usec is None:
        return "unknown"
    try:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(usec // 1_000_000))
    except (OverflowError, OSError, ValueError):
        return "unknown"
    return f"{moment}.{usec % 1_000_000:06d}"


def _colour(event: Event) -> str | None:
    if event.event == "exited":
        return "red" if exit_status(event) else "green"
    return _COLOURS.get(event.event)


def _words(event: Event) -> str:
    data = _data(event)
    match event.event:
        case "machine" | "machineNew":
            machine = _decoded(event, Machine)
            return "" if machine is None else f"{machine.class_} in {machine.unit}{machine.subgroup or ''}"
        case "exited":
            verdict = _decoded(event, Verdict)
            if verdict is None:
                return ""
            words = (f"result {verdict.result}", reason(verdict), leader_end(verdict))
            return ", ".join(word for word in words if word)
        case "leaderExited":
            number = data.get("signal")
            if isinstance(number, int):
                return f"by {signal_name(number)}"
            return f"with status {data['status']}" if "status" in data else ""
        case "stopping":
            return f"by {data.get('by', 'unknown')}"
        case "registrationFailed":
            return f"{data.get('error', '')} {msgspec.json.encode(data.get('parameters', {})).decode()}"
        case "lost":
            return f"{data.get('count', 'some')} events were not read in time"
        case _:
            return " ".join(f"{name}={_value(value)}" for name, value in data.items())


def _value(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _data(event: Event) -> dict[str, Any]:
    return _decoded(event, dict[str, Any]) or {}


def _decoded(event: Event, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(event.data, type=kind)
    except msgspec.DecodeError:
        return None


def exit_status(event: Event) -> int:
    """Return the exit status for the end of a machine: its leader's, else whether its result is "success"."""
    verdict = _decoded(event, Verdict)
    if verdict is None:
        return 0
    if verdict.leader_signal is not None:
        return SIGNALLED + verdict.leader_signal
    if verdict.leader_status is not None:
        return verdict.leader_status
    return int(verdict.result != "success")
