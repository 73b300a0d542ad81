#!/usr/bin/env python3
"""Launch a virtual machine in a scope of its own, with a helper that it talks to, leaving nothing behind.

    launcher.py NAME COMMAND [ARGUMENT]...

The command, which stands for a VMM, gets the path of the helper's socket in $HELPER, and the name of its scope in
$SCOPE.
"""

import os
import sys

import trio

from moorage.launch import hold, keep_lease
from moorage.wire.client import Client

SOCKET = os.environ.get("MOORAGE_ADDRESS", "/run/moorage/io.moorage.Machine")


async def main(name: str, *command: str) -> int:
    """Run a command as a machine, and return its exit status."""
    # The payload comes first: it waits in the scope until its command line is known.
    async with await hold() as payload, await Client.connect(SOCKET) as client:
        echo = {
            "name": "echo",
            "execStart": ["/usr/bin/socat", "ACCEPT-FD:3,fork", "EXEC:cat"],
            "sockets": [{"name": "echo.sock"}],
            "onFailure": "stopMachine",
        }
        parameters = {
            "name": name,
            "class": "vm",
            "leaderFileDescriptor": 0,  # index into the file descriptors that are sent along
            "helpers": [echo],
            "lease": True,  # the machine ends with this program
        }
        reply = await client.call("io.moorage.Machine.Register", parameters, fds=[payload.pidfd])
        machine = reply["machine"]
        known = {"SCOPE": machine["unit"], "HELPER": f"{machine['runtimeDirectory']}/echo.sock"}
        await payload.run(command, env={**os.environ, **known})
        # A restart or an upgrade of the service ends the connection; the machine can survive that.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_lease, SOCKET, client, parameters, payload)
            status = await payload.wait()
            nursery.cancel_scope.cancel()
        return status


if __name__ == "__main__":
    status = trio.run(main, sys.argv[1], *sys.argv[2:])
    sys.exit(status if status >= 0 else 128 - status)
