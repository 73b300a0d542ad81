"""Parameters and replies of io.systemd.Resolve.Hook."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from moorage.wire.types import Int, Parameters, Reply

Number16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]

QUESTION_MAX = 64
"""Keys of one question; systemd-resolved asks for two addresses of two spellings of a name at most."""


class KeyIn(Parameters, kw_only=True):
    """What is looked for: a record of a class and a type, by its name as people write it (RFC 1035, 5.1)."""

    class_: Number16 | None = field(name="class", default=None)
    type: Number16
    name: str


class QuestionIn(Parameters, kw_only=True):
    """One of the keys of a question."""

    key: KeyIn


class ResolveRecordIn(Parameters, kw_only=True):
    """Parameters of ResolveRecord."""

    question: list[QuestionIn]


class KeyOut(Reply, kw_only=True):
    """The key of a record."""

    class_: Int | None = field(name="class", default=None)
    type: Int
    name: str


class RecordOut(Reply, kw_only=True):
    """A record with an address."""

    key: KeyOut
    address: list[Int]


class AnswerOut(Reply, kw_only=True):
    """A record, and the same as it goes over the wire, in Base64."""

    rr: RecordOut
    raw: str


class ResolveRecordOut(Reply, kw_only=True):
    """Reply of ResolveRecord; it is empty where others are to be asked."""

    rcode: Int | None = None
    answer: list[AnswerOut] | None = None


class QueryFilterOut(Reply, kw_only=True):
    """Reply of QueryFilter."""

    filterDomains: list[str]  # noqa: N815  # name on the wire
