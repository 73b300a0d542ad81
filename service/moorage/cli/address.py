"""Where the service listens."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import click

from moorage.addresses import SYSTEM_SOCKET, VARIABLE, user_address


@dataclass(frozen=True, slots=True)
class Address:
    """A socket, and the service manager whose service is expected to listen there.

    Attributes:
        path: of the socket.
        manager: command that talks to the service manager, ``systemctl`` or ``systemctl --user``; None if the path was
            chosen freely, so that nothing is known of the service.
    """

    path: str
    manager: str | None

    @property
    def moorctl(self) -> str:
        """Command line that calls this service, as a person types it."""
        match self.manager:
            case "systemctl":
                return "moorctl"
            case "systemctl --user":
                return "moorctl --user"
            case _:
                return f"moorctl --address {shlex.quote(self.path)}"


@dataclass(slots=True)
class Choice:
    """The options that choose the address, from before and after the command's name.

    Attributes:
        user: use the service of the caller's own user manager.
        path: of a socket.
    """

    user: bool = False
    path: str | None = None

    def resolve(self, environment: Mapping[str, str] | None = None) -> Address:
        """Return the address. Options take precedence over $MOORAGE_ADDRESS.

        Raises:
            click.UsageError: the options exclude each other, or there is no user manager.
        """
        environment = os.environ if environment is None else environment
        if self.path is not None:
            if self.user:
                raise click.UsageError("--user and --address exclude each other.")
            return Address(self.path, None)
        if self.user:
            try:
                return Address(user_address(environment), "systemctl --user")
            except KeyError:
                raise click.UsageError(
                    "$XDG_RUNTIME_DIR is not set: --user works only within a login session of that user."
                ) from None
        if environment.get(VARIABLE):
            return Address(environment[VARIABLE], None)
        return Address(SYSTEM_SOCKET, "systemctl")
