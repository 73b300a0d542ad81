"""Modules in inside/ once more, over the instance of an ordinary user: what makes sense there holds there too.

Every module in inside/ runs, and every test of it that has no marker ``system_instance``, which says why not; the
summary of a run prints all that is left out. Two kinds have it:

- what makes no sense for an ordinary user: other users and polkit, machined and its place, PID 1 itself, BPF programs,
  units, mounts and limits of the host, containers of root's, the files of the packages;
- (``runs=True``) what passes, but says no more than over the instance of the system: how messages are read and
  written, what is refused before anything is done, what a connection may cost, how the reader of a record takes
  damage, what commands print, libraries, and what has to be repeated for minutes to show. These run by hand, in a
  sandbox after ``tests/support/her_manager.py``, with ``tools/sandbox exec --user 1000 --env=MOORAGE_TEST_ALL=1 NAME
  -- systemd-run --user --scope …``.
"""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import her_manager
import pytest
from sandboxes import SYSTEM_ONLY, Sandbox

INSIDE = Path(__file__).parent / "inside"

TOGETHER = (
    ("test_configuration", "test_metrics", "test_properties", "test_in_force"),
    ("test_end", "test_own_slice", "test_accounting"),
    ("test_helper_commands", "test_pty", "test_moorctl_events", "test_launch", "test_events"),
    ("test_register",),
    ("test_stop_command",),
    ("test_verdict",),
    ("test_freeze", "test_set_properties"),
    ("test_crash", "test_restart"),
    ("test_run",),
    ("test_helpers",),
)
"""Modules that share a sandbox; a row takes no longer than a minute and a half."""

REST = sorted({path.stem for path in INSIDE.glob("test_*.py")}.difference(chain(*TOGETHER)))
"""All others: of them nothing is left to run, or what is new."""

MODULES = [*TOGETHER[1:], (*TOGETHER[0], *REST)]


@pytest.mark.parametrize("suite", ["forky"])
@pytest.mark.parametrize("modules", MODULES, ids=lambda modules: "+".join(modules[:4]))
def test_user(
    boot: Callable[..., Sandbox],
    modules: tuple[str, ...],
    record_property: Callable[[str, object], None],
) -> None:
    sandbox = boot()
    prepare = ["env", "-C", "/moorage", "PYTHONPATH=tests/support:service", "python3"]
    sandbox.run([*prepare, "tests/support/her_manager.py"])
    printed = sandbox.pytest(*(INSIDE / f"{module}.py" for module in modules), user=her_manager.UID)
    for line in printed.splitlines():
        if line.startswith(SYSTEM_ONLY):
            record_property(SYSTEM_ONLY, line.removeprefix(SYSTEM_ONLY))
