"""Payloads that wait, in scopes of the real service manager."""

import errno
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import (
    OURS,
    SOCKET,
    Processes,
    assert_everything_gone,
    connect,
    control_group,
    describe,
    listed,
    run,
    scopes,
    show,
    until,
)

from moorage.kernel.process import owner
from moorage.launch import StartFailed
from moorage.launch import payload as launch
from moorage.launch.holder import FDS_MAX
from moorage.launch.trio import hold
from moorage.wire.client import Client

BOB = pwd.getpwnam("bob")
HIERARCHY = "/sys/fs/cgroup"
ROOT = pytest.mark.system_instance("only root may become another user")

SILENT_SECONDS = 5
"""How long a payload waits for a launcher that says nothing: its registration takes a part of that."""


@pytest.fixture(autouse=True)
def _clean(nothing_left: None) -> None:
    """Every test here leaves nothing."""


async def register(client: Client, name: str, pidfd: int, **fields: Any) -> dict[str, Any]:
    parameters = {"name": name, "class": "vm", "leaderFileDescriptor": 0, **fields}
    return (await client.call(f"{OURS}Register", parameters, fds=[pidfd]))["machine"]


def exists(path: str) -> bool:
    return Path(path).exists()


def text_of(path: str) -> str:
    return Path(path).read_text()


async def test_its_scope_is_there_before_its_command_line() -> None:
    async with await hold() as payload, await connect() as client:
        machine = await register(client, "web", payload.pidfd, properties={"MemoryMax": 16 * 1024 * 1024})
        assert machine["leader"]["pid"] == payload.pid
        assert control_group(payload.pid) == machine["controlGroup"]
        assert control_group(os.getpid()) != machine["controlGroup"]
        # A service can be bound to it before anything is known of the command.
        run("systemd-run", "-q", "--unit=beside", f"-pBindsTo={machine['unit']}", f"-pAfter={machine['unit']}",
            "sleep", "infinity")  # fmt: skip

        events = os.open(f"{HIERARCHY}{machine['controlGroup']}/cgroup.events", os.O_RDONLY)
        changes = select.poll()
        changes.register(events, select.POLLPRI)
        assert "populated 1" in os.pread(events, 100, 0).decode()
        await payload.run(["sleep", "infinity"], env={"PATH": "/usr/bin", "SCOPE": machine["unit"]})
        assert changes.poll(0) == []
        os.close(events)

        assert text_of(f"/proc/{payload.pid}/comm") == "sleep\n"
        assert f"SCOPE={machine['unit']}" in text_of(f"/proc/{payload.pid}/environ")
        assert text_of(f"{HIERARCHY}{machine['controlGroup']}/cgroup.procs") == f"{payload.pid}\n"
        assert (await describe(client, "web"))["invocationId"] == machine["invocationId"]

        await client.call(f"{OURS}Stop", {"name": "web"})
        assert await payload.wait() == -signal.SIGTERM
        await until(lambda: show("beside.service", "ActiveState")["ActiveState"] == "inactive")


async def test_what_is_not_run_leaves_nothing() -> None:
    async with await connect() as client:
        async with await hold() as payload:
            machine = await register(client, "web", payload.pidfd)
        await until(lambda: machine["unit"] not in scopes())

        async with await hold() as payload:
            await register(client, "web", payload.pidfd)
            with pytest.raises(StartFailed):
                await payload.run(["/nowhere/program"])
        await until(lambda: not scopes())


async def test_a_launcher_that_is_killed_leaves_nothing(spawn: Processes) -> None:
    script = """
import sys
import trio
from moorage.launch.trio import hold
from moorage.kernel.process import owner
from moorage.wire.client import Client
async def main():
    async with await hold() as payload, await Client.connect(sys.argv[1]) as client:
        parameters = {"name": "web", "class": "vm", "leaderFileDescriptor": 0}
        await client.call("io.moorage.Machine.Register", parameters, fds=[payload.pidfd])
        print(payload.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    launcher = spawn([sys.executable, "-c", script, SOCKET], stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    assert control_group(pid).endswith("/machine-web.scope")
    launcher.kill()
    await until(lambda: not scopes())
    assert not exists(f"/proc/{pid}")


@pytest.mark.parametrize("how", ["never", "half", "too many files", "hangs up"])
async def test_a_launcher_that_does_not_say_what_to_run_leaves_nothing(
    everything_gone: None, how: str
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            pid = launch._spawn(theirs, [str(SILENT_SECONDS)])
        pidfd = os.pidfd_open(pid)
        helper = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], "sockets": [{"name": "s"}]}
        async with await connect() as client:
            machine = await register(client, "web", pidfd, helpers=[helper])
            assert machine["helpers"][0]["activeState"] == "active"
            command = launch._memory_file("half", b"[")
            if how in {"half", "too many files"}:
                fds = array("i", [command] * (1 if how == "half" else FDS_MAX + 3))
                ours.sendmsg([b"1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            elif how == "hangs up":
                ours.shutdown(socket.SHUT_RDWR)
            os.close(command)
            await trio.lowlevel.wait_readable(pidfd)
            await assert_everything_gone()
        ended = os.waitid(os.P_PID, pid, os.WEXITED)  # noqa: ASYNC222 - it has ended
        assert ended is not None
        status = {"never": (os.CLD_KILLED, signal.SIGALRM), "hangs up": (os.CLD_EXITED, 0)}
        assert (ended.si_code, ended.si_status) == status.get(how, (os.CLD_EXITED, 1))
        os.close(pidfd)


async def test_one_that_waited_too_long_is_gone_with_its_scope() -> None:
    async with await hold(seconds=1) as payload, await connect() as client:
        await register(client, "web", payload.pidfd)
        assert await payload.wait() == -signal.SIGALRM
        await until(lambda: not scopes())


async def test_one_that_is_cancelled_is_gone_with_its_scope() -> None:
    async with await connect() as client:
        with trio.CancelScope() as scope:
            async with await hold() as payload:
                await register(client, "web", payload.pidfd)
                scope.cancel()
                await payload.run(["sleep", "infinity"])
        assert scope.cancelled_caught
        await until(lambda: not scopes())


async def test_many_at_once() -> None:
    async def one(number: int) -> None:
        async with await hold() as payload:
            machine = await register(client, f"m{number}", payload.pidfd)
            await payload.run(
                ["sh", "-c", "exit $NUMBER"], env={"PATH": "/usr/bin:/bin", "NUMBER": str(number)}
            )
            assert await payload.wait() == number
        assert machine["leader"]["pid"] == payload.pid

    async with await connect() as client, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)


@ROOT
async def test_another_user() -> None:
    read, write = os.pipe()
    async with (
        await hold(uid=BOB.pw_uid, gid=BOB.pw_gid, groups=[BOB.pw_gid, 7]) as payload,
        await connect() as client,
    ):
        assert owner(payload.pid) == BOB.pw_uid
        await register(client, "web", payload.pidfd)
        command = ["sh", "-c", "id -u; id -g; id -G; pwd; cat /proc/self/status"]
        await payload.run(command, cwd=BOB.pw_dir, fds={1: write})
        os.close(write)
        text = await trio.to_thread.run_sync(content_of, read)
        assert await payload.wait() == 0
    assert text.splitlines()[:4] == ["1001", "1001", "1001 7", "/home/bob"]
    assert "CapEff:\t0000000000000000\n" in text
    assert "CapPrm:\t0000000000000000\n" in text


def content_of(fd: int) -> str:
    with open(fd) as stream:
        return stream.read()


@ROOT
async def test_a_user_that_it_may_not_become(spawn: Processes) -> None:
    script = """
import os, trio
from moorage.launch import StartFailed
from moorage.launch.trio import hold
async def main():
    try:
        await hold(uid=0, gid=0)
    except StartFailed as error:
        print(error.field, error.errno, os.listdir("/proc/self/task"), flush=True)
        os.waitpid(-1, 0)
trio.run(main)
"""
    launcher = spawn([sys.executable, "-c", script], stdout=subprocess.PIPE, user=BOB.pw_uid)
    assert launcher.stdout is not None
    assert launcher.stdout.readline().startswith(b"uid 1 ")
    assert launcher.wait(20) == 1  # there is no child left to wait for


@ROOT
async def test_a_directory_that_its_user_may_not_enter() -> None:
    async with await hold(uid=BOB.pw_uid, gid=BOB.pw_gid) as payload:
        with pytest.raises(StartFailed) as failed:
            await payload.run(["true"], cwd="/root")
    assert (failed.value.field, failed.value.errno, failed.value.filename) == ("cwd", errno.EACCES, "/root")


class TestSubgroup:
    """A control group with processes in it can give its controllers to no group below."""

    CONTROLLERS = """
    group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
    above=${group%/*}
    echo "$group"
    for controller in $(cat "$above/cgroup.controllers"); do
        echo "+$controller" >"$above/cgroup.subtree_control" || exit 1
    done
    mkdir "$group/inner" && echo $$ >"$group/inner/cgroup.procs" || exit 2
    exec sleep infinity
    """

    @pytest.mark.parametrize("user", [None, pytest.param(BOB, marks=ROOT)], ids=["same", "bob"])
    async def test_it_is_below_the_scope(self, user: pwd.struct_passwd | None) -> None:
        read, write = os.pipe()
        ids: dict[str, Any] = {} if user is None else {"uid": user.pw_uid, "gid": user.pw_gid}
        async with await hold(**ids) as payload, await connect() as client:
            machine = await register(
                client, "box", payload.pidfd, **{"class": "container"},
                properties={} if user is None else {"User": user.pw_name},
            )  # fmt: skip
            await payload.run(["bash", "-c", self.CONTROLLERS], fds={1: write}, subgroup="payload")
            os.close(write)
            group = f"{machine['controlGroup']}/payload"
            await until(lambda: control_group(payload.pid) == f"{group}/inner")
            await until(lambda: text_of(f"/proc/{payload.pid}/comm") == "sleep\n")
            assert os.read(read, 1000).decode() == f"{HIERARCHY}{group}\n"
            os.close(read)
            assert text_of(f"{HIERARCHY}{machine['controlGroup']}/cgroup.procs") == ""
            # Neither the service manager nor the service takes offence.
            run("systemctl", "daemon-reload")
            assert "box" in await listed(client)
            assert show(machine["unit"], "ActiveState")["ActiveState"] == "active"
            found = await client.call(f"{OURS}Find", {"controlGroup": machine["controlGroup"]})
            assert found["machine"]["name"] == "box"
            await client.call(f"{OURS}Stop", {"name": "box"})
            await payload.wait()

    @pytest.mark.system_instance("all groups of a user's manager belong to that user")
    async def test_a_virtual_machine_is_not_delegated(self) -> None:
        async with await hold() as payload, await connect() as client:
            machine = await register(client, "web", payload.pidfd)
            with pytest.raises(StartFailed) as failed:
                await payload.run(["true"], subgroup="payload")
            assert (failed.value.field, failed.value.errno) == ("subgroup", errno.EPERM)
            assert failed.value.filename == HIERARCHY + machine["controlGroup"]
