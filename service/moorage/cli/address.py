"""Where the service listens, and on which host."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import click

from moorage.addresses import SYSTEM_SOCKET, VARIABLE, user_address

HOSTS_MAX: Final = 256
"""Hosts that can be asked at once: each takes a process of ssh's, and memory for what it replies."""

_HOST: Final = re.compile(r"(?:[A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_\[:][\w.:%\[\]-]*", re.ASCII)
"""What ssh(1) takes as a destination, and takes for nothing else: no option, and no command of a shell."""
_HOST_LENGTH_MAX: Final = 320


@dataclass(frozen=True, slots=True)
class Address:
    """A socket, and the service manager whose service is expected to listen there.

    Attributes:
        path: of the socket.
        manager: command that talks to the service manager, ``systemctl`` or ``systemctl --user``; None if the path was
            chosen freely, so that nothing is known of the service.
        host: the other host that it is on, as ``[user@]host``.
        asks: a person may be asked for authentication.
    """

    path: str
    manager: str | None
    host: str | None = None
    asks: bool = False

    @property
    def moorctl(self) -> str:
        """Command line that calls this service, as a person types it."""
        if self.host is not None:
            path = "" if self.path == SYSTEM_SOCKET else f" --address {shlex.quote(self.path)}"
            return f"moorctl --host {shlex.quote(self.host)}{path}"
        match self.manager:
            case "systemctl":
                return "moorctl"
            case "systemctl --user":
                return "moorctl --user"
            case _:
                return f"moorctl --address {shlex.quote(self.path)}"


@dataclass(slots=True)
class Choice:
    """The options that all commands have, from before and after the command's name.

    Attributes:
        user: use the service of the caller's own user manager.
        path: of a socket.
        hosts: other ones that it is on.
        ask_password: a person may be asked for authentication.
        pager: a pager may show what is printed.
        quiet: print only what was asked for, and errors.
    """

    user: bool = False
    path: str | None = None
    hosts: list[str] = field(default_factory=list[str])
    ask_password: bool = True
    pager: bool = True
    quiet: bool = False

    def each(self) -> list[Address]:
        """Return the address on each host; see :meth:`resolve`."""
        if self.user and self.hosts:
            raise click.UsageError("--user and --host exclude each other.")
        if len(self.hosts) > HOSTS_MAX:
            raise click.UsageError(f"There can be at most {HOSTS_MAX} hosts.")
        # $MOORAGE_ADDRESS is a path on this host.
        path, manager = (self.path, None) if self.path else (SYSTEM_SOCKET, "systemctl")
        return [
            Address(path, manager and f"ssh {shlex.quote(host)} {manager}", host, self.ask_password)
            for host in dict.fromkeys(self.hosts)
        ] or [self.here("this command")]

    def resolve(self) -> Address:
        """Return the address. Options take precedence over $MOORAGE_ADDRESS.

        Raises:
            click.UsageError: the options exclude each other, there is no user manager, or there are several hosts.
        """
        first, *others = self.each()
        if others:
            raise click.UsageError("This command works with one --host at a time.")
        return first

    def here(self, what: str, environment: Mapping[str, str] | None = None) -> Address:
        """Return the address on this host.

        Args:
            what: has to be on the same host as the service.
            environment: that of this process by default.

        Raises:
            click.UsageError: see :meth:`resolve`; or it is on another one.
        """
        if self.hosts:
            raise click.UsageError(f"--host cannot be used: {what} is about this host.")
        environment = os.environ if environment is None else environment
        asks = self.ask_password and os.geteuid() != 0
        if self.path is not None:
            if self.user:
                raise click.UsageError("--user and --address exclude each other.")
            return Address(self.path, None, asks=asks)
        if self.user:
            try:
                return Address(user_address(environment), "systemctl --user")
            except KeyError:
                raise click.UsageError(
                    "$XDG_RUNTIME_DIR is not set: --user works only within a login session of that user, or, if "
                    f"lingering is enabled (loginctl enable-linger), with XDG_RUNTIME_DIR=/run/user/{os.geteuid()}."
                ) from None
        if environment.get(VARIABLE):
            return Address(environment[VARIABLE], None, asks=asks)
        return Address(SYSTEM_SOCKET, "systemctl", asks=asks)


def host_of(text: str) -> str:
    """Return the name of a host that can be given to ssh(1).

    Raises:
        ValueError: it is none.
    """
    if len(text) > _HOST_LENGTH_MAX or not _HOST.fullmatch(text):
        raise ValueError(f"{text!r} is not [USER@]HOST")
    return text
