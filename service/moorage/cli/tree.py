"""Slices, the machines in them, their helpers, and the processes of both.

The service tells of machines and helpers; their processes are read from the control groups, as systemd-cgls does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from moorage.cli.views import PHASE_COLOURS, phase_words, show_json
from moorage.client.types import HelperStatus, Machine
from moorage.kernel import cgroup, process
from moorage.quantities import printable

PROCESSES_MAX: Final = 4096
"""Processes of one unit that are shown: more, nobody reads."""

COMMAND_MAX: Final = 4096
"""Bytes of a command line that are shown; it may have as many as its process likes."""

PIPE_WIDTH: Final = 2 * COMMAND_MAX
"""Columns where nothing has to fit into a window."""


class Process(msgspec.Struct, frozen=True):
    """A process.

    Attributes:
        pid: its number.
        command: its command line, or its name in brackets; in the process' own hands.
    """

    pid: int
    command: str


class Member(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A helper.

    Attributes:
        name: its name.
        unit: its service.
        active_state: state of the service.
        processes: those in its control group; None where they cannot be told.
    """

    name: str
    unit: str
    active_state: str
    processes: list[Process] | None = None


class Branch(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A machine.

    Attributes:
        name: its name.
        unit: its unit, with the subgroup if it has that only.
        phase: its phase.
        freezer: state of its freezer.
        leader: PID of its leader.
        processes: those in its control group; None where they cannot be told.
        helpers: its helpers.
    """

    name: str
    unit: str
    phase: str
    freezer: str
    leader: int | None
    processes: list[Process] | None
    helpers: list[Member]


class Slice(msgspec.Struct, frozen=True):
    """A slice, with the machines in it."""

    slice: str
    machines: list[Branch]


def grown(machines: Iterable[Machine]) -> list[Slice]:
    """Return the tree of some machines, sorted by their slices."""
    slices: dict[str, list[Branch]] = {}
    for machine in machines:
        slices.setdefault(machine.slice, []).append(_branch(machine))
    return [Slice(name, branches) for name, branches in sorted(slices.items())]


def _branch(machine: Machine) -> Branch:
    around = machine.control_group.rpartition("/")[0]  # helpers are in the slice of their machine
    return Branch(
        machine.name,
        machine.unit + (machine.subgroup or ""),
        machine.phase,
        machine.freezer,
        None if machine.leader is None else machine.leader.pid,
        _processes(machine.control_group),
        [_member(helper, around) for helper in machine.helpers],
    )


def _member(helper: HelperStatus, around: str) -> Member:
    return Member(helper.name, helper.unit, helper.active_state, _processes(f"{around}/{helper.unit}"))


def _processes(control_group: str) -> list[Process] | None:
    """Return the processes in a control group and below it; None where they cannot be told."""
    try:
        pids = cgroup.processes(control_group, PROCESSES_MAX)
    except OSError:
        return None
    if pids is None:
        return None
    # One that is in no namespace of ours has the number 0.
    return [found for pid in sorted(pids) if pid and (found := _process(pid, control_group)) is not None]


def _process(pid: int, control_group: str) -> Process | None:
    """Return a process; None if it has left the control group, so that the number may be another one's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(COMMAND_MAX).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        if not words:
            with open(f"/proc/{pid}/comm", "rb") as file:
                words = f"[{file.read(COMMAND_MAX).decode(errors='replace').rstrip()}]"
        if not f"{process.control_group(pid)}/".startswith(f"{control_group}/"):
            return None
    except (OSError, process.ProcessGone):
        return None
    return Process(pid, words)


def show_tree(machines: Iterable[Machine], *, as_json: bool) -> None:
    """Print the tree of some machines, or a line of JSON for each slice."""
    slices = grown(machines)
    if as_json:
        for each in slices:
            show_json(msgspec.Raw(msgspec.json.encode(each)))
    elif slices:
        _draw(slices)


def _draw(slices: Iterable[Slice]) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def line(*words: str | tuple[str, str]) -> Text:
        # As Text, because rich would interpret markup in a str, and these words come from outside.
        return Text.assemble(*words, overflow="ellipsis", no_wrap=True)

    def add(branch: Tree, processes: list[Process] | None, leader: int | None) -> None:
        if processes is None:
            branch.add(line(("processes unknown", "bright_black")))
        width = max((len(str(each.pid)) for each in processes or ()), default=0)
        for each in processes or ():
            style = "bold" if each.pid == leader else ""
            branch.add(line((f"{each.pid:>{width}}", style), " ", printable(each.command)))

    for each in slices:
        tree = Tree(line(printable(each.slice)))
        for machine in each.machines:
            branch = tree.add(line(*_words(machine)))
            add(branch, machine.processes, machine.leader)
            for helper in machine.helpers:
                words = printable(f" {helper.active_state} {helper.unit}")
                add(
                    branch.add(line("helper ", (printable(helper.name), "bold"), words)),
                    helper.processes,
                    None,
                )
        console.print(tree)


def _words(machine: Branch) -> Iterator[str | tuple[str, str]]:
    yield printable(machine.name), "bold"
    yield " "
    yield printable(phase_words(machine.phase, machine.freezer)), PHASE_COLOURS.get(machine.phase, "")
    yield f" {printable(machine.unit)}"  # at the end, where a narrow terminal cuts off what follows from the name
