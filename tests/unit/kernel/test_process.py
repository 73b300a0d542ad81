"""Processes named so that none is taken for another, against the kernel's own."""

import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.kernel import process
from moorage.kernel.peer import Peer, peer_of
from moorage.kernel.process import NotAProcess, ProcessGone


def open_fds() -> list[str]:
    """Every open file descriptor, but that of the look itself."""
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


@pytest.fixture(autouse=True)
def no_leak() -> Generator[None]:
    """Nothing may be open after a test that was not before."""
    process.boot_id()
    process.process_id(pidfd := os.pidfd_open(os.getpid()))  # fills the caches
    os.close(pidfd)
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def sleeper() -> Generator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        child.kill()


def kernel_thread() -> int:
    """A thread of the kernel: kthreadd, wherever PIDs are those of the host."""
    found = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/comm")
        if path.read_text() == "kthreadd\n"
    ]
    assert found, "no kernel threads to be seen: these tests want the PIDs of the host"
    return found[0]


def test_a_living_process_is_named_by_its_pidfd(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = process.open_process(sleeper.pid)
    found = process.process_id(pidfd)
    assert process.pid_of(pidfd) == found.pid == sleeper.pid
    assert found.pidfd_id == os.fstat(pidfd).st_ino
    assert found.boot_id == process.boot_id()
    assert not os.get_inheritable(pidfd)
    os.close(pidfd)
    assert process.identify(sleeper.pid, found.pidfd_id, found.boot_id) == found


def test_the_boot_id_may_come_as_a_uuid_and_in_capitals(sleeper: subprocess.Popen[bytes]) -> None:
    uuid = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert process.identify(sleeper.pid, None, uuid) == process.identify(sleeper.pid, None, uuid.upper())


def test_another_process_under_the_same_number_is_another_one(sleeper: subprocess.Popen[bytes]) -> None:
    found = process.identify(sleeper.pid)
    assert found.pidfd_id is not None
    with pytest.raises(ProcessGone) as gone:
        process.open_process(sleeper.pid, found.pidfd_id + 1)
    assert gone.value.pid == sleeper.pid


def test_a_process_of_another_boot_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ProcessGone):
        process.open_process(sleeper.pid, None, "0" * 32)


@given(st.integers().filter(lambda pid: not 0 < pid <= process.PID_MAX))
def test_what_can_be_no_pid_is_no_process(pid: int) -> None:
    with pytest.raises(NotAProcess):
        process.open_process(pid)


def test_a_zombie_is_gone_and_so_is_who_was_reaped(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = process.open_process(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert process.has_exited(pidfd)
    for _state in ("zombie", "reaped"):
        with pytest.raises(ProcessGone):
            process.process_id(pidfd)
        with pytest.raises(ProcessGone) as gone:
            process.open_process(sleeper.pid)
        assert gone.value.pid == sleeper.pid
        sleeper.wait()
    for ask in (process.control_group, process.parent, process.owner):
        with pytest.raises(ProcessGone):
            ask(sleeper.pid)
    with pytest.raises(ProcessGone):
        process.pid_of(pidfd)
    os.close(pidfd)


def test_a_thread_is_no_process() -> None:
    tids: list[int] = []
    started, end = threading.Event(), threading.Event()

    def run() -> None:
        tids.append(threading.get_native_id())
        started.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    with pytest.raises(NotAProcess):
        process.open_process(tids[0])
    end.set()
    thread.join()


def test_a_kernel_thread_is_no_process() -> None:
    with pytest.raises(NotAProcess, match="kernel"):
        process.open_process(kernel_thread())


@pytest.mark.parametrize("kind", ["file", "directory", "socket", "epoll", "pipe"])
def test_what_is_no_pidfd_is_no_process(kind: str) -> None:
    with ExitStack() as stack:
        if kind == "file":
            fd = stack.enter_context(Path("/proc/self/stat").open()).fileno()
        elif kind == "directory":
            fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)  # a pidfd of old (pidfd_send_signal(2))
            stack.callback(os.close, fd)
        elif kind == "socket":
            fd = stack.enter_context(socket.socket(socket.AF_UNIX)).fileno()
        elif kind == "epoll":
            fd = stack.enter_context(select.epoll()).fileno()
        else:
            fd, other = os.pipe()
            stack.callback(os.close, fd)
            stack.callback(os.close, other)
        with pytest.raises(NotAProcess):
            process.process_id(fd)


def test_a_pidfd_of_a_thread_is_no_process() -> None:
    # PIDFD_THREAD is O_EXCL (Linux 6.9).
    tids: list[int] = []
    started, end = threading.Event(), threading.Event()

    def run() -> None:
        tids.append(threading.get_native_id())
        started.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    pidfd = os.pidfd_open(tids[0], os.O_EXCL)
    with pytest.raises(NotAProcess):
        process.process_id(pidfd)
    os.close(pidfd)
    end.set()
    thread.join()


def test_no_file_descriptor_left_is_said_as_it_is(sleeper: subprocess.Popen[bytes]) -> None:
    code = (
        "import resource, sys; from moorage.kernel import process\n"
        "process.boot_id()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try: process.open_process(int(sys.argv[1]))\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sleeper.pid)],
        env={**os.environ, "PYTHONPATH": str(Path(process.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{errno.EMFILE}\n"


def test_what_the_kernel_says_of_a_process(sleeper: subprocess.Popen[bytes]) -> None:
    assert process.parent(sleeper.pid) == os.getpid()
    assert process.owner(sleeper.pid) == os.geteuid()
    text = Path(f"/proc/{sleeper.pid}/cgroup").read_text()
    assert f"0::{process.control_group(sleeper.pid)}\n" in text


def test_a_command_that_looks_like_the_end_of_its_field(tmp_path: Path) -> None:
    nasty = tmp_path / ") R 1 1 (x"
    nasty.symlink_to("/bin/sleep")
    with subprocess.Popen([str(nasty), "600"]) as child:
        # The command's name changes at exec; until then the child is a copy of us with the same parent.
        assert process.parent(child.pid) == os.getpid()
        while Path(f"/proc/{child.pid}/comm").read_text() != ") R 1 1 (x\n":
            assert child.poll() is None
        assert process.parent(child.pid) == os.getpid()
        assert process.identify(child.pid).pid == child.pid
        child.kill()


def test_all_uids_of_a_process(sleeper: subprocess.Popen[bytes]) -> None:
    assert process.uids(sleeper.pid) == {os.getuid(), os.geteuid()}
    assert process.shares_our_ids(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    for look_at in (process.uids, process.shares_our_ids):
        with pytest.raises(ProcessGone):
            look_at(sleeper.pid)


def test_a_command_that_looks_like_further_lines(tmp_path: Path) -> None:
    # The name is the first line of /proc/PID/status, with newlines escaped, but no carriage returns.
    for name in ("\rUid:4711", "\rTgid:1", "\rNSpid:1 2 3"):
        path = tmp_path / name
        path.symlink_to("/bin/sleep")
        with subprocess.Popen([path, "600"]) as child:
            try:
                assert process.uids(child.pid) == {os.getuid()}
                assert process.numbers_like_us(child.pid)
                assert process.identify(child.pid).pid == child.pid
            finally:
                child.kill()


def test_the_peer_of_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
        assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
        pidfd = peer.pidfd()
        assert process.process_id(pidfd).pid == os.getpid()
        assert not os.get_inheritable(pidfd)
        os.close(pidfd)


def look(peer: Peer) -> process.ProcessId:
    """Open a peer, and look who it is."""
    pidfd = peer.pidfd()
    try:
        return process.process_id(pidfd)
    finally:
        os.close(pidfd)


def test_a_peer_that_was_reaped_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, path], check=True)
        connected, _ = listener.accept()
        with connected:
            peer = peer_of(connected)
            # Since Linux 6.16 the kernel hands out pidfds of those who were reaped as well.
            with pytest.raises(ProcessGone):
                look(peer)


# How it ended


KERNEL_TELLS = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 15)
"""Whether it tells others than the parent how a process ended."""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", process.Exit(status=0)),
        ("exit 3", process.Exit(status=3)),
        ("exit 255", process.Exit(status=255)),
        ("kill -KILL $$", process.Exit(signal=9)),
        ("kill -SEGV $$", process.Exit(signal=11)),  # with a core dump, where there are any
    ],
)
def test_how_a_process_ended_is_known_once_it_is_reaped(script: str, expected: process.Exit) -> None:
    with subprocess.Popen(["sh", "-c", f"read x; {script}"], stdin=subprocess.PIPE) as child:
        pidfd = os.pidfd_open(child.pid)
        assert process.exit_of(pidfd) is None
        child.communicate(b"\n")
    assert process.exit_of(pidfd) == (expected if KERNEL_TELLS else None)
    os.close(pidfd)


def test_a_zombie_has_no_end_yet(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(sleeper.pid)
    sleeper.kill()
    select.select([pidfd], [], [], 10)
    assert process.has_exited(pidfd)
    assert process.exit_of(pidfd) is None
    os.close(pidfd)


def test_what_is_no_pidfd_has_no_end() -> None:
    with open("/dev/null", "rb") as file:
        assert process.exit_of(file.fileno()) is None
