"""The root directory of a process.

Done by a child of `moorage.probes.fork_server`, which answers with an errno as text, 0 if all is well, and the
directory.

Only the standard library and what is as plain: it is run without site-packages.
"""

import errno
import os
import socket

from moorage.probes.handing import ANSWER_FD, LEADER_FD, receive_question, send_descriptors
from moorage.probes.namespaces import open_root


def main() -> None:
    """Open the directory, and hand it over."""
    found: list[int] = []
    number = 0
    with socket.socket(fileno=ANSWER_FD) as answer:
        receive_question(answer)
        try:
            found.append(open_root(LEADER_FD, os.O_RDONLY))
        except OSError as exc:
            # What is not found in /proc is a process that is not there.
            number = errno.ESRCH if exc.errno == errno.ENOENT else exc.errno or errno.EIO
        send_descriptors(answer, str(number).encode(), found)
