"""The root directory of a process.

Run as a program, by a unit that has the right to look (`moorage.pid1.oneshot`): the pidfd of the process is its file
descriptor 3, a socket its file descriptor 4. It answers with an errno as text, 0 if all is well, and the directory.

Only the standard library and what is as plain: it is run by its path, without site-packages.
"""

import errno
import os
import socket
import sys

if __name__ == "__main__":  # run by its path, it finds nothing of this package by itself
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from moorage.probes.handing import ANSWER_FD, QUESTION_MAX, send_descriptors
from moorage.probes.namespaces import LEADER_FD, open_root


def main() -> None:
    """Open the directory, and hand it over."""
    answer = socket.socket(fileno=ANSWER_FD)
    answer.recv(QUESTION_MAX)
    found: list[int] = []
    number = 0
    try:
        found.append(open_root(LEADER_FD, os.O_RDONLY))
    except OSError as exc:
        # What is not found in /proc is a process that is not there.
        number = errno.ESRCH if exc.errno == errno.ENOENT else exc.errno or errno.EIO
    send_descriptors(answer, str(number).encode(), found)


if __name__ == "__main__":
    main()
