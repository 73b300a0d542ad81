"""Signatures of D-Bus: which types a value consists of.

Specification: https://dbus.freedesktop.org/doc/dbus-specification.html, "Type System" and "Valid Signatures".

Pure: no I/O.
"""

from functools import lru_cache
from typing import Final

LENGTH_MAX: Final = 255
"""Characters of a signature, as the specification has it."""

NESTING_MAX: Final = 32
"""Arrays in one another, and as many structs and dictionary entries, as the specification has it."""

SIGNATURES_MAX: Final = 1024
"""Signatures that are kept taken apart: systemd has some 60, which have some 200 parts; a stranger can send any."""

BASIC: Final = "ybnqiuxtdsogh"
"""Codes of the types that have no parts; those of keys of dictionaries too."""

_EIGHT_BYTES: Final = frozenset("xtd({")
_FOUR_BYTES: Final = frozenset("biusoah")
_TWO_BYTES: Final = frozenset("nq")


@lru_cache(maxsize=SIGNATURES_MAX)
def split(signature: str) -> tuple[str, ...]:
    """Return the complete types that a signature consists of.

    Raises:
        ValueError: it is malformed: also an empty struct, an array of which would never end.
    """
    if len(signature) > LENGTH_MAX:
        raise ValueError("signature too long")
    types: list[str] = []
    at = 0
    while at < len(signature):
        end = _end(signature, at, 0, 0)
        types.append(signature[at:end])
        at = end
    return tuple(types)


def alignment(signature: str) -> int:
    """Return to what number of bytes values of a complete type are aligned, by its first character."""
    code = signature[0]
    return 8 if code in _EIGHT_BYTES else 4 if code in _FOUR_BYTES else 2 if code in _TWO_BYTES else 1


def _end(signature: str, at: int, arrays: int, structs: int) -> int:
    """Return where the complete type ends that begins here."""
    if arrays > NESTING_MAX or structs > NESTING_MAX:
        raise ValueError("signature nested too deeply")
    code = signature[at : at + 1]
    if code == "a":
        if signature[at + 1 : at + 2] != "{":
            return _end(signature, at + 1, arrays + 1, structs)
        if signature[at + 2 : at + 3] not in set(BASIC):
            raise ValueError("malformed dictionary")
        end = _end(signature, at + 3, arrays + 1, structs + 1)
        if signature[end : end + 1] != "}":
            raise ValueError("malformed dictionary")
        return end + 1
    if code == "(":
        end = at + 1
        while signature[end : end + 1] != ")":
            end = _end(signature, end, arrays, structs + 1)
        if end == at + 1:
            raise ValueError("empty struct")
        return end + 1
    if not code or code not in BASIC + "v":
        raise ValueError(f"unexpected {code!r} in signature")
    return at + 1
