"""Users and groups of machines, by their numbers inside and on the host (user_namespaces(7)).

As systemd-machined 262 maps them: ``machine_translate_uid()``, ``machine_owns_uid()``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, TypeAlias

from moorage.kernel.process import NotAProcess, ProcessGone, has_exited, open_process, pid_of
from moorage.machines.inside import InsideError, InsideFailed
from moorage.machines.machine import Machine
from moorage.machines.model import MachineClass, Record

Kind: TypeAlias = Literal["uid", "gid"]

NO_ID: Final = 2**16 - 1
NO_ID_EITHER: Final = 2**32 - 1
"""Numbers that nobody has (``uid_is_valid()``)."""

HOST_MAX: Final = 0x10000
"""From this number on, users are not the host's own."""


class NoSuchId(InsideError):
    """Nobody has that number there."""


def is_id(number: int) -> bool:
    """Return whether somebody may have this number."""
    return number not in {NO_ID, NO_ID_EITHER}


def to_host(machine: Record, kind: Kind, number: int) -> int:
    """Return the number on the host of a user or a group of a container.

    Raises:
        NoSuchId: there is none.
        InsideFailed: its leader cannot be looked at.
    """
    for first, outside, count in _ranges(machine, kind):
        if first <= number < first + count:
            return _valid(outside + number - first)
    raise NoSuchId


def from_host(machines: Iterable[Machine], kind: Kind, number: int) -> tuple[Machine, int]:
    """Return the container whose user or group has a number on the host, and the number inside.

    Raises:
        NoSuchId: there is none.
    """
    for machine in machines:
        if machine.record.class_ is not MachineClass.container:
            continue
        try:
            ranges = list(_ranges(machine.record, kind))
        except InsideFailed:
            continue
        for first, outside, count in ranges:
            # Those of the host's own numbers are no users of a machine's.
            if outside and outside <= number < outside + count:
                return machine, _valid(first + number - outside)
    raise NoSuchId


def _valid(number: int) -> int:
    if not is_id(number):
        raise InsideFailed(errno.EINVAL)
    return number


def _ranges(machine: Record, kind: Kind) -> Iterator[tuple[int, int, int]]:
    """First number inside, first number outside, how many."""
    if machine.leader is None:
        raise InsideFailed(errno.ESRCH)
    try:
        leader = open_process(machine.leader.pid, machine.leader.pidfd_id, machine.leader.boot_id)
        try:
            text = Path(f"/proc/{pid_of(leader)}/{kind}_map").read_text(encoding="ascii")
            if has_exited(leader):  # so that what was read is sure to be its own
                raise InsideFailed(errno.ESRCH)
        finally:
            os.close(leader)
    except (ProcessGone, NotAProcess):
        raise InsideFailed(errno.ESRCH) from None
    except OSError as exc:
        raise InsideFailed(exc.errno or errno.EIO) from None
    for line in text.splitlines():
        first, outside, count = map(int, line.split())
        yield first, outside, count
