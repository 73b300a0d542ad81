"""What only the host can do to a system: have its PID 1 do nothing for a while, and see it begin again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sandboxes import Sandbox

REBOOT_SECONDS = 50.0
"""A soft reboot takes four; a loaded machine ten times as long."""

LOOK_SECONDS = 0.2

SURVIVORS = """\
[Unit]
DefaultDependencies=no
IgnoreOnIsolate=yes
SurviveFinalKillSignal=yes
"""

REGISTER = """
systemctl start moored.socket
setsid sleep infinity </dev/null >/dev/null 2>&1 &
moorctl register dies --leader $!
setsid sleep infinity </dev/null >/dev/null 2>&1 &
moorctl register stays --leader $! --slice survivors.slice --property SurviveFinalKillSignal=yes \
    --property DefaultDependencies=no --property IgnoreOnIsolate=yes
"""
"""As systemd-soft-reboot.service(8) says for units that are to survive one."""

AGAIN = """
sleep infinity &
moorctl register dies --leader $! >/dev/null
moorctl stop stays
sleep infinity &
moorctl register stays --leader $! >/dev/null
moorctl list --json
kill %1 %2
"""


def soft_reboots(sandbox: Sandbox) -> int | None:
    """How many soft reboots there were; None while there is one."""
    argv = ["systemctl", "show", "--property=SoftRebootsCount", "--value"]
    done = sandbox.run(argv, check=False)
    up = sandbox.run(["systemctl", "is-system-running", "--wait"], check=False)
    return int(done.stdout) if done.stdout.strip().isdigit() and up.stdout == "running\n" else None


def test_a_soft_reboot_keeps_what_survives_it_and_frees_the_names_of_the_rest(
    boot: Callable[..., Sandbox],
) -> None:
    sandbox = boot()
    sandbox.run(["sh", "-c", "cat >/etc/systemd/system/survivors.slice"], input=SURVIVORS)
    sandbox.run(["systemctl", "daemon-reload"])
    assert sandbox.run(["bash", "-ec", REGISTER]).stdout == "machine-dies.scope\nmachine-stays.scope\n"
    before = machines(sandbox.run(["moorctl", "list", "--json"]).stdout)
    assert sorted(before) == ["dies", "stays"]

    sandbox.run(["systemctl", "--no-block", "soft-reboot"], check=False)  # it may be killed before it ends
    deadline = time.monotonic() + REBOOT_SECONDS
    while soft_reboots(sandbox) != 1:
        assert time.monotonic() < deadline
        time.sleep(LOOK_SECONDS)

    sandbox.run(["systemctl", "start", "moored.socket"])
    after = machines(sandbox.run(["moorctl", "list", "--json"]).stdout)
    assert after == {"stays": before["stays"]}
    again = machines(sandbox.run(["bash", "-ec", AGAIN]).stdout)
    assert sorted(again) == ["dies", "stays"]
    for name, machine in again.items():
        assert machine["invocationId"] != before[name]["invocationId"]


def machines(printed: str) -> dict[str, dict[str, object]]:
    """What ``moorctl list --json`` has printed, by name."""
    return {
        machine["name"]: machine for machine in map(json.loads, printed.splitlines()) if "name" in machine
    }


HELD = """
import subprocess, sys
sys.path[:0] = ["/moorage/tests/support"]
import trio
from moorage.errors import Timeout
from moored import Processes, connect, control_group, kill, listed, living_records, register, run, scopes

async def held():
    print("hold", flush=True)
    assert await trio.to_thread.run_sync(sys.stdin.readline) == "held\\n"

async def go_on():
    print("go on", flush=True)
    assert await trio.to_thread.run_sync(sys.stdin.readline) == "went on\\n"

async def main():
    run("systemctl", "start", "moored.socket")
    processes = Processes()
    async with await connect() as client, await connect() as other:
        machine = (await register(client, "web", processes()))["machine"]
        dying = processes()
        await register(client, "dying", dying)
        await held()
        # A machine whose processes are dead has a name that is free as soon as the manager knows.
        kill(dying)
        try:
            await register(client, "dying", processes(), timeoutUSec=1_000_000)
        except Timeout:
            pass
        else:
            raise AssertionError("it was registered without a manager")
        # Nobody waits for the manager but who needs it.
        async with trio.open_nursery() as nursery:
            async def late():
                try:
                    await register(client, "late", processes(), timeoutUSec=1_000_000)
                except Timeout:
                    return
                raise AssertionError("it was registered without a manager")
            nursery.start_soon(late)
            for _ in range(20):
                assert await listed(other) == {"web": machine}
        # It may have been done all the same: it is taken back as soon as the manager can be asked.
        leader = processes()
        done = []
        async with trio.open_nursery() as nursery:
            async def second():
                done.append((await register(client, "late", leader))["machine"])
            nursery.start_soon(second)
            await go_on()
        assert control_group(leader) == done[0]["controlGroup"]
        again = (await register(client, "dying", processes()))["machine"]
        found = await listed(other)
        assert found == {"web": machine, "late": done[0], "dying": again}
        assert sorted(scopes()) == ["machine-dying.scope", "machine-late.scope", "machine-web.scope"]
        assert sorted(living_records()) == ["dying", "late", "web"]
    processes.bury()
    print("done", flush=True)

trio.run(main)
"""


@contextmanager
def held(pid: int) -> Generator[None]:
    """Have a process do nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_manager_that_does_not_answer(boot: Callable[..., Sandbox]) -> None:
    sandbox = boot()
    record = Path(f"/run/moorage-sandbox/{sandbox.name}/record.json")
    leader = json.loads(record.read_text())["leader"]
    with sandbox.spawn(["python3", "-c", HELD], stderr=subprocess.STDOUT) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "hold\n"
        with held(leader):
            print("held", file=client.stdin, flush=True)
            assert client.stdout.readline() == "go on\n"
        print("went on", file=client.stdin, flush=True)
        assert client.stdout.read() == "done\n"
    journal = sandbox.run(["journalctl", "--unit=moored.service", "--output=cat", "--no-pager"]).stdout
    assert "Traceback" not in journal
