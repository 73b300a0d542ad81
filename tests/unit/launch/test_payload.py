"""Payloads that wait, and what they become."""

import errno
import marshal
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from descriptors import children, open_descriptors
from moored import until

import moorage
from moorage.launch import BadCommand, HolderGone, StartFailed, TooSlow, holder
from moorage.launch import payload as launch
from moorage.launch.trio import hold
from moorage.steps.waits import Steps

GONE_SECONDS = 20.0
"""For what happens at once on an idle machine."""

GLIBC_SIGNALS = 0x180000000
"""32 and 33, which glibc keeps for itself: its posix_spawn() leaves them ignored, and its threads take them back."""


@pytest.fixture(autouse=True)
def _nothing_left() -> Generator[None]:
    """No test leaves a child or a file descriptor."""
    before = children(), open_descriptors()
    yield
    assert (children(), open_descriptors()) == before


def content_of(fd: int) -> str:
    """Read to the end, and close."""
    with open(fd, errors="surrogateescape") as stream:
        return stream.read()


async def output_of(*argv: str, fds: Mapping[int, int] | None = None, **options: Any) -> tuple[str, int]:
    """Run a program as a payload with a pipe for its standard output; what it wrote, and its status."""
    read, write = os.pipe()
    async with await hold() as payload:
        await payload.run(argv, fds={1: write, **(fds or {})}, **options)
        os.close(write)
        return await trio.to_thread.run_sync(content_of, read), await payload.wait()


@contextmanager
def null() -> Generator[int]:
    """A file descriptor that is good for nothing."""
    with open(os.devnull, "r+b", buffering=0) as stream:
        yield stream.fileno()


def exists(pid: int) -> bool:
    """Whether there is such a process, if only a zombie."""
    return Path(f"/proc/{pid}").exists()


waited = os.waitpid


def gone(pidfd: int) -> bool:
    """Wait until a process has ended."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(GONE_SECONDS * 1000))


class TestWhatItBecomes:
    async def test_the_same_process(self) -> None:
        read, write = os.pipe()
        async with await hold() as payload:
            await payload.run(["sh", "-c", "echo $$"], fds={1: write})
            os.close(write)
            assert content_of(read) == f"{payload.pid}\n"
            assert await payload.wait() == 0
            assert await payload.wait() == 0

    @pytest.mark.parametrize(
        ("how", "status"), [("exit 7", 7), ("kill -TERM $$", -15), ("kill -KILL $$", -9)]
    )
    async def test_its_status(self, how: str, status: int) -> None:
        assert await output_of("sh", "-c", how) == ("", status)

    async def test_arguments_of_any_bytes(self) -> None:
        read, write = os.pipe()
        async with await hold() as payload:
            await payload.run([b"printf", "%s|", "", "a b", b"\xff\xfe", "'\n"], fds={1: write})
            os.close(write)
            assert await payload.wait() == 0
        assert os.fsencode(content_of(read)) == b"|a b|\xff\xfe|'\n|"

    async def test_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OF_THE_LAUNCHER", "1")
        assert "OF_THE_LAUNCHER=1\n" in (await output_of("env"))[0]
        assert await output_of("/usr/bin/env", env={"A": "b=c", "D": ""}) == ("A=b=c\nD=\n", 0)
        assert await output_of("/usr/bin/env", env={b"A": b"\xff".hex().encode()}) == ("A=ff\n", 0)

    async def test_the_working_directory(self, tmp_path: Path) -> None:
        (tmp_path / "program").write_text("#!/bin/sh\npwd\n")
        (tmp_path / "program").chmod(0o755)
        assert await output_of("./program", cwd=tmp_path) == (f"{tmp_path}\n", 0)

    async def test_a_program_is_looked_for_in_the_path_of_its_environment(self, tmp_path: Path) -> None:
        directories = [tmp_path / name for name in ("empty", "forbidden", "right", "late")]
        for directory in directories:
            directory.mkdir()
        (directories[1] / "program").write_text("no program")
        for directory in directories[2:]:
            (directory / "program").write_text(f"#!/bin/sh\necho {directory.name}\n")
            (directory / "program").chmod(0o755)
        path = ":".join(["/nowhere", *map(str, directories)])
        assert await output_of("program", env={"PATH": path}) == ("right\n", 0)

    async def test_the_umask(self) -> None:
        assert await output_of("sh", "-c", "umask", umask=0o27) == ("0027\n", 0)

    async def test_signals_are_as_by_default(self) -> None:
        ignored = [signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1, signal.SIGRTMIN + 3]
        before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGALRM])
        try:
            text, _ = await output_of("cat", "/proc/self/status")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in zip(ignored, before, strict=True):
                signal.signal(number, handler)
        values = {name: int(value, 16) for name, value in re.findall(r"(Sig\w+):\t([0-9a-f]{16})", text)}
        assert (values["SigBlk"], values["SigIgn"] & ~GLIBC_SIGNALS, values["SigCgt"]) == (0, 0, 0)

    async def test_no_alarm_goes_on_into_it(self) -> None:
        script = "import signal; print(signal.alarm(0))"
        assert await output_of(sys.executable, "-c", script) == ("0\n", 0)

    async def test_it_leads_a_session_without_a_terminal(self) -> None:
        script = "import os; print(os.getsid(0) == os.getpgrp() == os.getpid()); open('/dev/tty')"
        with null() as fd:
            found = await output_of(sys.executable, "-c", script, fds={2: fd})
        assert found == ("True\n", 1)

    async def test_a_terminal(self) -> None:
        ours, theirs = pty.openpty()
        read, write = os.pipe()
        async with await hold() as payload:
            await payload.run(
                ["sh", "-c", "test -t 0 && test -t 1 && echo told >/dev/tty && tty >&2"],
                tty=theirs,
                fds={2: write},
            )
            name = os.ttyname(theirs)
            os.close(write)
            assert content_of(read) == f"{name}\n"
            assert await payload.wait() == 0
            assert os.read(ours, 100) == b"told\r\n"
        os.close(theirs)
        os.close(ours)


LIST_FDS = """
import os
for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        print(fd, os.readlink(f"/proc/self/fd/{fd}"))
    except FileNotFoundError:
        pass  # that of the directory
"""


class TestFileDescriptors:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Generator[Callable[[], int]]:
        """Open files that can be told apart."""
        opened: list[int] = []

        def a_file() -> int:
            opened.append(os.open(tmp_path / f"{len(opened)}", os.O_RDWR | os.O_CREAT))
            return opened[-1]

        yield a_file
        for fd in opened:
            os.close(fd)

    async def listed(self, fds: dict[int, int], **options: Any) -> dict[int, str]:
        text, status = await output_of(sys.executable, "-I", "-S", "-c", LIST_FDS, fds=fds, **options)
        assert status == 0
        return {int(number): path for number, path in (line.split(" ", 1) for line in text.splitlines())}

    async def test_those_that_are_named_and_the_standard_streams(self, files: Callable[[], int]) -> None:
        inherited = files()
        os.set_inheritable(inherited, True)
        assert {*await self.listed({})} == {0, 1, 2}

    @pytest.mark.parametrize(
        "numbers", [[3], [3, 4, 5, 6], [9, 8, 7, 6, 5, 4, 3], [2, 0], [700, 3, 701], [4], [5], [6, 4, 5]]
    )
    async def test_each_gets_its_number(self, files: Callable[[], int], numbers: Sequence[int]) -> None:
        fds = {number: files() for number in numbers}
        found = await self.listed(fds)
        assert {**found, 1: ""} == {
            **{number: found[number] for number in (0, 2)},
            1: "",
            **{number: os.readlink(f"/proc/self/fd/{fd}") for number, fd in fds.items()},
        }

    async def test_as_many_as_there_may_be(self, files: Callable[[], int]) -> None:
        fds = {number: files() for number in range(2, 1 + holder.FDS_MAX)}
        found = await self.listed(fds)
        assert len(fds) + 1 == holder.FDS_MAX
        assert all(found[number] == os.readlink(f"/proc/self/fd/{fd}") for number, fd in fds.items())
        assert {*found} == {0, 1, *fds}

    async def test_more_are_refused(self) -> None:
        async with await hold() as payload:
            with pytest.raises(BadCommand, match="fds: 251 file descriptors") as refused:
                await payload.run(["true"], fds=dict.fromkeys(range(3, 254), 0))
            assert refused.value.field == "fds"
            await payload.run(["true"])
            assert await payload.wait() == 0

    async def test_one_for_several_numbers(self, files: Callable[[], int]) -> None:
        fd = files()
        found = await self.listed({5: fd, 6: fd})
        assert found[5] == found[6] == os.readlink(f"/proc/self/fd/{fd}")

    async def test_a_payload_that_may_not_have_as_many(self, files: Callable[[], int]) -> None:
        fds = {number: files() for number in range(10, 30)}
        async with await hold() as payload:
            resource.prlimit(payload.pid, resource.RLIMIT_NOFILE, (20, 20))
            with pytest.raises(StartFailed) as failed:
                await payload.run(["true"], fds=fds)
        assert failed.value.errno in {errno.EMFILE, errno.EBADF}

    def test_a_launcher_without_standard_streams(self) -> None:
        script = """
import os, trio
from moorage.launch.trio import hold
from moorage.steps.waits import Steps
async def main():
    for fd in range(3):
        os.close(fd)
    async with await hold() as payload:
        await payload.run(["sh", "-c", "echo heard; test ! -e /proc/self/fd/2"], fds={1: result})
        assert await payload.wait() == 0
result = os.dup(1)
trio.run(main)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "heard\n", "")


class TestRefused:
    @pytest.mark.parametrize(
        ("field", "options"),
        [
            ("argv", {"argv": []}),
            ("argv", {"argv": [""]}),
            ("argv", {"argv": ["true", "a\0b"]}),
            ("argv", {"argv": ["true", "x" * holder.COMMAND_BYTES_MAX]}),
            ("env", {"env": {"A": "\0"}}),
            ("env", {"env": {"A=B": ""}}),
            ("env", {"env": {"": "x"}}),
            ("cwd", {"cwd": "/\0"}),
            ("fds", {"fds": {3: 987654}}),
            ("fds", {"fds": {3: -1}}),
            ("fds", {"fds": {-1: 0}}),
            ("fds", {"fds": {2**31: 0}}),
            ("fds", {"fds": {3: 2**70}}),
            ("tty", {"tty": 987654}),
            ("umask", {"umask": 0o1000}),
            ("subgroup", {"subgroup": ""}),
            ("subgroup", {"subgroup": ".."}),
            ("subgroup", {"subgroup": "a/b"}),
            ("subgroup", {"subgroup": "cgroup.procs"}),
        ],
    )
    async def test_here_and_it_still_waits(self, field: str, options: dict[str, Any]) -> None:
        given: dict[str, Any] = {"argv": ["true"], **options}
        async with await hold() as payload:
            with pytest.raises(BadCommand) as refused:
                await payload.run(**given)
            assert refused.value.field == field
            await payload.run(["true"])
            assert await payload.wait() == 0

    @pytest.mark.parametrize(
        ("field", "number", "path", "options"),
        [
            ("argv", errno.ENOENT, "/nowhere/program", {"argv": ["/nowhere/program"]}),
            ("argv", errno.EACCES, "/etc/passwd", {"argv": ["/etc/passwd"]}),
            ("argv", errno.EACCES, "/", {"argv": ["/"]}),
            ("argv", errno.ENOTDIR, "/etc/passwd/x", {"argv": ["/etc/passwd/x"]}),
            ("argv", errno.E2BIG, "/bin/true", {"argv": ["/bin/true", "x" * 200_000]}),
            ("cwd", errno.ENOENT, "/nowhere", {"cwd": "/nowhere"}),
            ("cwd", errno.ENOTDIR, "/etc/passwd", {"cwd": "/etc/passwd"}),
            ("fds", errno.EBADF, None, {"fds": {2**30: 0}}),
        ],
    )
    async def test_by_the_kernel_and_it_ends(
        self, field: str, number: int, path: str | None, options: dict[str, Any]
    ) -> None:
        given: dict[str, Any] = {"argv": ["true"], **options}
        async with await hold() as payload:
            with pytest.raises(StartFailed) as failed:
                await payload.run(**given)
            assert (failed.value.field, failed.value.errno, failed.value.filename) == (field, number, path)
            assert await payload.wait() in {1, -signal.SIGKILL}
            with pytest.raises(RuntimeError):
                await payload.run(["true"])

    async def test_what_is_no_terminal(self) -> None:
        async with await hold() as payload:
            with null() as fd, pytest.raises(StartFailed) as failed:
                await payload.run(["true"], tty=fd)
        assert (failed.value.field, failed.value.errno) == ("tty", errno.ENOTTY)

    async def test_a_program_that_is_nowhere(self) -> None:
        async with await hold() as payload:
            with pytest.raises(StartFailed, match="No such file or directory"):
                await payload.run(["no-such-program"])

    async def test_a_subgroup_of_what_is_not_delegated(self) -> None:
        async with await hold() as payload:
            with pytest.raises(StartFailed) as failed:
                await payload.run(["true"], subgroup="payload")
        assert (failed.value.field, failed.value.errno) == ("subgroup", errno.EPERM)

    @pytest.mark.parametrize(
        ("field", "options"),
        [
            ("seconds", {"seconds": 0}),
            ("seconds", {"seconds": 2**31}),
            ("gid", {"uid": 1}),
            ("uid", {"gid": 1}),
            ("uid", {"groups": [1]}),
            ("uid", {"uid": -1, "gid": 1}),
            ("uid", {"uid": 2**32 - 1, "gid": 1}),
            ("gid", {"uid": 1, "gid": 2**32}),
            ("groups", {"uid": 1, "gid": 1, "groups": [1, -1]}),
        ],
    )
    async def test_before_it_waits(self, field: str, options: dict[str, Any]) -> None:
        with pytest.raises(BadCommand) as refused:
            await hold(**options)
        assert refused.value.field == field


class TestNothingIsLeft:
    """The rest is the fixture's to see."""

    async def test_where_nothing_is_run(self) -> None:
        async with await hold() as payload:
            pass
        assert not exists(payload.pid)

    async def test_where_the_block_ends_by_an_error(self) -> None:
        with pytest.raises(KeyError):
            async with await hold():
                raise KeyError

    async def test_where_it_is_cancelled(self) -> None:
        with trio.CancelScope() as scope:
            async with await hold():
                scope.cancel()
                await trio.sleep_forever()

    async def test_where_it_is_cancelled_before_and_nothing_has_to_be_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        report = launch._report

        def at_once(control: socket.socket, until: float) -> Steps[bytes]:
            select.select([control], [], [], GONE_SECONDS)  # the holder is faster than this process
            return (yield from report(control, until))

        payload = await hold()
        monkeypatch.setattr(launch, "_report", at_once)
        with trio.CancelScope() as scope:
            async with payload:
                scope.cancel()
                await payload.run(["sleep", "infinity"])
        assert scope.cancelled_caught
        assert payload._held.status == -signal.SIGKILL

    async def test_where_it_is_cancelled_half_way(self) -> None:
        async with await hold() as payload:
            signal.pidfd_send_signal(payload.pidfd, signal.SIGSTOP)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(payload.run, ["true"])
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            assert await payload.wait() == -signal.SIGKILL

    async def test_where_it_does_not_become_the_program_in_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launch, "EXEC_SECONDS", 0.01)
        async with await hold() as payload:
            signal.pidfd_send_signal(payload.pidfd, signal.SIGSTOP)
            with pytest.raises(TooSlow):
                await payload.run(["true"])
            assert await payload.wait() == -signal.SIGKILL

    async def test_where_it_waited_too_long(self) -> None:
        async with await hold(seconds=1) as payload:
            assert await payload.wait() == -signal.SIGALRM
            with pytest.raises(HolderGone, match="too long") as ended:
                await payload.run(["true"])
            assert ended.value.status == -signal.SIGALRM

    async def test_where_it_was_killed(self) -> None:
        async with await hold() as payload:
            signal.pidfd_send_signal(payload.pidfd, signal.SIGKILL)
            with pytest.raises(HolderGone, match="by signal 9"):
                await payload.run(["true"])

    async def test_what_runs_stays(self) -> None:
        read, write = os.pipe()
        async with await hold() as payload:
            await payload.run(["cat"], fds={0: read})
            os.close(read)
        assert waited(payload.pid, os.WNOHANG) == (0, 0)
        os.close(write)
        assert waited(payload.pid, 0) == (payload.pid, 0)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_where_the_launcher_dies(self, number: int) -> None:
        script = """
import trio
from moorage.launch.trio import hold
from moorage.steps.waits import Steps
async def main():
    async with await hold() as payload:
        print(payload.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as launcher:
            assert launcher.stdout is not None
            pidfd = os.pidfd_open(int(launcher.stdout.readline()))
            launcher.send_signal(number)
            assert gone(pidfd)
            os.close(pidfd)


def sizes(status: str) -> dict[str, int]:
    """The sizes in a process's status, KiB (proc_pid_status(5))."""
    with open(status) as lines:
        return {
            name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines) if "kB" in rest
        }


Started = tuple[socket.socket, int]


def tell(channel: socket.socket, message: bytes, content: bytes | None) -> None:
    """Send something to a holder, with a file of some content."""
    fds = [] if content is None else [launch._memory_file("test", content)]
    channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))])
    for fd in fds:
        os.close(fd)


COMMAND = holder.encode(
    {"argv": [b"true"], "paths": [b"/bin/true"], "env": {}, "cwd": None, "fds": [], "tty": False,
     "umask": None, "subgroup": None}
)  # fmt: skip


class TestTheHolder:
    """Spoken to by what is not this package."""

    @pytest.fixture
    def started(self) -> Generator[Started]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(GONE_SECONDS)
        with ours:
            with theirs:
                pid = launch._spawn(theirs, ["60"])
            yield ours, pid
        os.waitpid(pid, 0)

    @pytest.mark.parametrize(
        ("message", "content"),
        [
            *((b"1", COMMAND[:length]) for length in (0, 1, 10, 50, len(COMMAND) - 1)),
            *((message, COMMAND) for message in (b"0", b"2", b"1 ", b"x" * 100)),
            (b"1", None),
            *(
                (b"1", holder.encode(value))
                for value in (
                    None,
                    1,
                    [],
                    {},
                    {"fds": []},
                    {"fds": [1], "tty": False},
                    {"fds": 1, "tty": True},
                )
            ),
        ],
    )
    def test_what_is_no_command_ends_it(
        self, started: Started, message: bytes, content: bytes | None
    ) -> None:
        ours, pid = started
        tell(ours, message, content)
        assert marshal.loads(ours.recv(holder.REPORT_BYTES_MAX)) == ("command", errno.EPROTO, None)
        assert ours.recv(100) == b""
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 1)

    def test_more_file_descriptors_than_there_may_be(self, started: Started) -> None:
        ours, pid = started
        # As many as the kernel lets go with one message: SCM_MAX_FD of scm.h.
        rights = array("i", [0] * 253)
        ours.sendmsg([b"1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert marshal.loads(ours.recv(holder.REPORT_BYTES_MAX)) == ("command", errno.EMFILE, None)
        assert ours.recv(100) == b""
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 1)

    def test_what_is_one(self, started: Started) -> None:
        ours, _ = started
        tell(ours, b"1", COMMAND)
        assert ours.recv(100) == holder.READY
        assert ours.recv(100) == b""

    async def test_it_is_small(self) -> None:
        """It starts where 16 MiB are the limit, however large its launcher is."""
        ballast = b"x" * (200 * 1024 * 1024)
        async with await hold() as payload:
            place = f"/proc/{payload.pid}"
            # When it has closed all others, it has loaded what it needs.
            await until(lambda: set(os.listdir(f"{place}/fd")) == {"0", "1", "2", "3"})
            kib = sizes(f"{place}/status")
        assert ballast
        assert kib["VmHWM"] < 12 * 1024
        assert kib["RssAnon"] < 4 * 1024


class TestThePackageIsReplaced:
    def test_what_was_loaded_goes_on(self, tmp_path: Path) -> None:
        package = tmp_path / "moorage"
        shutil.copytree(Path(moorage.__file__).parent, package)
        script = f"""
import pathlib, sys
sys.path.insert(0, {str(tmp_path)!r})
import trio
from moorage.launch import payload as launch
from moorage.launch.trio import hold
from moorage.steps.waits import Steps
assert launch.__file__.startswith({str(tmp_path)!r})
for path in pathlib.Path({str(package)!r}).rglob("*.py"):
    path.write_text("raise SystemExit('another version')")
async def main():
    async with await hold() as payload:
        await payload.run(["echo", "became"])
        assert await payload.wait() == 0
trio.run(main)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "became\n", "")


NAMELESS = """
import sys
from moorage.launch.blocking import hold
with hold() as payload:
    payload.run(["/bin/echo", sys.executable or "nameless"])
    sys.exit(payload.wait())
"""


def test_a_python_that_does_not_know_its_own_path() -> None:
    """Started as ``#!/usr/bin/env python3`` without a PATH, as hooks of OCI runtimes are."""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        ["python3", "-c", NAMELESS],
        executable=sys.executable,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "nameless\n"), done.stderr
