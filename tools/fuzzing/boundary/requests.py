"""What users ask for: rounds of conversations, drawn at random from honest requests and from attacks.

Pure: the same generator of random numbers, and as many leaders, make the same round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, cast

from fuzzing.mutation import VALUES

OURS: Final = "io.moorage.Machine."
THEIRS: Final = "io.systemd.Machine."

ROOT, HOLDER, CREATOR, REGISTRANT, STRANGER = "root", "holder", "creator", "registrant", "stranger"
USERS: Final = (ROOT, HOLDER, CREATOR, CREATOR, REGISTRANT, REGISTRANT, STRANGER, STRANGER)
"""Of conversations: those without rights more often."""
AS_ROOT: Final = frozenset({ROOT, HOLDER})

CANARIES: Final = "/srv/fuzz-canaries"
"""A directory that no request has any business with."""
SECRET_FILE: Final = f"{CANARIES}/secret"

KEPT: Final = "kept"
"""A machine of root's, which root leaves alone in every round: nothing may become of it."""
CANARY: Final = "canary"
"""The scope that a machine of this name would have belongs to somebody else."""
TARGET: Final = "target"
"""So does the service that a helper ``fs`` of this machine would have."""
NAMES: Final = ("web", "db", TARGET, CANARY)
FOREIGN_SERVICE: Final = "fuzz-foreign.service"

NOTE: Final = ".beside-"
"""What the names of notes begin with, beside the records: of what systemd-machined has."""

SMUGGLED: Final = "X-Smuggled=yes"
TOUCHES: Final = f"/usr/bin/touch {CANARIES}/smuggled"
LINES: Final = f"x\n{SMUGGLED}\nDynamicUser=no\nUser=root\nExecStartPre=+{TOUCHES}\n"
COMMANDS: Final = f"/bin/true a ; +{TOUCHES}"
TEXTS: Final = (
    LINES, LINES.replace("\n", "\r"), "x\\", "x\n", "%n", "$HOME", "a b", "\u202ex", "x\x9by", "..", "../..", "/", "",
    "-x", ".x", "x" * 300, COMMANDS, "machine-kept", "\ud800",
)  # fmt: skip

OTHER_BOOT: Final = f"{'f' * 32}-{'0' * 16}"
"""A cursor of events that are no longer known."""

BOTH: Final = (False, True)
HELPERS: Final = ("fs", "net", "barrier")
SLICES: Final = (
    "machine.slice",
    "system.slice",
    "user-2001.slice",
    "user-2002.slice",
    "fuzz-own.slice",
    "-.slice",
)
OTHERS_SLICES: Final = SLICES[:1] + SLICES[4:5]
"""Where root puts something."""

GOOD_LIMITS: Final[Mapping[str, Sequence[Any]]] = {
    "CPUWeight": (0, 1, 100, "infinity"),
    "IOWeight": (1, 100),
    "CPUQuotaPerSecUSec": (10_000, 500_000, "infinity"),
    "MemoryHigh": (2**26, "infinity"),
    "MemoryMax": (2**26, 2**64 - 2, "infinity"),
    "TasksMax": (20, 16384),
    "RuntimeMaxUSec": (1, 3_600_000_000),
    "TimeoutStopUSec": (1, 1000, 90_000_000),
    "KillSignal": (9, 15),
    "SendSIGHUP": BOTH,
    "OOMPolicy": ("continue", "kill"),
    "Delegate": BOTH,
    "TasksAccounting": (True,),
}
BAD_LIMITS: Final[Mapping[str, Sequence[Any]]] = {
    "CPUWeight": (101, 10_000, -1, True, "idle"),
    "CPUQuotaPerSecUSec": (0, 50, 9_999),
    "MemoryMax": (0, True, 2**64, 0.5, "1G"),
    "MemoryMin": (2**20,),
    "TasksMax": (0, 16385, "infinity"),
    "TimeoutStopUSec": (0, "infinity", 90_000_001),
    "KillMode": ("none", "process"),
    "KillSignal": (0, 65),
    "SendSIGKILL": (False,),
    "Delegate": (1,),
    "TasksAccounting": (False,),
    "User": ("root", "creator\\"),
    "Slice": ("system.slice",),
    "Description": (LINES,),
    "Documentation": ([f"man:{LINES}"],),
    "DelegateSubgroup": (LINES,),
    "DeviceAllow": ([["/dev/kmsg", "rw"]],),
    "AllowedCPUs": ([1],),
    "NoSuchThing": (1,),
    LINES: (1,),
}
DEPENDENCIES: Final = (
    "Conflicts", "BindsTo", "PropagatesStopTo", "StopPropagatedFrom", "JoinsNamespaceOf", "OnFailure", "Before",
)  # fmt: skip
"""On units of others: root may have them, so that root does not ask for them here."""

HONEST: Final[Sequence[tuple[str, Any]]] = (
    ("DynamicUser", False),
    ("User", "root"),
    ("User", "nobody"),
    ("MemoryMax", 2**26),
    ("Environment", [f"A={LINES}", "B=x\\"]),
    ("ExecReload", [["/bin/true", ["true", LINES], False]]),
    ("SetCredential", [["a", [10, 88, 45, 83]]]),
)
"""Properties of helpers that root may have: what is data stays data, whatever is in it."""

HOSTILE: Final[Sequence[tuple[str, Any]]] = (
    ("SyslogIdentifier", LINES),
    ("SyslogIdentifier", LINES.replace("\n", "\r")),
    ("SyslogIdentifier", "x\\"),
    ("WorkingDirectory", f"/{LINES}"),
    ("UtmpIdentifier", LINES),
    ("StandardOutputFile", f"/{LINES}"),
    ("ReadWritePaths", [f"/{LINES}"]),
    ("Conditions", [["ConditionHost", False, False, LINES]]),
    ("ExecReload", [[f"/bin/true\n{SMUGGLED}", ["x"], False]]),
    ("ExecReload", [[COMMANDS, ["/bin/sh"], False]]),
    ("ExecStop", [[COMMANDS, [COMMANDS, "$A"], True]]),
    ("ExecStartPreEx", [[COMMANDS, ["x"], ["no-env-expand"]]]),
    ("ExecReloadEx", [["/bin/true", ["true"], ["privileged"]]]),
    ("LoadCredential", [[f"a\n{SMUGGLED}", "/etc/hostname"]]),
    ("BindPaths", [["/srv/a /etc:/mnt", "/b", False, 0]]),
    ("PIDFile", "/run/%n"),
    ("TimeoutStopUSec", 0),
    ("RestrictNamespaces", 0),
    ("User", f"nobody\n{SMUGGLED}"),
    ("Group", f"nogroup\n{SMUGGLED}"),
    ("StateDirectory", [f"x\n{SMUGGLED}"]),
)
"""What nobody may have, since it would be something else in the unit's file."""


@dataclass(frozen=True)
class Leader:
    """A process that may be made a machine.

    Attributes:
        pid: of it.
        user: whose it is.
        in_session: it is in the scope of the user's session, not in a group of its own.
        container: it has a file of root's where its OS release should be.
    """

    pid: int
    user: str
    in_session: bool = False
    container: bool = False


@dataclass(frozen=True)
class Ask:
    """A call.

    Attributes:
        method: full name.
        parameters: of it.
        flags: of the call, such as ``more``.
    """

    method: str
    parameters: Any
    flags: Mapping[str, bool] = field(default_factory=dict[str, bool])


@dataclass(frozen=True)
class Conversation:
    """What one user sends on one connection.

    Attributes:
        user: who.
        asks: the calls, sent at once.
        descriptor: of which process a pidfd goes with them, if of any.
        leaves: seconds after which the user hangs up without reading; None for one who reads all replies.
    """

    user: str
    asks: Sequence[Ask]
    descriptor: int | None
    leaves: float | None


def secret_of(user: str) -> str:
    """What is told to nobody but root and that user."""
    return f"/secret-of-{user}"


def mark_of(user: str) -> str:
    """The argument by which the processes of a user's helpers are known."""
    return {ROOT: "9000", HOLDER: "9004", CREATOR: "9001", REGISTRANT: "9002", STRANGER: "9003"}[user]


class Writer:
    """Writes the calls of one user.

    Args:
        chance: what is drawn from.
        user: who calls.
        leaders: the processes that are there, of all users.
        foreign: the PID of a process that is not to become a machine.
    """

    def __init__(self, chance: Random, user: str, leaders: Sequence[Leader], foreign: int) -> None:
        self._chance = chance
        self._user = user
        self._leaders = leaders
        self._foreign = foreign
        self._as_root = user in AS_ROOT
        self._methods: Sequence[tuple[Callable[[], Ask], int]] = (
            (self.register, 4),
            (self._register_with_machined, 3),
            (self._end, 5),
            (self._kill, 2),
            (self._add_helpers, 4),
            (self._other_helpers, 2),
            (self._look, 4),
            (self._of_service, 1),
        )

    def ask(self) -> Ask:
        """Write a call."""
        makers, weights = zip(*self._methods, strict=True)
        ask = self._chance.choices(makers, weights)[0]()
        if self._often(0.07):
            ask = Ask(ask.method, self._damaged(ask.parameters), ask.flags)
        return ask

    def _often(self, part: float) -> bool:
        return self._chance.random() < part

    def _name(self) -> str:
        if self._often(0.04):
            return self._chance.choice(TEXTS)
        return self._chance.choice(NAMES if self._as_root else (*NAMES, KEPT))

    def _damaged(self, value: Any) -> Any:
        """Replace something in it, or leave it out."""
        value = cast("object", value)
        if not isinstance(value, dict | list) or not value:
            return self._chance.choice((*VALUES, *TEXTS))
        changed = cast("dict[Any, Any]", value.copy())
        keys: list[Any] = list(changed) if isinstance(value, dict) else list(range(len(changed)))
        key = self._chance.choice(keys)
        if self._often(0.2):
            del changed[key]
        else:
            changed[key] = self._damaged(changed[key])
        return changed

    def _leader(self) -> int | None:
        """The PID of a leader: most often one of the caller's."""
        if self._often(0.04):
            return None
        own = [leader.pid for leader in self._leaders if leader.user == self._user]
        if self._often(0.8):
            return self._chance.choice(own)
        if not self._as_root and self._often(0.3):
            return self._chance.choice((0, 1, 2**31 - 1, self._foreign))
        return self._chance.choice(self._leaders).pid

    def _limits(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._chance.randint(1, 3)):
            table = GOOD_LIMITS if self._often(0.85) else BAD_LIMITS
            name = self._chance.choice(list(table))
            found[name] = self._chance.choice(table[name])
        if not self._as_root and self._often(0.1):
            found[self._chance.choice(DEPENDENCIES)] = [FOREIGN_SERVICE]
        return found

    def _helper(self) -> dict[str, Any]:
        helper: dict[str, Any] = {
            "name": self._chance.choice(HELPERS) if self._often(0.95) else self._chance.choice(TEXTS),
            "execStart": ["/usr/bin/sleep", "infinity", mark_of(self._user)],
        }
        if self._often(0.1):
            helper["execStart"] = ["/bin/sh", "-c", f"echo {secret_of(self._user)}; exit 3", LINES]
        if self._often(0.3):
            helper["sockets"] = [{"name": "s" if self._often(0.9) else self._chance.choice(TEXTS)}]
        if self._often(0.4):
            helper["properties"] = dict([self._chance.choice((*HONEST, *HOSTILE))])
        if self._often(0.2):
            helper["restart"] = self._chance.choice(("always", "on-failure"))
        if self._often(0.2):
            helper["onFailure"] = "stopMachine"
        return helper

    def _helpers(self) -> list[dict[str, Any]]:
        return [self._helper() for _ in range(self._chance.choice((1, 1, 1, 2)))]

    def _about_itself(self) -> dict[str, Any]:
        """Some of what is kept of a machine for information only."""
        known = {
            "id": "0" * 31 + "1",
            "service": self._chance.choice(("fuzz", LINES)),
            "rootDirectory": self._chance.choice(("/srv/root", CANARIES)),
            "ifIndices": [1],
            "vSockCid": self._chance.choice((3, 77)),
            "sshPrivateKeyPath": secret_of(self._user),
            "controlAddress": secret_of(self._user),
        }
        return {name: value for name, value in known.items() if self._often(0.15)}

    def register(self) -> Ask:
        """Write a registration, which has to be for the rest to have an effect."""
        parameters: dict[str, Any] = {
            "name": self._name(),
            "class": self._chance.choice(("vm", "container")),
        }
        if (pid := self._leader()) is not None:
            parameters["leader"] = {"pid": pid}
        elif self._often(0.5):
            parameters["leaderFileDescriptor"] = 0
        parameters |= self._about_itself()
        in_place = self._often(0.7 if self._user == REGISTRANT else 0.25)
        if in_place:
            parameters["allocateUnit"] = False
        wants = 0.05 if in_place else 0.35
        if self._often(wants * (2 if self._as_root else 0.3)):
            parameters["helpers"] = self._helpers()
            parameters["timeoutUSec"] = 15_000_000
        elif self._often(wants):
            parameters["properties"] = self._limits()
        if self._often(wants / 2):
            parameters["slice"] = self._chance.choice(OTHERS_SLICES if self._as_root else SLICES)
        if self._often(wants / 4):
            parameters["execStop"] = ["/usr/bin/true", LINES]
        if self._often(0.05):
            parameters["description"] = self._chance.choice(TEXTS)
        for name, part in (("lease", 0.1), ("dryRun", 0.1), ("allowInteractiveAuthentication", 0.1)):
            if self._often(part):
                parameters[name] = True
        return Ask(f"{OURS}Register", parameters)

    def _register_with_machined(self) -> Ask:
        parameters = {"name": self._name(), "class": "container"} | self._about_itself()
        if (pid := self._leader()) is not None:
            parameters |= {"leaderProcessId": {"pid": pid}} if self._often(0.5) else {"leader": pid}
        if self._often(0.2):
            parameters["supervisor"] = self._chance.choice(self._leaders).pid
        if self._often(0.5):
            parameters["allocateUnit"] = self._often(0.6)
        return Ask(f"{THEIRS}Register", parameters)

    def _end(self) -> Ask:
        method = self._chance.choice(
            (f"{OURS}Stop", f"{OURS}Stop", f"{OURS}Forget", f"{THEIRS}Terminate", f"{THEIRS}Unregister")
        )
        parameters: dict[str, Any] = {"name": self._name()}
        if method == f"{OURS}Stop":
            parameters["timeoutUSec"] = 10_000_000
        if self._often(0.1):
            parameters["ifInvocationId"] = "0" * 32
        return Ask(
            method, parameters, {"more": True} if method == f"{OURS}Stop" and self._often(0.3) else {}
        )

    def _kill(self) -> Ask:
        parameters: dict[str, Any] = {
            "name": self._name(),
            "signal": self._chance.choice((9, 15, 10, 18, 0, 65)),
            "whom": self._chance.choice(("leader", "supervisor", "all")),
        }
        method = self._chance.choice((f"{OURS}Kill", f"{THEIRS}Kill"))
        if method == f"{OURS}Kill" and self._often(0.2):
            parameters["subgroup"] = self._chance.choice(
                ("x", "/", "..", f"../../system.slice/{FOREIGN_SERVICE}")
            )
        return Ask(method, parameters)

    def _add_helpers(self) -> Ask:
        more = {"more": True} if self._often(0.3) else {}
        return Ask(f"{OURS}AddHelpers", {"name": self._name(), "helpers": self._helpers()}, more)

    def _other_helpers(self) -> Ask:
        if self._often(0.5):
            return Ask(f"{OURS}Reload", {"name": self._name()})
        return Ask(f"{OURS}RemoveHelper", {"name": self._name(), "helper": self._chance.choice(HELPERS)})

    def _look(self) -> Ask:
        pid = self._chance.choice(self._leaders).pid
        return self._chance.choice(
            (
                Ask(f"{OURS}List", {}, {"more": True}),
                Ask(f"{OURS}Describe", {"name": self._name()}),
                Ask(f"{OURS}Measure", {}, {"more": True}),
                Ask(f"{OURS}Measure", {"names": [self._name(), KEPT], "limits": True}, {"more": True}),
                # No cursor of this boot: an answer that is a stream without an end would keep the conversation.
                Ask(
                    f"{OURS}Subscribe", {"cursor": self._chance.choice((OTHER_BOOT, *TEXTS))}, {"more": True}
                ),
                Ask(f"{OURS}Subscribe", {"events": [self._chance.choice(TEXTS)]}, {"more": True}),
                Ask(f"{OURS}AwaitStop", {"name": self._name()}),
                Ask(f"{OURS}Find", {"process": {"pid": pid}}),
                Ask(f"{OURS}Find", {"unit": f"machine-{KEPT}.scope"}),
                Ask(f"{OURS}Find", {"controlGroup": f"/machine.slice/machine-{KEPT}.scope/.."}),
                Ask(f"{THEIRS}List", {"acquireMetadata": "graceful"}, {"more": True}),
                Ask(f"{THEIRS}List", {"name": self._name(), "acquireMetadata": "yes"}),
                Ask(f"{THEIRS}List", {"pid": {"pid": pid}}),
            )
        )

    def _of_service(self) -> Ask:
        return self._chance.choice(
            (
                Ask("io.systemd.service.GetEnvironment", None),
                Ask("io.systemd.service.SetLogLevel", {"level": 6}),
                Ask("io.systemd.service.Ping", {}),
                Ask(f"{OURS}SetProperties", {"name": self._name(), "properties": {"MemoryMax": 2**26}}),
                Ask(f"{OURS}Freeze", {"name": self._name()}),
                Ask(f"{OURS}Freeze", {"name": self._name(), "helpers": True}),
                Ask(f"{OURS}Thaw", {"name": self._name()}),
                Ask(f"{OURS}ResetAccounting", {"name": self._name()}),
                Ask(f"{OURS}PowerOff", {"name": self._name()}),
                Ask(f"{OURS}Reboot", {"name": self._name()}),
                # Root would wait for ever.
                Ask(f"{OURS}AwaitStop", {"name": KEPT}, {} if self._user == ROOT else {"more": True}),
                Ask(f"{THEIRS}Open", {"name": self._name(), "mode": "shell"}),
                Ask(f"{THEIRS}BindMount", {"name": self._name(), "source": CANARIES}),
            )
        )


def write_round(chance: Random, leaders: Sequence[Leader], foreign: int) -> list[Conversation]:
    """Write the conversations that are held at the same time."""
    found: list[Conversation] = []
    for _ in range(chance.randint(2, 7)):
        user = chance.choice(USERS)
        writer = Writer(chance, user, leaders, foreign)
        asks = [writer.register(), *(writer.ask() for _ in range(chance.randint(0, 3)))]
        if chance.random() < 0.3:
            chance.shuffle(asks)
        descriptor = chance.choice(leaders).pid if chance.random() < 0.1 else None
        leaves = chance.choice((0.0, 0.001, 0.01, 0.05, 0.2)) if chance.random() < 0.2 else None
        found.append(Conversation(user, asks, descriptor, leaves))
    return found + [_look_into(chance, leader) for leader in leaders if leader.container]


def _look_into(chance: Random, leader: Leader) -> Conversation:
    """Have a user ask what is in a container of that user's."""
    parameters = {
        "name": chance.choice(NAMES),
        "class": "container",
        "leader": {"pid": leader.pid},
        "allocateUnit": False,
    }
    how = {"name": parameters["name"], "acquireMetadata": "graceful"}
    return Conversation(
        leader.user, [Ask(f"{OURS}Register", parameters), Ask(f"{THEIRS}List", how)], None, None
    )
