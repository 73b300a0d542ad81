"""Structs and markers that handlers are annotated with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from msgspec import Meta, Struct

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""An ``int`` of varlink: 64 bits, signed. msgspec alone would accept any number."""

T = TypeVar("T")


class Parameters(Struct, forbid_unknown_fields=True):
    """Parameters of a method. As in sd-varlink, fields that are not described are refused."""


class Reply(Struct, omit_defaults=True):
    """Reply of a method. Fields at their default (None, for a nullable one) are left out."""


class Empty(Parameters):
    """No parameters, or a reply without fields."""


class Last(Struct, Generic[T], frozen=True):
    """The reply that ends a stream; it is sent without ``continues``."""

    reply: T


class Prepared(Struct, Generic[T], frozen=True):
    """Several replies of a stream, none of them the last, as they go over the wire.

    Attributes:
        messages: made by :func:`moorage.wire.message.prepared_reply`, or by what is faster and does the same.
    """

    messages: Sequence[bytes]


class WithFds(Struct, Generic[T], frozen=True):
    """A reply with file descriptors. The connection owns them once this is returned or yielded.

    Attributes:
        reply: the reply; fields of it are indices into the list.
        fds: closed once they are sent, or cannot be sent.
    """

    reply: T
    fds: Sequence[int]


class Feed(ABC, Generic[T]):
    """Replies that come whenever there is something to reply, for as long as the caller stays; none is the last.

    It costs no task, and nothing at all while there is nothing to reply. Its messages are ready for the wire
    (:func:`moorage.wire.message.prepared_reply`), so that many callers can be sent the same bytes.
    """

    @abstractmethod
    def follow(self, woken: Callable[[], None]) -> None:
        """Have a function called when there is more, each time after :meth:`take` had nothing; called once."""

    @abstractmethod
    def take(self, room: int) -> Sequence[bytes]:
        """Return the next messages, or none where there is nothing more to send now. Must not wait.

        Args:
            room: how many bytes there is room for. One message may exceed it.

        Raises:
            VarlinkError: this is the end of the replies.
        """

    @abstractmethod
    def close(self) -> None:
        """Take note that the caller is gone."""
