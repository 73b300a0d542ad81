"""Who may do what, as one table. Pure: the caller's uid comes from the socket, the machine's owner from the registry.

The boundary runs along the service manager, not through it. What a call asks of the system's manager is either
harmless in the hands of a hostile user, which has to be shown (:mod:`moorage.authz.allowed_properties` for the
properties of scopes, :mod:`moorage.authz.ownership` for processes), or it takes the rights of root: the variant
`AS_ROOT` of Register, and all methods that deal with helpers. Whoever polkit gives the action for these is treated
as root is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import msgspec

IN_PLACE: Final = "(allocateUnit: false)"
"""Variant of Register: without a scope. The parameter is false by default in io.systemd.Machine."""

AS_ROOT: Final = "(helpers, other properties or slices, processes of others)"
"""Variant of Register: beyond what a user may have done. No list could make services of the system's manager harmless
in the hands of a hostile user: whoever may set up one of them is as good as root, as with systemd-run(1)."""

OTHER_PROPERTIES: Final = "(helpers, other properties)"
"""Variant of SetProperties: beyond what a user may set on a scope."""

WITH_HELPERS: Final = "(helpers)"
"""Variant of Freeze: does something with services of the system's manager, too."""

METADATA: Final = "(acquireMetadata)"
"""Variant of List: looks into the machines."""

ADDRESSES: Final = "(addresses)"
"""The same for nothing but addresses, which only the bus has a call for."""

OPEN: Final[Mapping[str, str]] = {"tty": "(tty)", "login": "(login)", "shell": "(shell)"}
"""Variants of Open, by its mode."""

OPEN_HOST: Final[Mapping[str, str]] = {mode: f"(host, {mode})" for mode in OPEN}
"""The same of Open of the host."""

AS_ROOT_ACTION: Final = "io.moorage.manage-units"
"""What gives the rights of root, as ``org.freedesktop.systemd1.manage-units`` does."""


class Ask(msgspec.Struct, frozen=True):
    """Polkit decides.

    Attributes:
        action: what it is asked about.
    """

    action: str


Decision: TypeAlias = bool | Ask


class Row(msgspec.Struct, frozen=True):
    """Who may make a call to the system's instance. Root may make every call.

    Attributes:
        own: who registered the machine; where the call is about none, or about one to come, the same as the others.
        others: everybody else.
    """

    own: Decision
    others: Decision


def _rows(interface: str, methods: Iterable[str], row: Row) -> dict[str, Row]:
    return {f"{interface}.{method}": row for method in methods}


def _asked(action: str, *, own: Decision | None = None) -> Row:
    ask = Ask(action)
    return Row(ask if own is None else own, ask)


_OPEN: Final = Row(own=True, others=True)
_ROOT: Final = Row(own=False, others=False)

_ORDERS: Final = (
    "Kill", "Stop", "Forget", "Freeze", "Thaw", "SetProperties", "ResetAccounting", "PowerOff", "Reboot",
)  # fmt: skip

TABLE: Final[Mapping[str, Row]] = {
    # The bare facts are no secret: the manager tells them of every unit, and the kernel of every process. What is one
    # (Policy.tells_all) is left out. machined does not leave out anything.
    **_rows(
        "io.moorage.Machine",
        ("List", "Describe", "DescribeProperties", "Find", "Measure", "Subscribe"),
        _OPEN,
    ),
    # Which limits there are, anybody finds out by trying. The paths of files, and what is wrong in them, are left out.
    "io.moorage.Machine.DescribeConfiguration": _OPEN,
    "io.systemd.Machine.List": _OPEN,
    # Looking into a machine starts a process with rights. Whoever has registered it has chosen its namespaces, and so
    # what is read there as if it were its own: that user has to be allowed to as well, as with machined.
    f"io.systemd.Machine.List{METADATA}": _asked("org.freedesktop.machine1.inspect-machines"),
    # Addresses are not read from files, and machined tells everybody these.
    f"io.systemd.Machine.List{ADDRESSES}": _asked("org.freedesktop.machine1.inspect-machines", own=True),
    "io.moorage.Machine.Register": _asked("io.moorage.create-machine"),
    f"io.moorage.Machine.Register{IN_PLACE}": _asked("io.moorage.register-machine"),
    f"io.moorage.Machine.Register{AS_ROOT}": _asked(AS_ROOT_ACTION),
    "io.systemd.Machine.Register": _asked("org.freedesktop.machine1.create-machine"),
    f"io.systemd.Machine.Register{IN_PLACE}": _asked("org.freedesktop.machine1.register-machine"),
    **_rows(
        "io.moorage.Machine",
        _ORDERS,
        _asked("io.moorage.manage-machines", own=True),
    ),
    # At the control socket of a machine: each as the call above that does the same.
    **_rows(
        "io.systemd.MachineInstance",
        ("Terminate", "PowerOff", "Reboot", "Pause", "Resume"),
        _asked("io.moorage.manage-machines", own=True),
    ),
    **_rows(
        "io.systemd.MachineInstance",
        ("Describe", "SubscribeEvents", "AddStorage", "RemoveStorage", "ReplaceStorage"),
        _OPEN,
    ),
    # Whoever waits for it gives its machine time; nobody else does, not even where polkit would allow a stop.
    "io.moorage.Machine.AwaitStop": Row(own=True, others=False),
    # For the service manager alone.
    "io.moorage.Machine.PrepareForShutdown": _ROOT,
    f"io.moorage.Machine.Freeze{WITH_HELPERS}": _asked(AS_ROOT_ACTION),
    f"io.moorage.Machine.SetProperties{OTHER_PROPERTIES}": _asked(AS_ROOT_ACTION),
    # Services of the system's manager, whosever machine they are for.
    **_rows("io.moorage.Machine", ("AddHelpers", "RemoveHelper", "Reload"), _asked(AS_ROOT_ACTION)),
    **_rows(
        "io.systemd.Machine",
        ("Unregister", "Terminate", "Kill"),
        _asked("org.freedesktop.machine1.manage-machines", own=True),
    ),
    # Who has a number, the kernel tells everybody in /proc.
    **_rows("io.systemd.Machine", ("MapFrom", "MapTo"), _OPEN),
    # The files of a machine are whose they are in it, and not its registrant's.
    **_rows(
        "io.systemd.Machine",
        ("OpenRootDirectory", "CopyFrom", "CopyTo", "BindMount"),
        _asked("org.freedesktop.machine1.manage-machines"),
    ),
    "io.systemd.Machine.Open": _ROOT,
    f"io.systemd.Machine.Open{OPEN['tty']}": _asked("org.freedesktop.machine1.open-pty", own=True),
    f"io.systemd.Machine.Open{OPEN['login']}": _asked("org.freedesktop.machine1.login", own=True),
    f"io.systemd.Machine.Open{OPEN['shell']}": _asked("org.freedesktop.machine1.shell", own=True),
    f"io.systemd.Machine.Open{OPEN_HOST['tty']}": _asked("org.freedesktop.machine1.host-open-pty"),
    f"io.systemd.Machine.Open{OPEN_HOST['login']}": _asked("org.freedesktop.machine1.host-login"),
    f"io.systemd.Machine.Open{OPEN_HOST['shell']}": _asked("org.freedesktop.machine1.host-shell"),
    # Of the service, not of a machine: nobody's own (varlink_method_set_log_level() asks nobody either).
    **_rows("io.systemd.service", ("SetLogLevel", "GetLogLevel", "GetEnvironment"), _ROOT),
    # What List and Measure tell of machines; and how often what was called.
    **_rows("io.systemd.Metrics", ("List", "Describe"), _OPEN),
    # In machined's place. Who has a number, /proc tells everybody as well.
    **_rows("io.systemd.UserDatabase", ("GetUserRecord", "GetGroupRecord", "GetMemberships"), _OPEN),
    # Addresses of machines, for systemd-resolved, which asks for everybody.
    **_rows("io.systemd.Resolve.Hook", ("QueryFilter", "ResolveRecord"), _OPEN),
    # For everybody, and in a user's instance too.
    "io.systemd.service.Ping": _OPEN,
    **_rows("org.varlink.service", ("GetInfo", "GetInterfaceDescription"), _OPEN),
}
"""All methods that are served; those that anybody may call at any time do not come here to ask."""


class Policy(msgspec.Struct, frozen=True):
    """The rules of one instance.

    Attributes:
        user: uid that the instance serves; None for the system instance.
    """

    user: int | None

    def decide(self, call: str, uid: int, owner: int | None = None) -> Decision:
        """Decide about a call.

        Args:
            call: full name of the method, with the variant where there is one.
            uid: the caller's effective uid when it connected.
            owner: uid that registered the machine that the call is about.
        """
        if self.is_root(uid):
            return True
        if self.user is not None:
            return False
        row = TABLE[call]
        return row.own if uid == owner else row.others

    def is_root(self, uid: int) -> bool:
        """Whether a caller is treated as root is, without a question: it has the rights of the manager anyway."""
        return uid == 0 or uid == self.user

    def tells_all(self, uid: int, owner: int) -> bool:
        """Whether a caller sees a machine whole: where it can be controlled, and with which key one gets into it."""
        return self.user is not None or uid in {0, owner}
