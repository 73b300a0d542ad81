"""What speaks against going into the place of machined, or against the way back: what would break something that runs.

Nothing is changed here.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from moorage.cli import service
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.cli.whereabouts import MACHINED_SERVICE, Whereabouts
from moorage.names import is_host_name
from moorage.quantities import printable

AGREE_SECONDS: Final = 10.0
"""For both services to have the same machines, which takes milliseconds each."""


def check_manager(where: Whereabouts) -> None:
    """Refuse to go on where the service manager is not there, or looks for unit files elsewhere.

    Raises:
        Failure: it is so.
    """
    try:
        paths = where.systemctl("show", "--value", "--property=UnitPath")
    except Failure as failure:
        if where.shared:
            raise
        raise Failure(
            Exit.NO_SERVICE,
            f"{failure}\nYour service manager runs while you are logged in, or always: loginctl enable-linger",
        ) from None
    if os.path.realpath(where.units) not in map(os.path.realpath, shlex.split(paths)):
        raise Failure(
            Exit.REFUSED,
            f"The service manager reads no unit files in {where.units}: $HOME or $XDG_CONFIG_HOME is another one "
            f"here than it was at its start ({where.manager} show --property=UnitPath)",
        )


def check_nothing_breaks(where: Whereabouts, *, images: bool) -> None:
    """Refuse to take the place of machined where something is that needs it.

    Args:
        where: all of it is.
        images: it does not matter that there are some.

    Raises:
        Failure: there is something.
    """
    if masked(where):
        raise Failure(
            Exit.REFUSED,
            f"{MACHINED_SERVICE} is masked already, which this command would undo later: "
            f"{where.manager} unmask it first",
        )
    kept = {each: _images(each) for each in where.images}
    if any(kept.values()) and not images and where.has_machined():
        words = " and ".join(f"{count} images in {directory}" for directory, count in kept.items() if count)
        raise Failure(
            Exit.REFUSED,
            f"machined keeps {words}, which nobody could manage meanwhile: "
            "leave moored beside it, or use --without-images",
        )
    if (works := _under_way(where)) > 0:
        raise Failure(
            Exit.REFUSED,
            f"machined is copying, or works on an image ({works} processes), and its end would be the end of that: "
            "try again when it has finished",
        )
    _check_nothing_is_lost(where)


def _images(directory: Path) -> int:
    return sum(not path.name.startswith((".", "lost+found")) for path in directory.glob("*"))


def _check_nothing_is_lost(where: Whereabouts) -> None:
    wanted = _machines_of_machined(where)

    def missing() -> list[str]:
        return _unlike(wanted, machines_of_moored(where.address))

    if lost := _wait_until_empty(missing) if where.shared else missing():
        why = (
            "it adopts machines unless moored.conf says otherwise, or another one has the name"
            if where.shared
            else "that of a user adopts none, so they have to end first"
        )
        raise Failure(
            Exit.REFUSED,
            f"moored does not have what machined has as {_listed(lost)}, and their launchers would not find them any "
            f"more: {why}",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(printable, sorted(names)))


def _under_way(where: Whereabouts) -> int:
    """Return how many processes machined has beside itself: each copies, or works on an image."""
    group = where.systemctl("show", "--value", "--property=ControlGroup", MACHINED_SERVICE).strip()
    if not group:
        return 0
    try:
        members = Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split()
    except OSError:
        return 0
    return len(members) - 1


def check_known_to_machined(where: Whereabouts) -> None:
    """Refuse to go where machines would not be known to whom launchers ask.

    Raises:
        Failure: there is such a machine.
    """
    ours = machines_of_moored(where.address)
    if where.shared:
        if ours and not _publishes(where.address):
            raise Failure(
                Exit.REFUSED,
                "There are machines, and moored.conf says that they are not published: their launchers would ask "
                "machined for machines that it does not have; if none does, use --without-machines",
            )
        return
    theirs = _machines_of_machined(where)
    lost = [name for name, machine in ours.items() if theirs.get(name, 0) != _leader(machine)]
    if kept := [name for name in lost if ours[name].get("phase") != "exited"]:
        raise Failure(
            Exit.REFUSED,
            f"moored has {_listed(kept)}, which that of a user does not publish: launchers that call machined would "
            "not find them any more; if none does, use --without-machines",
        )


def _publishes(address: Address) -> bool:
    reply = msgspec.json.decode(service.call(address, "DescribeConfiguration", {}))
    found = {option["name"]: option.get("value") for option in reply.get("options", [])}
    return found.get("publish") != "false"


def _wait_until_empty(names: Callable[[], list[str]]) -> list[str]:
    """Wait a while until there is none left; return those that are."""
    give_up = time.monotonic() + AGREE_SECONDS
    while (left := names()) and time.monotonic() < give_up:
        time.sleep(0.1)
    return left


def check_published(address: Address) -> None:
    """Wait until machined has our machines.

    Raises:
        Failure: it does not get them.
    """

    def unpublished() -> list[str]:
        return [
            name
            for name, machine in machines_of_moored(address).items()
            if is_host_name(name) and not machine.get("published") and machine.get("phase") == "running"
        ]

    if left := _wait_until_empty(unpublished):
        raise Failure(Exit.REFUSED, f"machined does not have {_listed(left)}, see docs/beside-machined.md")


# What there is


def masked(where: Whereabouts) -> bool:
    """Return whether whoever can give this command has masked machined: it is not for users to undo what root has."""
    paths = (each / MACHINED_SERVICE for each in (where.units, where.runtime_units))
    return any(path.is_symlink() and os.readlink(path) == os.devnull for path in paths)


def _machines_of_machined(where: Whereabouts) -> dict[str, int]:
    """Return the leaders of machined's machines, by its own files."""
    found: dict[str, int] = {}
    for path in where.machines.glob("*"):
        if path.name.startswith((".", "unit:")) or path.is_symlink():
            continue
        try:
            leader = re.search(r"^LEADER=(\d+)$", path.read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if leader is not None and Path(f"/proc/{leader[1]}").exists():
            found[path.name] = int(leader[1])
    return found


def machines_of_moored(address: Address) -> dict[str, dict[str, Any]]:
    """Return our machines by their names.

    Raises:
        Failure: moored cannot be asked.
    """
    listed = [msgspec.json.decode(reply)["machine"] for reply in service.list_machines(address)]
    return {machine["name"]: machine for machine in listed}


def _leader(machine: Mapping[str, Any]) -> int | None:
    return machine.get("leader", {}).get("pid")


def _unlike(theirs: Mapping[str, int], ours: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names under which they have a machine, and we have none or another one."""
    return [name for name, leader in theirs.items() if _leader(ours.get(name, {})) != leader]
