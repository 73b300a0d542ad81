"""The files of the configuration: which there are, in which order, and how they are read.

The rules are systemd's (CONFIGURATION DIRECTORIES AND PRECEDENCE of systemd-system.conf(5), and ``conf-files.c`` and
``conf-parser.c`` of its sources):

- of the main file the first one counts, in ``/etc``, ``/run``, ``/usr/local/lib`` and ``/usr/lib``;
- drop-ins come after it, sorted by their names over all directories; of those of one name the first one counts;
- a file that is empty, or a symbolic link to ``/dev/null``, hides those of its name, and says nothing itself.

Whoever can write one of these files decides what the service does. So none is read that belongs to a stranger, or that
everybody can write; and whatever else may be at their paths, nothing waits for it, and nothing happens to it.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Mapping
from typing import Final

import msgspec

BASES: Final = ("/etc", "/run", "/usr/local/lib", "/usr/lib")
"""``CONF_PATHS()`` of systemd, the first one counts most."""

BYTES_MAX: Final = 64 * 1024
"""Bytes of a file: a hundred times what all options take. A larger one is something else."""

DROP_INS_MAX: Final = 64
"""Drop-ins that are read, the first by their names; with BYTES_MAX this bounds the time that reading takes."""

ENTRIES_MAX: Final = 4096
"""Entries of a directory that are looked at."""

SUFFIX: Final = ".conf"


class Unreadable(Exception):
    """A file is not read; the message says why."""


class Locations(msgspec.Struct, frozen=True):
    """Where the files of an instance are.

    Attributes:
        main: paths of the main file, of which the first that is there counts.
        drop_ins: directories of drop-ins, the first one counts most.
        owners: uids that files may belong to.
    """

    main: tuple[str, ...]
    drop_ins: tuple[str, ...]
    owners: frozenset[int]


class Listing(msgspec.Struct, frozen=True):
    """The files to read.

    Attributes:
        main: path of the main file; None if there is none.
        drop_ins: paths of the drop-ins, in the order in which they are read.
        errors: paths that could not be looked at, or are left out, each with the reason.
    """

    main: str | None
    drop_ins: tuple[str, ...]
    errors: tuple[tuple[str, str], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to read, and nothing to tell."""
        return self.main is None and not self.drop_ins and not self.errors


def locations(*, user: bool, environment: Mapping[str, str] = os.environ) -> Locations:
    """Return where the files of an instance are.

    A user's instance has its own below ``$XDG_CONFIG_HOME`` (``~/.config``), and takes from the administrator what is
    for all instances of users, as the user's service manager does with its ``user.conf``.

    Args:
        user: it is the instance of a user.
        environment: of this process.
    """
    bases = [f"{base}/moorage" for base in BASES]
    if user and (own := _config_home(environment)) is not None:
        bases.insert(0, f"{own}/moorage")
    name = "user.conf" if user else "moored.conf"
    return Locations(
        main=tuple(f"{base}/{name}" for base in bases),
        drop_ins=tuple(f"{base}/{name}.d" for base in bases),
        owners=frozenset({0, os.geteuid()}),
    )


def _config_home(environment: Mapping[str, str]) -> str | None:
    """Return the directory of a user's configuration files, as ``xdg_user_config_dir()`` of systemd does."""
    for base in (environment.get("XDG_CONFIG_HOME", ""), f"{environment.get('HOME', '')}/.config"):
        if base.startswith("/") and base != "/.config":
            return base.rstrip("/")
    return None


def find(locations: Locations) -> Listing:
    """Look which files there are."""
    errors: list[tuple[str, str]] = []
    main: str | None = None
    for path in locations.main:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            errors.append((path, f"cannot be looked at: {error.strerror}"))
            continue
        main = path
        break
    found: dict[str, str] = {}
    for directory in locations.drop_ins:
        try:
            names = _names(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            errors.append((directory, f"cannot be looked into: {error.strerror}"))
            continue
        for name in names:
            found.setdefault(name, f"{directory}/{name}")
    drop_ins = [found[name] for name in sorted(found, key=os.fsencode)]
    if len(drop_ins) > DROP_INS_MAX:
        errors.append(
            (drop_ins[DROP_INS_MAX], f"not read, nor what follows: only {DROP_INS_MAX} drop-ins are")
        )
    return Listing(main, tuple(drop_ins[:DROP_INS_MAX]), tuple(errors))


def _names(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return [
            entry.name
            for entry in itertools.islice(entries, ENTRIES_MAX)
            if entry.name.endswith(SUFFIX)
            and not entry.name.startswith(".")
            and not os.path.isdir(entry.path)
        ]


def read(path: str, owners: frozenset[int]) -> bytes:
    """Read a file.

    Args:
        path: of the file.
        owners: uids that it may belong to.

    Returns:
        Its content, of one that only hides others none.

    Raises:
        Unreadable: it cannot be read, or should not be.
    """
    try:
        # What is no file may wait when it is opened, or do something: so it is looked at first.
        found = os.stat(path)
        if _is_null(found):
            return b""
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("it is not a file")
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            _check(os.fstat(opened), owners)
            content = b""
            while len(content) <= BYTES_MAX and (more := os.read(opened, BYTES_MAX + 1 - len(content))):
                content += more
        finally:
            os.close(opened)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    if len(content) > BYTES_MAX:
        raise Unreadable(f"it has more than {BYTES_MAX} bytes")
    return content


def _check(found: os.stat_result, owners: frozenset[int]) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("it is not a file")
    if found.st_uid not in owners:
        raise Unreadable(f"it belongs to uid {found.st_uid}, who could change what the service does")
    if found.st_mode & stat.S_IWOTH:
        raise Unreadable("everybody can write it; chmod o-w would mend that")


def _is_null(found: os.stat_result) -> bool:
    """Whether this is ``/dev/null`` (``null_or_empty()`` of systemd's stat-util.c; an empty file needs no rule)."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
