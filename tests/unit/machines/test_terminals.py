"""Terminals of machines: who is asked for them, and again where that is refused."""

import errno
import json
import os
from typing import Any, cast

import pytest
from made import record

from moorage.kernel.process import identify
from moorage.machines.inside import InsideFailed
from moorage.machines.model import MachineClass, Record
from moorage.machines.terminals import Terminals, shell_of
from moorage.pid1.fork_server import Answer


class Server:
    """Answers with errnos, one for each question, and with a descriptor where there is none any more.

    Attributes:
        asked: the tasks.
    """

    def __init__(self, *failed: int) -> None:
        self._failed = list(failed)
        self.asked: list[str] = []

    async def ask(self, task: str, leader: int, question: Any, **_: Any) -> Answer:
        del leader, question
        self.asked.append(task)
        if self._failed:
            said = {"number": None, "failed": ["terminal", self._failed.pop(0)]}
            return Answer(json.dumps(said).encode(), [])
        return Answer(b'{"number": 7, "failed": null}', [os.open("/dev/null", os.O_RDONLY)])


def terminals(server: Server) -> Terminals:
    return Terminals(cast("Any", server), cast("Any", None))  # which processes there are is not asked here


@pytest.fixture
def container() -> Record:
    return record(class_=MachineClass.container, leader=identify(os.getpid()))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
async def test_what_cannot_be_found_from_outside_is_opened_inside(container: Record, number: int) -> None:
    server = Server(number)
    terminal = await terminals(server).open(container, None)
    os.close(terminal.fd)
    assert (terminal.path, server.asked) == ("/dev/pts/7", ["tty", "terminal"])


async def test_other_errors_are_the_callers(container: Record) -> None:
    server = Server(errno.ENODEV)
    with pytest.raises(InsideFailed) as caught:
        await terminals(server).open(container, None)
    assert (caught.value.number, server.asked) == (errno.ENODEV, ["tty"])


async def test_what_runs_at_it_is_started_inside(container: Record) -> None:
    server = Server()
    os.close((await terminals(server).open(container, shell_of(None, None, None, ()))).fd)
    assert server.asked == ["terminal"]
