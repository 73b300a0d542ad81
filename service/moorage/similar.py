"""Names that could be meant by one that does not exist.

Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

NEAREST_MAX: Final = 3
"""Names that are offered in place of one that does not exist."""

NAME_MAX: Final = 64
"""Characters of such a name that are compared, which takes time with each of the others: none of them is longer."""


def nearest(name: str, known: Iterable[str], *, most: int = NEAREST_MAX) -> list[str]:
    """Return the names that could be meant, the most similar first: in other letters, misspelt, or cut off.

    Args:
        name: the one that does not exist.
        known: those that do.
        most: how many at most.
    """
    written = {each.lower(): each for each in known}
    typed = name[:NAME_MAX].lower()
    similar = difflib.get_close_matches(typed, written, n=most)
    longer = [each for each in written if typed and each.startswith(typed)]
    return [written[each] for each in dict.fromkeys([*similar, *longer])][:most]


def did_you_mean(names: Sequence[str]) -> str:
    """Ask whether one of these was meant, as the end of a sentence; nothing if there are none."""
    if not names:
        return ""
    first = ", ".join(names[:-1])
    return f"; did you mean {f'{first} or ' if first else ''}{names[-1]}?"
