"""Handlers of io.systemd.UserDatabase: the users and groups of user namespaces of containers.

As systemd-machined serves it, with its order of checks (``vl_method_get_user_record()``): the user with the number 0
of container ``web`` is ``vu-web-0``, the group ``vg-web-0``. Whose name would be too long, or none of POSIX, has none.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, NamedTuple, TypeVar

from moorage.api.calls import Authority, permit
from moorage.api.descriptions import load_description
from moorage.api.systemd_machine.checks import is_user
from moorage.api.user_database.errors import (
    BadService,
    ConflictingRecordFound,
    EnumerationNotSupported,
    NoRecordFound,
)
from moorage.api.user_database.types import (
    GroupIn,
    GroupOut,
    MembershipOut,
    MembershipsIn,
    UserIn,
    UserOut,
)
from moorage.machines.id_maps import HOST_MAX, NO_ID_EITHER, IdMaps, Kind, NoSuchId, is_id
from moorage.machines.inside import InsideFailed
from moorage.machines.model import MachineClass
from moorage.machines.registry import Registry
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, System
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Last, Reply

T = TypeVar("T", bound=Reply)

SERVICE: Final = "io.systemd.Machine"
"""What this service is called among those of users: the name of its socket."""

NOBODYS_GROUP: Final = 65534
"""The group of all of them (``GID_NOBODY``)."""

NO_LOGIN: Final = "/usr/sbin/nologin"
CONTAINER: Final = "container"

_STRICT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}")
"""Names as ``valid_user_group_name()`` of systemd has them by its strict rule."""
_NUMBERED: Final = re.compile(r"v[ug]-(?P<machine>.*)-(?P<number>0|[1-9][0-9]{0,9})", re.DOTALL)


class _Asked(NamedTuple):
    """What is looked for.

    Attributes:
        kind: a user, or a group.
        number: on the host.
        name: on the host.
    """

    kind: Kind
    number: int | None
    name: str | None


class _Found(NamedTuple):
    """A user or a group of a container.

    Attributes:
        name: on the host.
        number: on the host.
        description: for people.
    """

    name: str
    number: int
    description: str


class UserDatabase(Interface):
    """The handlers of io.systemd.UserDatabase."""

    def __init__(self, registry: Registry, maps: IdMaps, authority: Authority) -> None:
        super().__init__(load_description("io.systemd.UserDatabase"))
        self._registry = registry
        self._authority = authority
        self._maps = maps

    @method("GetUserRecord")
    def get_user_record(
        self, call: Call, params: UserIn
    ) -> Iterator[UserOut] | AsyncIterator[Last[UserOut]]:
        """Return a user of a container."""
        asked = self._asked(call, params.service, _Asked("uid", params.uid, params.userName))
        return self._answer(asked, _user)

    @method("GetGroupRecord")
    def get_group_record(
        self, call: Call, params: GroupIn
    ) -> Iterator[GroupOut] | AsyncIterator[Last[GroupOut]]:
        """Return a group of a container."""
        asked = self._asked(call, params.service, _Asked("gid", params.gid, params.groupName))
        return self._answer(asked, _group)

    @method("GetMemberships")
    def get_memberships(self, call: Call, params: MembershipsIn) -> MembershipOut:
        """Return who is in which group: nobody is in a further one, as far as the host knows."""
        permit(call, self._authority)
        _check_name("uid", params.userName)
        _check_name("gid", params.groupName)
        _check_service(params.service)
        raise NoRecordFound

    def _asked(self, call: Call, service: str, asked: _Asked) -> _Asked:
        """Check what is asked for, and return it."""
        permit(call, self._authority)
        if asked.number is not None and not (0 <= asked.number < NO_ID_EITHER and is_id(asked.number)):
            raise InvalidParameter(asked.kind)
        _check_name(asked.kind, asked.name)
        _check_service(service)
        if asked.number is None and asked.name is None:
            raise EnumerationNotSupported
        return asked

    def _answer(self, asked: _Asked, reply: Callable[[_Found], T]) -> Iterator[T] | AsyncIterator[Last[T]]:
        # By a name one container is looked at, by a number of the host's none.
        few = asked.number is None or asked.number < HOST_MAX
        if few or self._maps.is_ready(asked.kind):
            return iter((reply(self._find(asked)),))
        return self._answer_later(asked, reply)

    async def _answer_later(self, asked: _Asked, reply: Callable[[_Found], T]) -> AsyncIterator[Last[T]]:
        await self._maps.read(asked.kind)
        yield Last(reply(self._find(asked)))

    def _find(self, asked: _Asked) -> _Found:
        kind, number, name = asked
        try:
            if number is not None:
                found = self._by_number(kind, number)
            else:
                assert name is not None
                found = self._by_name(kind, name)
        except NoSuchId:
            raise NoRecordFound from None
        except InsideFailed as error:
            raise System.of(error.number) from None
        if name is not None and name != found.name:
            raise ConflictingRecordFound
        return found

    def _by_number(self, kind: Kind, number: int) -> _Found:
        if number < HOST_MAX:
            raise NoSuchId
        machine, inside = self._maps.from_host(kind, number)
        name = f"v{kind[0]}-{machine.name}-{inside}"
        if _STRICT.fullmatch(name) is None:
            raise NoSuchId
        return _Found(name, number, _description(kind, inside, machine.name))

    def _by_name(self, kind: Kind, name: str) -> _Found:
        match = _NUMBERED.fullmatch(name) if _STRICT.fullmatch(name) is not None else None
        if match is None or name[1] != kind[0]:
            raise NoSuchId
        inside, machine = int(match["number"]), self._registry.get(match["machine"])
        if inside >= NO_ID_EITHER or not is_id(inside):
            raise NoSuchId
        if machine is None or not machine.is_there or machine.record.class_ is not MachineClass.container:
            raise NoSuchId
        number = self._maps.to_host(machine, kind, inside)
        return _Found(name, number, _description(kind, inside, machine.name))


def _user(found: _Found) -> UserOut:
    return UserOut(
        record={
            "userName": found.name,
            "uid": found.number,
            "gid": NOBODYS_GROUP,
            "realName": found.description,
            "homeDirectory": "/",
            "shell": NO_LOGIN,
            "locked": True,
            "service": SERVICE,
            "disposition": CONTAINER,
        }
    )


def _group(found: _Found) -> GroupOut:
    return GroupOut(
        record={
            "groupName": found.name,
            "gid": found.number,
            "description": found.description,
            "service": SERVICE,
            "disposition": CONTAINER,
        }
    )


def _check_name(kind: Kind, name: str | None) -> None:
    if name is not None and not is_user(name):
        raise InvalidParameter("userName" if kind == "uid" else "groupName")


def _check_service(service: str) -> None:
    if service != SERVICE:
        raise BadService


def _description(kind: Kind, inside: int, machine: str) -> str:
    return f"{kind.upper()} {inside} of Container {machine}"
