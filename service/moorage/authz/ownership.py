"""Whether a process is its caller's to make a machine of, and to take out of the unit where it is.

A process belongs to a user if all its uids are that user's, or if it is in a user namespace that the user owns, at any
of 16 levels (systemd's ``process_is_owned_by_uid()``, which looks at the real uid only: a set-user-ID program is then
its caller's, here it is not).

The unit that it is in belongs to a user if it is in the user's slice (a session, or what the user's manager keeps), or
if it is a service that runs as that user (``User=``), whatever else lies in it. What moves a process out of any other
unit, or declares that unit a machine that may be stopped, is not the user's decision: systemd issue 26925.
"""

from __future__ import annotations

from typing import Final

import msgspec
import trio

from moorage.authz.allowed_properties import is_below_slice_of
from moorage.kernel.process import NotAProcess, ProcessGone, ProcessId
from moorage.kernel.processes import Processes
from moorage.pid1.errors import NoSuchProperty, NoSuchUnit
from moorage.pid1.manager import Manager
from moorage.pid1.oneshot import Account, ProbeFailed, probe
from moorage.probes import owner as owner_probe
from moorage.probes.capabilities import CAP_SYS_PTRACE

OWNER_SECONDS: Final = 10.0
"""For the look at the user namespaces of a process. It takes a tenth of a second; a loaded host many times as long."""


class NotOwned(Exception):
    """The process is not the caller's to register.

    Attributes:
        pid: the process.
        uid: whose it is.
    """

    def __init__(self, pid: int, uid: int) -> None:
        super().__init__(f"process {pid} belongs to uid {uid}")
        self.pid = pid
        self.uid = uid


class UnitNotOwned(Exception):
    """The process is in a unit that is not the caller's.

    Attributes:
        unit: the unit.
    """

    def __init__(self, unit: str) -> None:
        super().__init__(f"the process is in {unit}")
        self.unit = unit


async def is_in_namespace_of(pid: int, pidfd: int, uid: int, manager: Manager, processes: Processes) -> bool:
    """Whether a process that does not run as a user is in a user namespace of that user's all the same.

    Raises:
        ProcessGone: it has ended.
    """
    if processes.shares_our_ids(pid):
        return False
    try:
        with trio.fail_after(OWNER_SECONDS):
            answer = await probe(
                manager,
                owner_probe.__file__,
                pidfd,
                f"Owner of process {pid}",
                account=Account(f"owner-{uid}", of_user=True),
                capabilities=CAP_SYS_PTRACE,
            )
        return uid in msgspec.json.decode(answer, type=list[int])
    except (trio.TooSlowError, ProbeFailed, msgspec.MsgspecError):
        if processes.has_exited(pidfd):
            raise ProcessGone(pid) from None
        return False


def runs_as(pid: int, pidfd: int, uid: int, processes: Processes) -> bool:
    """Whether a process runs as a user, and as nobody else.

    Raises:
        ProcessGone: it has ended.
    """
    found = processes.uids(pid)
    if processes.has_exited(pidfd):  # so that what was read is sure to be its own
        raise ProcessGone(pid)
    return found == frozenset({uid})


def may_signal(
    target: ProcessId, uid: int, processes: Processes, *, within: str | None = None, mapped: bool = False
) -> bool:
    """Whether a process is still what it was when a user registered it as the leader or the supervisor of a machine.

    A process can turn into somebody else's, by a set-user-ID program, and be moved to another unit, as with a session
    of its own; this service has the right to signal it all the same, and its caller has not.

    Args:
        target: the process.
        uid: who registered it.
        processes: of this host.
        within: control group that it is in; None for any.
        mapped: it never ran as that user: it is in a user namespace of the user's, or root has agreed to it.
    """
    try:
        pidfd = processes.open(target.pid, target.pidfd_id, target.boot_id)
        try:
            if within is not None and not f"{processes.control_group(target.pid)}/".startswith(f"{within}/"):
                return False
            if mapped:  # it cannot leave that namespace
                return not processes.has_exited(pidfd)
            return runs_as(target.pid, pidfd, uid, processes)
        finally:
            processes.close(pidfd)
    except (ProcessGone, NotAProcess):
        return False


async def check_unit(control_group: str, pidfd: int, uid: int, manager: Manager, *, deadline: float) -> None:
    """Check whether the unit that a process is in is a user's.

    Args:
        control_group: of the process.
        pidfd: of the process.
        uid: whose it should be.
        manager: of the system.
        deadline: on trio's clock.

    Raises:
        UnitNotOwned: it is not.
        ManagerError: as the manager says.
    """
    if is_below_slice_of(control_group, uid):
        return
    try:
        unit, _ = await manager.unit_of_process(pidfd, deadline=deadline)
    except NoSuchUnit:
        raise UnitNotOwned("no unit") from None
    if unit.endswith(".service"):
        try:
            values = await manager.properties(unit, ("UID",), deadline=deadline)
        except (NoSuchUnit, NoSuchProperty):
            values = {}
        if values.get("UID") == uid:
            return
    raise UnitNotOwned(unit)
