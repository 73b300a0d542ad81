"""What the files of the configuration, and the command line, say.

Whatever is wrong with a file, the service starts: what is wrong is told with its line, and what was in force before it
stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from moorage.configuration import files
from moorage.configuration.files import Locations
from moorage.configuration.settings import Loaded, Settings


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
    found = Loaded(Settings(), {}, ())
    listing = files.find(locations)
    if not listing.is_empty:
        # Most hosts have no such file, and those start without all that reads one.
        from moorage.configuration.merging import merge

        found = merge(listing, locations.owners, descriptors)
    values = {field: each.value for field, each in given.items()}
    sources = {field: each.source for field, each in given.items()}
    return Loaded(
        msgspec.structs.replace(found.settings, **values), {**found.sources, **sources}, found.problems
    )
