"""Which module may import which: the layers and the forbidden arrows, as data.

An import under TYPE_CHECKING counts like any other: a dependency in the types is a dependency in the head.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "service" / "moorage"

LAYERS: tuple[tuple[str, ...], ...] = (
    # 0: words
    ("moorage.names", "moorage.addresses", "moorage.errors", "moorage.quantities", "moorage.similar",
     "moorage.steps.waits", "moorage.wire.patience",
     "moorage.wire.errors", "moorage.wire.message", "moorage.machines.model", "moorage.machines.texts",
     "moorage.machines.accounting", "moorage.machines.errors", "moorage.pid1.manager", "moorage.pid1.errors",
     "moorage.kernel.process",
     "moorage.kernel.peer", "moorage.kernel.clock", "moorage.launch.holder"),
    # 1: pure decisions
    (
        "moorage.wire.connection", "moorage.wire.input", "moorage.wire.output", "moorage.wire.idl",
        "moorage.wire.conformance", "moorage.wire.places", "moorage.wire.types", "moorage.wire.call",
        "moorage.wire.method",
        "moorage.wire.service", "moorage.wire.turns", "moorage.wire.result", "moorage.wire.tally",
        "moorage.machines.machine", "moorage.machines.once",
        "moorage.machines.reached", "moorage.machines.registry", "moorage.machines.agenda",
        "moorage.pid1.blame", "moorage.pid1.properties", "moorage.pid1.unit_files", "moorage.pid1.jobs",
        "moorage.pid1.latency",
        "moorage.authz.policy", "moorage.authz.allowed_properties",
        "moorage.machines.limits", "moorage.machines.compared", "moorage.machines.properties",
        "moorage.machines.ending", "moorage.machines.verdicts", "moorage.machines.use", "moorage.machines.events",
        "moorage.probes.owner", "moorage.probes.effective", "moorage.probes.capabilities", "moorage.dbus.signature",
        "moorage.dbus.marshal", "moorage.dbus.unmarshal", "moorage.dbus.message",
        "moorage.machines.asked", "moorage.machines.own_slice", "moorage.machines.planned",
        "moorage.machines.own_slice", "moorage.machines.stop_command",
        "moorage.beside.listed",
        "moorage.machines.scope_units", "moorage.machines.helpers.spec", "moorage.machines.helpers.units",
    ),
    # 2: adapters to the outside
    (
        "moorage.dbus.authentication", "moorage.dbus.bus", "moorage.dbus.queues", "moorage.dbus.served",
        "moorage.pid1.journal",
        "moorage.pid1.journal_writer", "moorage.kernel.poller",
        "moorage.pid1.over_dbus",
        "moorage.kernel.block", "moorage.kernel.cgroup", "moorage.kernel.inotify", "moorage.kernel.cgroup_watch",
        "moorage.kernel.processes", "moorage.kernel.system",
        "moorage.kernel.memory", "moorage.kernel.threads", "moorage.pid1.references", "moorage.pid1.hints",
        "moorage.beside.directory", "moorage.beside.notes", "moorage.beside.traces",
        "moorage.machines.store", "moorage.machines.intents", "moorage.machines.event_files",
        "moorage.machines.in_force", "moorage.machines.foreseen", "moorage.machines.in_use", "moorage.machines.shares",
        "moorage.machines.drop_ins",
        "moorage.authz.polkit", "moorage.probes.namespaces", "moorage.probes.control",
        "moorage.probes.terminal", "moorage.probes.handing", "moorage.probes.root", "moorage.probes.copy",
        "moorage.probes.mount", "moorage.probes.fork_server", "moorage.probes.inside", "moorage.probes.network",
        "moorage.probes.child", "moorage.probes.apart",
        "moorage.wire.sockets", "moorage.wire.deadlines", "moorage.wire.disposal",
        "moorage.steps",
    ),
    # 3: what lives
    (
        "moorage.machines.scopes", "moorage.machines.started", "moorage.machines.leftovers", "moorage.machines.gather",
        "moorage.machines.metadata", "moorage.machines.registration",
        "moorage.machines.recovery", "moorage.machines.starts", "moorage.machines.holders", "moorage.machines.sharing",
        "moorage.machines.watching", "moorage.machines.observer", "moorage.machines.retirement",
        "moorage.machines.left_units",
        "moorage.machines.followers", "moorage.machines.chronicle", "moorage.machines.subscriptions",
        "moorage.machines.asking", "moorage.machines.control", "moorage.machines.detached", "moorage.machines.remains",
        "moorage.machines.lookup", "moorage.machines.looking", "moorage.machines.inside",
        "moorage.machines.terminals", "moorage.machines.directories", "moorage.machines.id_maps",
        "moorage.machines.networks", "moorage.place.state_files",
        "moorage.machines.sampling", "moorage.machines.resetting",
        "moorage.machines.group_signals",
        "moorage.machines.powering", "moorage.machines.grace", "moorage.machines.ceilings",
        "moorage.machines.alone", "moorage.machines.renewal", "moorage.machines.thawing",
        "moorage.machines.freezing", "moorage.machines.changing_limits",
        "moorage.machines.services",
        "moorage.machines.leader", "moorage.machines.leases", "moorage.machines.final_account",
        "moorage.machines.places", "moorage.machines.latest", "moorage.machines.vital",
        "moorage.machines.limit_watch", "moorage.machines.diary",
        "moorage.machines.helpers.changes", "moorage.machines.helpers.changing", "moorage.machines.helpers.programs",
        "moorage.machines.helpers.start", "moorage.machines.helpers.status", "moorage.machines.helpers.watch",
        "moorage.authz.ownership", "moorage.pid1.oneshot", "moorage.pid1.fork_server",
        "moorage.machines.effective", "moorage.machines.inspection",
        "moorage.wire.link", "moorage.wire.answering", "moorage.wire.server",
        "moorage.wire.watched", "moorage.wire.conversation",
        "moorage.wire.outlet", "moorage.wire.fairness", "moorage.wire.exchange",
        "moorage.wire.client", "moorage.launch", "moorage.client",
        "moorage.beside.peer", "moorage.beside.publishing", "moorage.beside.following", "moorage.beside.adopting",
    ),
    # 4: interfaces served
    ("moorage.api", "moorage.activation", "moorage.configuration"),
    # 5: programs
    (
        "moorage.__main__", "moorage.app", "moorage.command_line", "moorage.parts", "moorage.running",
        "moorage.cli", "moorage.exporter",
    ),
)  # fmt: skip
"""A name stands for a module or package and all below it. Imports within a layer are allowed, cycles are not."""

PACKAGES_ONLY = (
    "moorage",
    "moorage.wire",
    "moorage.machines",
    "moorage.machines.helpers",
    "moorage.machines.compared",
    "moorage.pid1",
    "moorage.pid1.over_dbus",
    "moorage.authz",
    "moorage.beside",
    "moorage.api",
    "moorage.api.machine1",
    "moorage.api.machine_instance",
    "moorage.api.metrics",
    "moorage.api.moorage_machine",
    "moorage.api.resolve_hook",
    "moorage.api.systemd_machine",
    "moorage.api.user_database",
    "moorage.configuration",
    "moorage.dbus",
    "moorage.exporter",
    "moorage.kernel",
    "moorage.parts",
    "moorage.place",
    "moorage.probes",
    "moorage.steps",
)
"""Packages that are only a docstring (and a version): they belong to no layer and must import nothing."""


class Arrow(NamedTuple):
    """No module of `source` imports `target`, except the modules named."""

    source: str
    target: str
    but: tuple[str, ...] = ()


PURE = LAYERS[0] + LAYERS[1]

HOLD_EVENTS = ("moorage.machines.machine", "moorage.machines.once", "moorage.machines.registry")
"""Pure modules that hold events of trio for others to wait for, and await nothing."""

FORBIDDEN: tuple[Arrow, ...] = (
    # The library of varlink stands on its own, but for processes and sockets.
    *(
        Arrow("moorage.wire", f"moorage.{other}")
        for other in (
            "__main__",
            "activation",
            "api",
            "app",
            "authz",
            "cli",
            "configuration",
            "dbus",
            "client",
            "errors",
            "launch",
            "machines",
            "pid1",
            "probes",
            "steps",
        )
    ),
    Arrow("moorage.api", "moorage.kernel.cgroup"),
    Arrow("moorage.api", "moorage.pid1.over_dbus"),
    # Of what is served, one door is on the message bus.
    Arrow(
        "moorage.api",
        "moorage.dbus",
        ("moorage.api.machine1.door", "moorage.api.machine1.request", "moorage.api.machine1.senders"),
    ),
    # The client is a library, too: it knows what goes over the socket, and what it takes to launch.
    *(
        Arrow(library, f"moorage.{other}")
        for library in ("moorage.client", "moorage.launch", "moorage.steps")
        for other in (
            "activation",
            "api",
            "app",
            "authz",
            "cli",
            "dbus",
            "machines",
            "pid1",
            "wire.client",
            "wire.server",
        )
    ),
    *(
        Arrow(library, loop, (f"{library}.{loop}",))
        for library in ("moorage.client", "moorage.launch", "moorage.steps")
        for loop in ("asyncio", "trio")
    ),
    *(
        Arrow(f"moorage.{room}", "moorage.client")
        for room in ("api", "app", "authz", "machines", "pid1", "wire")
    ),
    Arrow("moorage.machines", "moorage.api"),
    *(
        Arrow(room, "moorage.beside")
        for room in ("moorage.api", "moorage.authz", "moorage.machines", "moorage.pid1")
    ),
    Arrow("moorage.machines", "moorage.wire"),
    Arrow("moorage.pid1", "moorage.machines"),
    Arrow("moorage", "jeepney", ("moorage.dbus.authentication",)),
    Arrow("moorage", "systemd", ("moorage.activation", "moorage.pid1.journal")),
    Arrow("moorage", "varlink", ("moorage.wire.idl",)),
    Arrow("moorage", "prometheus_client", ("moorage.exporter",)),
    *(Arrow(module, "trio") for module in PURE if module not in HOLD_EVENTS),
    *(Arrow(module, "logging") for module in PURE),
    *(Arrow(module, "socket") for module in PURE if module != "moorage.kernel.peer"),
    # The exporter is a client of the library, and waits for nobody but in steps.
    Arrow("moorage.exporter", "trio"),
    *(
        Arrow("moorage.exporter", f"moorage.{other}")
        for other in ("api", "app", "authz", "cli", "configuration", "dbus", "kernel", "machines", "pid1")
    ),
    # The command line talks to the socket only.
    *(
        Arrow("moorage.cli", f"moorage.{other}")
        for other in (
            "app",
            "api",
            "activation",
            "configuration",
            "machines",
            "pid1",
            "authz",
            "dbus",
            "readiness",
            "wire.server",
        )
    ),
)


class Import(NamedTuple):
    """One import: who, whom, and where it is written."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def within(module: str, name: str) -> bool:
    """Whether the module is that one or below it."""
    return module == name or module.startswith(f"{name}.")


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its full name; a package by its `__init__`."""
    found: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(known: Mapping[str, Path]) -> Iterator[Import]:
    """Every import of every module, absolute; `from package import module` names the module."""
    for source, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            match node:
                case ast.Import():
                    yield from (Import(source, alias.name, node.lineno) for alias in node.names)
                case ast.ImportFrom():
                    base = node.module or ""
                    if node.level:
                        here = source.split(".") if path.name == "__init__.py" else source.split(".")[:-1]
                        base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
                    for alias in node.names:
                        whole = f"{base}.{alias.name}"
                        yield Import(source, whole if whole in known else base, node.lineno)
                case _:
                    pass


def layer_of(module: str) -> int | None:
    """The number of the layer; the most exact name wins."""
    ranked = [
        (len(name), number) for number, layer in enumerate(LAYERS) for name in layer if within(module, name)
    ]
    return max(ranked)[1] if ranked else None


def cycle_in(found: list[Import], known: Mapping[str, Path]) -> list[str]:
    """One cycle of imports as a list of modules, the first repeated at the end; empty if there is none."""
    targets: dict[str, set[str]] = {name: set() for name in known}
    for one in found:
        if one.target in known and one.target not in PACKAGES_ONLY:
            targets[one.source].add(one.target)
    done: set[str] = set()
    trail: list[str] = []

    def visit(module: str) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        trail.append(module)
        for target in sorted(targets[module]):
            if cycle := visit(target):
                return cycle
        done.add(trail.pop())
        return []

    return next((cycle for module in known if (cycle := visit(module))), [])


def offences(package: Path) -> list[str]:
    """What is wrong with the imports of a package, a line each."""
    known = modules(package)
    found = list(imports(known))
    wrong = [
        f"{name} is in no layer" for name in known if name not in PACKAGES_ONLY and layer_of(name) is None
    ]
    for one in found:
        if one.source in PACKAGES_ONLY and layer_of(one.source) is None:
            wrong.append(f"{one}, but a package of that name holds nothing")
        source, target = layer_of(one.source), layer_of(one.target)
        if source is not None and target is not None and target > source:
            wrong.append(f"{one}, from layer {source} up to {target}")
        wrong += [
            f"{one}, which is forbidden"
            for arrow in FORBIDDEN
            if within(one.source, arrow.source)
            and within(one.target, arrow.target)
            and not any(within(one.source, name) for name in arrow.but)
        ]
    if cycle := cycle_in(found, known):
        wrong.append(f"imports go round: {' -> '.join(cycle)}")
    return wrong


def test_imports_go_downward_only() -> None:
    assert offences(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "text", "offence"),
    [
        ("wire/server.py", "from moorage.machines import model", "moorage.wire.server:1 imports moorage.machines"),
        ("wire/server.py", "from ..machines.model import X", "moorage.wire.server:1 imports moorage.machines.model"),
        ("pid1/jobs.py", "import moorage.dbus.bus",
         "moorage.pid1.jobs:1 imports moorage.dbus.bus, from layer 1 up to 2"),
        ("pid1/jobs.py", "def late():\n    import trio", "moorage.pid1.jobs:2 imports trio, which is forbidden"),
        (
            "machines/registry.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from moorage.machines.store import Store",
            "moorage.machines.registry:3 imports moorage.machines.store, from layer 1 up to 2",
        ),
        ("wire/message.py", "from socket import socket", "moorage.wire.message:1 imports socket, which is forbidden"),
        ("app.py", "import systemd.daemon", "moorage.app:1 imports systemd.daemon, which is forbidden"),
        ("cli/__init__.py", "from moorage.dbus import bus",
         "moorage.cli:1 imports moorage.dbus.bus, which is forbidden"),
        ("stray.py", "", "moorage.stray is in no layer"),
        ("wire/__init__.py", "from moorage.wire import server", "moorage.wire:1 imports moorage.wire.server, but a"),
        ("kernel/process.py", "from moorage.machines import model",
         "imports go round: moorage.kernel.process -> moorage"),
    ],
)  # fmt: skip
def test_an_offender_is_named(tmp_path: Path, path: str, text: str, offence: str) -> None:
    package = tmp_path / "moorage"
    sample = {
        "machines/model.py": "import moorage.kernel.process",
        "kernel/process.py": "",
        "kernel/peer.py": "import socket",
        "dbus/authentication.py": "import jeepney",
        "dbus/bus.py": "import trio, moorage.dbus.authentication",
    }
    for directory in ("wire", "machines", "pid1", "cli", "kernel", "dbus"):
        sample[f"{directory}/__init__.py"] = ""
    sample |= {"wire/server.py": "", "machines/store.py": ""}
    for name, source in sample.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert offences(package) == []

    (package / path).write_text(text)

    assert any(line.startswith(offence) for line in offences(package)), offences(package)
