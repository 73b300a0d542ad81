"""Addresses in the network namespace of a process.

Done by a child of `moorage.probes.fork_server`, which answers with a JSON array of [INDEX, FAMILY, "HEX"], or with an
errno as text: ENONET for the network of the host. It enters nothing else, and opens no file in there.

Only the standard library and what is as plain: it is run without site-packages.
"""

import errno
import json
import os
import socket
from typing import Final

from moorage.probes.apart import in_thread
from moorage.probes.handing import ANSWER_FD, LEADER_FD, receive_question
from moorage.probes.namespaces import enter_network, local_addresses

ADDRESSES_MAX: Final = 1024
"""Addresses that are told; an answer to a question about names has room for less."""


def main() -> None:
    """Enter the namespace, and tell what is there."""
    with socket.socket(fileno=ANSWER_FD) as answer:
        receive_question(answer)
        try:
            told: object = in_thread(_look)
        except OSError as exc:
            # What is not found in /proc is a process that is not there.
            told = errno.ESRCH if exc.errno == errno.ENOENT else exc.errno or errno.EIO
        answer.send(json.dumps(told).encode())


def _look() -> list[tuple[int, int, str]]:
    if not enter_network(LEADER_FD):
        raise OSError(errno.ENONET, os.strerror(errno.ENONET))
    found = [(index, family, address.hex()) for index, family, address in local_addresses()]
    if len(found) > ADDRESSES_MAX:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    return found
