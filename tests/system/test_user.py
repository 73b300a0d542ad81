"""Modules in inside/ once more, over the instance of an ordinary user: what makes sense there holds there too."""

from collections.abc import Callable
from pathlib import Path

import her_manager
import pytest
from sandboxes import Sandbox

MODULES = [
    ("test_configuration",),
    ("test_end", "test_own_slice"),
    ("test_helper_commands", "test_pty", "test_moorctl_events"),
    ("test_register",),
    ("test_stop_command",),
    ("test_verdict",),
]
"""Those whose answers depend on the service manager, and that take no longer than a minute; some share a sandbox.

By hand also test_client, test_crash, test_helpers, test_leases, test_moorctl, test_names, test_restart, test_run and
test_steady: in a sandbox, after ``tests/support/her_manager.py``, with ``tools/sandbox exec --user 1000 NAME --
systemd-run --user --scope …``. The others are about what only the system's instance has: other users and polkit,
machined and its place, PID 1's links, units and limits of the host, containers of root's, and the packages' files."""


@pytest.mark.parametrize("suite", ["forky"])
@pytest.mark.parametrize("modules", MODULES, ids="+".join)
def test_user(boot: Callable[..., Sandbox], modules: tuple[str, ...]) -> None:
    sandbox = boot()
    prepare = ["env", "-C", "/moorage", "PYTHONPATH=tests/support:service", "python3"]
    sandbox.run([*prepare, "tests/support/her_manager.py"])
    inside = Path(__file__).parent / "inside"
    sandbox.pytest(*(inside / f"{module}.py" for module in modules), user=her_manager.UID)
