"""How a machine ended, in words for ``moorctl status`` and ``moorctl run``."""

from __future__ import annotations

import signal
from typing import Final

from moorage.client.types import Machine, Verdict

LACK_OF_MEMORY: Final = "killed for lack of memory"

_CAUSES: Final = {
    "leaderEnded": "its leader ended",
    "stopped": "it was stopped on request",
    "leaseEnded": "its lease ended: the connection that held it was closed",
    "oomKilled": f"it was {LACK_OF_MEMORY}",
    "oomdKilled": f"it was {LACK_OF_MEMORY} by systemd-oomd",
    "leaderLeft": "its leader moved to another control group, and lives on there",
    "unitStopped": "its unit was stopped through the service manager",
}


def reason(verdict: Verdict) -> str | None:
    """Return why a machine ended; None if that is unknown."""
    if verdict.cause == "helperEnded" and verdict.helper is not None:
        result = f" with result {verdict.helper_result}" if verdict.helper_result else ""
        words = f": {verdict.log[-1]}" if verdict.log else ""
        return f"its helper {verdict.helper} ended{result}{words}"
    return _CAUSES.get(verdict.cause or "")


def leader_end(verdict: Verdict) -> str | None:
    """Return how the leader of a machine ended; None if that is unknown."""
    if verdict.leader_signal is not None:
        return f"leader ended by {signal_name(verdict.leader_signal)}"
    return None if verdict.leader_status is None else f"leader ended with status {verdict.leader_status}"


def signal_name(number: int) -> str:
    """Return the name of a signal, or words for one that has none."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def surprise(machine: Machine, *, asked: bool, left: bool) -> str | None:
    """Return what the exit status of a command does not tell about the end of its machine; None if it tells all.

    Args:
        machine: a machine that has ended.
        asked: the person who waits for the command asked for the end.
        left: the machine still had processes when the command had ended.
    """
    verdict = machine.verdict
    if verdict is None:
        return None
    match verdict.cause:
        case "stopped" if asked:
            return None
        case "stopped" if left:
            return (
                "The command ended but left processes behind, which were stopped. "
                "A command that goes into the background, as qemu -daemonize does, needs --no-lease."
            )
        case "leaderEnded" | "unknown" | None:
            return f"Processes of {machine.name} were {LACK_OF_MEMORY}." if verdict.oom_killed else None
        case _:
            why = reason(verdict)
            return None if why is None else f"Machine {machine.name} ended: {why}."
