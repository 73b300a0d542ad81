"""What the tables of properties are made of: from a value as people write it to the JSON that moored takes.

Words are split as systemd does it (``extract_first_word()`` of extract-word.c), which is not quite what a shell does.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from moorage.cli.properties.quantities import (
    INFINITY,
    parse_boolean,
    parse_number,
    parse_set,
    parse_span,
    set_to_bytes,
)

Json = Any
Converter = Callable[[str, str], Mapping[str, Json]]
"""From name and value as written to the properties that the service takes; raises ValueError."""

WHITESPACE: Final = " \t\n\r"

_ESCAPES: Final = {
    "a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39, "s": 32
}  # fmt: skip
_ESCAPED: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|([0-3][0-7]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))", re.DOTALL
)


def parsed(parse: Callable[[str], Json]) -> Converter:
    """Return a converter for a property that keeps its name."""
    return lambda name, text: {name: parse(text)}


def first_word(text: str, separators: str, *, unescape: bool = False) -> tuple[str, str, str]:
    """Split off the first word; quotes of both kinds hold one together.

    Args:
        text: what to split.
        separators: characters of which one ends the word.
        unescape: whether a backslash means what it means in C; otherwise the next character stands for itself.

    Returns:
        The word; the character that ended it, empty at the end of the text; what follows that.

    Raises:
        ValueError: a quote is not closed, a backslash is the last character, or there is no such escape sequence.
    """
    word: list[str] = []
    quote, at = "", 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "\\":
            match = _ESCAPED.match(text, at - 1)
            if match is None or at == len(text):
                raise ValueError(f"{text!r} ends with a backslash")
            word.append(_character(match) if unescape else text[at])
            at = match.end() if unescape else at + 1
        elif quote:
            if char == quote:
                quote = ""
            else:
                word.append(char)
        elif char in "'\"":
            quote = char
        elif char in separators:
            return _joined(word), char, text[at:]
        else:
            word.append(char)
    if quote:
        raise ValueError(f"{text!r} has a quote that is not closed")
    return _joined(word), "", ""


def _character(match: re.Match[str]) -> str:
    """Return what an escape sequence stands for; bytes that are no ASCII are surrogates (PEP 383)."""
    byte, octal, *codes, char = match.groups()
    if byte or octal:
        return bytes([int(byte, 16) if byte else int(octal, 8)]).decode(errors="surrogateescape")
    for code in filter(None, codes):
        if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000:
            break
        return chr(int(code, 16))
    if char and char in _ESCAPES:
        return chr(_ESCAPES[char])
    raise ValueError(f"there is no escape sequence {match[0]!r}")


def _joined(word: list[str]) -> str:
    return "".join(word).encode(errors="surrogateescape").decode()


def unescape(text: str) -> bytes:
    """Return a text with its escape sequences, those of C, replaced.

    Raises:
        ValueError: there is no such escape sequence.
    """
    return _ESCAPED.sub(_character, text).encode(errors="surrogateescape")


def split_words(text: str, separators: str = WHITESPACE, *, unescape: bool = False) -> list[str]:
    """Split a text into words.

    Raises:
        ValueError: as :func:`first_word`.
    """
    words: list[str] = []
    while text := text.lstrip(separators):
        word, _, text = first_word(text, separators, unescape=unescape)
        words.append(word)
    return words


def names(table: Mapping[str, int], what: str, *, end: int | None = None) -> Callable[[str], int]:
    """Return a parser for names that stand for numbers; below `end` the numbers are taken as well."""

    def parse(text: str) -> int:
        if text in table:
            return table[text]
        if end is not None and text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < end:
            return int(text)
        raise ValueError(f"{text!r} is no {what}: there are {', '.join(table)}")

    return parse


def one(name: str, text: str) -> Mapping[str, Json]:
    """Convert the only element of a list."""
    return {name: [text] if text else []}


def span(name: str, text: str) -> Mapping[str, Json]:
    """Convert a span of time; the property has another name on the bus (``…Sec=`` in files, ``…USec`` there)."""
    usec = parse_span(text)
    return {name.removesuffix("Sec") + "USec": INFINITY if usec is None else usec}


text_as_it_is: Final = parsed(str)
boolean: Final = parsed(parse_boolean)
number: Final = parsed(parse_number)
words: Final = parsed(split_words)
number_set: Final = parsed(lambda text: set_to_bytes(parse_set(text)))
