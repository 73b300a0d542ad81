"""The states of an accepted connection, as tables: what it does next, and what its socket is watched for."""

from __future__ import annotations

import enum
import select
from collections.abc import Mapping

IN, OUT = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR


class State(enum.IntEnum):
    """What happens at a turn of the connection.

    Attributes:
        READING: no call is at hand. The next ones are read and answered.
        STREAMING: the replies to a call come from an iterator, which is advanced as far as the peer reads.
        WORKING: a call is handled in a task. The socket is only watched for the peer hanging up.
        BACKLOGGED: the same, and further input has arrived. It stays in the socket until the task has ended.
        FEEDING: replies come from a feed, whenever it has some. Like WORKING, but nobody waits for an answer.
        DEAF: the same, and further input has arrived, which nobody will read.
        ABANDONED: the task of a oneway call goes on, although the peer has hung up.
        CLOSED: the connection has ended; a task may still be on its way out.
    """

    READING = enum.auto()
    STREAMING = enum.auto()
    WORKING = enum.auto()
    BACKLOGGED = enum.auto()
    FEEDING = enum.auto()
    DEAF = enum.auto()
    ABANDONED = enum.auto()
    CLOSED = enum.auto()


class Event(enum.IntEnum):
    """What moves a connection from one state to another.

    Attributes:
        STREAM: the handler of a call has returned an iterator.
        TASK: the handler of a call waits, and runs in a task now.
        FEED: the handler of a call has returned a feed.
        INPUT: the socket is readable while a task is at work, or a feed at hand.
        HANG_UP: the caller of a oneway call has closed its end.
        DONE: the call at hand is answered, or its task has ended.
        CLOSE: we close the connection.
    """

    STREAM = enum.auto()
    TASK = enum.auto()
    FEED = enum.auto()
    INPUT = enum.auto()
    HANG_UP = enum.auto()
    DONE = enum.auto()
    CLOSE = enum.auto()


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.READING: {
        Event.STREAM: State.STREAMING,
        Event.TASK: State.WORKING,
        Event.FEED: State.FEEDING,
        Event.CLOSE: State.CLOSED,
    },
    State.STREAMING: {
        Event.DONE: State.READING,
        Event.CLOSE: State.CLOSED,
    },
    State.WORKING: {
        Event.INPUT: State.BACKLOGGED,
        Event.HANG_UP: State.ABANDONED,
        Event.DONE: State.READING,
        Event.CLOSE: State.CLOSED,
    },
    State.BACKLOGGED: {
        Event.INPUT: State.BACKLOGGED,
        Event.HANG_UP: State.ABANDONED,
        Event.DONE: State.READING,
        Event.CLOSE: State.CLOSED,
    },
    State.FEEDING: {
        Event.INPUT: State.DEAF,
        Event.DONE: State.READING,
        Event.CLOSE: State.CLOSED,
    },
    State.DEAF: {
        Event.INPUT: State.DEAF,
        Event.DONE: State.READING,
        Event.CLOSE: State.CLOSED,
    },
    State.ABANDONED: {
        Event.DONE: State.READING,
        Event.CLOSE: State.CLOSED,
    },
    State.CLOSED: {
        Event.DONE: State.CLOSED,
    },
}
"""Events without a row cannot happen."""

WATCHED: Mapping[State, tuple[int | None, int | None]] = {
    # A socket is writable at once in most cases: that is how a turn that was cut short gets its continuation.
    State.READING: (IN, OUT),
    State.STREAMING: (OUT, OUT),
    State.WORKING: (IN, IN | OUT),
    State.BACKLOGGED: (0, OUT),
    State.FEEDING: (IN, IN | OUT),
    State.DEAF: (0, OUT),
    State.ABANDONED: (None, None),
    State.CLOSED: (None, None),
}
"""What epoll watches a socket for in each state: usually, and while there is more to write or to do. EPOLLHUP and
EPOLLERR are always reported; None stands for a socket that is not watched at all."""
