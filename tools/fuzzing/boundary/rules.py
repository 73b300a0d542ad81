"""What may come of calls, by the rules of README.md, “Who may do what”, stated again without the service's own words.

Pure. What is unknown, since the caller hung up before the answer, may have been done or not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from fuzzing.boundary.requests import (
    AS_ROOT,
    CREATOR,
    HOSTILE,
    KEPT,
    OURS,
    REGISTRANT,
    ROOT,
    THEIRS,
    Ask,
    Conversation,
    Leader,
)

UIDS: Final[Mapping[str, int]] = {
    ROOT: 0, CREATOR: 2001, REGISTRANT: 2002, "stranger": 2003, "holder": 2004,
}  # fmt: skip
NOBODY: Final = 65534
DYNAMIC: Final = 61184
"""Stands for all uids of services with DynamicUser=, of which it is the first (systemd.exec(5))."""

OPEN: Final = frozenset(
    {f"{OURS}{name}" for name in ("List", "Describe", "Find", "Measure", "Subscribe")}
    | {f"{THEIRS}List", "io.systemd.service.Ping"}
)
ENDS: Final = frozenset(
    {
        f"{OURS}{name}"
        for name in ("Stop", "Kill", "Forget", "Freeze", "Thaw", "ResetAccounting", "PowerOff", "Reboot")
    }
    | {f"{THEIRS}{name}" for name in ("Terminate", "Kill", "Unregister")}
)
REGISTERS: Final = frozenset({f"{OURS}Register", f"{THEIRS}Register"})
ROOT_ONLY: Final = frozenset(
    {f"io.systemd.service.{name}" for name in ("SetLogLevel", "GetLogLevel", "GetEnvironment")}
)

FREE_LIMITS: Final = frozenset(
    {
        "CPUWeight", "IOWeight", "CPUQuotaPerSecUSec", "MemoryHigh", "MemoryMax", "MemorySwapMax", "TasksMax",
        "RuntimeMaxUSec", "TimeoutStopUSec", "KillSignal", "SendSIGHUP", "OOMPolicy", "Delegate", "CPUAccounting",
        "IOAccounting", "IPAccounting", "MemoryAccounting", "TasksAccounting",
    }
)  # fmt: skip
"""What a user may set of a scope; the values are looked at in the manager, when it has read them back."""

HALF_DONE: Final = frozenset(
    {f"{OURS}{name}" for name in ("HelperFailed", "JobFailed", "Timeout", "ProcessGone")}
)
"""Errors of calls that were begun, and taken back: their leaders may have been moved, or ended."""

Reply = dict[str, Any]


@dataclass
class Outcome:
    """All that may be there after a round.

    Attributes:
        owners: who may have registered a machine, by its name.
        scopes: names of machines that may have scopes.
        services: by name of a machine, the uids that its helpers may run as.
        touched: PIDs of leaders that may have been moved or ended.
        sessions: users whose session may have been ended.
    """

    owners: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    scopes: set[str] = field(default_factory=set[str])
    services: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    touched: set[int] = field(default_factory=set[int])
    sessions: set[str] = field(default_factory=set[str])


def _fields(ask: Ask) -> dict[str, Any]:
    parameters: object = ask.parameters
    return cast("dict[str, Any]", parameters) if isinstance(parameters, dict) else {}


def _name(ask: Ask) -> str | None:
    name = _fields(ask).get("name")
    return name if isinstance(name, str) else None


def _helpers(ask: Ask) -> list[Any]:
    helpers: Any = _fields(ask).get("helpers")
    return cast("list[Any]", helpers) if isinstance(helpers, list) else []


def _properties(helper: Any) -> dict[str, Any]:
    wanted: Any = cast("dict[str, Any]", helper).get("properties") if isinstance(helper, dict) else None
    return cast("dict[str, Any]", wanted) if isinstance(wanted, dict) else {}


def _process(given: Any) -> Any:
    return cast("dict[str, Any]", given).get("pid") if isinstance(given, dict) else given


def _leader(ask: Ask) -> Any:
    """PID of the process that a registration names; None if that is the caller."""
    fields = _fields(ask)
    given = fields.get("leader") if fields.get("leader") is not None else fields.get("leaderProcessId")
    return _process(given)


def _allocates(ask: Ask) -> bool:
    allocates = _fields(ask).get("allocateUnit")
    return ask.method == f"{OURS}Register" if allocates is None else allocates is True


def _is_dry(ask: Ask) -> bool:
    return _fields(ask).get("dryRun") is True


def _is_refused(reply: Reply | None) -> bool:
    """Whether it is known that nothing was begun."""
    return reply is not None and reply.get("error", "") not in {"", *HALF_DONE}


def _is_hostile(ask: Ask) -> bool:
    """Whether a helper is asked for that nobody may have."""
    return any(each in HOSTILE for helper in _helpers(ask) for each in _properties(helper).items())


class Rules:
    """The rules for one round.

    Args:
        leaders: all processes that may be made machines.
    """

    def __init__(self, leaders: Sequence[Leader]) -> None:
        self._leaders = {leader.pid: leader for leader in leaders}

    def _may_register(self, user: str, ask: Ask, descriptor: int | None) -> bool:
        if user in AS_ROOT and ask.method == f"{OURS}Register":
            return True
        if user == ROOT:
            return True
        fields = _fields(ask)
        pid = _leader(ask)
        if descriptor is not None and fields.get("leaderFileDescriptor") is not None:
            return False
        if pid is not None and (pid not in self._leaders or self._leaders[pid].user != user):
            return False
        if ask.method == f"{THEIRS}Register":
            return not _allocates(ask) and user == REGISTRANT
        if any(fields.get(name) is not None for name in ("helpers", "execStop")):
            return False
        if not _allocates(ask):
            return user in {CREATOR, REGISTRANT}
        limits: Any = fields.get("properties") or {}
        slices = {None, "machine.slice", f"user-{UIDS[user]}.slice"}
        return user == CREATOR and FREE_LIMITS.issuperset(limits) and fields.get("slice") in slices

    def may(
        self, user: str, ask: Ask, owners: Mapping[str, set[str]], descriptor: int | None = None
    ) -> bool:
        """Whether a call may be answered with anything but an error."""
        if ask.method in OPEN or user == ROOT:
            return True
        if ask.method in ROOT_ONLY:
            return False
        if ask.method in REGISTERS:
            return self._may_register(user, ask, descriptor)
        if ask.method in ENDS:
            name = _name(ask)
            whose = owners.get(name, set[str]()) if name is not None else set[str]().union(*owners.values())
            return user in whose or (user in AS_ROOT and ask.method.startswith(OURS))
        return user in AS_ROOT and ask.method in {
            f"{OURS}{name}" for name in ("AddHelpers", "RemoveHelper", "Reload")
        }

    def outcome(
        self, conversations: Sequence[Conversation], replies: Sequence[Sequence[Reply | None]]
    ) -> Outcome:
        """Say what may be there after a round.

        Args:
            conversations: of the round.
            replies: to the calls of each of them; None where one is not known.
        """
        found = Outcome(owners={KEPT: {ROOT}}, scopes={KEPT}, services={KEPT: {DYNAMIC}})
        for conversation, known in zip(conversations, replies, strict=True):
            for ask, reply in zip(conversation.asks, known, strict=True):
                if _is_refused(reply) or _is_dry(ask):
                    continue
                if ask.method in REGISTERS and self.may(conversation.user, ask, {}, conversation.descriptor):
                    self._registered(found, conversation, ask)
                if ask.method == f"{OURS}AddHelpers" and conversation.user in AS_ROOT:
                    self._helped(found, ask)
        return found

    def _registered(self, found: Outcome, conversation: Conversation, ask: Ask) -> None:
        name, user = _name(ask), conversation.user
        if name is None:
            return
        found.owners.setdefault(name, set()).add(user)
        if _allocates(ask):
            found.scopes.add(name)
        self._helped(found, ask)
        pid = _leader(ask)
        if pid is None and _fields(ask).get("leaderFileDescriptor") is not None:
            pid = conversation.descriptor
        leader = self._leaders.get(pid) if isinstance(pid, int) else None
        if leader is not None:
            found.touched.add(leader.pid)
        supervisor = _process(_fields(ask).get("supervisor") or _fields(ask).get("supervisorProcessId"))
        if isinstance(supervisor, int) and supervisor in self._leaders:
            found.touched |= (
                {supervisor} if self._leaders[supervisor].user == user or user == ROOT else set[int]()
            )
        # The agent, which is the caller, is the machine's leader or its supervisor, whom Stop and Kill reach as well.
        ended = {user, leader.user} if leader is not None and leader.in_session else {user}
        found.sessions |= ended
        found.touched |= {
            each.pid for each in self._leaders.values() if each.user in ended and each.in_session
        }

    @staticmethod
    def _helped(found: Outcome, ask: Ask) -> None:
        name = _name(ask)
        helpers = _helpers(ask)
        commands = _fields(ask).get("execStop")
        if name is None or not (helpers or commands):
            return
        uids = found.services.setdefault(name, set())
        uids |= {0} if commands else set()
        for properties in map(_properties, helpers):
            uids.add(DYNAMIC)
            if properties.get("User") == "nobody":
                uids.add(NOBODY)
            if properties.get("DynamicUser") is False or properties.get("User") == "root":
                uids.add(0)

    def wrongly_answered(
        self,
        conversations: Sequence[Conversation],
        replies: Sequence[Sequence[Reply | None]],
        outcome: Outcome,
    ) -> Iterator[str]:
        """Name the calls that were answered with no error, and should have been."""
        for conversation, known in zip(conversations, replies, strict=True):
            for ask, reply in zip(conversation.asks, known, strict=True):
                if reply is None:
                    continue
                if _is_hostile(ask) and not _is_refused(reply):
                    yield f"{conversation.user} asked for {ask}, and was answered {reply}"
                if "error" in reply:
                    continue
                if not self.may(conversation.user, ask, outcome.owners, conversation.descriptor):
                    yield f"{conversation.user} may not {ask}, and was answered {reply}"
