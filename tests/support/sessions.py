"""Ordinary users in real login sessions, made by PAM and known to logind, as tests inside a sandbox act for them."""

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import session_agent
import trio
from hostile import ANSWER_SECONDS, encode, receive, send
from moored import OURS, SOCKET, UNTIL_SECONDS, run, until

POLKIT_RULES = Path("/etc/polkit-1/rules.d/10-attack.rules")

SYSTEMDS_ACTIONS = Path("/usr/share/polkit-1/actions/org.freedesktop.machine1.policy")
OLDER_ACTION = SYSTEMDS_ACTIONS.with_name("inspect-machines.policy")
OLDER_ACTION_TEXT = """<policyconfig>
<action id="org.freedesktop.machine1.inspect-machines">
<defaults><allow_any>no</allow_any><allow_inactive>no</allow_inactive><allow_active>no</allow_active></defaults>
</action>
</policyconfig>
"""
"""What systemd 257 does not have: of an action that polkit does not know, no rule is asked."""


@dataclass(frozen=True)
class Kind:
    """A kind of attacker.

    Attributes:
        name: of the user.
        uid: of the user.
        seat: where the session is; without one it is as one over ssh is, which polkit does not count as active.
        actions: that a rule of polkit allows the user; all others are as the policy files have them.
    """

    name: str
    uid: int
    seat: str | None = None
    actions: tuple[str, ...] = ()


CREATOR = Kind("creator", 2001, actions=("io.moorage.create-machine",))
"""Has been given ``io.moorage.create-machine``, as the users of a build host are."""

INSPECT = "org.freedesktop.machine1.inspect-machines"

REGISTRANT = Kind("registrant", 2002, seat="seat0", actions=(INSPECT,))
"""Sits at the machine: has what the shipped policy gives every active session, ``io.moorage.register-machine``. Was
given what it takes to look into a machine, too."""

STRANGER = Kind("stranger", 2003)
"""Has nothing but a shell."""

HOLDER = Kind("holder", 2004, actions=("io.moorage.manage-units",))
"""Has been given ``io.moorage.manage-units``: no attacker, as that is to be root."""


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    status: int
    stdout: str
    stderr: str


class Session:
    """A login session of a user, and an agent in it that acts for the tests."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.uid = kind.uid
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The class and the type are those that login(1) has at a console; the default is that of a cron job.
            environment = {"XDG_SESSION_CLASS": "user", "XDG_SESSION_TYPE": "tty"}
            if kind.seat is not None:
                environment["XDG_SEAT"] = kind.seat
            self._login = subprocess.Popen(
                [
                    *("systemd-run", "--pipe", "--wait", "--quiet", "--collect", f"--uid={kind.name}"),
                    *("--property=PAMName=login", "--working-directory=/"),
                    *(f"--setenv={name}={value}" for name, value in environment.items()),
                    *("--", "python3", session_agent.__file__),
                ],
                stdin=theirs.fileno(),
            )
        ours.settimeout(UNTIL_SECONDS)
        self._agent = ours
        self.id = self.run("sh", "-c", "echo $XDG_SESSION_ID").stdout.strip()
        assert self.id

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        self._agent.sendall(json.dumps(request).encode())
        data, fds, _, _ = socket.recv_fds(self._agent, session_agent.REQUEST_MAX, 1)
        assert data, f"the session of {self.kind.name} has ended"
        reply = json.loads(data)
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]))
        return reply, fds

    def dial(self, path: str = SOCKET) -> socket.socket:
        """Connect to a socket in the session; the peer there is the agent.

        Raises:
            OSError: the user cannot.
        """
        _, (fd,) = self._ask({"dial": path})
        connected = socket.socket(fileno=fd)
        connected.settimeout(ANSWER_SECONDS)
        return connected

    def call(
        self, method: str, parameters: Any = None, fds: Sequence[int] = (), *, path: str = SOCKET
    ) -> dict[str, Any]:
        """Make a call on a connection of its own, and return the reply; the name may be short for one of ours."""
        method = method if "." in method else f"{OURS}{method}"
        with self.dial(path) as connected:
            send(connected, encode(method, parameters), fds)
            connected.shutdown(socket.SHUT_WR)
            received = receive(connected)
        assert received.endswith(b"\0"), f"no reply to {method}: {received!r}"
        return json.loads(received[:-1])

    def register(self, name: str, leader: int | None = None, **fields: Any) -> dict[str, Any]:
        """Register a machine, by default with the agent as its leader, and return the reply."""
        named = {} if leader is None else {"leader": {"pid": leader}}
        return self.call("Register", {"name": name, "class": "vm", **named, **fields})

    def run(self, *argv: str, stdin: str = "") -> Done:
        """Run a command in the session to its end."""
        reply, _ = self._ask({"run": argv, "input": stdin})
        return Done(**reply)

    def python(self, program: str, *argv: str) -> Done:
        """Run a program in Python in the session; the service's modules can be imported."""
        return self.run("python3", "-c", program, *argv)

    def spawn(self, *argv: str) -> int:
        """Start a command that stays until the session ends, by default one that sleeps; return its PID."""
        reply, _ = self._ask({"spawn": argv or ("sleep", "infinity")})
        return reply["pid"]

    def kill(self, pid: int) -> None:
        """End a command that was started, and bury it."""
        self._ask({"kill": pid})

    def is_there(self) -> bool:
        """Whether the agent still answers; a signal that was sent to it before has had its effect then."""
        try:
            return self.run("true").status == 0
        except (OSError, AssertionError):
            return False

    def end(self) -> None:
        """Log out."""
        self._agent.close()
        self._login.wait(UNTIL_SECONDS)

    def facts(self) -> dict[str, str]:
        """Return what logind knows of the session."""
        lines = run("loginctl", "show-session", self.id).splitlines()
        return dict(line.split("=", 1) for line in lines)


def add_users(*kinds: Kind) -> None:
    """Make the users, and give them with polkit what they are to have."""
    for kind in kinds:
        run("useradd", "--create-home", f"--uid={kind.uid}", "--shell=/bin/bash", kind.name)
    rules = [
        f'if (subject.user == "{kind.name}" && action.id == "{action}") return polkit.Result.YES;'
        for kind in kinds
        for action in kind.actions
    ]
    if INSPECT not in SYSTEMDS_ACTIONS.read_text():
        OLDER_ACTION.write_text(OLDER_ACTION_TEXT)
    POLKIT_RULES.parent.mkdir(parents=True, exist_ok=True)
    POLKIT_RULES.write_text("\n".join(("polkit.addRule(function(action, subject) {", *rules, "});")) + "\n")
    run("systemctl", "restart", "polkit.service")


def log_in(kind: Kind) -> Session:
    """Log a user in; returns when the session is active."""
    session = Session(kind)

    async def is_active() -> None:
        await until(lambda: session.facts()["State"] == "active", f"an active session of {kind.name}")

    trio.run(is_active)
    return session
