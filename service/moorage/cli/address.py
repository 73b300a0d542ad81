"""Where the service listens."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import click

SYSTEM_SOCKET: Final = "/run/moorage/io.moorage.Machine"
USER_SOCKET: Final = "moorage/io.moorage.Machine"
"""Below $XDG_RUNTIME_DIR."""

VARIABLE: Final = "MOORAGE_ADDRESS"
"""Environment variable with a path that stands for :data:`SYSTEM_SOCKET`."""


@dataclass(frozen=True, slots=True)
class Address:
    """A socket, and whose service is expected behind it.

    Attributes:
        path: of the socket.
        manager: how that service's manager is spoken to, ``systemctl`` or ``systemctl --user``; None where the path
            was chosen freely, so that nothing is known of the service.
    """

    path: str
    manager: str | None

    @property
    def moorctl(self) -> str:
        """The command line that calls this service, as a person types it."""
        match self.manager:
            case "systemctl":
                return "moorctl"
            case "systemctl --user":
                return "moorctl --user"
            case _:
                return f"moorctl --address {shlex.quote(self.path)}"


@dataclass(slots=True)
class Choice:
    """What the options say of the address, before and after the command's name.

    Attributes:
        user: the service of the caller's own user manager.
        path: a socket.
    """

    user: bool = False
    path: str | None = None

    def resolve(self, environment: Mapping[str, str] | None = None) -> Address:
        """Return the address: an option counts more than $MOORAGE_ADDRESS.

        Raises:
            click.UsageError: the options contradict each other; there is no user manager.
        """
        environment = os.environ if environment is None else environment
        if self.path is not None:
            if self.user:
                raise click.UsageError("--user and --address exclude each other.")
            return Address(self.path, None)
        if self.user:
            directory = environment.get("XDG_RUNTIME_DIR")
            if not directory:
                raise click.UsageError(
                    "$XDG_RUNTIME_DIR is not set: --user needs the environment of a session of that user."
                )
            return Address(os.path.join(directory, USER_SOCKET), "systemctl --user")
        if environment.get(VARIABLE):
            return Address(environment[VARIABLE], None)
        return Address(SYSTEM_SOCKET, "systemctl")
