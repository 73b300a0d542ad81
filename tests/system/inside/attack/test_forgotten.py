"""What is forgotten is not gone: its unit is there, and nobody else can have its name."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import trio
from moored import OURS, run, scopes, show, until
from sessions import Session

from moorage.machines.registry import MACHINES_PER_UID_MAX

WORK_SECONDS = 180.0
"""For some hundred registrations with polkit, of a user, on a host that does other things too."""

FORGET = """
import json, os, subprocess, sys
import trio
from moorage.wire.client import Client
from moorage.wire.errors import VarlinkError

async def main():
    made, error = [], None
    async with await Client.connect("/run/moorage/io.moorage.Machine") as client:
        for number in range(int(sys.argv[1])):
            leader = subprocess.Popen(["sleep", "infinity"])
            try:
                fields = {"name": f"m{number}", "class": "vm", "leader": {"pid": leader.pid}}
                await client.call("io.moorage.Machine.Register", fields)
                made.append(leader.pid)
                await client.call("io.moorage.Machine.Forget", {"name": f"m{number}"})
            except VarlinkError as failure:
                error = failure.error
                break
    open(sys.argv[2] + ".new", "w").write(json.dumps([made, error]))
    os.rename(sys.argv[2] + ".new", sys.argv[2])

trio.run(main)
"""


async def test_machines_that_were_forgotten_count(nothing_left: None, creator: Session) -> None:
    """Nobody gets more names than may be had by registering: not by forgetting, nor by a restart of the service."""
    answer = Path("/tmp/forgotten")
    creator.spawn("python3", "-c", FORGET, str(MACHINES_PER_UID_MAX + 20), str(answer))
    await until(answer.exists, "all is forgotten", seconds=WORK_SECONDS)
    made, error = taken(answer)
    try:
        assert (len(made), error) == (MACHINES_PER_UID_MAX, f"{OURS}Busy")
        for restarted in (False, True):
            assert len(scopes()) == MACHINES_PER_UID_MAX
            if restarted:
                run("systemctl", "restart", "moored.service")
            for name in ("one-more", "and-another"):
                reply = await trio.to_thread.run_sync(creator.register, name, creator.spawn())
                assert reply["error"] == f"{OURS}Busy"
    finally:
        for pid in made:
            os.kill(pid, signal.SIGKILL)
    await until(lambda: not scopes(), "the units are gone")
    reply = await trio.to_thread.run_sync(creator.register, "one-more", creator.spawn())
    assert "error" not in reply, reply
    await trio.to_thread.run_sync(creator.call, "Stop", {"name": "one-more"})


async def test_a_forgotten_scope_that_fails_does_not_count_for_ever(
    nothing_left: None, creator: Session
) -> None:
    """Its leader is deaf to SIGTERM; the manager keeps what has failed, and the user cannot have it reset."""
    leader = creator.spawn("env", "--ignore-signal=TERM", "sleep", "infinity")
    reply = await trio.to_thread.run_sync(
        partial(creator.register, "deaf", leader, properties={"TimeoutStopUSec": 1_000_000})
    )
    unit = reply["parameters"]["machine"]["unit"]
    await trio.to_thread.run_sync(creator.call, "Forget", {"name": "deaf"})
    run("systemctl", "stop", unit)
    assert show(unit, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "timeout"}
    run("systemctl", "restart", "moored.service")
    await until(lambda: not scopes(), "the scope is gone")


def taken(answer: Path) -> tuple[list[int], str]:
    """Read what the user's program has written, and remove it."""
    made, error = json.loads(answer.read_text())
    answer.unlink()
    return made, error
