"""Users and groups of machines, by their numbers inside and on the host (user_namespaces(7)).

As systemd-machined 262 maps them: ``machine_translate_uid()``, ``machine_owns_uid()``.

Anybody may ask whose a number is, as often as he likes, and each container may have that user: so its map is
remembered for a moment. A map is written once and for all, but its container's leader may move to another user
namespace. Who is found by what is remembered is looked at again before that is said: whether the leader lives each
time, and its map unless that was read some milliseconds ago, as when the owners of all files of a directory are asked
for.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

import trio

from moorage.kernel.process import NotAProcess, ProcessGone, has_exited, open_process, pid_of
from moorage.machines.inside import InsideError, InsideFailed
from moorage.machines.machine import Machine
from moorage.machines.model import MachineClass
from moorage.machines.registry import Registry

Kind: TypeAlias = Literal["uid", "gid"]

NO_ID: Final = 2**16 - 1
NO_ID_EITHER: Final = 2**32 - 1
"""Numbers that nobody has (``uid_is_valid()``)."""

HOST_MAX: Final = 0x10000
"""From this number on, users are not the host's own."""

REMEMBERED_SECONDS: Final = 1.0
"""For how long a map is remembered, s."""

UNMAPPED_SECONDS: Final = 0.05
"""The same of a container without users of its own, s: its leader may be about to get them."""

FRESH_SECONDS: Final = 0.01
"""For how long a map that was read needs no other look, s: an answer is as old as that when it has been read."""

FOUND_MAX: Final = 1024
"""Numbers of which it is remembered whose they are, for as long as all maps are: those of a busy container's files."""

AT_ONCE: Final = 16
"""Maps that are read at once: a millisecond at worst, with the 340 ranges that the kernel allows in each."""

SLICE_SECONDS: Final = 0.001
"""For how long further ones are read before others get their turn, s."""

_READ: Final = 64 * 1024


class NoSuchId(InsideError):
    """Nobody has that number there."""


class _Range(NamedTuple):
    """Numbers of a container: first one inside, first one outside, how many."""

    inside: int
    outside: int
    size: int


class _Remembered(NamedTuple):
    """The map of a container."""

    machine: Machine
    ranges: tuple[_Range, ...]
    until: float
    fresh_until: float


class _All:
    """All maps of a kind, as long as they are remembered.

    Attributes:
        machines: that there were when they were looked for; the registry's own tuple.
        until: when the first of them is to be read again.
        found: machines by numbers that were found there.
    """

    def __init__(self) -> None:
        self.machines: tuple[Machine, ...] | None = None
        self.until = 0.0
        self.found: dict[int, Machine] = {}


def is_id(number: int) -> bool:
    """Return whether somebody may have this number."""
    return number not in {NO_ID, NO_ID_EITHER}


class IdMaps:
    """The numbers of users and groups of all containers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._remembered: dict[Kind, dict[str, _Remembered]] = {"uid": {}, "gid": {}}
        self._all: dict[Kind, _All] = {"uid": _All(), "gid": _All()}
        self._turn = trio.Lock()

    def to_host(self, machine: Machine, kind: Kind, number: int) -> int:
        """Return the number on the host of a user or a group of a container.

        Raises:
            NoSuchId: there is none.
            InsideFailed: its leader cannot be looked at.
        """
        for each in self._ranges(machine, kind):
            if each.inside <= number < each.inside + each.size:
                return _valid(each.outside + number - each.inside)
        raise NoSuchId

    def from_host(self, kind: Kind, number: int) -> tuple[Machine, int]:
        """Return the container whose user or group has a number on the host, and the number inside.

        Raises:
            NoSuchId: there is none, or none that is remembered: see :meth:`is_ready`.
        """
        known = self._all[kind]
        machine = known.found.get(number)
        if machine is not None and machine.is_there and known.machines is self._registry.snapshot():
            found = _inside(self._ranges_or_none(machine, kind), number)
            if found is not None:
                return machine, _valid(found)
        for machine in self._containers():
            remembered = self._remembered[kind].get(machine.name)
            if (
                remembered is not None
                and remembered.machine is machine
                and _inside(remembered.ranges, number) is not None
                and (found := _inside(self._ranges_or_none(machine, kind), number)) is not None
            ):
                if len(known.found) < FOUND_MAX:
                    known.found[number] = machine
                return machine, _valid(found)
        raise NoSuchId

    def is_ready(self, kind: Kind) -> bool:
        """Return whether all maps are remembered, after a few of them were read; else :meth:`read` does the rest."""
        known, machines = self._all[kind], self._registry.snapshot()
        if known.machines is machines and known.until > time.monotonic():
            return True
        due = self._due(kind)
        for machine in due[:AT_ONCE]:
            self._remember(machine, kind)
        if len(due) > AT_ONCE:
            return False
        remembered = self._remembered[kind]
        known.machines = machines
        known.until = min((remembered[each.name].until for each in self._containers()), default=math.inf)
        known.found.clear()
        return True

    async def read(self, kind: Kind) -> None:
        """Have all maps remembered: those that others who wait have read are not read again."""
        async with self._turn:
            until = time.monotonic() + SLICE_SECONDS
            for machine in self._due(kind):
                self._remember(machine, kind)
                if time.monotonic() > until:
                    await trio.lowlevel.checkpoint()
                    until = time.monotonic() + SLICE_SECONDS

    def _containers(self) -> Iterator[Machine]:
        for machine in self._registry.snapshot():
            if machine.record.class_ is MachineClass.container and machine.is_there:
                yield machine

    def _due(self, kind: Kind) -> list[Machine]:
        now, known = time.monotonic(), self._remembered[kind]
        return [
            machine
            for machine in self._containers()
            if (each := known.get(machine.name)) is None or each.machine is not machine or each.until <= now
        ]

    def _ranges(self, machine: Machine, kind: Kind) -> tuple[_Range, ...]:
        """Return the ranges of a container, whose leader lives.

        Raises:
            InsideFailed: it cannot be looked at.
        """
        known = self._remembered[kind].get(machine.name)
        fresh = known is not None and known.machine is machine and known.fresh_until > time.monotonic()
        if known is not None and fresh and machine.leader is not None and not machine.leader.ended:
            return known.ranges
        return self._keep(machine, kind, _read(machine, kind)).ranges

    def _ranges_or_none(self, machine: Machine, kind: Kind) -> tuple[_Range, ...]:
        """Return the ranges of a container; none of one that cannot be looked at."""
        try:
            return self._ranges(machine, kind)
        except InsideFailed:
            return ()

    def _remember(self, machine: Machine, kind: Kind) -> None:
        try:
            ranges = _read(machine, kind)
        except InsideFailed:  # it has none then
            ranges = ()
        self._keep(machine, kind, ranges)

    def _keep(self, machine: Machine, kind: Kind, ranges: tuple[_Range, ...]) -> _Remembered:
        # Those of the host's own numbers are no users of a machine's.
        mapped = any(each.outside for each in ranges)
        now = time.monotonic()
        until = now + (REMEMBERED_SECONDS if mapped else UNMAPPED_SECONDS)
        kept = _Remembered(machine, ranges, until, now + FRESH_SECONDS if mapped else 0.0)
        known = self._remembered[kind]
        known[machine.name] = kept
        if len(known) > 2 * len(self._registry) + AT_ONCE:
            for name in [name for name, each in known.items() if each.machine.gone.is_set()]:
                del known[name]
        return kept


def _inside(ranges: tuple[_Range, ...], number: int) -> int | None:
    for inside, outside, size in ranges:
        if outside and outside <= number < outside + size:
            return inside + number - outside
    return None


def _valid(number: int) -> int:
    if not is_id(number):
        raise InsideFailed(errno.EINVAL)
    return number


def _read(machine: Machine, kind: Kind) -> tuple[_Range, ...]:
    leader = machine.record.leader
    if leader is None:
        raise InsideFailed(errno.ESRCH)
    try:
        if machine.leader is not None:
            text = _text(leader.pid, kind)
            gone = machine.leader.ended  # so that what was read is sure to be its own
        else:
            pidfd = open_process(leader.pid, leader.pidfd_id, leader.boot_id)
            try:
                text = _text(pid_of(pidfd), kind)
                gone = has_exited(pidfd)
            finally:
                os.close(pidfd)
    except (ProcessGone, NotAProcess):
        raise InsideFailed(errno.ESRCH) from None
    except OSError as exc:
        # What is not found in /proc is a process that is not there.
        raise InsideFailed(errno.ESRCH if exc.errno == errno.ENOENT else exc.errno or errno.EIO) from None
    if gone:
        raise InsideFailed(errno.ESRCH)
    return tuple(_Range(*map(int, line.split())) for line in text.splitlines())


def _text(pid: int, kind: Kind) -> bytes:
    file = os.open(f"/proc/{pid}/{kind}_map", os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        while part := os.read(file, _READ):  # the kernel gives a page at a time
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)
