"""Connections to a service: on this host by its socket, on another one by ssh(1)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from typing import Final

import msgspec

from moorage.cli.address import Address
from moorage.client import dialogue
from moorage.client.dialogue import Dialogue
from moorage.steps.waits import Steps
from moorage.wire.errors import Disconnected, TimedOut

SSH_VARIABLE: Final = "SYSTEMD_SSH"
"""Names the program that stands in for ssh, as for systemctl(1) and varlinkctl(1)."""

SSH_SECONDS: Final = 120.0
"""How long ssh may take at least, s: a person may have to type a passphrase; as LoginGraceTime of sshd_config(5)."""

_END_SECONDS: Final = 2.0
"""How long ssh may take to end, s. It has nothing left to do then."""


class NotReached(ConnectionError):
    """There is no connection to a service on another host."""


class _BySsh(Dialogue):
    """A connection whose other end is a process of ssh's."""

    def __init__(self, connected: socket.socket, process: subprocess.Popen[bytes]) -> None:
        super().__init__(connected)
        self._process = process

    def close(self) -> None:
        super().close()
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def connect(address: Address, seconds: float) -> Steps[Dialogue]:
    """Connect to a service.

    Args:
        address: where it listens.
        seconds: how long that may take; ssh may take longer.

    Raises:
        NotReached: it is on another host, and cannot be reached there. What ssh has to say it has written to stderr.
        OSError: there is no such socket, or we may not connect to it.
        TimedOut: the service does not accept the connection.
    """
    if address.host is None:
        return (yield from dialogue.connect(address.path, seconds))
    opened = _start(address.path, address.host)
    try:
        # Whether ssh gets there, shows by a reply only.
        yield from opened.call(
            "org.varlink.service.GetInfo", {}, msgspec.Raw, seconds=max(seconds, SSH_SECONDS)
        )
    except BaseException as error:
        opened.close()
        if isinstance(error, Disconnected | TimedOut):
            raise NotReached(f"Failed to reach {address.path} on {address.host}.") from None
        raise
    return opened


def _not_there(program: str) -> str:
    if os.environ.get(SSH_VARIABLE):
        return f"There is no program {program}, which {SSH_VARIABLE} names."
    return (
        f"There is no {program} on this host: install OpenSSH's client (openssh-client on Debian),"
        f" or name another program in {SSH_VARIABLE}."
    )


def _start(path: str, host: str) -> Dialogue:
    program = os.environ.get(SSH_VARIABLE) or "ssh"
    if shutil.which(program) is None:
        raise NotReached(_not_there(program))
    # It ends with this process, also if that is killed: while replies may come, the end of its input does not end it.
    bound = ["setpriv", "--pdeathsig=TERM", "--", program]
    ours, theirs = socket.socketpair()
    try:
        # -W of a socket needs OpenSSH 9.4 on both sides, as varlinkctl(1) says of its ssh-unix:.
        argv = [*bound, "-a", "-x", "-T", "-W", path, "--", host]
        process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno())
    except BaseException as error:
        ours.close()
        if isinstance(error, OSError):
            raise NotReached(f"Failed to run {error.filename or program}: {error.strerror}.") from None
        raise
    finally:
        theirs.close()
    return _BySsh(ours, process)
