"""The client needs no more than it uses."""

import subprocess
import sys

import pytest

DAEMON = ("jeepney", "systemd", "varlink", "click", "rich")

LIGHT = (
    "moorage.client",
    "moorage.client.blocking",
    "moorage.client.asyncio",
    "moorage.launch.blocking",
    "moorage.launch.asyncio",
    "moorage.steps.blocking",
)


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        *((module, ("trio", *DAEMON)) for module in LIGHT),
        *((module, ("asyncio", "trio", *DAEMON)) for module in LIGHT if "asyncio" not in module),
        ("moorage.client.trio", DAEMON),
        ("moorage.launch.trio", DAEMON),
    ],
)
def test_it_imports_nothing_that_is_not_there(module: str, blocked: tuple[str, ...]) -> None:
    script = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import {module}
daemon = [name for name in sys.modules if name.startswith("moorage.")
          and name.split(".")[1] in ("api", "machines", "pid1", "authz", "dbus", "cli", "app")]
assert not daemon, daemon
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
