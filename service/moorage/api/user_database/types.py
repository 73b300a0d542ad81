"""Parameters and replies of io.systemd.UserDatabase (https://systemd.io/USER_GROUP_API).

Records are those that systemd-machined makes. Of the parameters it takes those that are here; the others, which narrow
an enumeration down, are refused there too.
"""

from __future__ import annotations

from typing import Any

from moorage.wire.types import Int, Parameters, Reply


class UserIn(Parameters, kw_only=True):
    """Parameters of GetUserRecord: a user by number, by name, or by both."""

    uid: Int | None = None
    userName: str | None = None  # noqa: N815  # names on the wire, here and below
    service: str


class GroupIn(Parameters, kw_only=True):
    """Parameters of GetGroupRecord."""

    gid: Int | None = None
    groupName: str | None = None  # noqa: N815
    service: str


class MembershipsIn(Parameters, kw_only=True):
    """Parameters of GetMemberships."""

    userName: str | None = None  # noqa: N815
    groupName: str | None = None  # noqa: N815
    service: str


class UserOut(Reply, kw_only=True):
    """Reply of GetUserRecord: a user of a container, who cannot log in on the host."""

    record: dict[str, Any]


class GroupOut(Reply, kw_only=True):
    """Reply of GetGroupRecord: a group of a container."""

    record: dict[str, Any]


class MembershipOut(Reply, kw_only=True):
    """Reply of GetMemberships; here there is none."""

    userName: str  # noqa: N815
    groupName: str  # noqa: N815
