"""Text split into words as systemd does it (``extract_first_word()`` of extract-word.c), which no shell quite does.

Pure.
"""

from __future__ import annotations

import re
from typing import Final

WHITESPACE: Final = " \t\n\r"

_ESCAPES: Final = {
    "a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39, "s": 32
}  # fmt: skip
_ESCAPED: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|([0-3][0-7]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))", re.DOTALL
)


def first_word(text: str, separators: str, *, unescape: bool = False) -> tuple[str, str, str]:
    """Split off the first word. Quotes of either kind keep separators in it.

    Args:
        text: to be split.
        separators: characters that end a word.
        unescape: interpret a backslash as in C; otherwise the character behind it stands for itself.

    Returns:
        The word; the separator that ended it, empty at the end of the text; the rest of the text.

    Raises:
        ValueError: a quote is not closed, a backslash is the last character, or an escape sequence does not exist.
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
        raise ValueError(f"a quote in {text!r} is not closed")
    return _joined(word), "", ""


def _character(match: re.Match[str]) -> str:
    """Return what an escape sequence stands for; bytes outside ASCII become surrogates (PEP 383)."""
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
    """Replace the escape sequences of C in a text.

    Raises:
        ValueError: an escape sequence does not exist.
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
