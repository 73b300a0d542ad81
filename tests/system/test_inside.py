"""The modules in inside/. Those in one row share a sandbox, as one takes some seconds to come and go: each of them has
to leave the service and the system as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import DESCRIPTORS, VERSIONS, Sandbox

SEND_DESCRIPTORS = ("test_limits", "test_bad_input", "test_bounds")
"""Modules that send as many file descriptors as they can."""

TOGETHER = (
    SEND_DESCRIPTORS,
    (
        "test_accounting", "test_authority", "test_doctor", "test_footprint", "test_helper_commands", "test_hierarchy",
        "test_in_force", "test_verdict", "test_end",
    ),
    (
        "test_launch", "test_machined", "test_moorctl_events", "test_own_slice", "test_peers", "test_pid1",
        "test_place", "test_polkit", "test_freeze", "test_frozen_slices", "test_crash",
    ),
    (
        "test_properties", "test_pty", "test_register", "test_set_properties", "test_drop_ins", "test_stop_command",
        "test_unit_files",
    ),
    ("test_names", "test_run"),
    ("test_helpers", "test_restart", "test_metrics", "test_no_space"),
    ("test_steady", "test_pid1_manager"),
    ("test_user_instance", "test_user_in_place"),
)  # fmt: skip
"""Modules that share a sandbox, in their order; a row takes at most a minute and a half. The others are alone."""

STABLE = "trixie"
ON_STABLE = (
    ("test_scarcity",),
    ("test_start_refusals",),
    ("test_client",),
    ("test_leases", "test_configuration"),
)
"""Modules whose answers do not depend on the version of the service manager, and that take long."""

NEWEST = "forky"
ON_NEWEST = (("test_machined_inside",),)
"""Modules that hold this service against a machined with all of io.systemd.Machine, which that of 257 has not."""

OPTIONS = {
    "test_lookups": ("--packages", "systemd-resolved,systemd-userdbd,libnss-systemd,libnss-resolve"),
    "test_qemu": ("--read-only", "--no-broker", "--mask", "tmp.mount"),
}
"""Options of sandboxes, by the first module in each."""

INSIDE = Path(__file__).parent / "inside"
ALONE = sorted(
    {path.stem for path in INSIDE.glob("test_*.py")}.difference(*TOGETHER, *ON_STABLE, *ON_NEWEST)
)
ROWS = [
    *((suite, names) for names in (*TOGETHER, *((name,) for name in ALONE)) for suite in VERSIONS),
    *((STABLE, names) for names in ON_STABLE),
    *((NEWEST, names) for names in ON_NEWEST),
]
MODULES = [
    pytest.param(
        suite,
        names,
        id=f"{suite}-{'+'.join(names)}",
        marks=[pytest.mark.xdist_group(DESCRIPTORS)] if names is SEND_DESCRIPTORS else [],
    )
    for suite, names in ROWS
]


@pytest.mark.parametrize(("suite", "names"), MODULES, indirect=["suite"])
def test_inside(boot: Callable[..., Sandbox], names: tuple[str, ...]) -> None:
    options = OPTIONS.get(names[0], ())
    boot(*options).pytest(*(INSIDE / f"{name}.py" for name in names))
