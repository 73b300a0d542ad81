"""What scopes, services and sockets do: their states and processes (systemd's src/core/{scope,service,socket}.c)."""

from __future__ import annotations

import signal as signals
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from fakes.kernel import Process
from fakes.units import DEPENDENCIES, Unit
from moorage.kernel.process import Exit

if TYPE_CHECKING:
    from fakes.pid1 import Pid1

REFERRING: Final = DEPENDENCIES
"""What keeps a unit loaded that is named there."""

RESTART_SECONDS: Final = 0.1
BURST: Final = 5
BURST_SECONDS: Final = 10.0

CLEAN_SIGNALS: Final = frozenset({signals.SIGHUP, signals.SIGINT, signals.SIGTERM, signals.SIGPIPE})


@dataclass
class Program:
    """What a command does.

    Attributes:
        ready: seconds until it says that it is ready; None for never.
        ends: seconds until it ends by itself; None for never.
        status: what it gives to exit(3) then.
        deaf: only SIGKILL ends it.
        missing: it cannot be executed.
    """

    ready: float | None = 0.0
    ends: float | None = None
    status: int = 0
    deaf: bool = False
    missing: bool = False


TRUE: Final = Program(ends=0.0)


def usual(_unit: Unit, argv: Sequence[str]) -> Program:
    """Return what a command of coreutils does; others go on for ever."""
    return {"true": TRUE, "false": Program(ends=0.0, status=1)}.get(argv[0], Program())


def start(manager: Pid1, unit: Unit) -> str | None:
    """Start a unit; return the result of the job, should it be known already."""
    if unit.kind == "scope" and unit.starts:
        return "once"  # before anything is tried (unit_start())
    if manager.fails(unit):
        unit.result = "resources"
        manager.dead(unit, "resources")
        return "failed"
    match unit.kind:
        case "scope":
            return _start_scope(manager, unit)
        case "service":
            return _start_service(manager, unit)
        case _:
            manager.new_invocation(unit)
            manager.enter(unit, "active", "listening")
            return None


def stop(manager: Pid1, unit: Unit) -> None:
    """Begin to stop a unit that is not down."""
    unit.killed = False
    command: Any = unit.properties.get("ExecStopEx")
    if unit.kind == "service" and command and unit.active == "active":
        _ask(manager, unit, command[0][1])
        return
    _terminate(manager, unit)


def empty(manager: Pid1, unit: Unit) -> None:
    """React to a control group without processes."""
    if unit.kind == "scope":
        manager.dead(unit, "oom-kill" if unit.oom else "success")
    elif unit.kind == "service" and unit.main is None and not unit.remains:
        ends = unit.active == "deactivating" or not unit.transient
        if ends:
            manager.dead(unit, "success")


def seconds(unit: Unit, name: str, default: float) -> float:
    """Return a time span that a unit has."""
    value = unit.properties.get(name)
    return value / 1e6 if isinstance(value, int) else default


def _start_scope(manager: Pid1, unit: Unit) -> str | None:
    unit.starts.append(trio.current_time())
    manager.new_invocation(unit)
    unit.group = manager.group_of(unit)
    manager.kernel.make(unit.group)
    moved = 0
    for process in unit.given:
        try:
            manager.kernel.move(process, unit.group)
        except ProcessLookupError:
            continue
        moved += 1
    unit.given = ()
    if not moved:
        manager.dead(unit, "resources")
        return None
    manager.enter(unit, "active", "running")
    if unit.properties.get("RuntimeMaxUSec"):

        def late() -> None:
            unit.result = "timeout"
            _terminate(manager, unit)

        manager.after(seconds(unit, "RuntimeMaxUSec", 0), unit, late)
    return None


def _terminate(manager: Pid1, unit: Unit) -> None:
    there = manager.kernel.members(unit.group) if unit.group else []
    if not there:
        manager.dead(unit, "success")
        return
    manager.after(seconds(unit, "TimeoutStopUSec", manager.stop_seconds), unit, lambda: _kill(manager, unit))
    manager.enter(unit, "deactivating", "stop-sigterm")
    if unit.active == "deactivating":
        _signal(manager, there, signals.SIGTERM)


def _kill(manager: Pid1, unit: Unit) -> None:
    there = manager.kernel.members(unit.group) if unit.group else []
    if unit.killed or not there:
        manager.dead(unit, "timeout" if there else "success")
        return
    unit.killed = True
    unit.result = "timeout"
    manager.after(seconds(unit, "TimeoutStopUSec", manager.stop_seconds), unit, lambda: _kill(manager, unit))
    manager.enter(unit, "deactivating", "stop-sigkill")
    _signal(manager, there, signals.SIGKILL)


def _signal(manager: Pid1, processes: list[Process], number: int) -> None:
    for process in processes:
        if process.exit is None:
            manager.kernel.signal(process, number)


def _ask(manager: Pid1, unit: Unit, argv: list[str]) -> None:
    """Run the command that comes before the end of a service."""
    program = manager.program(unit, argv)
    if not unit.group:
        unit.group = manager.group_of(unit)
    control = manager.kernel.spawn(unit.group)
    control.ended.append(lambda _: manager.post(lambda: _asked(manager, unit)))
    manager.after(
        seconds(unit, "TimeoutStopUSec", manager.stop_seconds), unit, lambda: _terminate(manager, unit)
    )
    manager.enter(unit, "deactivating", "stop")
    _live(manager, control, program)


def _asked(manager: Pid1, unit: Unit) -> None:
    if unit.active == "deactivating":
        _terminate(manager, unit)


def _live(manager: Pid1, process: Process, program: Program) -> None:
    process.deaf = program.deaf
    if program.ends is not None:
        manager.later(program.ends, lambda: manager.kernel.end(process, Exit(status=program.status)))


def _start_service(manager: Pid1, unit: Unit) -> str | None:
    present = trio.current_time()
    unit.starts = [when for when in unit.starts if present - when < BURST_SECONDS]
    if len(unit.starts) >= BURST:
        unit.result = "start-limit-hit"
        manager.dead(unit, "start-limit-hit")
        return "failed"
    unit.starts.append(present)
    manager.new_invocation(unit)
    command: Any = unit.properties.get("ExecStartEx") or unit.properties.get("ExecStart")
    if not command:
        manager.enter(unit, "active", "exited")
        return None
    unit.group = manager.group_of(unit)
    argv = [str(each) for each in command[0][1]]
    program = TRUE if argv[0] in {"true", "mount"} else manager.program(unit, argv)
    process = unit.main = manager.kernel.spawn(unit.group)
    process.ended.append(lambda _: manager.post(lambda: _main_ended(manager, unit, process)))
    kind = unit.properties.get("Type", "simple")
    if program.missing:
        manager.after(manager.start_seconds, unit, lambda: _late(manager, unit))
        manager.enter(unit, "activating", "start")
        manager.kernel.end(process, Exit(status=203))
        return None
    if kind in {"simple", "exec"}:
        manager.enter(unit, "active", "running")
    else:
        manager.after(
            seconds(unit, "TimeoutStartUSec", manager.start_seconds), unit, lambda: _late(manager, unit)
        )
        manager.enter(unit, "activating", "start")
        if kind != "oneshot" and program.ready is not None:
            manager.later(program.ready, lambda: _ready(manager, unit, process))
    _live(manager, process, program)
    return None


def _ready(manager: Pid1, unit: Unit, process: Process) -> None:
    if unit.main is process and process.exit is None and (unit.active, unit.sub) == ("activating", "start"):
        unit.timer = 0
        manager.enter(unit, "active", "running")


def _late(manager: Pid1, unit: Unit) -> None:
    if (unit.active, unit.sub) == ("activating", "start"):
        unit.result = "timeout"
        _terminate(manager, unit)


def _main_ended(manager: Pid1, unit: Unit, process: Process) -> None:
    if unit.main is not process or process.exit is None:
        return
    unit.main = None
    how = process.exit
    oneshot = unit.properties.get("Type") == "oneshot"
    clean = how.status == 0 or (how.signal in CLEAN_SIGNALS and not oneshot)
    result = "success" if clean else "exit-code" if how.signal is None else "signal"
    starting = (unit.active, unit.sub) == ("activating", "start")
    if unit.active == "deactivating":
        if not clean and unit.result == "success" and how.signal != signals.SIGKILL:
            unit.result = result
        if not manager.kernel.members(unit.group):
            manager.dead(unit, "success")
        return
    if starting == oneshot and clean and unit.properties.get("RemainAfterExit"):
        unit.timer = 0
        manager.kernel.remove(unit.group)
        unit.group = ""
        manager.enter(unit, "active", "exited")
        return
    if starting and not oneshot and clean:
        result = "protocol"
    _end_or_restart(manager, unit, result)


def _end_or_restart(manager: Pid1, unit: Unit, result: str) -> None:
    policy = unit.properties.get("Restart", "no")
    again = policy == "always" or policy == ("on-success" if result == "success" else "on-failure")
    _signal(manager, manager.kernel.members(unit.group), signals.SIGKILL)
    if again and not (unit.job is not None and unit.job.kind == "stop"):
        if unit.group:
            manager.kernel.remove(unit.group)
            unit.group = ""
        unit.result = result

        def restart() -> None:
            if (unit.active, unit.sub) == ("activating", "auto-restart"):
                unit.sub = "dead"
                unit.restarts += 1
                _start_service(manager, unit)

        manager.after(RESTART_SECONDS, unit, restart)
        manager.enter(unit, "activating", "auto-restart")
        return
    manager.dead(unit, result)
