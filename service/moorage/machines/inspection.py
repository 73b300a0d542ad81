"""What this service may not look at itself: devices, and the BPF programs of control groups.

A unit of its own looks for it. Nothing here fails a call: what cannot be had in `LOOK_SECONDS` is not told.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import Final

import msgspec
import trio

from moorage.machines.compared.bpf import BPF_TYPES
from moorage.pid1.manager import Manager
from moorage.pid1.oneshot import ProbeFailed, probe
from moorage.probes import effective as program
from moorage.probes.capabilities import CAP_BPF, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN

LOOK_SECONDS: Final = 5.0
"""For how long devices and BPF programs are looked at: as long as the unit that does so may run."""

_log = logging.getLogger(__name__)


class Found(msgspec.Struct, frozen=True):
    """The findings of an inspection.

    Attributes:
        devices: the kind and the disk that a path leads to, by path; None where there is no device.
        programs: how many programs a control group has, by type, by its path in the file system.
    """

    devices: dict[str, tuple[str, str | None] | None] = {}
    programs: dict[str, dict[int, int]] = {}


async def look(manager: Manager, paths: Collection[str], groups: Collection[str]) -> Found:
    """Inspect devices and BPF programs by a unit, if there are any.

    Args:
        manager: starts the unit.
        paths: of devices.
        groups: paths of control groups in the file system.
    """
    if not paths and not groups:
        return Found()
    question = os.memfd_create("question", os.MFD_CLOEXEC)
    try:
        os.pwrite(question, msgspec.json.encode({"paths": paths, "groups": groups, "types": BPF_TYPES}), 0)
        with trio.fail_after(LOOK_SECONDS):
            answer = await probe(
                manager,
                program.__file__,
                question,
                "What is in force of the limits of a machine",
                account=None,
                capabilities=CAP_NET_ADMIN | CAP_BPF | CAP_DAC_READ_SEARCH,
                system_calls=("bpf",),
            )
        return msgspec.json.decode(answer, type=Found)
    except (ProbeFailed, trio.TooSlowError, msgspec.DecodeError, OSError) as error:
        _log.warning("Failed to look at what is in force, ignoring: %s", error)
        return Found()
    finally:
        os.close(question)
