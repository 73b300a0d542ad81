"""The quantities, their peers and the targets for moored: pure, and the only place for them.

A sample is one figure of one peer in one round; a row compares the medians of two peers.
"""

import operator
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

GROUPS = {
    "wire": "GetInfo: latency on a kept and on a fresh connection, throughput at 1 to 120 connections",
    "register": "Register, List and stop of 100, 400 and 1,000 real processes; another caller meanwhile; 400 deaths",
    "helpers": "Register with 0 to 20 helpers, and how long they take to go with their machine",
    "running": "limits changed, machines frozen, measured and watched, of 1,000",
    "capacity": "machines in one instance, file descriptors, memory",
    "events": "how soon the end of a machine is told, and what 10 and 100 subscribers cost",
    "inside": "shells, terminals, copies, mounts and users of a container",
    "metrics": "a scrape of 1,000 machines, another caller meanwhile; systemd-report; the exporter",
    "cold": "the first call, which starts the service",
}

COUNTS = (100, 400, 1000)
QUICK_COUNTS = (100, 400)
"""Number of processes to register."""
DEATHS = 400
"""Number of machines when all are listed, and when all leaders die."""
CONNECTIONS = (1, 8, 64, 120)
HELPERS = (0, 1, 5, 20)
"""Number of helpers of a machine."""
HELPERS_JUDGED = 5
"""The number with a target."""
TEARDOWN = "<=1.1"
"""No measurable overhead: two series of the same thing differ by less than a tenth."""

MOORED, MACHINED, ASYNCVARLINK, VARLINK = "moored", "machined", "asyncvarlink", "varlink package"
IMPORTS_BY_PID1 = "bare imports, started by PID 1 in the same way"
IMPORTS_BY_FORK = "bare imports, forked by the generator"
BUSCTL, PLAIN, SYSTEMD_RUN = "busctl", "plain client, no service", "systemd-run"
CGTOP = "systemd-cgtop"
ONE, ALONE = "one subscriber", "without subscribers"
CGROUP, QUIET = "systemd-report-cgroup", "without a scrape"
LIMIT = "limit"
"""Peer of a row whose target is a figure instead of a ratio: moored's value over that figure."""

MACHINES = 5000
FIRST_MACHINES = 1000
"""Numbers of machines with which memory is measured."""
OTHER_MS = 5.0
"""What another caller may wait while all are measured, ms."""
FEW_SUBSCRIBERS, SUBSCRIBERS = 10, 100
SUBSCRIBER_US = 5.0
"""CPU that each further subscriber may cost for each event, µs."""
SCRAPED = 1000
"""Number of machines that are scraped."""
SCRAPE_MS, EXPORT_MS, WAIT_MS = 200, 500, 10
MEMORY_KIB = 60 * 1024
MEMORY_EACH_KIB = 8

Figures: TypeAlias = Iterator[tuple[str, float]]
"""Keys of samples, and their values."""

_OPERATORS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Options:
    """One run.

    Attributes:
        groups: which of GROUPS.
        rounds: of each.
        counts: how many processes are registered.
        seconds: of one throughput run.
        calls: on a kept connection in one round; a third of that on fresh ones.
        machines: with helpers, of each number of them, in one round.
        starts: cold starts in one round.
    """

    groups: Sequence[str]
    rounds: int
    counts: Sequence[int]
    seconds: float
    calls: int
    machines: int
    starts: int


@dataclass(frozen=True)
class Quantity:
    """A row without values.

    Attributes:
        group: one of GROUPS.
        key: of the samples.
        name: what it is, with its unit.
        peer: who moored is compared with.
        target: "<=X" or ">=X" of moored's value over the peer's; None where there is none.
        limit: the peer's value, for LIMIT.
    """

    group: str
    key: str
    name: str
    peer: str
    target: str | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Row:
    """A quantity with the medians of both sides, or the reason why there are none."""

    quantity: Quantity
    moored: float | None
    peer: float | None
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """The value of moored divided by the peer's."""
        if self.moored is None or self.peer is None:
            return None
        if self.peer == 0:
            return 1.0 if self.moored == 0 else float("inf")
        return self.moored / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or values."""
        if self.quantity.target is None or self.ratio is None:
            return None
        return meets(self.ratio, self.quantity.target)

    def as_json(self) -> dict[str, Any]:
        """The row for --json."""
        fields: dict[str, Any] = {
            "name": self.quantity.name,
            "peer": self.quantity.peer,
            "value_moored": self.moored,
            "value_peer": self.peer,
            "target": self.quantity.target,
        }
        return fields | ({"why": self.why} if self.why else {})


def meets(ratio: float, target: str) -> bool:
    """Compare a ratio with a target.

    Raises:
        ValueError: the target is neither "<=X" nor ">=X".
    """
    found = re.fullmatch(r"(<=|>=)(\d+(?:\.\d+)?)", target)
    if found is None:
        raise ValueError(f"no target: {target!r}")
    return _OPERATORS[found[1]](ratio, float(found[2]))


def quantities(counts: Sequence[int]) -> list[Quantity]:
    """Return all rows of a run that registers certain numbers of processes."""
    return [
        *_wire(),
        *_register(counts),
        *_helpers(),
        *_running(),
        *_capacity(),
        *_events(),
        *_inside(),
        *_metrics(),
        *_cold(),
    ]


def _wire() -> list[Quantity]:
    rows: list[Quantity] = []
    for peer in (MACHINED, ASYNCVARLINK, VARLINK):
        first = peer == MACHINED
        for kind, target in (("kept", "<=1.0"), ("fresh", "<=2.5")):
            text = f"GetInfo, {kind} connection"
            rows.append(
                Quantity("wire", f"{kind}/p50", f"{text}, p50 (µs)", peer, target if first else None)
            )
            rows.append(Quantity("wire", f"{kind}/p99", f"{text}, p99 (µs)", peer))
        for number in CONNECTIONS:
            target = ">=1.0" if first and number <= 8 else ">=3"
            if number == 1 and not first:
                target = None  # the round trip of the kernel is the greater part
            text = f"GetInfo, {number} connection{'s' if number > 1 else ''}"
            rows.append(Quantity("wire", f"throughput/{number}", f"{text} (1/s)", peer, target))
            if number == 1:
                # The kernel's part is in it: machined, in C, needs two fifths of what the varlink package does.
                target = None if first else "<=1.0"
                name = f"{text}, CPU of the server per call (µs)"
                rows.append(Quantity("wire", f"throughput/{number}/cpu", name, peer, target))
    return rows


def _register(counts: Sequence[int]) -> list[Quantity]:
    rows: list[Quantity] = []

    def row(key: str, name: str, target: str | None = None) -> None:
        rows.append(Quantity("register", key, name, MACHINED, target))

    for count in counts:
        text = f"Register, {count} one by one"
        row(f"serial/{count}/held/p50", f"{text}, until the scope holds the process, p50 (ms)", "<=1.0")
        row(f"serial/{count}/held/p99", f"{text}, until the scope holds the process, p99 (ms)")
        row(f"serial/{count}/true/p50", f"{text}, until there is a reply and it is true, p50 (ms)", "<=1.0")
        row(f"serial/{count}/reply/p50", f"{text}, until the reply, p50 (ms)")
        row(f"serial/{count}/reply/p99", f"{text}, until the reply, p99 (ms)")
        for kind, how in (("serial", "one by one"), ("together", "from 16 connections")):
            key, name = (
                f"{kind}/{count}/at-reply",
                f"Register, {count} {how}, part in their scope at the reply",
            )
            rows.append(Quantity("register", key, name, LIMIT, ">=1.0", 1.0))
            row(key, name)
        text = f"Register, {count} from 16 connections"
        targets = ("<=0.7", "<=0.15", ">=1.2") if count in QUICK_COUNTS else (None, None, None)
        row(f"together/{count}/held", f"{text}, until the scopes hold them (1/s)", targets[2])
        row(f"together/{count}/reply", f"{text}, until the last reply (1/s)")
        row(f"together/{count}/cpu", f"{text}, CPU of PID 1 and broker per scope (ms)", targets[0])
        row(f"together/{count}/cpu/pid1", f"{text}, CPU of PID 1 per scope (ms)")
        row(f"together/{count}/cpu/broker", f"{text}, CPU of the broker per scope (ms)")
        row(f"together/{count}/cpu/service", f"{text}, CPU of the service per scope (ms)")
        row(f"together/{count}/other/p50", f"{text}, another caller's GetInfo meanwhile, p50 (ms)")
        row(
            f"together/{count}/other/p99",
            f"{text}, another caller's GetInfo meanwhile, p99 (ms)",
            targets[1],
        )
        row(f"stop/{count}", f"Stop of {count} from 16 connections, until the scopes are gone (ms)")
        row(
            f"stop/{count}/cpu",
            f"Stop of {count} from 16 connections, CPU of PID 1 and broker per scope (ms)",
        )
    row("list/all", f"List of all at {DEATHS} (ms)", "<=0.7")
    row("list/name", f"List by name at {DEATHS}, p50 (µs)", "<=1.0")
    row("deaths/right", f"{DEATHS} leaders die at once, until the list is right (ms)", "<=0.5")
    row("deaths/wait", f"{DEATHS} leaders die at once, longest wait of another caller (ms)", "<=0.1")
    return rows


def _helpers() -> list[Quantity]:
    rows: list[Quantity] = []
    for count in HELPERS:
        text = f"Register with {count} helper{'' if count == 1 else 's'}"
        for peer, target in ((BUSCTL, "<=1.15"), (SYSTEMD_RUN, "<=0.5"), (PLAIN, None)):
            judged = target if count == HELPERS_JUDGED else None
            rows.append(
                Quantity("helpers", f"helpers/{count}", f"{text}, until the reply (ms)", peer, judged)
            )
        text = f"SIGKILL of a leader with {count} helper{'' if count == 1 else 's'}"
        target = TEARDOWN if count == HELPERS_JUDGED else None
        rows.append(
            Quantity("helpers", f"helpers/{count}/gone", f"{text}, until they are gone (ms)", PLAIN, target)
        )
        rows.append(Quantity("helpers", f"helpers/{count}/cpu", f"{text}, CPU of PID 1 (ms)", PLAIN))
    return rows


def _running() -> list[Quantity]:
    measure, watch = f"Measure of {FIRST_MACHINES} machines", f"moorctl top of {FIRST_MACHINES} machines"
    return [
        Quantity("running", key, name, peer, target, OTHER_MS if peer == LIMIT else None)
        for key, name, peer, target in (
            ("set", "SetProperties of three limits (ms)", BUSCTL, "<=1.1"),
            ("freeze", "Freeze and Thaw (ms)", BUSCTL, "<=1.1"),
            ("measure/wall", f"{measure}, what systemd-cgtop reads (ms)", CGTOP, "<=1.0"),
            ("measure/cpu", f"{measure}, what systemd-cgtop reads, CPU (ms)", CGTOP, "<=1.0"),
            ("whole/wall", f"{measure}, with pressure, peaks, swap and kills (ms)", CGTOP, None),
            ("whole/cpu", f"{measure}, with pressure, peaks, swap and kills, CPU (ms)", CGTOP, None),
            ("other", f"{measure}, another caller's GetInfo meanwhile, p99 (ms)", LIMIT, "<=1.0"),
            ("top/client", f"{watch}, CPU of moorctl per refresh (ms)", CGTOP, "<=1.5"),
            ("top/service", f"{watch}, CPU of moored per refresh (ms)", CGTOP, "<=1.5"),
        )
    ]


def _capacity() -> list[Quantity]:
    first = f"{FIRST_MACHINES} machines"
    rows: list[Quantity] = []
    for key, name, target, limit in (
        ("machines", "Machines in one instance", ">=1.0", MACHINES),
        ("fds/each", "Open file descriptors per machine", "<=1.0", 1),
        ("pss/first", f"Memory at {first}, PSS (KiB)", "<=1.0", MEMORY_KIB),
        ("pss/each", "Memory of each further machine, PSS (KiB)", "<=1.0", MEMORY_EACH_KIB),
    ):
        rows.append(Quantity("capacity", key, name, LIMIT, target, limit))
        rows.append(Quantity("capacity", key, name, MACHINED))
    for key, name in (
        ("pss/none", "Memory at 0 machines, PSS (KiB)"),
        ("rss/none", "Memory at 0 machines, RSS (KiB)"),
        ("rss/first", f"Memory at {first}, RSS (KiB)"),
        ("fds/none", "Open file descriptors at 0 machines"),
        ("fds/first", f"Open file descriptors at {first}"),
    ):
        rows.append(Quantity("capacity", key, name, MACHINED))
    return rows


def _events() -> list[Quantity]:
    told, many = (
        "until somebody is told of its end",
        f"{SUBSCRIBERS} subscribers, {DEATHS} leaders die at once",
    )
    few = f"with {FEW_SUBSCRIBERS} subscribers"
    return [
        Quantity("events", key, name, peer, target, limit)
        for key, name, peer, target, limit in (
            ("exited/1", f"SIGKILL of a leader, {told} (ms)", MACHINED, "<=0.5", None),
            (
                f"exited/{DEATHS}",
                f"{DEATHS} leaders die at once, until all of it is told (ms)",
                MACHINED,
                "<=0.5",
                None,
            ),
            ("many/last", f"{many}, until all have been told all (ms)", ONE, "<=2", None),
            ("many/cpu", f"{many}, CPU for each event and further one (µs)", LIMIT, "<=1.0", SUBSCRIBER_US),
            ("many/other", f"{many}, another caller's GetInfo, p99 (ms)", LIMIT, "<=1.0", WAIT_MS),
            (
                "few/register",
                f"Register {few}, until there is a reply and it is true, p50 (ms)",
                ALONE,
                "<=1.05",
                None,
            ),
            ("few/stop", f"Stop {few}, p50 (ms)", ALONE, "<=1.05", None),
        )
    ]


def _inside() -> list[Quantity]:
    return [
        Quantity("inside", key, f"{name} (ms)", MACHINED, target)
        for key, name, target in (
            ("shell", "Open of a shell in a container, until its first output", "<=1.2"),
            ("tty", "Open of a terminal in a container", "<=1.2"),
            ("root", "OpenRootDirectory", "<=1.2"),
            ("bind", "BindMount", "<=1.2"),
            ("copy", "CopyTo of 100 MiB", "<=1.0"),
            ("map-from", "MapFrom", "<=1.0"),
            ("map-to", "MapTo", "<=1.0"),
        )
    ] + [
        Quantity("inside", f"lookup/{key}", f"{name} (µs)", MACHINED, target)
        for key, name, target in (
            ("uid", "A container's user by number", "<=1.0"),
            ("uid/apart", "A container's user by number, after a pause", None),
            ("uid/fresh", "A container's user by number, fresh connection", None),
            ("name", "A container's user by name", "<=1.0"),
            ("name/apart", "A container's user by name, after a pause", None),
            ("name/fresh", "A container's user by name, fresh connection", None),
            ("resolve", "ResolveRecord of a container's name", "<=1.0"),
            ("resolve/apart", "ResolveRecord of a container's name, after a pause", "<=1.0"),
        )
    ]


def _metrics() -> list[Quantity]:
    text = f"at {SCRAPED} machines"
    limits = (
        ("scrape", f"Scrape of moored {text}, p50 (ms)", SCRAPE_MS),
        ("scrape/other/p99", "Another caller's GetInfo meanwhile, p99 (ms)", WAIT_MS),
        ("export", f"Scrape of the exporter {text}, p50 (ms)", EXPORT_MS),
    )
    return [
        *(Quantity("metrics", key, name, LIMIT, "<=1.0", limit) for key, name, limit in limits),
        Quantity("metrics", "scrape/other/p99", "Another caller's GetInfo meanwhile, p99 (ms)", QUIET),
        # It takes no more than 4,096 values: of one family, that both have.
        Quantity("metrics", "report", f"systemd-report metrics …CpuUsage {text}, p50 (ms)", CGROUP, "<=1.0"),
    ]


def _cold() -> list[Quantity]:
    name = "First call, which starts the service by its socket (ms)"
    return [
        Quantity("cold", "first", name, IMPORTS_BY_PID1, "<=1.3"),
        Quantity("cold", "first", name, IMPORTS_BY_FORK),
        Quantity("cold", "first", name, MACHINED),
    ]


def compare(
    wanted: Sequence[Quantity],
    samples: Mapping[tuple[str, str], Sequence[float]],
    failures: Mapping[tuple[str, str], str],
) -> list[Row]:
    """Make the rows.

    Args:
        wanted: which.
        samples: by key and peer.
        failures: why something was not measured, by group and peer.
    """
    rows: list[Row] = []
    for quantity in wanted:
        values: list[float | None] = []
        reasons: list[str] = []
        for peer in (MOORED, quantity.peer):
            found = samples.get((quantity.key, peer), ())
            if peer == LIMIT:
                values.append(quantity.limit)
            elif found:
                values.append(statistics.median(found))
            else:
                values.append(None)
                reasons.append(f"{peer}: {failures.get((quantity.group, peer), 'no sample')}")
        rows.append(Row(quantity, values[0], values[1], "; ".join(reasons)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for the terminal."""
    lines: list[tuple[str, ...]] = [("", "peer", "moored", "peer's", "ratio", "target", "")]
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        lines.append((
            row.quantity.name,
            row.quantity.peer,
            _figure(row.moored),
            _figure(row.peer),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.quantity.target or "",
            f"NOT MEASURED: {row.why}" if row.why else verdict,
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    left = (True, True, False, False, False, True)
    return "\n".join(
        "  ".join(
            [
                text.ljust(width) if is_left else text.rjust(width)
                for text, width, is_left in zip(line, widths, left, strict=False)
            ]
            + [line[6]]
        ).rstrip()
        for line in lines
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
