"""Files of a container that the service reads: os-release."""

import time
from collections.abc import Iterator

from fuzzing.mutation import damaged
from fuzzing.target import Target, corpus
from moorage.machines.metadata import Unreadable, parse_os_release

SECONDS_MAX = 2.0
"""Deadline for one file, parsed in the event loop: a thousand times what the largest good one takes."""


def _of_file(data: bytes) -> Iterator[bytes]:
    yield data


def _examine(content: bytes) -> str:
    begin = time.process_time()
    try:
        strings = parse_os_release(content)
    except Unreadable:
        return "refused"
    finally:
        assert time.process_time() - begin < SECONDS_MAX
    for string in strings:
        string.encode()
        assert "=" in string
    return "taken"


TARGET = Target("os-release", damaged(corpus("os-release")), _examine, _of_file)
