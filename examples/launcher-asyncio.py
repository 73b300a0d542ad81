#!/usr/bin/env python3
"""Launch a virtual machine in a scope of its own, with a helper that it talks to, leaving nothing behind.

    launcher-asyncio.py NAME COMMAND [ARGUMENT]...

The command, which stands for a VMM, gets the path of the helper's socket in $HELPER, and the name of its scope in
$SCOPE.
"""

import asyncio
import os
import sys

from moorage.client import Helper, HelperFailure, HelperSocket, Register
from moorage.client.asyncio import machine

ECHO = Helper(
    "echo",
    ["/usr/bin/socat", "ACCEPT-FD:3,fork", "EXEC:cat"],
    sockets=[HelperSocket("echo.sock")],
    on_failure=HelperFailure.STOP_MACHINE,
)


async def main(name: str, *command: str) -> int:
    """Run a command as a machine, and return its exit status: 128 + N if signal N ended it."""
    async with machine(Register(name, class_="vm", helpers=[ECHO])) as launched:
        # The scope is there before the command line: a process waits in it, and becomes the command.
        scope, directory = launched.machine.unit, launched.machine.runtime_directory
        await launched.run(command, env={**os.environ, "SCOPE": scope, "HELPER": f"{directory}/echo.sock"})
        verdict = await launched.wait()
    return verdict.leader_status if verdict.leader_status is not None else 128 + (verdict.leader_signal or 0)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], *sys.argv[2:])))
