"""Side by side with machined 262, what reaches into machines: the same calls get the same answers.

The container is one of systemd-nspawn with a systemd and a bus of its own, which both services have as a machine.
"""

import errno
import json
import os
import re
import select
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trio
from box import booted
from hostile import as_user, ask, dial, encode
from moored import SOCKET, THEIRS, run, until

pytestmark = pytest.mark.system_instance("the instance of a user has nothing to do with machined")

MACHINED = "/run/systemd/machine/io.systemd.Machine"
BOTH = (SOCKET, MACHINED)
SECONDS = 40.0
"""For an answer: longer than moored itself waits."""


def asked(path: str, method: str, parameters: dict[str, Any], uid: int = 0) -> tuple[Any, list[int]]:
    """Call a method of io.systemd.Machine; return the answer, and the file descriptors that came with it."""
    fds: list[int] = []
    data = b""
    with as_user(uid):
        connected = dial(path)
    with connected:
        connected.settimeout(SECONDS)
        connected.sendall(encode(f"{THEIRS}{method}", parameters))
        while not data.endswith(b"\0"):
            more, got, _, _ = socket.recv_fds(connected, 65536, 4)
            if not more:
                break
            data, fds = data + more, fds + got
    reply = json.loads(data[:-1])
    return {**reply, "parameters": dict(sorted(reply.get("parameters", {}).items()))}, fds


def output(terminal: int, mark: bytes) -> bytes:
    """Read what is written to a terminal, up to a mark."""
    until_ = monotonic() + SECONDS
    found = b""
    while mark not in found and monotonic() < until_:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                found += os.read(terminal, 4096)
            except OSError:  # hung up
                break
    return found


@pytest.fixture(scope="module")
def box(moored: None) -> Generator[int]:
    """The container, which machined and moored have as "box"; the PID of its leader."""
    run("systemctl", "start", "systemd-machined.service")
    with booted() as pid:
        (reply,) = ask(encode(f"{THEIRS}Register", {"name": "box", "class": "container", "leader": pid}))
        assert "error" not in reply, reply
        yield pid
        ask(encode(f"{THEIRS}Unregister", {"name": "box"}))


REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(("Open", parameters) for parameters in (
        {}, {"name": "box"}, {"mode": "tty"}, {"name": "nobox", "mode": "tty"}, {"name": "box", "mode": "ssh"},
        {"name": "box", "mode": "tty", "foo": 1}, {"name": "box", "mode": "shell", "args": "x"},
        {"name": "box", "mode": "login"},
        {"name": ".host", "mode": "login"},
    )),
    *(("Open", {"name": "nobox", "mode": "shell", "user": user}) for user in (
        "", "0", "1000", "-1", ".", "..", "a:b", "a/b", " a", "a ", "a\nb", "é", "a b", "99999999999", 5,
    )),
    *(("Open", {"name": "nobox", "mode": "shell", "path": path}) for path in (
        "", "bin/sh", "/bin/sh", "/bin/../sh", "/" + "x" * 255, "/" + "x" * 256, "/x" * 2047, "/x" * 2048, "/a\nb",
    )),
    *(("Open", {"name": "nobox", "mode": "shell", "environment": environment}) for environment in (
        ["A"], ["A="], ["=A"], ["1=A"], ["A-B=C"], ["A=\n"], "A=B", [],
    )),
    *(("OpenRootDirectory", parameters) for parameters in ({}, {"name": "nobox"}, {"name": "x/y"}, {"mode": "tty"})),
    *((method, parameters) for method in ("CopyTo", "CopyFrom") for parameters in (
        {}, {"name": "box"}, {"source": "/etc"}, {"name": "nobox", "source": "/etc"},
        {"name": ".host", "source": "/x"},
        {"name": "box", "source": ""}, {"name": "nobox", "source": "etc"}, {"name": "nobox", "source": "/a/../b"},
        {"name": "nobox", "source": "/a/./b"}, {"name": "nobox", "source": "/a//b"},
        {"name": "nobox", "source": "/a/"}, {"name": "nobox", "source": "/.."},
        {"name": "nobox", "source": "/a", "destination": "b"},
        {"name": "nobox", "source": "/a", "destination": ""}, {"name": "box", "source": "/"},
        {"name": "box", "source": "/nonexistent/a"}, {"name": "box", "source": "/nonexistent-a"},
        {"name": "box", "source": "/etc/passwd", "destination": "/nonexistent/a"},
        {"name": "box", "source": "/etc/passwd", "destination": "/etc/group"},
        {"name": "box", "source": "/etc/passwd", "destination": "/etc/group/a"},
        {"name": "box", "source": "/etc/passwd", "destination": "/etc", "replace": True},
        {"name": "box", "source": "/etc/passwd", "destination": "/"},
        {"name": "box", "source": "/etc/apt", "destination": "/etc/passwd"},
        {"name": "box", "source": "/etc/apt", "destination": "/etc/passwd", "replace": True},
        {"name": "box", "source": "/a", "foo": 1},
    )),
    *(("MapFrom", parameters) for parameters in (
        {}, {"name": "nobox"}, {"name": ".host", "uid": 0}, {"name": "box", "uid": 65535}, {"name": "box", "uid": -1},
        {"name": "box", "gid": 2**32 - 1}, {"name": "box", "gid": 2**32}, {"name": "nobox", "uid": 2**33},
        {"name": "box", "uid": "x"},
    )),
    *(("MapTo", parameters) for parameters in (
        {}, {"uid": 0}, {"gid": 0}, {"uid": 65534}, {"gid": 65534}, {"uid": 65535}, {"uid": 65536}, {"gid": 65536},
        {"uid": 2**32 - 1}, {"uid": -1}, {"uid": 0, "gid": -1}, {"name": "box"},
    )),
]  # fmt: skip


@pytest.mark.parametrize(("method", "parameters"), REFUSED, ids=lambda value: ascii(value)[:60])
def test_the_same_refusal(box: int, method: str, parameters: dict[str, Any]) -> None:
    (ours, _), (theirs, _) = (asked(path, method, parameters) for path in BOTH)
    assert ours == theirs
    assert "error" in ours


@pytest.mark.parametrize("name", ["box", ".host"])
def test_a_shell_runs_at_a_terminal(box: int, name: str) -> None:
    command = {"path": "/bin/sh", "args": ["sh", "-c", 'tty; echo "$A" "$(id -un)"; stty size; echo end']}
    found: list[Any] = []
    for path in BOTH:
        parameters = {"name": name, "mode": "shell", "user": "nobody", "environment": ["A=b\nc"], **command}
        reply, (terminal,) = asked(path, "Open", parameters)
        said = re.sub(rb"\x1b\][^\x1b]*\x1b\\", b"", output(terminal, b"end\r\n"))
        os.close(terminal)
        assert said == reply["parameters"].pop("ptyPath").encode() + b"\r\nb\r\nc nobody\r\n0 0\r\nend\r\n"
        found.append(reply)
        trio.run(lambda: until(lambda: not shells(), "the shell has gone"))
    assert found == [{"parameters": {"ptyFileDescriptor": 0}}] * 2


def shells() -> str:
    return run("systemctl", "list-units", "--no-legend", "container-shell@*")


@pytest.mark.parametrize("name", ["box", "shifted", ".host"])
def test_a_terminal_is_the_machines(box: int, shifted: None, name: str) -> None:
    inside = Path(f"/proc/{box}/root" if name == "box" else "/")
    seen: list[Any] = []
    for path in BOTH:
        reply, (terminal,) = asked(path, "Open", {"name": name, "mode": "tty"})
        status = (inside / reply["parameters"]["ptyPath"].lstrip("/")).stat()
        reply["parameters"].pop("ptyPath")
        seen.append((reply, status.st_uid, status.st_gid, oct(status.st_mode)))
        os.close(terminal)
    assert seen[0] == seen[1]
    assert seen[0][1] == (SHIFTED[0] if name == "shifted" else 0)


def test_moorctl_has_a_shell(box: int) -> None:
    def moorctl(*argv: str, typed: str = "") -> tuple[int, str]:
        done = subprocess.run(
            ["moorctl", *argv], input=typed, check=False, capture_output=True, text=True, timeout=SECONDS
        )
        return done.returncode, done.stdout.replace("\r\n", "\n") + done.stderr

    for name in ("box", ".host"):
        status, said = moorctl(
            "shell", "-q", "-E", "A=b", f"nobody@{name}", "/bin/sh", "-c", "echo $A; id -un"
        )
        assert (status, said.endswith("b\nnobody\n")) == (0, True), said
    status, said = moorctl("shell", "box", typed="echo $((40+2)); exit\n")
    assert status == 0
    assert "\n42\n" in said
    assert "Connected to machine box." in said
    assert moorctl("shell", "nobox")[0] == 3
    assert moorctl("login", "box") == (1, "Error: The service failed: the unit is masked.\n")


def test_moorctl_copies(box: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    run(
        "sh",
        "-e",
        "-c",
        f"cd {tmp_path}; moorctl copy-to box a /root/a; moorctl copy-from box /root/a b; cmp a b",
    )
    for options, status in (((), 1), (("--force",), 0)):
        argv = ["moorctl", "copy-to", *options, "box", str(tmp_path / "b"), "/root/a"]
        assert subprocess.run(argv, check=False, capture_output=True).returncode == status


def test_mounts_are_alike(box: int, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("f")
    source, inside = f"{tmp_path}/d", Path(f"/proc/{box}/root")
    seen: list[Any] = []
    for number, path in enumerate(BOTH):
        at = f"/run/mnt{number}"
        calls = [
            {"source": source, "destination": f"{at}/a/b"},
            {"source": source, "destination": f"{at}/a/b", "mkdir": True, "readOnly": True},
            {"source": f"{source}/f", "destination": f"{at}/a/f", "mkdir": True},
            {"source": source, "destination": f"{at}/a/b"},
            {"source": f"{source}/none", "destination": f"{at}/a/b"},
            {"source": source, "destination": f"{at}/a/f"},
            {"source": source, "destination": f"{at}/a/f/x"},
            {"source": f"{source}/f", "destination": f"{at}/none"},
        ]
        replies = [asked(path, "BindMount", {"name": "box", **parameters})[0] for parameters in calls[:3]]
        with pytest.raises(OSError, match="Read-only"):
            (inside / at[1:] / "a/b/x").write_text("x")
        replies += [asked(path, "BindMount", {"name": "box", **parameters})[0] for parameters in calls[3:]]
        (inside / at[1:] / "a/b" / str(number)).write_text("x")  # the second one replaced the first
        modes = [oct((inside / at[1:] / name).stat().st_mode) for name in (".", "a", "a/f")]
        seen.append((replies, modes, (inside / at[1:] / "a/f").read_text()))
    assert seen[0] == seen[1]
    assert [len(reply["parameters"]) for reply in seen[0][0]] == [3, 0, 0, 0, 3, 3, 3, 3]
    run("moorctl", "bind", "--mkdir", "box", source, "/run/mnt2")
    assert (inside / "run/mnt2/f").read_text() == "f"


@contextmanager
def registered(name: str, class_: str, leader: subprocess.Popen[bytes]) -> Generator[None]:
    """Have both have a machine, in a scope that is moored's."""
    for path in BOTH:
        parameters = {"name": name, "class": class_, "leader": leader.pid, "allocateUnit": path == SOCKET}
        (reply,) = ask(encode(f"{THEIRS}Register", parameters), path=path)
        assert reply is not None
        assert "error" not in reply, (path, reply)
    yield
    for path in BOTH:
        ask(encode(f"{THEIRS}Unregister", {"name": name}), path=path)
    leader.kill()
    leader.wait()


@pytest.fixture(scope="module")
def vm(box: int) -> Generator[None]:
    """A virtual machine, which both have."""
    with registered("vm", "vm", subprocess.Popen(["sleep", "infinity"])):
        yield


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("Open", {"mode": "tty"}),
        ("Open", {"mode": "shell"}),
        ("Open", {"mode": "login"}),
        ("OpenRootDirectory", {}),
        ("CopyFrom", {"source": "/a"}),
        ("MapFrom", {"uid": 0}),
    ],
)
def test_a_virtual_machine_does_not_let_anybody_in(
    vm: None, method: str, parameters: dict[str, Any]
) -> None:
    for path in BOTH:
        reply, _ = asked(path, method, {"name": "vm", **parameters})
        assert reply == {"error": f"{THEIRS}NotSupported", "parameters": {}}, path


@pytest.mark.parametrize("name", ["box", ".host"])
def test_the_root_directory_is_the_machines(box: int, name: str) -> None:
    expected = Path(f"/proc/{box}/root" if name == "box" else "/").stat()
    for path in BOTH:
        reply, (root,) = asked(path, "OpenRootDirectory", {"name": name})
        assert reply == {"parameters": {"fileDescriptor": 0}}
        assert os.path.samestat(os.fstat(root), expected)
        assert "etc" in os.listdir(root)
        os.close(root)


TREE = """
mkdir -p -m 750 d/e; mkdir -m 1777 d/empty; echo one > d/one; chmod 4711 d/one; ln d/one d/e/two
ln -s /etc/passwd d/link; ln -s nowhere d/dangling; mkfifo -m 640 d/fifo; mknod d/null c 1 3; touch -d 2001-02-03 d/old
chown 7:8 d/old; chown -h 9:9 d/link; printf 'a\nb' > "d/new
line"; truncate -s 3M d/big; printf end >> d/big; setfattr -n user.x -v y d/one 2>/dev/null || true
"""


def tree(root: Path) -> dict[str, Any]:
    """What there is below a directory, and what it is like."""
    found: dict[str, Any] = {}
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        found[str(path.relative_to(root))] = (
            oct(status.st_mode), status.st_uid, status.st_gid, status.st_rdev,
            status.st_nlink if path.is_file() and not path.is_symlink() else None,
            os.readlink(path) if path.is_symlink() else None,
            path.read_bytes() if path.is_file() and not path.is_symlink() else None,
            None if path.is_dir() else status.st_mtime_ns,
        )  # fmt: skip
    return found


def test_trees_are_copied_alike(box: int, tmp_path: Path) -> None:
    run("sh", "-e", "-c", f"cd {tmp_path}; {TREE}")
    inside = Path(f"/proc/{box}/root")
    results: list[Any] = []
    for number, path in enumerate(BOTH):
        to, back = f"/root/d{number}", f"{tmp_path}/back{number}"
        replies = [
            asked(path, "CopyTo", {"name": "box", "source": f"{tmp_path}/d", "destination": to})[0],
            asked(path, "CopyFrom", {"name": "box", "source": to, "destination": back})[0],
        ]
        first = (tree(inside / to[1:]), tree(Path(back)))
        (inside / to[1:] / "one").write_text("other")
        (inside / to[1:] / "more").write_text("more")
        (inside / to[1:] / "fifo").unlink()
        os.utime(inside / to[1:] / "more", ns=(0, 0))
        again = {"name": "box", "source": f"{tmp_path}/d", "destination": to}
        replies.append(asked(path, "CopyTo", again)[0])
        second = tree(inside / to[1:])
        del second["one"], second["e/two"]  # written to at different times
        replies.append(asked(path, "CopyTo", {**again, "replace": True})[0])
        results.append((replies, first, second, tree(inside / to[1:])))
    assert results[0][0] == results[1][0] == [{"parameters": {}}] * 4
    assert results[0][1] == results[1][1]
    assert results[0][1][0] == results[0][1][1] == tree(tmp_path / "d")
    for ours, theirs in zip(results[0][2:], results[1][2:], strict=True):
        assert {name: ours.get(name) for name in ours.keys() ^ theirs.keys()} == {}
        assert [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]] == []


def test_copies_stay_below_the_machines_root(box: int, tmp_path: Path) -> None:
    inside = Path(f"/proc/{box}/root")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("host's")
    (inside / "root/out").symlink_to(str(secret))
    (inside / "root/up").symlink_to("../../../../.." + str(secret))
    (inside / "root/magic").symlink_to("/proc/self/root")
    for link in ("out", "up"):
        reply, _ = asked(
            SOCKET, "CopyFrom", {"name": "box", "source": f"/root/{link}/key", "destination": "/root/got"}
        )
        assert reply["parameters"]["errno"] == errno.ENOENT, link
        reply, _ = asked(
            SOCKET, "CopyTo", {"name": "box", "source": "/etc/passwd", "destination": f"/root/{link}/x"}
        )
        assert reply["parameters"]["errno"] == errno.ENOENT, link
    reply, _ = asked(
        SOCKET, "CopyTo", {"name": "box", "source": "/etc/passwd", "destination": "/root/magic/x"}
    )
    assert "error" in reply
    assert [path.name for path in secret.iterdir()] == ["key"]
    assert not Path("/root/got").exists()


@pytest.fixture
def hosts_proc(box: int) -> Generator[Path]:
    """The container with the host's /proc in it, at /run/proc; yields the root that the container has."""
    inside = Path(f"/proc/{box}/root")
    reply, _ = asked(
        SOCKET, "BindMount", {"name": "box", "source": "/proc", "destination": "/run/proc", "mkdir": True}
    )
    assert "error" not in reply
    assert os.path.samestat((inside / "run/proc/1/root/etc").stat(), Path("/etc").stat())
    yield inside
    run("nsenter", f"--target={box}", "--all", "umount", "--lazy", "/run/proc")


def test_no_link_of_the_hosts_proc_leads_out(hosts_proc: Path, tmp_path: Path) -> None:
    """What root of the container can put in the way of a mount or a copy, be it before the last name or there."""
    secret = tmp_path / "secret"
    (secret / "sub").mkdir(parents=True)
    (secret / "key").write_text("host's")
    (tmp_path / "mine").write_text("mine")
    out = hosts_proc / "run/out"
    out.symlink_to(f"/run/proc/1/root{secret}")
    (hosts_proc / "run/in").symlink_to("out")
    before = [tree(secret), Path("/proc/self/mountinfo").read_text()]
    for to in ("/run/out", "/run/out/new", "/run/out/new/deep", "/run/in/key", f"/run/proc/1/cwd{secret}/x"):
        for source in (f"{tmp_path}/mine", str(tmp_path)):
            asked(SOCKET, "BindMount", {"name": "box", "source": source, "destination": to, "mkdir": True})
            asked(SOCKET, "CopyTo", {"name": "box", "source": source, "destination": to, "replace": True})
    for to in ("/run/out/key", "/run/in/key", f"/run/proc/1/root{secret}/key"):
        reply, _ = asked(SOCKET, "CopyFrom", {"name": "box", "source": to, "destination": f"{tmp_path}/got"})
        assert "error" in reply, to
    assert [tree(secret), Path("/proc/self/mountinfo").read_text()] == before
    assert not (tmp_path / "got").exists()
    for name in ("out", "in"):
        (hosts_proc / "run" / name).unlink(missing_ok=True)


def test_a_container_with_users_of_its_own_owns_what_is_copied(shifted: None, tmp_path: Path) -> None:
    # Not all of them are mapped: neither knows whom to give the copies to.
    (tmp_path / "a").write_text("a")
    for path in BOTH:
        parameters = {"name": "shifted", "source": f"{tmp_path}/a", "destination": f"{tmp_path}/b"}
        reply, _ = asked(path, "CopyTo", parameters)
        assert reply["parameters"]["errno"] == errno.ENXIO


SHIFTED = (100_000, 300_000)
"""Where the users and the groups of a container begin on the host."""


@pytest.fixture(scope="module")
def shifted(box: int) -> Generator[None]:
    """A container with users of its own, which both have."""
    leader = subprocess.Popen(["unshare", "--user", "sleep", "infinity"])
    trio.run(lambda: until(lambda: is_unshared(leader.pid), "it has a namespace"))
    for kind, first in zip("ug", SHIFTED, strict=True):
        Path(f"/proc/{leader.pid}/{kind}id_map").write_text(f"0 {first} 1000\n5000 {first + 5000} 10\n")
    with registered("shifted", "container", leader):
        yield


def is_unshared(pid: int) -> bool:
    ours, its = (Path(f"/proc/{which}/ns/user").readlink() for which in ("self", pid))
    return ours != its


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        *(("MapFrom", {"name": "shifted", **ids}) for ids in (
            {}, {"uid": 0}, {"gid": 0}, {"uid": 999, "gid": 5009}, {"uid": 1000}, {"gid": 5010},
        )),
        *(("MapTo", ids) for ids in (
            {"uid": 100_000}, {"gid": 300_000}, {"uid": 100_999, "gid": 305_009}, {"uid": 101_000}, {"gid": 100_000},
            {"uid": 100_000, "gid": 100_000},
        )),
        ("MapFrom", {"name": "box", "uid": 7, "gid": 2**32 - 2}),
    ],
    ids=ascii,
)  # fmt: skip
def test_numbers_are_mapped_alike(shifted: None, method: str, parameters: dict[str, Any]) -> None:
    (ours, _), (theirs, _) = (asked(path, method, parameters) for path in BOTH)
    assert ours == theirs


def test_users_ask_polkit_and_never_get_a_shell_of_roots(box: int) -> None:
    for mode in ("tty", "login", "shell"):
        for name in ("box", ".host", "nobox"):
            (ours, _), (theirs, _) = (
                asked(path, "Open", {"name": name, "mode": mode}, uid=1000) for path in BOTH
            )
            assert ours == theirs, (mode, name)
            assert "error" in ours
    for name in ("box", ".host"):
        (ours, _), (theirs, _) = (
            asked(path, "OpenRootDirectory", {"name": name}, uid=1000) for path in BOTH
        )
        assert ours == theirs
        assert "error" in ours
    for method in ("OpenRootDirectory", "CopyTo", "CopyFrom", "BindMount"):
        source = {} if method == "OpenRootDirectory" else {"source": "/etc/passwd"}
        (ours, _), (theirs, _) = (asked(path, method, {"name": "box", **source}, uid=1000) for path in BOTH)
        assert ours == theirs, method
        assert ours["error"] == "io.systemd.InteractiveAuthenticationRequired"
