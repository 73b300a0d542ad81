"""moorctl, the command line of moored. It talks to the socket only."""

import signal
import sys


def main() -> None:
    """Run moorctl, and end the process with one of :class:`~moorage.cli.failures.Exit`."""
    # A reader of ours that has seen enough, such as head(1), ends us without a word. On sockets the signal is never
    # raised: writes there are made with MSG_NOSIGNAL.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        # What takes time comes within the reach of Ctrl-C.
        from moorage.cli.commands import run

        status = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)
