"""Modules in inside/ once more, over the instance of an ordinary user: what makes sense there holds there too."""

from collections.abc import Callable
from pathlib import Path

import her_manager
import pytest
from sandboxes import Sandbox

MODULES = [
    "test_configuration",
    "test_end",
    "test_helper_commands",
    "test_pty",
    "test_register",
    "test_stop_command",
    "test_verdict",
]
"""Those whose answers depend on the service manager, and that take no longer than a minute.

By hand also test_client, test_crash, test_helpers, test_leases, test_moorctl, test_names, test_own_slice,
test_restart and test_run: in a sandbox, after ``tests/support/her_manager.py``, with ``tools/sandbox exec --user 1000
NAME -- systemd-run --user --scope …``."""


@pytest.mark.parametrize("suite", ["forky"])
@pytest.mark.parametrize("module", MODULES)
def test_user(boot: Callable[..., Sandbox], module: str) -> None:
    sandbox = boot()
    prepare = ["env", "-C", "/moorage", "PYTHONPATH=tests/support:service", "python3"]
    sandbox.run([*prepare, "tests/support/her_manager.py"])
    sandbox.pytest(Path(__file__).parent / "inside" / f"{module}.py", user=her_manager.UID)
