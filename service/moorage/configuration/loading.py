"""From the files of the configuration to a value for each option.

Whatever is wrong with a file, the service starts: what is wrong is told with its line, and what was in force before it
stays so. Pure, but for reading the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from moorage.configuration import files
from moorage.configuration.files import Locations, Unreadable
from moorage.configuration.options import Settings, fields, name_of, options, written

PROBLEMS_MAX: Final = 32
"""Problems that are told. Somebody who has more reads the first, and a file of something else has no end of them."""

SHOWN_MAX: Final = 64
"""Characters of a name that are shown in a problem."""

DESCRIPTORS: Final = ("machines_max", "connections_max", "trusted_connections_max")
"""Fields of what takes a file descriptor each."""

DEFAULT: Final = "default"
"""The source of what nobody has set."""


class Problem(msgspec.Struct, frozen=True):
    """Something that is wrong with the configuration.

    Attributes:
        where: the file, with its line where that is known.
        text: what it is, and what comes of it.
        severe: something is not in force that is meant to be; otherwise somebody should look at it.
    """

    where: str
    text: str
    severe: bool

    def __str__(self) -> str:
        """Write it as a line of the log."""
        return f"{self.where}: {self.text}"


class Loaded(msgspec.Struct, frozen=True):
    """What the files, and the command line, say.

    Attributes:
        settings: all values.
        sources: where those that are no defaults come from: ``FILE:LINE``, or an option of the command line; by field.
        problems: what is wrong, in the order in which it was met.
    """

    settings: Settings
    sources: Mapping[str, str]
    problems: tuple[Problem, ...]


class Given(msgspec.Struct, frozen=True):
    """A value of the command line, which counts more than any file.

    Attributes:
        value: as :class:`Settings` has it.
        source: the option that gave it.
    """

    value: Any
    source: str


def load(locations: Locations, given: Mapping[str, Given], descriptors: int) -> Loaded:
    """Read the files.

    Args:
        locations: where they are.
        given: on the command line, by field.
        descriptors: how many file descriptors the service may open.
    """
    listing = files.find(locations)
    merged = _Merged()
    for path, reason in listing.errors:
        merged.problem(path, reason)
    for path in (*filter(None, [listing.main]), *listing.drop_ins):
        try:
            content = files.read(path, locations.owners)
        except Unreadable as error:
            merged.problem(path, f"{error}; the file is ignored")
            continue
        if content.strip():
            merged.read(path, content)
    for field, each in given.items():
        merged.settings = msgspec.structs.replace(merged.settings, **{field: each.value})
        merged.sources[field] = each.source
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
        from moorage.quantities import printable

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
        from moorage.quantities import printable

        field = fields().get(name)
        if field is None:
            self.problem(path, _unknown(name, value), line, severe=False)
            return
        try:
            parsed = options()[field].kind.parse(value)
        except ValueError as error:
            staying = written(self.settings, field)
            self.problem(path, f"{name}: {error}; {staying} stays in force", line)
            return
        self.settings = msgspec.structs.replace(self.settings, **{field: parsed})
        self.sources[field] = printable(path if line is None else f"{path}:{line}")


def _unknown(name: str, value: object) -> str:
    from moorage.similar import did_you_mean, nearest

    if isinstance(value, dict):
        return f"there are no tables, ignoring [{name[:SHOWN_MAX]}]: options are written without one"
    return (
        f"there is no option {name[:SHOWN_MAX]}, ignoring it{did_you_mean(nearest(name, fields(), most=1))}"
    )


# -- TOML

_AT: Final = re.compile(r" \(at line (\d+), column \d+\)| \(at end of document\)")

_TOKEN: Final = re.compile(
    r"""
    (?P<comment> \#[^\n]* )
    | "{3} (?: \\. | [^\\] )*? "{3} "{0,2} | '{3} .*? '{3} '{0,2}
    | " (?: \\. | [^"\\\n] )* " | '[^'\n]*'
    | (?P<open> [\[{] ) | (?P<close> [\]}] ) | (?P<newline> \n ) | (?P<space> [ \t]+ )
    | [^\#"'\[\]{}\n\ \t]+ | .
    """,
    re.VERBOSE | re.DOTALL,
)


class Malformed(Exception):
    """A file is not TOML.

    Attributes:
        line: where; None if that is not known.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def parse(content: bytes) -> tuple[dict[str, Any], dict[str, int]]:
    """Parse a file.

    Returns:
        What it says, and in which line each of its keys begins.

    Raises:
        Malformed: it is not TOML.
    """
    # Most hosts have no such file, and those start without the parser.
    import tomllib

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Malformed("it is not UTF-8", content.count(b"\n", 0, error.start) + 1) from None
    text = text.replace("\r\n", "\n")
    try:
        document = tomllib.loads(text)
        lines = {
            key: line
            for line, statement in reversed(list(statements(text)))
            for key in tomllib.loads(statement)
        }
    except tomllib.TOMLDecodeError as error:
        match = _AT.search(str(error))
        line = match and (int(match[1]) if match[1] else text.rstrip("\n").count("\n") + 1)
        raise Malformed(f"it is not TOML: {_AT.sub('', str(error))}", line) from None
    except RecursionError:
        raise Malformed("it is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise Malformed(f"it is not TOML: {error}") from None
    return document, lines


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Divide a TOML document that has been parsed into its statements, each with the number of its first line.

    tomllib says of no key where it was. A statement ends with the line, but not within brackets or a long string.
    """
    depth, line, begin, first = 0, 1, 0, None
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        depth += (kind == "open") - (kind == "close")
        if kind not in {"comment", "newline", "space"} and first is None:
            first = line
        line += token[0].count("\n")
        if kind == "newline" and depth == 0:
            if first is not None:
                yield first, text[begin : token.end()]
            begin, first = token.end(), None
    if first is not None:
        yield first, text[begin:]
