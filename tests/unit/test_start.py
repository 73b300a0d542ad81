"""What the daemon does before its first caller is answered, and what it leaves for later."""

import subprocess
import sys

import pytest

LATER = (
    "argparse",
    "moorage.api.machine1",
    "moorage.api.metrics",
    "moorage.api.resolve_hook",
    "moorage.api.user_database",
    "moorage.beside",
    "moorage.cli",
    "moorage.client",
    "moorage.command_line",
    "moorage.parts",
    "moorage.place",
    "moorage.wire.idl",
)
"""What is not there at each start, or not before calls are answered."""


@pytest.fixture(scope="module")
def imported() -> frozenset[str]:
    """The modules that are imported at each start."""
    program = "import sys, moorage.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return frozenset(done.stdout.split())


@pytest.mark.parametrize("name", LATER)
def test_the_first_caller_does_not_wait_for_it(imported: frozenset[str], name: str) -> None:
    below = f"{name}."
    assert [module for module in imported if module == name or module.startswith(below)] == []


def test_no_rule_of_unit_files_is_compiled_until_it_is_asked_for() -> None:
    program = (
        "from moorage.pid1 import unit_files as u; rule = u.PLAIN_WORD\n"
        "assert '_search' not in vars(rule); assert rule.broken_by('a b'); assert '_search' in vars(rule)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
