"""What is replied where polkit is there, and says nothing."""

import errno
import os
import socket
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from moorage.api.calls import Authority, PolkitTimeout, authorize
from moorage.authz import polkit
from moorage.authz.policy import Policy
from moorage.authz.polkit import Polkit
from moorage.errors import AUTHORIZATION
from moorage.kernel.peer import Peer
from moorage.wire.call import Call
from moorage.wire.errors import System

ALICE = 1000


@pytest.fixture
def silent_bus(tmp_path: Path) -> Generator[str]:
    """A bus that takes connections, and never answers."""
    path = str(tmp_path / "bus")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield path


@pytest.mark.parametrize("interface", ["io.moorage.Machine", "io.systemd.Machine"])
async def test_a_polkit_that_does_not_answer(
    silent_bus: str, monkeypatch: pytest.MonkeyPatch, interface: str
) -> None:
    monkeypatch.setattr(polkit, "ANSWER_SECONDS", 0.1)
    asked = Polkit(silent_bus)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call = SimpleNamespace(
            method=f"{interface}.Register", oneway=False, peer=Peer(os.getpid(), ALICE, ALICE, ours)
        )
        raised: Any = None
        async with trio.open_nursery() as nursery:
            await nursery.start(asked.run)
            try:
                await authorize(cast("Call", call), Authority(Policy(None), asked), {})
            except (PolkitTimeout, System) as error:
                raised = error
            nursery.cancel_scope.cancel()
    if interface == "io.moorage.Machine":
        assert isinstance(raised, PolkitTimeout)
        assert raised.operation == AUTHORIZATION
    else:
        assert isinstance(raised, System)
        assert raised.errno == errno.ETIMEDOUT
    assert asked.pending == 0
