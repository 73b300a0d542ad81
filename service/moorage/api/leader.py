"""The leader of a registration: the process that is named, the one that was sent, or the caller."""

from __future__ import annotations

import contextlib
import os

import msgspec

from moorage.api.calls import AsRoot
from moorage.api.wire_types import ProcessId
from moorage.authz.ownership import NotOwned
from moorage.kernel import process
from moorage.machines.registration import Registrar
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter


class Leader(msgspec.Struct):
    """An open leader.

    Attributes:
        id: the process.
        pidfd: its pidfd, owned by this object.
        uid: uid that it runs as.
        supervisor: the caller, if that is another process.
    """

    id: process.ProcessId
    pidfd: int
    uid: int
    supervisor: process.ProcessId | None

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self.pidfd)


async def open_leader(
    call: Call,
    registrar: Registrar,
    given: ProcessId | None,
    pidfd: int | None,
    field: str,
    as_root: AsRoot | None = None,
) -> Leader:
    """Open the process that is to lead a machine.

    Args:
        call: the call.
        registrar: determines the owner of the process if the caller is not root.
        given: the process as the parameters name it.
        pidfd: a pidfd that came with the call; owned by this function.
        field: name of the parameter to blame.
        as_root: asked if the process belongs to another user; None if only root may register such a process.

    Raises:
        ProcessGone: it does not exist, or is not the one that was meant.
        ForeignNumber: the number is from another PID namespace.
        InvalidParameter: it cannot be a leader, or its two names do not agree.
        NotOwned: the caller may not register it.
        System: as :meth:`AsRoot.ask_for_others`.
        OSError: no file descriptor is free.
    """
    try:
        caller = call.peer.process_id()
        if pidfd is not None:
            leader = process.process_id(pidfd)
            if given is not None and not _is_meant(leader, given):
                raise InvalidParameter(field)
        elif given is not None:
            check_number(call, given)
            pidfd, leader = process.open_and_name(given.pid, given.pidfdId, given.bootId)
        else:
            pidfd = call.peer.pidfd()
            leader = process.process_id(pidfd)
        if leader.pid in {1, os.getpid()}:
            raise InvalidParameter(field)  # the machine's end would be ours, or PID 1's
        # In a user's instance, root has the rights of that user.
        claimant = call.peer.uid or os.geteuid()
        if claimant == 0:
            owner = process.owner(leader.pid)
        else:
            try:
                owner = await registrar.check_owner(leader.pid, pidfd, claimant)
            except NotOwned:
                if as_root is None or not await as_root.ask_for_others():
                    raise
                owner = process.owner(leader.pid)
        if process.has_exited(pidfd):  # or the uid above may be that of a later process
            raise process.ProcessGone(leader.pid)
    except BaseException as error:
        if pidfd is not None:
            call.give_back(pidfd)
        if isinstance(error, process.NotAProcess):
            raise InvalidParameter(field) from None
        raise
    return Leader(leader, pidfd, owner, None if caller == leader else caller)


def check_leader(call: Call, given: ProcessId, field: str) -> None:
    """Check a process that is to lead a machine as far as that needs nobody else; it may be gone a moment later.

    Args:
        call: the call.
        given: the process as the parameters name it.
        field: name of the parameter to blame.

    Raises:
        ProcessGone, ForeignNumber, InvalidParameter, OSError: as :func:`open_leader`.
    """
    check_number(call, given)
    try:
        pidfd, leader = process.open_and_name(given.pid, given.pidfdId, given.bootId)
    except process.NotAProcess:
        raise InvalidParameter(field) from None
    os.close(pidfd)
    if leader.pid == 1:
        raise InvalidParameter(field)


class ForeignNumber(Exception):
    """A process is named only by its PID, by a peer in another PID namespace."""


def check_number(call: Call, given: ProcessId) -> None:
    """Refuse a bare PID from a peer in another PID namespace: here it would be another process.

    Raises:
        ForeignNumber: the peer is in another PID namespace, or cannot be looked at any more.
    """
    if given.pidfdId is not None:
        return
    with contextlib.suppress(process.ProcessGone):
        if call.peer.pid and process.numbers_like_us(call.peer.pid):
            return
    raise ForeignNumber


def _is_meant(leader: process.ProcessId, given: ProcessId) -> bool:
    """Return whether a process is the one that the parameters name, as far as they and the kernel say."""
    return (
        given.pid == leader.pid
        and (given.pidfdId is None or leader.pidfd_id in {None, given.pidfdId})
        and (given.bootId is None or given.bootId.replace("-", "").lower() == process.boot_id())
    )
