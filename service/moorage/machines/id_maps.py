"""Users and groups of machines, by their numbers inside and on the host (user_namespaces(7)).

As systemd-machined 262 maps them: ``machine_translate_uid()``, ``machine_owns_uid()``.

Anybody may ask whose a number is, as often as he likes, and each container may have that user: so its map is
remembered for a moment. A map is written once and for all, but its container's leader may move to another user
namespace. Who is found by what is remembered is looked at again before that is said.
"""

from __future__ import annotations

import errno
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


def is_id(number: int) -> bool:
    """Return whether somebody may have this number."""
    return number not in {NO_ID, NO_ID_EITHER}


class IdMaps:
    """The numbers of users and groups of all containers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._remembered: dict[Kind, dict[str, _Remembered]] = {"uid": {}, "gid": {}}
        self._turn = trio.Lock()

    def to_host(self, machine: Machine, kind: Kind, number: int) -> int:
        """Return the number on the host of a user or a group of a container.

        Raises:
            NoSuchId: there is none.
            InsideFailed: its leader cannot be looked at.
        """
        for each in _ranges(machine, kind):
            if each.inside <= number < each.inside + each.size:
                return _valid(each.outside + number - each.inside)
        raise NoSuchId

    def from_host(self, kind: Kind, number: int) -> tuple[Machine, int]:
        """Return the container whose user or group has a number on the host, and the number inside.

        Raises:
            NoSuchId: there is none, or none that is remembered: see :meth:`is_ready`.
        """
        for machine in self._containers():
            remembered = self._remembered[kind].get(machine.name)
            if (
                remembered is not None
                and remembered.machine is machine
                and _inside(remembered.ranges, number) is not None
                and (found := _inside(_read_ranges(machine, kind), number)) is not None
            ):
                return machine, _valid(found)
        raise NoSuchId

    def is_ready(self, kind: Kind) -> bool:
        """Return whether all maps are remembered, after a few of them were read; else :meth:`read` does the rest."""
        due = self._due(kind)
        for machine in due[:AT_ONCE]:
            self._remember(machine, kind)
        return len(due) <= AT_ONCE

    async def read(self, kind: Kind) -> None:
        """Have all maps remembered: those that others who wait have read are not read again."""
        async with self._turn:
            until = time.monotonic() + SLICE_SECONDS
            for machine in self._due(kind):
                self._remember(machine, kind)
                if time.monotonic() > until:
                    await trio.lowlevel.checkpoint()
                    until = time.monotonic() + SLICE_SECONDS
        known = self._remembered[kind]
        if len(known) > 2 * len(self._registry):
            for name in [name for name, each in known.items() if each.machine.gone.is_set()]:
                del known[name]

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

    def _remember(self, machine: Machine, kind: Kind) -> None:
        ranges = _read_ranges(machine, kind)
        # Those of the host's own numbers are no users of a machine's.
        mapped = any(each.outside for each in ranges)
        until = time.monotonic() + (REMEMBERED_SECONDS if mapped else UNMAPPED_SECONDS)
        self._remembered[kind][machine.name] = _Remembered(machine, ranges, until)


def _inside(ranges: tuple[_Range, ...], number: int) -> int | None:
    for inside, outside, size in ranges:
        if outside and outside <= number < outside + size:
            return inside + number - outside
    return None


def _valid(number: int) -> int:
    if not is_id(number):
        raise InsideFailed(errno.EINVAL)
    return number


def _read_ranges(machine: Machine, kind: Kind) -> tuple[_Range, ...]:
    """Return the ranges of a container; none of one that cannot be looked at."""
    try:
        return _ranges(machine, kind)
    except InsideFailed:
        return ()


def _ranges(machine: Machine, kind: Kind) -> tuple[_Range, ...]:
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
