"""moorctl, the command line of moored. It talks to the socket only."""

import os
import signal
import sys


def main() -> None:
    """Run moorctl, and end the process with one of :class:`~moorage.cli.failures.Exit`."""
    # A file that is opened below must not be taken for a standard stream that was closed.
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # A reader of ours that has seen enough, such as head(1), ends us without a word. On sockets the signal is never
    # raised: writes there are made with MSG_NOSIGNAL.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        # What takes time comes within the reach of Ctrl-C.
        from moorage.cli import commands

        status = commands.main(sys.argv[1:])
        if sys.stdout is not None:  # as it is where it was closed
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)
