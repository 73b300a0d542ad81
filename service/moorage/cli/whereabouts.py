"""Where machined and this service have their things: those of the system, or those of a user."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moorage.addresses import MACHINED, MACHINED_FILES
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.quantities import printable

MACHINED_SERVICE: Final = "systemd-machined.service"
MACHINED_SOCKET: Final = "systemd-machined.socket"

_LOCK: Final = "moorage-in-place.lock"
"""Not below the runtime directory of moored, which goes with the service."""

SYSTEMCTL_SECONDS: Final = 120.0
"""For one call of systemctl: as long as a service may take to stop, and a little."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where things are.

    Attributes:
        address: where moored listens.
        manager: command that talks to the service manager.
        note: what was changed by `moorctl in-place`, and what was there before.
        lock: whoever changes that holds it. Only its owner can open it.
        units: unit files that stay over reboots, and take precedence over those that are installed.
        runtime_units: the same until the next reboot.
        socket: where machined listens.
        machines: where machined has a file for each of its machines.
        images: directories in which machined looks for images.
        shared: each service has the machines of the other one, too, while both run.
        owner: whose own files these are, in words.
    """

    address: Address
    manager: str
    note: Path
    lock: Path
    units: Path
    runtime_units: Path
    socket: Path
    machines: Path
    images: tuple[Path, ...]
    shared: bool
    owner: str

    @classmethod
    def of(cls, address: Address, environment: Mapping[str, str] | None = None) -> Whereabouts:
        """Return the whereabouts for a service.

        Args:
            address: where it listens, chosen by its manager.
            environment: that of this process by default.

        Raises:
            Failure: the directories of the user are not known.
        """
        if address.manager == "systemctl --user":
            return cls.of_user(address, os.environ if environment is None else environment)
        machines = ("etc", "run", "var/lib", "usr/local/lib", "usr/lib")  # image_search_path of systemd
        return cls(
            address=address,
            manager="systemctl",
            note=Path("/etc/moorage/in-place.json"),
            lock=Path("/run", _LOCK),
            units=Path("/etc/systemd/system"),
            runtime_units=Path("/run/systemd/system"),
            socket=Path(MACHINED),
            machines=Path(MACHINED_FILES),
            images=tuple(Path("/", each, "machines") for each in machines),
            shared=True,
            owner="this host's own",
        )

    @classmethod
    def of_user(cls, address: Address, environment: Mapping[str, str]) -> Whereabouts:
        """Return the whereabouts for the service of a user, by the XDG base directories (file-hierarchy(7))."""
        runtime = _absolute(environment, "XDG_RUNTIME_DIR")
        if runtime is None:
            raise Failure(Exit.USAGE, "$XDG_RUNTIME_DIR is not an absolute path.")
        home = _absolute(environment, "HOME") or _home()
        config = _absolute(environment, "XDG_CONFIG_HOME") or home / ".config"
        # machined has the environment of its manager, where this variable may not be set as it is here.
        states = {_absolute(environment, "XDG_STATE_HOME") or home / ".local/state", home / ".local/state"}
        return cls(
            address=address,
            manager="systemctl --user",
            note=config / "moorage/in-place.json",
            lock=runtime / _LOCK,
            units=config / "systemd/user",
            runtime_units=runtime / "systemd/user",
            socket=runtime / "systemd/machine/io.systemd.Machine",
            machines=runtime / "systemd/machines",
            images=tuple(each / "machines" for each in (runtime, *sorted(states), home / ".local/lib")),
            shared=False,
            owner="your own",
        )

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Call systemctl, for the manager of the system or of the user.

        Raises:
            Failure: it fails, or does not end.
        """
        words = " ".join((self.manager, *arguments))
        try:
            done = subprocess.run(
                [*self.manager.split(), *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=SYSTEMCTL_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failure(Exit.NO_SERVICE, f"{words}: {error}") from None
        if check and done.returncode != 0:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise Failure(Exit.REFUSED, f"{words}: {printable(said)}")
        return done.stdout

    def is_active(self, unit: str) -> bool:
        """Return whether a unit is active."""
        return self.systemctl("is-active", unit, check=False).strip() == "active"

    def load_state(self, unit: str) -> str:
        """Return whether a unit is ``loaded``, or why it is not, as ``not-found`` or ``masked``."""
        return self.systemctl("show", "--value", "--property=LoadState", unit).strip()

    def has_machined(self) -> bool:
        """Return whether there is a machined to be replaced: users have none before systemd 258."""
        return self.load_state(MACHINED_SERVICE) != "not-found"


def _absolute(environment: Mapping[str, str], variable: str) -> Path | None:
    # A relative path is to be ignored (XDG Base Directory Specification).
    path = environment.get(variable, "")
    return Path(path) if path.startswith("/") else None


def _home() -> Path:
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        raise Failure(Exit.REFUSED, f"There is no home directory of user {os.geteuid()}.") from None
