"""Other users than root, as tests inside a sandbox act for them; and rules for polkit that go by names of machines."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
from hostile import call
from moored import OURS, SOCKET, Process, Processes, control_group, run, until

ALICE, BOB = 1000, 1001

T = TypeVar("T")

DENIED = {"error": "org.varlink.service.PermissionDenied", "parameters": {}}
CHALLENGED = {"error": "io.systemd.InteractiveAuthenticationRequired", "parameters": {}}

RULES = Path("/etc/polkit-1/rules.d/10-test.rules")
RULES_TEXT = """
polkit.addRule(function(action, subject) {
    var name = action.lookup("name") || "";
    if (subject.user == "root" || name.startsWith("as-root"))
        return polkit.Result.YES;
    if (action.id == "io.moorage.manage-units")
        return polkit.Result.NOT_HANDLED;
    if (name.startsWith("yes"))
        return polkit.Result.YES;
    if (name.startsWith("no"))
        return polkit.Result.NO;
    if (name.startsWith("self"))
        return polkit.Result.AUTH_SELF;
    if (name.startsWith("ours") && action.id.startsWith("io.moorage."))
        return polkit.Result.YES;
    if (name.startsWith("theirs") && action.id.startsWith("org.freedesktop.machine1."))
        return polkit.Result.YES;
    if (name.startsWith("in-place") && action.id.endsWith(".register-machine"))
        return polkit.Result.YES;
    if (name.startsWith("vm") && action.lookup("class") == "vm")
        return polkit.Result.YES;
    if (name.startsWith("stop") && ["stop", "terminate"].indexOf(action.lookup("verb")) >= 0)
        return polkit.Result.YES;
});
"""
"""Anything else is as the policy files have it: an administrator has to authenticate."""


@contextmanager
def rules() -> Generator[None]:
    """Have polkit go by the names of machines."""
    RULES.parent.mkdir(parents=True, exist_ok=True)
    RULES.write_text(RULES_TEXT)
    run("systemctl", "restart", "polkit.service")
    yield
    RULES.unlink()
    run("systemctl", "restart", "polkit.service")


@contextmanager
def acting_as(user: int) -> Generator[None]:
    """Connect as somebody else: what counts is the effective uid at that moment (unix(7))."""
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def asks(
    user: int, method: str, parameters: Any = None, fds: Sequence[int] = (), *, path: str = SOCKET
) -> Any:
    """Return the reply to a call by a user, or None."""
    with acting_as(user):
        return call(method, parameters, fds, path=path)


def registers(user: int, leader: Process | int, name: str, *, path: str = SOCKET, **fields: Any) -> Any:
    """Register a machine as a user, and return the reply."""
    pid = leader if isinstance(leader, int) else leader.pid
    parameters = {"name": name, "class": "vm", "leader": {"pid": pid}, **fields}
    return asks(user, f"{OURS}Register", parameters, path=path)


def wait_for(condition: Callable[[], T], what: str = "") -> T:
    """Wait until a condition is true, and return what it said."""

    async def wait() -> T:
        return await until(condition, what)

    return trio.run(wait)


def at_home(
    spawn: Processes,
    user: int,
    argv: Sequence[str] = ("sleep", "infinity"),
    *,
    home: int | None = None,
    **options: Any,
) -> Process:
    """Start a process of a user in that user's slice, as one of a session is, or in that of another."""
    home = user if home is None else home
    command = (
        "systemd-run",
        "--scope",
        "--quiet",
        f"--uid={user}",
        f"--gid={user}",
        f"--slice=user-{home}.slice",
    )
    started = spawn((*command, "--", *argv), **options)
    wait_for(lambda: _is_executed(started, argv[0]) and f"/user-{home}.slice/" in control_group(started))
    return started


def in_service(user: int, name: str, *options: str, argv: Sequence[str] = ("sleep", "infinity")) -> int:
    """Start a service with a process of a user in it; return the PID of that one."""
    run("systemd-run", "--quiet", f"--unit={name}", "--collect", *options, "--", *argv)
    group = Path(f"/sys/fs/cgroup/system.slice/{name}.service/cgroup.procs")

    def found() -> int | None:
        for pid in map(int, group.read_text().split()):
            if _uid(pid) == user and Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                return pid
        return None

    pid = wait_for(found, f"a process of {user} in {name}")
    assert pid is not None
    return pid


def _uid(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def _is_executed(process: Process, program: str) -> bool:
    assert process.poll() is None
    return Path(f"/proc/{process.pid}/comm").read_text() == f"{os.path.basename(program)}\n"
