"""From the files of the configuration to a value for each option, and to what is wrong with them.

Needed only where there is such a file.
"""

from __future__ import annotations

from typing import Final

import msgspec

from moorage.configuration.files import Listing, Unreadable, read
from moorage.configuration.options import FIELDS, OPTIONS, name_of, written
from moorage.configuration.settings import Loaded, Problem, Settings
from moorage.configuration.toml import Malformed, parse
from moorage.quantities import printable
from moorage.similar import did_you_mean, nearest

PROBLEMS_MAX: Final = 32
"""Problems that are told. Somebody who has more reads the first, and a file of something else has no end of them."""

SHOWN_MAX: Final = 64
"""Characters of a name that are shown in a problem."""

DESCRIPTORS: Final = ("machines_max", "connections_max", "trusted_connections_max")
"""Fields of what takes a file descriptor each."""


def merge(listing: Listing, owners: frozenset[int], descriptors: int) -> Loaded:
    """Read files, each after those that count less.

    Args:
        listing: the files.
        owners: uids that they may belong to.
        descriptors: how many file descriptors the service may open.
    """
    merged = _Merged()
    for path, reason in listing.errors:
        merged.problem(path, reason)
    for path in (*filter(None, [listing.main]), *listing.drop_ins):
        try:
            content = read(path, owners)
        except Unreadable as error:
            merged.problem(path, f"{error}; the file is ignored")
            continue
        if content.strip():
            merged.read(path, content)
    merged.check(descriptors)
    return merged.loaded()


class _Merged:
    """What has been read so far."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.sources: dict[str, str] = {}
        self._problems: list[Problem] = []
        self._further = 0

    def problem(self, path: str, text: str, line: int | None = None, *, severe: bool = True) -> None:
        if len(self._problems) == PROBLEMS_MAX:
            self._further += 1
            return
        where = path if line is None else f"{path}:{line}"
        self._problems.append(Problem(printable(where), printable(text), severe))

    def loaded(self) -> Loaded:
        further = [Problem("and", f"{self._further} more", severe=False)] if self._further else []
        return Loaded(self.settings, self.sources, (*self._problems, *further))

    def read(self, path: str, content: bytes) -> None:
        """Take over what a file says."""
        try:
            document, lines = parse(content)
        except Malformed as error:
            self.problem(path, f"{error}; the file is ignored", error.line)
            return
        for name, value in document.items():
            self._set(path, name, value, lines.get(name))

    def check(self, descriptors: int) -> None:
        """Look whether what is set goes together."""
        raised = (
            field for field in DESCRIPTORS if getattr(self.settings, field) > getattr(Settings(), field)
        )
        source = next((self.sources[field] for field in raised), None)
        wanted: int = sum(getattr(self.settings, field) for field in DESCRIPTORS)
        if source is not None and wanted > descriptors:
            names = " + ".join(map(name_of, DESCRIPTORS))
            text = f"{names} is {wanted}, but the service may open {descriptors} files (LimitNOFILE=)"
            self.problem(source, text, severe=False)

    def _set(self, path: str, name: str, value: object, line: int | None) -> None:
        field = FIELDS.get(name)
        if field is None:
            self.problem(path, _unknown(name, value), line, severe=False)
            return
        try:
            parsed = OPTIONS[field].kind.parse(value)
        except ValueError as error:
            staying = written(self.settings, field)
            self.problem(path, f"{name}: {error}; {staying} stays in force", line)
            return
        self.settings = msgspec.structs.replace(self.settings, **{field: parsed})
        self.sources[field] = printable(path if line is None else f"{path}:{line}")


def _unknown(name: str, value: object) -> str:
    if isinstance(value, dict):
        return f"there are no tables, ignoring [{name[:SHOWN_MAX]}]: options are written without one"
    return f"there is no option {name[:SHOWN_MAX]}, ignoring it{did_you_mean(nearest(name, FIELDS, most=1))}"
