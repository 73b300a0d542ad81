"""The bars of the house, so that it stays one."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from moorage.machines import errors


def load(path: Path) -> ModuleType:
    """Load a test module that stands beside this one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layers = load(Path(__file__).with_name("test_layers.py"))

PACKAGE = Path(__file__).parents[2] / "service" / "moorage"

MODULE_LINES = 500
CLASS_LINES = 300
CLASS_METHODS = 25
FUNCTION_LINES = 60

SERVICES = re.compile(
    r"moorage\.(machines\.(?!model|errors|verdicts|ending|limits|asked|events|in_force|foreseen|inspection)\w+"
    r"|authz\.polkit|wire\.server)$"
)

MAKERS = {
    "machines.observer": {"WatchedLeader"},  # one for each machine, not a service
    "machines.machine": {"Once"},  # an event, not a service
    "machines.leader": {"Once"},
    "machines.recovery": {"Machine"},
    "machines.left_units": {"Machine"},
    "machines.starts": {"Machine"},
    "machines.registration": {"Machine", "Registered"},
    "machines.registry": {"Claim"},
    "machines.agenda": {"Recheck"},
    "machines.chronicle": {
        "Subscriptions",
        "Machine",
    },  # who is told of its log; of what has no record any more
    "machines.helpers.changing": {"Latest"},
    "machines.helpers.changes": {"Alone"},
    "machines.freezing": {"Alone"},
    "machines.grace": {"Period"},
    "machines.changing_limits": {"Alone"},
    "api.systemd_machine.host": {"Machine"},  # the host, which that interface lists as one
}
"""Who makes objects of machines' rooms that are not services."""


class Sized(NamedTuple):
    """Something with a size: its name, that, and the bar."""

    name: str
    size: int
    bar: int


KNOWN = {name.removeprefix("moorage."): path for name, path in layers.modules(PACKAGE).items()}


@cache
def trees() -> dict[str, ast.Module]:
    """Return what is in each module. Not at the import of this one: each worker imports it, and one runs its tests."""
    return {name: ast.parse(path.read_text(), str(path)) for name, path in KNOWN.items()}


def lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def within(module: str, tree: ast.AST, path: str = "") -> Iterator[Sized]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        inner = f"{path}.{node.name}" if path else node.name
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)
            yield Sized(f"{module}:{inner}", lines(node), CLASS_LINES)
            yield Sized(f"{module}:{inner} (methods)", methods, CLASS_METHODS)
        else:
            yield Sized(f"{module}:{inner}", lines(node), FUNCTION_LINES)
        yield from within(module, node, inner)


def sizes() -> Iterator[Sized]:
    for module, path in KNOWN.items():
        yield Sized(module, len(path.read_text().splitlines()), MODULE_LINES)
        yield from within(module, trees()[module])


def test_nothing_grows_over_the_bars() -> None:
    over = {each.name: each.size for each in sizes() if each.size > each.bar}
    assert not over, "divide it, by its reasons to change"


def test_only_the_registry_has_tables_of_machines() -> None:
    table = re.compile(r"(dict|Counter|defaultdict)\[(Machine|tuple\[Machine)")
    tables = [
        f"{module}:{node.lineno}"
        for module, tree in trees().items()
        if module != "machines.registry"
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and table.match(ast.unparse(node))
    ]
    assert tables == [], "what is known of a machine is the machine's"


def services() -> dict[str, str]:
    """Classes that live, by name: those of the rooms of layer 3, and of machines' pure rooms with state."""
    found: dict[str, str] = {}
    for module, tree in trees().items():
        if SERVICES.match(f"moorage.{module}"):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.bases and not node.name.startswith("_"):
                    found[node.name] = module
    return found


def test_services_are_built_in_one_place() -> None:
    known = services()
    built = [
        f"{module}:{node.lineno} makes a {node.func.id}"
        for module, tree in trees().items()
        if module != "app" and not module.startswith("parts.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if known.get(node.func.id, module) != module and node.func.id not in MAKERS.get(module, set())
    ]
    assert built == [], "it is given its neighbours by app.py"


def test_every_module_of_the_layers_exists() -> None:
    packages = {*KNOWN, *(name.rpartition(".")[0] for name in KNOWN)}
    names = {name.removeprefix("moorage.") for layer in layers.LAYERS for name in layer}
    assert names - packages == set()


def test_every_method_of_the_manager_has_a_caller() -> None:
    protocol = next(
        node
        for node in trees()["pid1.manager"].body
        if isinstance(node, ast.ClassDef) and node.name == "Manager"
    )
    methods = {
        node.name for node in protocol.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    used = {
        node.attr
        for module, tree in trees().items()
        if not module.startswith(("pid1.over_dbus", "pid1.manager"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    assert methods - used == set()


REFUSALS = sorted(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.Refused)
)  # fmt: skip

COVERED = {"Refused", "NoPlace"}
"""The base, and a kind of Full, which has a line."""

OF_HELPERS = {
    "HelperFailed", "HelperLate", "InvalidHelper", "MachineGone", "NoIdMapping", "NoSuchHelper", "NotWhole",
    "RegisteredByUser",
}  # fmt: skip
"""io.systemd.Machine has no helpers."""


@pytest.mark.parametrize("door", ["moorage_machine", "systemd_machine"])
def test_each_front_door_has_a_line_for_each_refusal(door: str) -> None:
    named = {
        node.id if isinstance(node, ast.Name) else node.attr
        for module, tree in trees().items()
        if module.startswith(f"api.{door}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    needed = set(REFUSALS) - COVERED - (OF_HELPERS if door == "systemd_machine" else set())
    assert needed - named == set()
