"""moorctl from a process that has imported it already: most of what a short command takes is Python and its imports.

Tests that send signals, and those that are about the process itself, run the installed program.
"""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import IO, NoReturn

REQUEST_BYTES = 128 * 1024
"""More than a command line and an environment of a test have."""

OUTPUT_BYTES = 16 * 1024 * 1024

FDS_MAX = 16

ABOVE = 500
"""File descriptors from here on are free while a command is being made."""


class Preloaded:
    """The other process, which ends with this one."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("")  # the kernel chooses an address, unix(7)
        self._listener.listen(64)
        command = ["setpriv", "--pdeathsig=TERM", "--", sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=self._listener.fileno())
        atexit.register(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.close()

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int],
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and return what it wrote.

        Args:
            arguments: of moorctl.
            environment: all of it.
            pass_fds: file descriptors that it has, too.
            timeout: s.
        """
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
            open(os.devnull, "rb") as nothing,
            _memory() as output,
            _memory() as errors,
        ):
            connection.settimeout(timeout)
            connection.connect(self._listener.getsockname())
            request = [[*arguments], {**environment}, [0, 1, 2, *pass_fds]]
            fds = [nothing.fileno(), output.fileno(), errors.fileno(), *pass_fds]
            socket.send_fds(connection, [json.dumps(request).encode()], fds)
            status = int(connection.recv(100))
            written = [os.pread(each.fileno(), OUTPUT_BYTES, 0).decode() for each in (output, errors)]
        return subprocess.CompletedProcess(["moorctl", *arguments], status, *written)


@functools.cache
def preloaded() -> Preloaded:
    """Return the one of this process."""
    return Preloaded()


def _memory() -> IO[bytes]:
    return open(os.memfd_create("output"), "r+b", buffering=0)


def _serve(listener: socket.socket) -> NoReturn:
    from moorage.cli import commands

    assert commands.PROGRAM == "moorctl"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _wait(connection)
        connection.close()


def _wait(connection: socket.socket) -> NoReturn:
    """Run a command for a caller, and report its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, fds, _, _ = socket.recv_fds(connection, REQUEST_BYTES, FDS_MAX)
    arguments, environment, numbers = json.loads(data)
    if (pid := os.fork()) == 0:
        _become(arguments, environment, dict(zip(numbers, fds, strict=True)))
    _, status = os.waitpid(pid, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(arguments: Sequence[str], environment: Mapping[str, str], fds: Mapping[int, int]) -> NoReturn:
    """Become the command.

    Args:
        arguments: of moorctl.
        environment: all of it.
        fds: those that it has, by the numbers that they get.
    """
    from moorage import cli

    for number, fd in enumerate(fds.values()):
        os.dup2(fd, ABOVE + number)
    os.closerange(0, ABOVE)
    for number, wanted in enumerate(fds):
        os.dup2(ABOVE + number, wanted)
    os.closerange(ABOVE, ABOVE + len(fds))
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["moorctl", *arguments]
    status = 1
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter does at its end
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve(socket.socket(fileno=0))
