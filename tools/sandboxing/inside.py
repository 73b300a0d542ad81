"""Commands inside a sandbox."""

import os
import resource
from collections.abc import Sequence
from typing import NoReturn

from sandboxing import nspawn, uml
from sandboxing.host import PATH
from sandboxing.images import USERS
from sandboxing.state import must_be_up


def enter(kind: str, leader: int) -> list[str]:
    """Return the command line that runs another one inside a sandbox."""
    return uml.enter(leader) if kind == "uml" else nspawn.enter(leader)


def environment(suite: str) -> dict[str, str]:
    """Return the environment of root in a sandbox."""
    return {
        "PATH": PATH,
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MOORAGE_SANDBOX": suite,
    }


def execute(
    name: str, argv: Sequence[str], user: int | None, extra: dict[str, str], *, scope: bool
) -> NoReturn:
    """Become a command inside a sandbox, with the standard streams and the exit status of this process.

    Args:
        name: of the sandbox.
        argv: the command.
        user: UID to run it as; by default root's.
        extra: variables to add to its environment.
        scope: run it in a transient scope, as systemd-run(1) does inside the sandbox.

    Raises:
        SandboxError: there is no such sandbox, or it is not up.
    """
    sandbox, record = must_be_up(name)
    env = environment(record.suite)
    become = ["setpriv", "--pdeathsig", "KILL"]
    if user:
        names = {uid: login for login, uid in USERS.items()}
        login = names.get(user, str(user))
        env |= {
            "HOME": f"/home/{login}",
            "USER": login,
            "LOGNAME": login,
            "XDG_RUNTIME_DIR": f"/run/user/{user}",
        }
        groups = "--init-groups" if user in names else "--clear-groups"
        become += [f"--reuid={user}", f"--regid={user}", groups]
    if record.kind == "nspawn":
        # PID 1 cannot move a process into a scope that is outside of its part of the tree.
        (sandbox.cgroup / "payload/init.scope/cgroup.procs").write_text(str(os.getpid()))
    in_scope = ["systemd-run", "--scope", "--collect", "--quiet", "--"] if scope else []
    command = [*enter(record.kind, record.leader), *in_scope, *become, "--", *argv]
    soft, hard = map(int, record.nofile.split(":"))
    # Without CAP_SYS_RESOURCE the limit of this shell cannot be exceeded, not even by nspawn.
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))
    os.execve(command[0], command, env | extra)
