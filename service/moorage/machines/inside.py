"""What is done inside machines: by children of a unit that has the rights for it, which moored does not have.

Nothing of a guest is read here but what such a child says of it, and file descriptors that it hands over.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import msgspec
import trio

from moorage.kernel.process import NotAProcess, ProcessGone, open_process
from moorage.machines.metadata import account
from moorage.machines.model import Record
from moorage.pid1.fork_server import Answer, ForkServer, TookTooLong
from moorage.pid1.oneshot import ProbeFailed

REST_SECONDS: Final = 5.0
"""Given to the service manager, beyond the time that a task may take, to start the unit, s."""


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
    """What is done inside a machine.

    Attributes:
        name: of `moorage.probes.child.TASKS`.
        seconds: how long it may take.
    """

    name: str
    seconds: float


async def do(server: ForkServer, machine: Record, task: Task, question: Any) -> Answer:
    """Have something done inside a machine. A caller that leaves does not stop it.

    Args:
        server: has it done.
        machine: which.
        task: what is to be done.
        question: what the task is told, for JSON.

    Raises:
        InsideFailed: the leader is gone (ESRCH), it took too long (ETIMEDOUT), it could not be begun, or ended without
            an answer (EAGAIN).
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
            return await server.ask(
                task.name, leader, question, account=account(machine), seconds=task.seconds
            )
    except (trio.TooSlowError, TookTooLong):
        raise InsideFailed(errno.ETIMEDOUT) from None
    except ProbeFailed as exc:
        raise InsideFailed(errno.EAGAIN, str(exc)) from exc
    except OSError as exc:
        raise InsideFailed(exc.errno or errno.EIO) from exc
    finally:
        os.close(leader)
