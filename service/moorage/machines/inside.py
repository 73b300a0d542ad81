"""What is done inside machines: by short-lived units, which have the rights for it that moored does not have.

Nothing of a guest is read here but what such a unit says of it, and file descriptors that it hands over.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

import msgspec
import trio

from moorage.kernel.process import NotAProcess, ProcessGone, open_process
from moorage.machines.metadata import account
from moorage.machines.model import Record
from moorage.pid1.manager import Manager
from moorage.pid1.oneshot import ProbeFailed, probe

ANSWER_MAX: Final = 64 * 1024
"""Bytes of a unit's answer; each is a few numbers."""

ANSWER_FDS: Final = 1
"""File descriptors that a unit hands over."""

REST_SECONDS: Final = 5.0
"""Given to the service manager, beyond the time that a unit may run, to start it and to say that it has ended, s."""


class InsideError(Exception):
    """What was to be done inside a machine was not; always one of the subclasses below."""


class InsideFailed(InsideError):
    """It failed.

    Attributes:
        number: errno(3) that says why.
    """

    def __init__(self, number: int, reason: str = "") -> None:
        super().__init__(reason or os.strerror(number))
        self.number = number


class NoBus(InsideError):
    """The service manager inside a machine cannot be reached, or does not know what is to be started."""


class Task(msgspec.Struct, frozen=True):
    """What a unit does inside a machine.

    Attributes:
        program: path of a Python program that runs by itself.
        description: of the unit, with the machine's name in braces.
        capabilities: what it needs, by their bits (capabilities(7)).
        system_calls: what it needs beside ``@system-service``.
        families: of the sockets that it needs.
        seconds: how long it may take.
    """

    program: str
    description: str
    capabilities: int
    seconds: float
    system_calls: tuple[str, ...] = ()
    families: tuple[str, ...] = ("AF_UNIX",)


class Answer(msgspec.Struct, frozen=True):
    """What a unit says.

    Attributes:
        said: its answer, in JSON.
        descriptors: what it has handed over; the receiver owns them.
    """

    said: bytes
    descriptors: list[int]

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.descriptors:
            os.close(fd)


async def do(manager: Manager, machine: Record, task: Task, question: Any) -> Answer:
    """Have a unit do something inside a machine. A caller that leaves does not stop it.

    Args:
        manager: starts the unit.
        machine: which.
        task: what is to be done.
        question: what it is told, for JSON.

    Raises:
        InsideFailed: the leader is gone (ESRCH), it took too long (ETIMEDOUT), the unit could not be started (EAGAIN).
    """
    if machine.leader is None:
        raise InsideFailed(errno.ESRCH)
    try:
        leader = open_process(machine.leader.pid, machine.leader.pidfd_id, machine.leader.boot_id)
    except (ProcessGone, NotAProcess):
        raise InsideFailed(errno.ESRCH) from None
    except OSError as exc:
        raise InsideFailed(exc.errno or errno.ESRCH) from None
    try:
        with trio.fail_after(task.seconds + REST_SECONDS):
            return await _ask(manager, machine, leader, task, question)
    except trio.TooSlowError:
        raise InsideFailed(errno.ETIMEDOUT) from None
    except ProbeFailed as exc:
        raise InsideFailed(errno.EAGAIN, str(exc)) from exc
    finally:
        os.close(leader)


async def _ask(manager: Manager, machine: Record, leader: int, task: Task, question: Any) -> Answer:
    ours, theirs = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    with ours, theirs:
        try:
            ours.send(msgspec.json.encode(question))
        except OSError as exc:  # it is longer than such a socket takes (EMSGSIZE)
            raise InsideFailed(exc.errno or errno.EMSGSIZE) from None
        theirs.setblocking(True)  # noqa: FBT003  # its only argument
        await probe(
            manager,
            task.program,
            leader,
            task.description.format(machine.name),
            account=account(machine),
            capabilities=task.capabilities,
            system_calls=task.system_calls,
            families=task.families,
            beside=theirs.fileno(),
            seconds=task.seconds,
        )
        try:
            said, fds, _, _ = socket.recv_fds(ours, ANSWER_MAX, ANSWER_FDS, socket.MSG_CMSG_CLOEXEC)
        except OSError as exc:
            raise ProbeFailed(f"no answer: {exc}") from exc
    return Answer(said, fds)
