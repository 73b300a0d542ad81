"""Going into the place of systemd-machined, and back.

What is changed is written down before it is changed, with what was there: whatever interrupts this, the same command
again completes it, and the way back undoes what was done, and nothing else. What would break something that runs is
refused before anything is changed. It is the same for the system and for a user; their :class:`Whereabouts` differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from moorage.cli import objections, service
from moorage.cli.address import Address
from moorage.cli.failures import Exit, Failure
from moorage.cli.objections import AGREE_SECONDS
from moorage.cli.whereabouts import MACHINED_SERVICE, MACHINED_SOCKET, Whereabouts
from moorage.quantities import printable

OURS: Final = "moored.service"
SOCKET: Final = "moored-machined.socket"

ATTEMPTS_MAX: Final = 20
"""Attempts to start a socket: it cannot be while the service runs, which any call may start again in between."""


class Note(msgspec.Struct):
    """What is noted.

    Attributes:
        links: links to or among unit files by their paths, and where they led before; None for those that were not
            there.
        active: units of machined's that were active.
        directories: that were not there, outermost first.
        complete: all of it is done.
    """

    links: dict[str, str | None]
    active: list[str]
    directories: list[str] = []
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
        except OSError as error:
            raise _failure(self.words, error) from None


def _failure(words: str, error: OSError) -> Failure:
    status = Exit.PERMISSION_DENIED if isinstance(error, PermissionError) else Exit.REFUSED
    return Failure(status, f"{words}: {_reason(error)}")


def _reason(error: OSError) -> str:
    return f"{error.strerror} ({printable(str(error.filename))})" if error.filename else str(error.strerror)


def read_note(where: Whereabouts) -> Note | None:
    """Return what was noted, None if nothing is.

    Raises:
        Failure: it cannot be read.
    """
    try:
        return msgspec.json.decode(where.note.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise Failure(Exit.REFUSED, f"{where.note} cannot be read: {error}") from None


def _write_note(where: Whereabouts, note: Note) -> None:
    where.note.parent.mkdir(parents=True, exist_ok=True)
    new = where.note.with_name(f".{where.note.name}.new")
    with new.open("w") as file:
        file.write(json.dumps(msgspec.to_builtins(note), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(where.note)


@contextlib.contextmanager
def alone(where: Whereabouts) -> Generator[None]:
    """Keep others from going on or off meanwhile; whatever ends this process lets them again.

    Raises:
        Failure: another one is under way, or the lock cannot be had: only its owner may open it.
    """
    try:
        lock = os.open(where.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        objections.check_manager(where)  # without one, a user has no such directory
        failure = _failure("lock", error)
        if where.shared and failure.status is Exit.PERMISSION_DENIED:
            words = f"{failure}\nOnly root may do this for the system. For yourself: moorctl --user in-place"
            raise Failure(failure.status, words) from None
        raise failure from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(Exit.REFUSED, "Another `moorctl in-place` is under way.") from None
        yield
    finally:
        os.close(lock)


def going_on(where: Whereabouts, *, images: bool) -> Iterator[Step]:
    """Look whether moored can go into the place of machined, and return what is to be done for that.

    Args:
        where: all of it is.
        images: it does not matter that images cannot be managed meanwhile.

    Raises:
        Failure: it cannot, or would break something.
    """
    objections.check_manager(where)
    note = read_note(where)
    if note is None:
        objections.check_nothing_breaks(where, images=images)
        note = _planned(where)
    noted = note
    yield Step(f"write {where.note}", lambda: _write_note(where, noted))
    for path, target in _links(where).items():
        yield Step(f"ln -sf {target} {path}", lambda path=path, target=target: _link(Path(path), target))
    yield _reload(where)
    yield Step(
        f"{where.manager} stop {OURS} && {where.manager} start {SOCKET}", lambda: _start_socket(where)
    )
    yield _start(where, OURS)
    yield Step("check that moored answers in the place of machined", lambda: _check_place(where))
    noted_done = msgspec.structs.replace(note, complete=True)
    yield Step(f"complete {where.note}", lambda: _write_note(where, noted_done))


def going_off(where: Whereabouts, *, machines: bool) -> Iterator[Step]:
    """Return what is to be done to have machined where it was.

    Args:
        where: all of it is.
        machines: it does not matter that machined does not have all of them.

    Raises:
        Failure: moored is not in its place by this command, or that would break something.
    """
    objections.check_manager(where)
    note = read_note(where)
    if note is None:
        if objections.masked(where):
            words = f"{MACHINED_SERVICE} is masked, but not by this command: {where.manager} unmask it"
            raise Failure(Exit.REFUSED, words)
        return
    if note.complete and not machines:
        objections.check_known_to_machined(where)
    begun = msgspec.structs.replace(note, complete=False)
    yield Step(f"write {where.note}", lambda: _write_note(where, begun))
    for path, before in note.links.items():
        words = f"rm {path}" if before is None else f"ln -sf {before} {path}"
        yield Step(words, lambda path=path, before=before: _link(Path(path), before))
    yield _reload(where)
    yield Step(f"{where.manager} stop {SOCKET} {OURS}", lambda: _call(where, "stop", SOCKET, OURS))
    if note.active:
        words = f"{where.manager} start {' '.join(sorted(note.active))}"
        yield Step(words, lambda: _start_again(where, note.active))
    yield _start(where, OURS)
    if where.shared and not machines:
        yield Step(
            "check that machined has the machines of moored",
            lambda: objections.check_published(where.address),
        )
    words = f"rm {where.note}"
    if note.directories:
        words += f" && rmdir --ignore-fail-on-non-empty {' '.join(reversed(note.directories))}"
    yield Step(words, lambda: _forget(where, note))


def is_on(where: Whereabouts) -> bool:
    """Return whether moored is in the place of machined, by this command and completely."""
    note = read_note(where)
    return note is not None and note.complete and where.is_active(SOCKET)


# What there is


def _fragment(where: Whereabouts, unit: str) -> str:
    return where.systemctl("show", "--value", "--property=FragmentPath", unit).strip()


def _links(where: Whereabouts) -> Mapping[str, str]:
    """Return the links that put moored in place, and where they lead."""
    ours, socket = _fragment(where, OURS), _fragment(where, SOCKET)
    if not ours or not socket:
        raise Failure(
            Exit.REFUSED, f"{OURS} and {SOCKET} are not installed, or the service manager has not read them"
        )
    return {
        str(where.units / MACHINED_SERVICE): os.devnull,
        str(where.units / MACHINED_SOCKET): os.devnull,
        str(where.units / "dbus-org.freedesktop.machine1.service"): ours,
        str(where.units / "sockets.target.wants" / SOCKET): socket,
    }


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None


def _replaced(where: Whereabouts, path: Path) -> str | None:
    """Return where a link leads that is going to be replaced, None if it is not there."""
    try:
        return _target(path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            words = f"{path} is a file of {where.owner}, which would be lost"
        else:
            words = f"{path}: {error.strerror}"
        raise Failure(Exit.REFUSED, words) from None


def _missing(files: Iterable[Path]) -> list[str]:
    """Return the directories that have to be made for some files, outermost first."""
    found: dict[str, None] = {}
    for directory in (parent for file in files for parent in reversed(file.parents)):
        try:
            if not stat.S_ISDIR(directory.stat().st_mode):
                raise Failure(Exit.REFUSED, f"{directory} is no directory")
        except FileNotFoundError:
            if directory.is_symlink():
                words = f"{directory} is a link to {os.readlink(directory)}, which is not there"
                raise Failure(Exit.REFUSED, words) from None
            found[str(directory)] = None
        except OSError as error:
            raise Failure(Exit.REFUSED, f"{directory}: {error.strerror}") from None
    return list(found)


def _planned(where: Whereabouts) -> Note:
    links = {path: _replaced(where, Path(path)) for path in _links(where)}
    active = [unit for unit in (MACHINED_SERVICE, MACHINED_SOCKET) if where.is_active(unit)]
    return Note(links, active, _missing([where.note, *map(Path, links)]))


# What is done


def _call(where: Whereabouts, *arguments: str) -> None:
    where.systemctl(*arguments)


def _reload(where: Whereabouts) -> Step:
    return Step(f"{where.manager} daemon-reload", lambda: _call(where, "daemon-reload"))


def _start(where: Whereabouts, *units: str) -> Step:
    return Step(f"{where.manager} start {' '.join(units)}", lambda: _call(where, "start", *units))


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


def _start_again(where: Whereabouts, units: Iterable[str]) -> None:
    # What somebody has masked, or removed, meanwhile, cannot be started, nor can the socket of such a service: that is
    # nothing to stop at.
    there = [unit for unit in sorted(units) if where.load_state(unit) == "loaded"]
    if there and where.load_state(MACHINED_SERVICE) == "loaded":
        where.systemctl("start", *there)


def _forget(where: Whereabouts, note: Note) -> None:
    where.note.unlink()
    for directory in reversed(note.directories):
        with contextlib.suppress(OSError):  # what is in use meanwhile stays
            os.rmdir(directory)


def _start_socket(where: Whereabouts) -> None:
    for attempt in range(ATTEMPTS_MAX):
        if where.is_active(SOCKET):
            return
        # The service is handed sockets when it starts, and only then.
        where.systemctl("stop", OURS)
        try:
            where.systemctl("start", SOCKET)
        except Failure:
            if attempt == ATTEMPTS_MAX - 1 or not where.is_active(OURS):
                raise


def _check_place(where: Whereabouts) -> None:
    told = service.information(Address(str(where.socket), None), timeout=AGREE_SECONDS)
    if told.product != "moored":
        raise Failure(Exit.REFUSED, f"{printable(told.product)} answers at {where.socket}")
    objections.machines_of_moored(where.address)
