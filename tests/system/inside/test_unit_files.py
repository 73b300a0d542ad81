"""Whatever is written into a unit file reads back as what was asked for.

The service manager writes the properties of transient units into files and reads these again at each daemon-reload.
Each property that can be set is given hostile values: what moored passes on, and the manager takes, must be the same
after a reload, and so must all other properties of the unit. What does not come back the same moored has to refuse
(`moorage.pid1.unit_files`).

Many properties are set on one unit, as nearly all of the time goes into units. A few strings stand for those of their
kind; all of them are tried, in a few minutes, by hand:

    tools/sandbox exec NAME -- env -C /moorage MOORAGE_HOSTILE=all python3 -m pytest -p no:cacheprovider \\
        tests/system/inside/test_unit_files.py
"""

import os
import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import pytest
import trio

from moorage.dbus.bus import BusError
from moorage.dbus.message import BusCall
from moorage.pid1.errors import InvalidProperty, ManagerError, NoSuchProperty
from moorage.pid1.manager import AuxiliaryUnit, Json, ScopeSpec, ServiceSpec, UnitType
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints
from moorage.pid1.over_dbus.translate import path_of
from moorage.pid1.properties import UnitProperties

pytestmark = pytest.mark.system_instance(
    "it is about the service manager, without a moored; that of a user writes the same files"
)

SYSTEM = Endpoints("/run/systemd/private", "/run/dbus/system_bus_socket")
BUNDLE = 16
"""Properties of one unit: most of the time goes into units, and with too many the manager takes none together."""

BATCH = 400
"""Units at a time: a reload takes as long as there are units."""

NAMES_KEPT = 200
"""Units of one keeper."""

AT_ONCE = 50
SECONDS = 120.0
PROPERTIES = "org.freedesktop.DBus.Properties"

COMMON = (
    # controls, ends
    "x\ny", "x\ty", "x\x1by", "x\u2028y", "x\\\nUser=root", " x", "x ", "\u00a0x", "x\\", "\\x", " ",
    # words, quotes, escapes, specifiers, variables
    "x  y", 'x"y', "x'y", '"x"', "'x' y", "x ; y", "#x", "x #y", "x\\ny", "x\\x41y", "x\\\\y", "x%ny", "x%%y", "$HOME",
    "$$",
    # what separates or marks in one property or the other, words of systemd
    "x=y", "x:y", "x,y", "~x", "*x[y]?", "@x", "-x", "!!x", "|x", "<x>", "{a,b}", "", "infinity", "-1",
    # paths
    "//x", "x//y", "x/../y", "x/..", "x/./y", "x/",
    "ü\U0001f600",
)  # fmt: skip
"""One or two strings of each kind."""

FURTHER = (
    "x\ry", "x\x01y", "x\x7fy", "x\x85y", "x\n", "\nx", "x\nUser=root", "x\n[Unit]\nx=y", "x \\", "\\", "\ufeffx",
    "x y", "'x'", '"x y"', '"', ";", "; x", "x#y", "x\\y", "x%y", "%", "%n", "x$y", "${HOME}",
    "=x", "x=", ":x", "x:", "a:b:c", "*x", "x[y]?", "+x", "!x", ".x", "x&y", "(x)", "`x`", "^x",
    "/", "../x", "..", ".", "yes", "no", "none", "null", "self", "0",
)  # fmt: skip

HOSTILE = COMMON + (FURTHER if os.environ.get("MOORAGE_HOSTILE") == "all" else ())

# "§" is where the hostile string comes; of the templates of a type, a property is tested with those that it takes with
# a harmless one.
TEXTS: Sequence[Any] = ("§", "/usr/§", "A=§", "man:§", "§.service", "§.slice", "path:/usr/§")
LISTS: Sequence[Any] = (
    ["a", "§"], ["/usr/a", "/usr/§"], ["A=§", "B=c"], ["man:§"], ["§.service"], ["§.slice"], ["-/usr/§"], ["§"],
)  # fmt: skip
DIRECTORIES: Sequence[Any] = [[["§", "a", 0]], [["a", "§", 0]], [["a", "b/§", 1]]]
LABELS: Sequence[Any] = [[False, "§"], [True, "§"]]
SETS: Sequence[Any] = [[False, ["§"]], [True, ["§"]], [False, ["read", "§"]]]
IMAGE: Any = [["root", "§"]]
TRUE = "/usr/bin/true"
COMMANDS: Sequence[Any] = [
    [["/usr/§", [TRUE], False]], [["/usr/§", ["/usr/§"], False]], [["/usr/§", ["/usr/§", "a"], True]],
    [["§", ["§"], False]], [[TRUE, ["§"], False]], [[TRUE, [TRUE, "§"], False]], [[TRUE, [TRUE, "a", "§", "b"], True]],
    [[TRUE, [TRUE, "§"], False], [TRUE, ["a"], True]],
]  # fmt: skip
COMMANDS_EX: Sequence[Any] = [
    [["/usr/§", [TRUE], []]], [["/usr/§", ["/usr/§"], ["no-env-expand"]]], [[TRUE, ["§"], []]],
    [[TRUE, [TRUE, "a", "§"], []]], [[TRUE, [TRUE, "a", "§", "b"], ["ignore-failure", "no-env-expand"]]],
    [[TRUE, ["a", "§"], ["privileged", "no-env-expand"]]],
]  # fmt: skip
CONDITIONS: Sequence[Any] = [
    [[f"{condition}", False, False, "§"]]
    for condition in ("ConditionHost", "ConditionKernelCommandLine", "ConditionEnvironment", "ConditionUser")
] + [
    [["ConditionPathExists", True, False, "/§"]], [["ConditionPathExistsGlob", False, True, "/§"]],
    [["ConditionFileNotEmpty", True, True, "/usr/§"]],
]  # fmt: skip
BINDS: Sequence[Any] = [[["/§", "/x", False, 0]], [["/x", "/§", False, 16384]], [["/§", "/§", True, 16384]]]

TEMPLATES: dict[str, Sequence[Any]] = {
    "s": TEXTS, "as": LISTS, "a(sst)": DIRECTORIES, "(bs)": LABELS, "(bas)": SETS, "a(sasb)": COMMANDS,
    "a(sasas)": COMMANDS_EX, "a(sbbs)": CONDITIONS, "a(ssbt)": BINDS, "(ss)": [["private", "§"]],
    "a(bs)": [[[True, "§"]], [[False, "§"]]], "a(iiss)": [[[3, 2, "§", "s"]], [[3, 2, "t", "§"]]],
    "a(say)": [[["§", [65]]]], "a(sb)": [[["/usr/§", True]], [["/usr/§", False]]],
    "a(sba(ss))": [[["/usr/§", False, []]], [["/usr/x", True, IMAGE]]],
    "a(ssba(ss))": [[["/usr/§", "/x", False, []]], [["/x", "/usr/§", False, []]], [["/x", "/y", True, IMAGE]]],
    "a(st)": [[["/§", 1_000_000]], [["/dev/§", 100]]],
}  # fmt: skip

CREDENTIALS = ([["§", "/x"]], [["a", "/§"]], [["a", "§"]])
ATTRIBUTES = ([["user.§", "x"]], [["user.x", "§"]])
PORTS = ([0, 0, 0, 0], [2, 6, 1, 8080], [10, 17, 65535, 1], [2, 0, 0, 1], [2, 0, 10, 5])
NAMES = ([], ["AF_UNIX"], ["@mount:5"], ["lo"], ["ext4"])

BY_NAME: dict[str, Sequence[Any]] = {
    # The manager has one function for the commands of all names: each kind of them once, and little of the others.
    **dict.fromkeys(("ExecStop", "ExecReload", "ExecCondition"), COMMANDS[-1:]),
    **dict.fromkeys(("ExecStartPre", "ExecStartPost", "ExecStopPost"), COMMANDS[1:2]),
    **dict.fromkeys(("ExecStopEx", "ExecReloadEx", "ExecConditionEx"), COMMANDS_EX[-1:]),
    **dict.fromkeys(("ExecStartPreEx", "ExecStartPostEx", "ExecStopPostEx"), COMMANDS_EX[1:2]),
    "DeviceAllow": [[["/dev/§", "rw"]], [["char-§", "rw"]]],
    "BPFProgram": [[["device", "/§"]]],
    "RootImageOptions": [IMAGE],
    **dict.fromkeys(("LoadCredential", "LoadCredentialEncrypted"), CREDENTIALS),
    "ImportCredentialEx": [[["§", "x"]], [["x.§*", "y"]], [["x", "§"]]],
    "TemporaryFileSystem": [[["/§", "ro"]], [["/x", "mode=§"]], [["/x", "§"]]],
    "OpenFile": [[["/§", "n", 0]], [["/x", "§", 0]], [["/§", "", 1]]],
    "Listen": [
        [[kind, f"{first}§"]] for kind, first in (
            ("Stream", "/"), ("Stream", "@"), ("Datagram", "/"), ("FIFO", "/"), ("Special", "/"),
            ("MessageQueue", "/"), ("Netlink", "kobject-uevent "), ("USBFunction", "/"),
        )
    ],
    **dict.fromkeys(("XAttrEntryPoint", "XAttrListen", "XAttrAccept"), ATTRIBUTES),
}  # fmt: skip

NUMBERS = (
    0, 1, 2, 7, 40, 41, 64, 65, 99, 100, 999, 1000, 1001, 4095, 4096, 10_000, 65_535, 65_536, 1_500_500, 3_600_000_001,
    0o777, 0o7777, 0o10000, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 1, 2**40 + 1, 10**12, 10**13, 10**14, 2**53 + 1,
    2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1, -1, -20, -1000, -(2**31), 1 << 17, 0x7E020080, 50_000_000,
)  # fmt: skip

BYTES: Sequence[Any] = (
    [], [0], [1], [255], [0, 1], [10], [65, 10, 66], [37, 110], [92], [34], [0] * 15 + [1], [0] * 16 + [1], [255] * 64,
)  # fmt: skip
VALUES: dict[str, Sequence[Any]] = {
    "b": (True, False),
    **dict.fromkeys("ynqiuxt", NUMBERS),
    "d": (0, 0.5, 1e9),
    "ay": BYTES,
    "a(st)": [[["/dev/null", number]] for number in NUMBERS],
    "(aiai)": [[[status], []] for status in (0, 1, 127, 255)] + [[[], [number]] for number in (0, 1, 64, 65, 255)],
    "a(iayu)": [[[2, [192, 0, 2, 1], bits]] for bits in (0, 8, 31, 32)] + [[[10, [32] * 16, 127]]],
    "a(iiqq)": [[ports] for ports in PORTS],
    "(bas)": [[allow, names] for allow in (True, False) for names in NAMES],
    "(bs)": [[ignore, text] for ignore in (True, False) for text in ("", "x")],
    "a(say)": [[["a", data]] for data in BYTES],
    "(tus)": [[0, 0, "off"], [2**63, 0, "hard"], [5 << 20, 2**31, "soft"]],
    "a(ssbt)": [[["/a", "/b", ignore, flags]] for ignore in (True, False) for flags in (0, 16384)],
    "a(iiss)": [[[source, protocol, "t", "s"]] for source in range(4) for protocol in range(4)],
}  # fmt: skip

DEPENDENCIES = {
    "Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After", "OnSuccess",
    "OnFailure", "PropagatesReloadTo", "ReloadPropagatedFrom", "PropagatesStopTo", "StopPropagatedFrom",
    "JoinsNamespaceOf", "RequiresMountsFor", "WantsMountsFor", "Triggers",
}  # fmt: skip
"""Sets, which are read in any order."""

MAY_DIFFER = ("NeedDaemonReload", "Timestamp", "TimestampMonotonic")
CAPABILITIES = {"CapabilityBoundingSet", "AmbientCapabilities"}
CAPABILITIES_KNOWN = 2**41 - 1
"""The others of the 64 the kernel does not have."""
NAMESPACES = 0x7E020080
NO_QUOTA = (2**64 - 1, 2**32 - 1, "no")


class Case(NamedTuple):
    """One property and a value for it."""

    name: str
    value: Json


Bundle: TypeAlias = Sequence[Case]
"""Cases of different properties, which one unit is given at once."""

Reading: TypeAlias = dict[str, Any]


def never(kind: UnitType) -> dict[str, Any]:
    """A unit that is loaded, and nothing more: its condition is never met."""
    properties: dict[str, Any] = {
        "Conditions": [["ConditionPathExists", False, True, "/"]],
        "DefaultDependencies": False,
    }
    if kind == "service":
        return properties | {"Type": "oneshot", "ExecStart": [[TRUE, [TRUE], False]]}
    return properties | ({"Listen": [["Stream", "/run/t-unit-files"]]} if kind == "socket" else {})


class Files:
    """Sets properties of units of one type, and reads what has become of them."""

    def __init__(
        self,
        manager: DBusManager,
        kind: UnitType,
        types: UnitProperties,
        service: UnitProperties,
        pidfd: int,
    ) -> None:
        self._manager = manager
        self._kind: UnitType = kind
        self._pidfd = pidfd
        self._token = secrets.token_hex(4)
        self._naming = trio.Lock()
        self._names: list[str] = []
        self._keepers = 0
        self._kept: list[str] = []
        self._read_only = set[str]()
        self.types = types
        self.service = service

    def case(self, name: str, value: Json) -> Case | None:
        """Return a case; None where moored refuses the value."""
        try:
            self.types.convert({name: value})
        except InvalidProperty:
            return None
        return Case(name, value)

    async def _start(self, unit: str, bundle: Bundle) -> None:
        """Make a unit.

        Raises:
            ManagerError: moored or the manager does not take the properties, together.
        """
        deadline = trio.current_time() + SECONDS
        asked = self.types.convert({case.name: case.value for case in bundle})
        properties = self.types.convert(never(self._kind)) + asked
        if self._kind == "scope":
            scope = ScopeSpec(unit, (self._pidfd,), None, unit, properties)
            await self._manager.start_scope(scope, deadline=deadline)
            return
        service = ServiceSpec(unit, unit, properties)
        if self._kind == "socket":
            trigger = f"{unit.removesuffix('.socket')}-trigger.service"
            socket = (AuxiliaryUnit(unit, properties),)
            service = ServiceSpec(trigger, unit, self.service.convert(never("service")), auxiliary=socket)
        await self._manager.start_service(service, deadline=deadline)

    async def _read(self, units: Sequence[str]) -> list[Reading]:
        bus = await self._manager._session.up()
        readings: list[Reading] = []
        for first in range(0, len(units), AT_ONCE):
            calls = [
                BusCall("org.freedesktop.systemd1", path_of(unit), PROPERTIES, "GetAll", "s", ("",), "a{sv}")
                for unit in units[first : first + AT_ONCE]
            ]
            for reply in await bus.calls(calls, deadline=trio.current_time() + SECONDS):
                assert not isinstance(reply, BusError), reply
                readings.append({name: value for name, (_, value) in reply[0].items()})
        return readings

    async def _name(self) -> str:
        """Take a name whose unit a keeper holds in the manager's memory, where nothing else needs it."""
        async with self._naming:
            if not self._names:
                self._keepers += 1
                keeper = f"t-{self._token}-{self._keepers}-keeper.service"
                self._names = [
                    f"t-{self._token}-{self._keepers}-{n}.{self._kind}" for n in range(NAMES_KEPT)
                ]
                properties = self.service.convert(
                    {"Type": "oneshot", "RemainAfterExit": True, "ExecStart": [[TRUE, [TRUE], False]],
                     "DefaultDependencies": False, "Wants": list(self._names)}
                )  # fmt: skip
                spec = ServiceSpec(keeper, keeper, properties)
                await self._manager.start_service(spec, deadline=trio.current_time() + SECONDS)
                self._kept.append(keeper)
            return self._names.pop()

    async def _let_go(self) -> None:
        """Stop the keepers: the manager forgets all units."""
        self._names.clear()
        while self._kept:
            await self._manager.stop(self._kept.pop(), deadline=trio.current_time() + SECONDS)
        await trio.run_process(["systemctl", "reset-failed"])

    async def _make(self, bundle: Bundle) -> list[tuple[str, Bundle]]:
        """Make a unit with all of the properties, or several where the manager does not take them together."""
        bundle = [case for case in bundle if case.name not in self._read_only]
        if not bundle:
            return []
        unit = await self._name()
        try:
            await self._start(unit, bundle)
        except ManagerError as exc:
            blamed = exc.property if isinstance(exc, InvalidProperty | NoSuchProperty) else ""
            if isinstance(exc, NoSuchProperty):
                self._read_only.add(blamed)
            if len(bundle) == 1:
                return []
            parts = [[case for case in bundle if (case.name == blamed) is of_it] for of_it in (True, False)]
            if not all(parts):
                parts = [bundle[::2], bundle[1::2]]
            return [made for part in parts for made in await self._make(part)]
        return [(unit, bundle)]

    async def read(self, bundles: Sequence[Bundle]) -> AsyncGenerator[tuple[Bundle, Reading, Reading]]:
        """Set the properties of each bundle on a unit, or on several where the manager does not take them together.

        Yields:
            The cases of a unit, and all its properties before and after a reload.
        """
        for first in range(0, len(bundles), BATCH):
            made: list[tuple[str, Bundle]] = []
            limit = trio.CapacityLimiter(AT_ONCE)

            async def make(
                bundle: Bundle,
                made: list[tuple[str, Bundle]] = made,
                limit: trio.CapacityLimiter = limit,
            ) -> None:
                async with limit:
                    made.extend(await self._make(bundle))

            async with trio.open_nursery() as nursery:
                for bundle in bundles[first : first + BATCH]:
                    nursery.start_soon(make, bundle)
            units = [unit for unit, _ in made]
            before = await self._read(units)
            await trio.run_process(["systemctl", "daemon-reload"])
            after = await self._read(units)
            await self._let_go()
            for (_, bundle), one, other in zip(made, before, after, strict=True):
                yield bundle, one, other


@asynccontextmanager
async def files(kind: UnitType) -> AsyncGenerator[Files]:
    manager = DBusManager(SYSTEM, "private")
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        deadline = trio.current_time() + SECONDS
        types = await manager.property_types(kind, deadline=deadline)
        service = await manager.property_types("service", deadline=deadline)
        # Any process will do: no scope is ever started around it.
        sleeper = await nursery.start(trio.run_process, ["/usr/bin/sleep", "infinity"])
        pidfd = os.pidfd_open(sleeper.pid)
        try:
            yield Files(manager, kind, types, service, pidfd)
        finally:
            os.close(pidfd)
            nursery.cancel_scope.cancel()


def filled(template: Any, text: str) -> Any:
    """Put a string into a template."""
    if isinstance(template, list):
        return [filled(item, text) for item in template]
    return template.replace("§", text) if isinstance(template, str) else template


def simple(value: Any) -> Any:
    """A value with paths as the manager simplifies them, and sets in order."""
    if isinstance(value, list | tuple):
        return [simple(item) for item in value]
    if isinstance(value, str) and "/" in value:
        return "/".join(part for n, part in enumerate(value.split("/")) if part not in {"", "."} or n == 0)
    return value.rstrip(b"\0") if isinstance(value, bytes) else value


def comparable(name: str, value: Any) -> Any:
    """A value so that two that mean the same are equal."""
    if name in DEPENDENCIES:
        return sorted(value)
    if name in {"Conditions", "Asserts"}:
        return simple([condition[:4] for condition in value])  # without their last results
    if name in CAPABILITIES:
        return value & CAPABILITIES_KNOWN
    if name == "DelegateNamespaces":
        return value & NAMESPACES  # those that exist
    if name.endswith("Quota") and isinstance(value, tuple) and value[2] == "no":
        return NO_QUOTA
    return simple(value)


def differences(before: Reading, after: Reading) -> dict[str, tuple[Any, Any]]:
    """What a reload has changed, by property."""
    return {
        name: (value, after.get(name))
        for name, value in before.items()
        if value != after.get(name)
        and not name.endswith(MAY_DIFFER)
        and (name not in after or comparable(name, value) != comparable(name, after[name]))
    }


def bundles(cases: Iterable[Case]) -> list[Bundle]:
    """Put cases of different properties together; those of neighbours apart, often two names of one thing."""
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        by_name.setdefault(case.name, []).append(case)
    found: list[Bundle] = []
    for n in range(max(map(len, by_name.values()), default=0)):
        together = [of_one[n] for of_one in by_name.values() if n < len(of_one)]
        stride = -(-len(together) // BUNDLE)
        found += [together[first::stride] for first in range(stride)]
    return found


async def templates(kept: Files, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the templates that the manager takes with a harmless string: few of a property that takes everything."""
    candidates: list[Case] = []
    found: dict[str, list[Any]] = {}
    originals: dict[int, Any] = {}
    for name in names:
        signature = kept.types.settable[name]
        for template in BY_NAME.get(name, TEMPLATES.get(signature, ())):
            if (case := kept.case(name, filled(template, "xy"))) is not None:
                originals[id(case.value)] = template
                candidates.append(case)
    async for bundle, _, _ in kept.read(bundles(candidates)):
        for case in bundle:
            found.setdefault(case.name, []).append(originals[id(case.value)])
    return [
        (name, template)
        for name, accepted in found.items()
        for template in (accepted[:2] if kept.types.settable[name] in {"s", "as"} else accepted)
    ]


async def compare(kept: Files, cases: Iterator[tuple[str, Json]]) -> tuple[int, dict[str, Any]]:
    """Return how many values the manager took, and which of them changed with a reload, and how."""
    wanted = bundles(case for name, value in cases if (case := kept.case(name, value)) is not None)
    taken, changed = 0, dict[str, Any]()
    async for bundle, before, after in kept.read(wanted):
        taken += len(bundle)
        if (difference := differences(before, after)) != {}:
            blamed = [case for case in bundle if case.name in difference] or bundle
            changed[", ".join(f"{case.name} {case.value!r}" for case in blamed)] = difference
    return taken, changed


PARTS: dict[UnitType, int] = {"scope": 1, "socket": 1, "service": 4}
"""How many tests the strings are spread over, so that none takes longer than a test may."""


def names_of(kept: Files, kind: UnitType) -> list[str]:
    """Names of the properties of a type of unit; of sockets those that services do not have."""
    return [
        name
        for name in kept.types.settable
        if kind != "socket" or name not in kept.service.settable or name in {"Description", "User"}
    ]


@pytest.fixture(scope="module")
def accepted() -> dict[UnitType, list[tuple[str, Any]]]:
    """Templates that the manager takes, by type of unit."""

    async def find(kind: UnitType) -> list[tuple[str, Any]]:
        async with files(kind) as kept:
            return await templates(kept, names_of(kept, kind))

    return {kind: trio.run(find, kind) for kind in PARTS}


@pytest.mark.parametrize(
    ("kind", "part"), [(kind, part) for kind, parts in PARTS.items() for part in range(parts)]
)
async def test_strings_read_back_as_what_was_asked(
    accepted: dict[UnitType, list[tuple[str, Any]]], kind: UnitType, part: int
) -> None:
    async with files(kind) as kept:
        texts = HOSTILE[part :: PARTS[kind]]
        cases = ((name, filled(template, text)) for name, template in accepted[kind] for text in texts)
        taken, changed = await compare(kept, cases)
    print(f"{kind}: {taken} values")
    assert changed == {}
    assert taken > len(accepted[kind])


@pytest.mark.parametrize("kind", PARTS)
async def test_numbers_read_back_as_what_was_asked(kind: UnitType) -> None:
    async with files(kind) as kept:
        cases = (
            (name, value)
            for name in names_of(kept, kind)
            for value in VALUES.get(kept.types.settable[name], ())
        )
        taken, changed = await compare(kept, cases)
    print(f"{kind}: {taken} values")
    assert changed == {}
    assert taken > len(NUMBERS)
