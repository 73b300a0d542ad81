"""Authority over calls, in both interfaces of machines.

The order of checks is that of systemd: decode, class, authority, then the process (does it live, whose is it), whether
the name is free, properties, claim. The first half is here and in the handlers, the rest in
:mod:`moorage.machines.registration`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from moorage import names
from moorage.authz.policy import AS_ROOT, Policy
from moorage.authz.polkit import Answer, Polkit, TooManyQuestions
from moorage.errors import AUTHORIZATION
from moorage.machines.machine import Machine
from moorage.machines.registry import Registry
from moorage.wire.call import Call
from moorage.wire.errors import (
    InteractiveAuthenticationRequired,
    InvalidParameter,
    PermissionDenied,
    System,
    VarlinkError,
)


class Authority(msgspec.Struct, frozen=True):
    """The policy of an instance.

    Attributes:
        policy: the rules.
        polkit: is asked where the rules require it; None for a user's instance.
    """

    policy: Policy
    polkit: Polkit | None = None


def permit(call: Call, authority: Authority) -> None:
    """Authorise a call for which polkit is never asked.

    Raises:
        PermissionDenied: the caller may not do this.
    """
    if authority.policy.decide(call.method, call.peer.uid) is not True:
        raise PermissionDenied


@dataclass(eq=False)
class PolkitTimeout(VarlinkError):
    """Polkit, or the person it has asked, did not answer in time."""

    error = "io.moorage.Machine.Timeout"
    operation: str = AUTHORIZATION


async def authorize(
    call: Call,
    authority: Authority,
    details: Mapping[str, str],
    *,
    variant: str = "",
    owner: int | None = None,
    interactive: bool | None = False,
) -> None:
    """Authorise a call.

    This waits only if polkit is asked. Anything that was looked up before may have changed by then.

    Args:
        call: the call.
        authority: the policy.
        details: details of the call, for polkit.
        variant: variant of the method, as in the policy's table.
        owner: uid that registered the machine that the call is about.
        interactive: the user may be asked to authenticate.

    Raises:
        PermissionDenied: the caller may not do this.
        InteractiveAuthenticationRequired: the caller may do this if a person authenticates.
        PolkitTimeout: polkit does not answer; in interfaces other than our own it is System (ETIMEDOUT).
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
            # The caller of a oneway call is gone by the time that the question appears.
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


async def managed(
    call: Call,
    authority: Authority,
    find: Callable[[], Machine],
    gone: VarlinkError,
    *,
    variant: str = "",
    interactive: bool | None,
    registered: Awaitable[None] | None = None,
) -> Machine:
    """Return the machine that a call is about, once its caller is authorised to manage it.

    This is the security rule of every call that does something with a machine: wait, find, authorise, find again. A
    person may take minutes to authenticate, and the name may belong to another user's machine by then.

    Args:
        call: the call.
        authority: the policy.
        find: looks the machine up, and raises an error of the interface if there is none.
        gone: error to raise if a second look finds another machine.
        variant: variant of the method, as in the policy's table.
        interactive: the user may be asked to authenticate.
        registered: returns once no registration of that name is under way.

    Raises:
        VarlinkError: there is no such machine, or as :func:`authorize` raises.
    """
    if registered is not None:
        await registered
    machine = find()
    details = {"name": machine.name, "verb": call.method.rpartition(".")[2].lower()}
    owner = machine.record.registrant
    await authorize(call, authority, details, variant=variant, owner=owner, interactive=interactive)
    if find() is not machine:
        raise gone
    return machine


class AsRoot:
    """Whether a caller has the rights of root.

    Polkit is asked at most once, and only if it matters.

    Attributes:
        granted: the caller is known to have them.
    """

    def __init__(
        self,
        call: Call,
        authority: Authority,
        details: Mapping[str, str],
        *,
        interactive: bool | None,
        variant: str = AS_ROOT,
    ) -> None:
        self.granted = authority.policy.is_root(call.peer.uid)
        self._asked = self.granted
        self._call = call
        self._authority = authority
        self._details = details
        self._interactive = interactive
        self._variant = variant

    async def require(self) -> None:
        """Ask polkit, unless that is done or not needed.

        Raises:
            PermissionDenied, InteractiveAuthenticationRequired, System: as :func:`authorize`.
        """
        if not self._asked:
            self._asked = True
            await authorize(
                self._call,
                self._authority,
                self._details,
                variant=self._variant,
                interactive=self._interactive,
            )
            self.granted = True

    async def ask(self) -> bool:
        """Return whether the caller has the rights of root.

        Raises:
            System: too many questions are pending (EBUSY).
        """
        with contextlib.suppress(PermissionDenied, InteractiveAuthenticationRequired):
            await self.require()
        return self.granted

    async def ask_for_others(self) -> bool:
        """Return whether that includes processes and units of others: the manager of a user has no such rights.

        Raises:
            System: too many questions are pending (EBUSY).
        """
        return self._authority.policy.user is None and await self.ask()


def find_named(registry: Registry, name: str | None, field: str = "name") -> Machine | None:
    """Return the living machine of a name, None if there is none.

    Raises:
        InvalidParameter: that cannot be the name of a machine.
    """
    if name is None:
        return None
    if not names.is_machine_name(name):
        raise InvalidParameter(field)
    return registry.get(name)
