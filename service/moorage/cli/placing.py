"""Going into the place of systemd-machined, and back.

What is changed is written down before it is changed (`NOTE`), with what was there: whatever interrupts this, the same
command again completes it, and the way back undoes what was done, and nothing else. What would break something that
runs is refused before anything is changed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from moorage.cli import service
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.names import is_host_name
from moorage.quantities import printable

NOTE: Final = Path("/etc/moorage/in-place.json")
"""What was changed, and what was there before."""

UNITS: Final = Path("/etc/systemd/system")
MACHINES: Final = Path("/run/systemd/machines")
"""Where machined has a file for each of its machines."""

IMAGES: Final = Path("/var/lib/machines")

MACHINED: Final = "systemd-machined.service"
MACHINED_SOCKET: Final = "systemd-machined.socket"
OURS: Final = "moored.service"
SOCKET: Final = "moored-machined.socket"
PLACE: Final = "/run/systemd/machine/io.systemd.Machine"

SYSTEMCTL_SECONDS: Final = 120.0
"""For one call of systemctl: as long as a service may take to stop, and a little."""

AGREE_SECONDS: Final = 10.0
"""For both services to have the same machines, which takes milliseconds each."""

ATTEMPTS_MAX: Final = 20
"""Attempts to start a socket: it cannot be while the service runs, which any call may start again in between."""


class Note(msgspec.Struct):
    """What is noted.

    Attributes:
        links: links below `UNITS` by their paths, and where they led before; None for those that were not there.
        active: units of machined's that were active.
        complete: all of it is done.
    """

    links: dict[str, str | None]
    active: list[str]
    complete: bool = False


class Step(msgspec.Struct, frozen=True):
    """Something to be done.

    Attributes:
        words: what, as a command or nearly so.
        action: does it. What is done already is no error.
    """

    words: str
    action: Callable[[], None]

    def do(self) -> None:
        """Do it.

        Raises:
            Failure: it cannot be done; the same command again goes on from here.
        """
        try:
            self.action()
        except PermissionError as error:
            raise Failure(Exit.PERMISSION_DENIED, f"{self.words}: {error.strerror}") from None
        except OSError as error:
            raise Failure(Exit.REFUSED, f"{self.words}: {error.strerror}") from None


def systemctl(*arguments: str, check: bool = True) -> str:
    """Call systemctl.

    Raises:
        Failure: it fails, or does not end.
    """
    try:
        done = subprocess.run(
            ["systemctl", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=SYSTEMCTL_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(Exit.NO_SERVICE, f"systemctl {' '.join(arguments)}: {error}") from None
    if check and done.returncode != 0:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise Failure(Exit.REFUSED, f"systemctl {' '.join(arguments)}: {printable(said)}")
    return done.stdout


def read_note() -> Note | None:
    """Return what was noted, None if nothing is.

    Raises:
        Failure: it cannot be read.
    """
    try:
        return msgspec.json.decode(NOTE.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise Failure(Exit.REFUSED, f"{NOTE} cannot be read: {error}") from None


def _write_note(note: Note) -> None:
    NOTE.parent.mkdir(parents=True, exist_ok=True)
    new = NOTE.with_name(f".{NOTE.name}.new")
    new.write_text(json.dumps(msgspec.to_builtins(note), indent=2) + "\n")
    new.replace(NOTE)


def going_on(address: Address, *, images: bool) -> Iterator[Step]:
    """Look whether moored can go into the place of machined, and return what is to be done for that.

    Args:
        address: where moored listens.
        images: it does not matter that images cannot be managed meanwhile.

    Raises:
        Failure: it cannot, or would break something.
    """
    note = read_note()
    if note is None:
        _check_nothing_breaks(address, images=images)
        note = _planned()
    noted = note
    yield Step(f"write {NOTE}", lambda: _write_note(noted))
    for path, target in _links().items():
        yield Step(f"ln -sf {target} {path}", lambda path=path, target=target: _link(Path(path), target))
    yield from _taking_over()
    yield Step("check that moored answers in the place of machined", lambda: _check_place(address))
    noted_done = msgspec.structs.replace(note, complete=True)
    yield Step(f"complete {NOTE}", lambda: _write_note(noted_done))


def going_off(address: Address) -> Iterator[Step]:
    """Return what is to be done to have machined where it was.

    Raises:
        Failure: moored is not in its place by this command, or that would break something.
    """
    note = read_note()
    if note is None:
        if _masked():
            words = f"{MACHINED} is masked, but not by this command: systemctl unmask it"
            raise Failure(Exit.REFUSED, words)
        return
    if note.complete:
        _check_known_to_machined(address)
    begun = msgspec.structs.replace(note, complete=False)
    yield Step(f"write {NOTE}", lambda: _write_note(begun))
    for path, before in note.links.items():
        words = f"rm {path}" if before is None else f"ln -sf {before} {path}"
        yield Step(words, lambda path=path, before=before: _link(Path(path), before))
    yield Step("systemctl daemon-reload", lambda: _done("daemon-reload"))
    yield Step(f"systemctl stop {SOCKET} {OURS}", lambda: _done("stop", SOCKET, OURS))
    if note.active:
        units = sorted(note.active)
        yield Step(f"systemctl start {' '.join(units)}", lambda: _done("start", *units))
    yield Step(f"systemctl start {OURS}", lambda: _done("start", OURS))
    yield Step("check that machined has the machines of moored", lambda: _check_published(address))
    yield Step(f"rm {NOTE}", NOTE.unlink)


def is_on() -> bool:
    """Return whether moored is in the place of machined, by this command and completely."""
    note = read_note()
    return note is not None and note.complete and _is_active(SOCKET)


# What there is


def _fragment(unit: str) -> str:
    return systemctl("show", "--value", "--property=FragmentPath", unit).strip()


def _is_active(unit: str) -> bool:
    return systemctl("is-active", unit, check=False).strip() == "active"


def _masked() -> bool:
    return systemctl("is-enabled", MACHINED, check=False).strip() == "masked"


def _links() -> Mapping[str, str]:
    """Return the links that put moored in place, and where they lead."""
    ours, socket = _fragment(OURS), _fragment(SOCKET)
    if not ours or not socket:
        raise Failure(
            Exit.REFUSED, f"{OURS} and {SOCKET} are not installed, or the service manager has not read them"
        )
    return {
        str(UNITS / MACHINED): os.devnull,
        str(UNITS / MACHINED_SOCKET): os.devnull,
        str(UNITS / "dbus-org.freedesktop.machine1.service"): ours,
        str(UNITS / "sockets.target.wants" / SOCKET): socket,
    }


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None
    except OSError:
        raise Failure(Exit.REFUSED, f"{path} is a file of this host's own, which would be lost") from None


def _planned() -> Note:
    links = {path: _target(Path(path)) for path in _links()}
    active = [unit for unit in (MACHINED, MACHINED_SOCKET) if _is_active(unit)]
    return Note(links, active)


def _machines_of_machined() -> dict[str, int]:
    """Return the leaders of machined's machines, by its own files."""
    found: dict[str, int] = {}
    for path in MACHINES.glob("*"):
        if path.name.startswith((".", "unit:")) or path.is_symlink():
            continue
        try:
            leader = re.search(r"^LEADER=(\d+)$", path.read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if leader is not None and Path(f"/proc/{leader[1]}").exists():
            found[path.name] = int(leader[1])
    return found


def _machines_of_moored(address: Address) -> dict[str, dict[str, Any]]:
    listed = [msgspec.json.decode(reply)["machine"] for reply in service.list_machines(address)]
    return {machine["name"]: machine for machine in listed}


# What would break


def _check_nothing_breaks(address: Address, *, images: bool) -> None:
    if _masked():
        raise Failure(
            Exit.REFUSED,
            f"{MACHINED} is masked already, which this command would undo later: systemctl unmask it first",
        )
    kept = [path.name for path in IMAGES.glob("*") if not path.name.startswith((".", "lost+found"))]
    if kept and not images:
        raise Failure(
            Exit.REFUSED,
            f"machined keeps {len(kept)} images in {IMAGES}, which nobody could manage meanwhile: "
            "leave moored beside it, or use --without-images",
        )
    if (works := _under_way()) > 0:
        raise Failure(
            Exit.REFUSED,
            f"machined is copying, or works on an image ({works} processes), and its end would be the end of that: "
            "try again when it has finished",
        )
    wanted = _machines_of_machined()

    def missing() -> list[str]:
        ours = _machines_of_moored(address)
        return [
            name
            for name, leader in wanted.items()
            if ours.get(name, {}).get("leader", {}).get("pid") != leader
        ]

    if lost := _wait_until_empty(missing):
        raise Failure(
            Exit.REFUSED,
            f"moored does not have what machined has as {', '.join(map(printable, sorted(lost)))}, and their "
            "launchers would not find them any more: it adopts machines unless moored.conf says otherwise, or another "
            "one has the name",
        )


def _under_way() -> int:
    """Return how many processes machined has beside itself: each copies, or works on an image."""
    group = systemctl("show", "--value", "--property=ControlGroup", MACHINED).strip()
    if not group:
        return 0
    try:
        members = Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split()
    except OSError:
        return 0
    return len(members) - 1


def _check_known_to_machined(address: Address) -> None:
    """Refuse to go where machines would not be known to whom launchers ask."""
    if not _machines_of_moored(address):
        return
    if not _publishes(address):
        raise Failure(
            Exit.REFUSED,
            "There are machines, and moored.conf says that they are not published: their launchers would ask machined "
            "for machines that it does not have",
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


# What is done


def _done(*arguments: str) -> None:
    systemctl(*arguments)


def _link(path: Path, target: str | None) -> None:
    if _target(path) == target:
        return
    if target is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def _taking_over() -> Iterator[Step]:
    yield Step("systemctl daemon-reload", lambda: _done("daemon-reload"))
    yield Step(f"systemctl stop {OURS} && systemctl start {SOCKET}", _start_socket)
    yield Step(f"systemctl start {OURS}", lambda: _done("start", OURS))


def _start_socket() -> None:
    for attempt in range(ATTEMPTS_MAX):
        if _is_active(SOCKET):
            return
        # The service is handed sockets when it starts, and only then.
        systemctl("stop", OURS)
        try:
            systemctl("start", SOCKET)
        except Failure:
            if attempt == ATTEMPTS_MAX - 1 or not _is_active(OURS):
                raise


def _check_place(address: Address) -> None:
    told = service.information(Address(PLACE, None), timeout=AGREE_SECONDS)
    if told.product != "moored":
        raise Failure(Exit.REFUSED, f"{printable(told.product)} answers at {PLACE}")
    _machines_of_moored(address)


def _check_published(address: Address) -> None:
    def unpublished() -> list[str]:
        return [
            name
            for name, machine in _machines_of_moored(address).items()
            if is_host_name(name) and not machine.get("published") and machine.get("phase") == "running"
        ]

    if left := _wait_until_empty(unpublished):
        names = ", ".join(map(printable, sorted(left)))
        raise Failure(Exit.REFUSED, f"machined does not have {names}, see docs/beside-machined.md")
