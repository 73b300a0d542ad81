"""Calls for which polkit may ask a person, who is asked at the terminal where there is nothing better."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from moorage.cli.address import Address
from moorage.client import methods
from moorage.client.dialogue import Dialogue
from moorage.client.methods import INTERFACE, PERSON_SECONDS
from moorage.steps.waits import Steps
from moorage.wire.errors import InteractiveAuthenticationRequired

AGENT: Final = "pkttyagent"

_AGENT_SECONDS: Final = 10.0
"""How long the agent may take to register with polkit, and to end, s."""

T = TypeVar("T")


def call(
    dialogue: Dialogue,
    address: Address,
    method: str,
    parameters: Mapping[str, Any],
    kind: type[T],
    *,
    fds: Sequence[int] = (),
    received: list[int] | None = None,
    seconds: float,
) -> Steps[T]:
    """Call a method of one of the interfaces of machines; once more, with a person to be asked, if it needs one.

    Args:
        dialogue: the connection.
        address: its other end.
        method: without the interface; of io.systemd.Machine with it.
        parameters: of the call.
        kind: type to decode the reply to.
        fds: file descriptors to send along.
        received: gets those that come with the reply.
        seconds: until the reply must have arrived, if nobody is asked.

    Raises:
        VarlinkError: see :meth:`~moorage.client.dialogue.Dialogue.call`.
    """
    theirs = "." in method  # all that moorctl calls of that interface may be asked about
    name = method if theirs else f"{INTERFACE}.{method}"
    try:
        return (
            yield from dialogue.call(name, parameters, kind, fds=fds, received=received, seconds=seconds)
        )
    except InteractiveAuthenticationRequired:
        may_ask = theirs or hasattr(getattr(methods, method, None), "allow_interactive_authentication")
        if not (address.asks and may_ask):
            raise
    interactive = {**parameters, "allowInteractiveAuthentication": True}
    with _agent(address):
        seconds += PERSON_SECONDS
        return (
            yield from dialogue.call(name, interactive, kind, fds=fds, received=received, seconds=seconds)
        )


@contextmanager
def _agent(address: Address) -> Generator[None]:
    """Have polkit's agent at the terminal, if there is one; it steps back for the agent of a desktop (--fallback)."""
    if address.host is not None or not os.isatty(0):
        yield
        return
    read, write = os.pipe()
    try:
        agent = subprocess.Popen([AGENT, f"--notify-fd={write}", "--fallback"], pass_fds=[write])
    except OSError:  # a host without polkit's programs may have an agent all the same
        agent = None
    finally:
        os.close(write)
    try:
        if agent is not None:
            select.select([read], [], [], _AGENT_SECONDS)  # it closes its end when it is ready, or fails
        yield
    finally:
        os.close(read)
        if agent is not None:
            agent.terminate()
            try:
                agent.wait(_AGENT_SECONDS)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
