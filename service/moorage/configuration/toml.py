"""TOML with the lines that its keys are in.

tomllib says of no key where it was. Most hosts have no file of the configuration, and start without this.

Pure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

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

    A statement ends with the line, but not within brackets or a long string.
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
