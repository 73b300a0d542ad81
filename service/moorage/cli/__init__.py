"""moorctl, the command line of moored. It reaches the service through its socket only."""

import os
import signal
import sys


def main() -> None:
    """Run moorctl, and exit with one of :class:`~moorage.cli.failures.Exit`."""
    # If a standard stream was closed, no file that is opened later may take its place.
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # A reader that has seen enough, such as head(1), ends moorctl silently. Sockets never raise the signal: they are
    # written to with MSG_NOSIGNAL.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        # These imports take time, so Ctrl-C must already be handled.
        from moorage.cli import commands

        status = commands.main(sys.argv[1:])
        if sys.stdout is not None:  # None if it was closed
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)
