"""The table in docs/limits.md, held against the constants."""

import importlib
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

_ROW = re.compile(
    r"\| (?P<what>[^|]+) \| (?P<number>[\d.]+)(?: (?P<unit>\w+))? \|.*\| `(?P<place>[\w.]+)` \|"
)
_UNITS = {None: 1, "s": 1, "min": 60, "KiB": 1024, "MiB": 1024**2}

ROWS = {
    match["place"]: match
    for match in map(_ROW.fullmatch, (CHECKOUT / "docs" / "limits.md").read_text().splitlines())
    if match
}

COMPLETE = (
    "wire.connection",
    "wire.conversation",
    "wire.message",
    "machines.registry",
    "machines.events",
    "machines.machine",
    "machines.watching",
    "machines.reached",
    "machines.limit_watch",
)
"""Modules of which every limit must be in the table."""

NOT_FOR_CALLERS = {
    "wire.conversation.KEPT_MAX",  # nothing is refused for it
    "wire.connection.QUEUE_MAX",  # of clients; a server never gets there
    "wire.message.AROUND_MAX",  # of a call that is refused anyway, but for one whose name has an escaped quote
}


@pytest.mark.parametrize("place", sorted(ROWS))
def test_the_table_says_what_is(place: str) -> None:
    row = ROWS[place]
    parts = place.split(".")
    # The last part is a constant, or a field of a class of the module.
    last = next(number for number, part in enumerate(parts) if part[0].isupper())
    found = importlib.import_module(".".join(["moorage", *parts[:last]]))
    for part in parts[last:]:
        found = getattr(found() if isinstance(found, type) else found, part)
    assert isinstance(found, int | float)
    value = found / 1e6 if place.endswith("_USEC") else found
    assert value == float(row["number"]) * _UNITS[row["unit"]]


@pytest.mark.parametrize("module", COMPLETE)
def test_the_table_has_every_limit(module: str) -> None:
    text = (CHECKOUT / "service" / "moorage" / f"{module.replace('.', '/')}.py").read_text()
    names = {
        f"{module}.{name}"
        for name in re.findall(r"^([A-Z][A-Z_]*_MAX|[A-Z]+_PER_TURN)\b", text, re.MULTILINE)
    }
    assert names
    assert names - NOT_FOR_CALLERS <= ROWS.keys()
