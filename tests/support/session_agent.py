"""What a login session does for the tests of attacks: opens connections and runs commands, as the session's user.

Its standard input is a socket (SOCK_SEQPACKET). Each request is a message in JSON, and so is its reply:

- {"dial": path}: connect to a socket; the reply has the connection as its file descriptor. To whoever serves that
  socket the peer is this process.
- {"run": argv, "input": text}: run a command to its end; the reply has status, stdout and stderr.
- {"spawn": argv}: start a command that stays; the reply has its pid. It ends with the session.
- {"kill": pid}: end a command that was started, and bury it.

A request that cannot be carried out is answered with {"errno": number}.
"""

import json
import os
import socket
import subprocess
from typing import Any

REQUEST_MAX = 1 << 17
"""Bytes of a request or a reply: a message on such a socket must fit into its buffer."""


def carry_out(request: dict[str, Any], started: dict[int, subprocess.Popen[bytes]]) -> tuple[Any, list[int]]:
    """Return the reply to a request, and the file descriptors that go with it."""
    match request:
        case {"dial": path}:
            connected = socket.socket(socket.AF_UNIX)
            try:
                connected.connect(path)
            except OSError:
                connected.close()
                raise
            return {}, [connected.detach()]
        case {"run": argv, "input": text}:
            done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
            return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}, []
        case {"spawn": argv}:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
            started[process.pid] = process
            return {"pid": process.pid}, []
        case {"kill": pid}:
            process = started.pop(pid)
            process.kill()
            process.wait()
            return {}, []
        case _:
            raise ValueError(request)


def main() -> None:
    """Serve until nobody is there any more."""
    asked = socket.socket(fileno=0)
    started: dict[int, subprocess.Popen[bytes]] = {}
    while data := asked.recv(REQUEST_MAX):
        try:
            reply, fds = carry_out(json.loads(data), started)
        except OSError as error:
            reply, fds = {"errno": error.errno}, []
        message = json.dumps(reply).encode()
        if fds:
            socket.send_fds(asked, [message], fds)
        else:
            asked.sendall(message)
        for fd in fds:
            os.close(fd)
    for process in started.values():
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
