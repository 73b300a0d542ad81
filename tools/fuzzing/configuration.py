"""Files of the configuration: of the administrator, or of the user whose instance it is."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fuzzing.mutation import damaged
from fuzzing.target import Target, corpus
from moorage.configuration.files import Locations
from moorage.configuration.loading import load
from moorage.configuration.merging import PROBLEMS_MAX
from moorage.configuration.options import FIELDS, OPTIONS, name_of, written
from moorage.configuration.settings import Settings

SECONDS_MAX = 2.0
"""Deadline for one file: a thousand times what the largest good one takes."""


def _of_file(data: bytes) -> Iterator[bytes]:
    yield data


def _examine(content: bytes) -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "moored.conf")
        path.write_bytes(content)
        begin = time.process_time()
        found = load(Locations((str(path),), (), frozenset({os.geteuid()})), {}, 65_536)
        assert time.process_time() - begin < SECONDS_MAX
    assert len(found.problems) <= PROBLEMS_MAX + 1
    assert all(str(problem).isprintable() for problem in found.problems)
    for field, option in OPTIONS.items():
        value = getattr(found.settings, field)
        text = written(found.settings, field)
        # What is in force is in range, and can be written down.
        typed = int(text) if text.isdecimal() else {"true": True, "false": False}.get(text, text)
        assert option.kind.parse(typed) == value
        source = found.sources.get(field)
        assert value == getattr(Settings(), field) or source is not None
        if source is not None:
            line = int(source.rpartition(":")[2])
            assert 1 <= line <= content.count(b"\n") + 1
        assert FIELDS[name_of(field)] == field
    return "taken with problems" if found.problems else "taken"


TARGET = Target("configuration", damaged(corpus("configuration")), _examine, _of_file)
