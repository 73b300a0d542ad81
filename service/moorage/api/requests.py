"""What both interfaces of machines want to know of a call, in the same order of checks.

Decode → class → authority → which process, does it live, whose is it → name free → properties valid → claim → act: the
first half is settled here and in the handlers, the rest in :mod:`moorage.machines.registration`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from moorage.authz.ownership import NotOwned
from moorage.authz.policy import AS_ROOT, Policy
from moorage.authz.polkit import Answer, Polkit, TooManyQuestions
from moorage.kernel import process
from moorage.machines import model
from moorage.machines.machine import Machine
from moorage.machines.registration import Registrar
from moorage.machines.registry import Registry
from moorage.wire.call import Call
from moorage.wire.errors import (
    InteractiveAuthenticationRequired,
    InvalidParameter,
    PermissionDenied,
    System,
    VarlinkError,
)
from moorage.wire.types import Int

SIGNAL_MAX = 64
"""SIGRTMAX of Linux (signal(7))."""


class ProcessId(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A process on the wire (``json_variant_new_pidref()``)."""

    pid: Int
    pidfdId: Int | None = None  # noqa: N815 - names on the wire
    bootId: str | None = None  # noqa: N815


class Timestamp(Struct, kw_only=True, omit_defaults=True):
    """A moment on the wire: µs since the epoch, and since boot."""

    realtime: Int | None = None
    monotonic: Int | None = None


Signal = Annotated[int, Meta(ge=1, le=SIGNAL_MAX)]
"""A signal number that may be sent: 0, which only probes, is refused as machined does."""


def process_id(found: process.ProcessId | None) -> ProcessId | None:
    """Return a process as it goes over the wire."""
    return None if found is None else ProcessId(pid=found.pid, pidfdId=found.pidfd_id, bootId=found.boot_id)


def timestamp(found: model.Timestamp) -> Timestamp:
    """Return a moment as it goes over the wire."""
    return Timestamp(realtime=found.realtime, monotonic=found.monotonic)


class Authority(msgspec.Struct, frozen=True):
    """Who decides about calls.

    Attributes:
        policy: the rules.
        polkit: is asked where the rules say so; None for a user's instance.
    """

    policy: Policy
    polkit: Polkit | None = None


def permit(call: Call, authority: Authority) -> None:
    """Let a call pass that polkit is never asked about, or not.

    Raises:
        PermissionDenied: the caller may not do this.
    """
    if authority.policy.decide(call.method, call.peer.uid) is not True:
        raise PermissionDenied


@dataclass(eq=False)
class PolkitTimeout(VarlinkError):
    """Polkit, or the person that it has asked, did not answer in time."""

    error = "io.moorage.Machine.Timeout"
    operation: str = "authorization by polkit"


async def authorize(
    call: Call,
    authority: Authority,
    details: Mapping[str, str],
    *,
    variant: str = "",
    owner: int | None = None,
    interactive: bool | None = False,
) -> None:
    """Let a call pass or not. Waits only where polkit is asked; what was looked up before may have changed then.

    Args:
        call: the call.
        authority: who decides.
        details: what it is about, for polkit.
        variant: of the method, as the policy's table has it.
        owner: uid that registered the machine that it is about.
        interactive: the user may be asked to authenticate.

    Raises:
        PermissionDenied: the caller may not do this.
        InteractiveAuthenticationRequired: it may if somebody authenticates.
        PolkitTimeout: polkit does not answer; in other interfaces than our own it is System (ETIMEDOUT).
        System: too many questions are pending (EBUSY).
    """
    decision = authority.policy.decide(call.method + variant, call.peer.uid, owner)
    if decision is True:
        return
    if decision is False or authority.polkit is None:
        raise PermissionDenied
    try:
        answer = await authority.polkit.check(
            call.peer,
            decision.action,
            details,
            # Who does not wait for a reply is not there any more when the question comes.
            interactive=bool(interactive) and not call.oneway,
        )
    except TooManyQuestions:
        raise System.of(errno.EBUSY) from None
    if answer is Answer.SILENCE:
        raise PolkitTimeout if call.method.startswith("io.moorage.") else System.of(errno.ETIMEDOUT)
    if answer is Answer.CHALLENGE:
        raise InteractiveAuthenticationRequired
    if answer is Answer.NO:
        raise PermissionDenied


async def authorize_managing(
    call: Call, authority: Authority, machine: Machine, *, interactive: bool | None
) -> None:
    """Let a call that does something with a machine pass or not, as :func:`authorize` does."""
    details = {"name": machine.name, "verb": call.method.rpartition(".")[2].lower()}
    await authorize(call, authority, details, owner=machine.record.registrant, interactive=interactive)


class AsRoot:
    """Whether the caller of a registration is treated as root is. Polkit is asked once, and only where it matters.

    Attributes:
        granted: it is, as far as is known.
    """

    def __init__(
        self, call: Call, authority: Authority, details: Mapping[str, str], *, interactive: bool | None
    ) -> None:
        self.granted = authority.policy.is_root(call.peer.uid)
        self._asked = self.granted
        self._call = call
        self._authority = authority
        self._details = details
        self._interactive = interactive

    async def require(self) -> None:
        """Let the call pass if it is.

        Raises:
            PermissionDenied, InteractiveAuthenticationRequired, System: as :func:`authorize` does.
        """
        if not self._asked:
            self._asked = True
            await authorize(
                self._call, self._authority, self._details, variant=AS_ROOT, interactive=self._interactive
            )
            self.granted = True

    async def ask(self) -> bool:
        """Return whether it is.

        Raises:
            System: too many questions are pending (EBUSY).
        """
        with contextlib.suppress(PermissionDenied, InteractiveAuthenticationRequired):
            await self.require()
        return self.granted

    async def ask_for_others(self) -> bool:
        """Return whether that goes for processes and units of others: the manager of a user has no such rights.

        Raises:
            System: too many questions are pending (EBUSY).
        """
        return self._authority.policy.user is None and await self.ask()


class Leader(msgspec.Struct):
    """The leader of a registration, opened.

    Attributes:
        id: what names it.
        pidfd: owned; closed by :meth:`close`.
        uid: that it runs as.
        supervisor: the caller, where that is another process.
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
    """Open the process that is to lead a machine: the one that is named, the one that was sent, or the caller.

    Args:
        call: the call.
        registrar: looks whose it is, where the caller is not root.
        given: the process as the parameters name it.
        pidfd: one that came with the call; owned by this function.
        field: name of the parameter to blame.
        as_root: asked where the process is somebody else's; None where only root may have such a one.

    Raises:
        ProcessGone: it does not exist, or is not the one that was meant.
        ForeignNumber: the caller counts processes in another way than we do.
        InvalidParameter: it can be no leader; the two ways of naming it do not agree.
        NotOwned: the caller may not claim it.
        System: too many questions to polkit are pending (EBUSY).
        OSError: no file descriptor is left.
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
            # Moving the manager, or this service, into a machine would end both.
            raise InvalidParameter(field)
        # Root has the rights of the manager that is asked: in a user's instance, those of that user.
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
        if process.has_exited(pidfd):  # so that the uid above is sure to be its own
            raise process.ProcessGone(leader.pid)
    except process.NotAProcess:
        if pidfd is not None:
            call.give_back(pidfd)
        raise InvalidParameter(field) from None
    except BaseException:
        if pidfd is not None:
            call.give_back(pidfd)
        raise
    return Leader(leader, pidfd, owner, None if caller == leader else caller)


class ForeignNumber(Exception):
    """A process is named by a number alone, by a peer to which it means another process."""


def check_number(call: Call, given: ProcessId) -> None:
    """Refuse a bare PID from a peer that is in another PID namespace: here it would be some other process's.

    Raises:
        ForeignNumber: that is the case.
    """
    if given.pidfdId is not None:
        return
    with contextlib.suppress(
        process.ProcessGone
    ):  # and where the number means something is not known any more
        if call.peer.pid and process.numbers_like_us(call.peer.pid):
            return
    raise ForeignNumber


def _is_meant(leader: process.ProcessId, given: ProcessId) -> bool:
    """Whether a process is the one that the parameters name, as far as they say and the kernel can tell."""
    return (
        given.pid == leader.pid
        and (given.pidfdId is None or leader.pidfd_id in {None, given.pidfdId})
        and (given.bootId is None or given.bootId.replace("-", "").lower() == process.boot_id())
    )


def find_named(registry: Registry, name: str | None, field: str = "name") -> Machine | None:
    """Find a living machine by name.

    Raises:
        InvalidParameter: no machine can have that name.
    """
    if name is None:
        return None
    if not model.is_machine_name(name):
        raise InvalidParameter(field)
    return registry.get(name)


def check_identity(
    *,
    id: str | None,  # noqa: A002 - name of the field
    service: str | None,
    root_directory: str | None,
    if_indices: list[int] | None,
    vsock_cid: int | None,
    ssh_address: str | None,
    ssh_private_key_path: str | None,
    control_address: str | None,
) -> None:
    """Check what a registration says about a machine, for information only.

    Raises:
        InvalidParameter: a field is not what it should be.
    """
    if id is not None and not model.is_id128(id):
        raise InvalidParameter("id")
    for field, text in (
        ("service", service),
        ("sshAddress", ssh_address),
        ("controlAddress", control_address),
    ):
        if text is not None and not model.is_text(text):
            raise InvalidParameter(field)
    for field, path in (("rootDirectory", root_directory), ("sshPrivateKeyPath", ssh_private_key_path)):
        if path is not None and not model.is_path(path):
            raise InvalidParameter(field)
    if if_indices is not None and not (
        len(if_indices) <= model.IF_INDICES_MAX and all(0 < index < 2**31 for index in if_indices)
    ):
        raise InvalidParameter("ifIndices")
    if vsock_cid is not None and not model.VSOCK_CID_FIRST <= vsock_cid <= model.VSOCK_CID_LAST:
        raise InvalidParameter("vSockCid")
