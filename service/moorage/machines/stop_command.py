"""A command that asks a machine to end, before it is told to by signals.

A VMM that gets SIGTERM pulls the plug of its guest. The command of ``execStop`` can do better, such as press the power
button by QMP and wait until the guest has shut down. It is the ``ExecStop=`` of a service of its own, bound to the
scope and ordered after it: whatever stops the scope has that service stopped first, and the scope gets no signal
before the command has ended or its time is up. That is the service manager's own doing: it holds when the machine is
stopped through ``systemctl``, by a lease that ends, or by the shutdown of the host, and whether this service is alive
or not. Where the machine has ended by itself, the command runs as well, and finds it gone.

Pure: no I/O.
"""

from __future__ import annotations

from typing import Final

from moorage.machines.helpers.units import MachineRef
from moorage.names import SHUTDOWN
from moorage.pid1.manager import Json

PARAMETER: Final = "execStop"
"""The parameter of Register that brings the command, as in what is kept of a call (`moorage.machines.asked`)."""

TIMEOUT_USEC: Final = 90_000_000
"""How long the command may take where the caller does not say, µs: the manager's DefaultTimeoutStopSec=."""


def describe(machine: MachineRef, command: tuple[str, ...], timeout_usec: int | None) -> dict[str, Json]:
    """Return the properties of the service.

    Args:
        machine: the machine.
        command: absolute path of the program, and its arguments.
        timeout_usec: how long it may take, µs, before the scope is told all the same.
    """
    return {
        "Description": f"Stop command of machine {machine.described}",
        "Documentation": [machine.mark],
        "Slice": machine.slice,
        "CollectMode": "inactive-or-failed",
        # At shutdown it is stopped with the scope, and before it.
        "DefaultDependencies": False,
        "BindsTo": [machine.unit],
        "After": [machine.unit],
        # The launcher is told first, as by Stop.
        "Before": [SHUTDOWN],
        # Without a command to start there is no process while the machine runs.
        "Type": "oneshot",
        "RemainAfterExit": True,
        "ExecStopEx": [[command[0], list(command), ["no-env-expand"]]],
        "TimeoutStopUSec": TIMEOUT_USEC if timeout_usec is None else timeout_usec,
    }
