"""The modules in inside/. Each has a sandbox of its own, so that none lives on what another left; those that take only
seconds share one, as a sandbox takes some to come and go."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import DESCRIPTORS, Sandbox

SANDBOXES = {
    "test_qemu": ("--read-only", "--no-broker", "--mask", "tmp.mount"),
}
"""Modules that need another one than the usual, with its options."""

SEND_DESCRIPTORS = ("test_limits", "test_bad_input", "test_bounds")
"""Modules that send as many file descriptors as they can."""

TOGETHER = (
    SEND_DESCRIPTORS,
    (
        "test_accounting", "test_authority", "test_doctor", "test_footprint", "test_helper_commands", "test_hierarchy",
        "test_in_force",
    ),
    (
        "test_launch", "test_machined", "test_moorctl_events", "test_own_slice", "test_peers", "test_pid1",
        "test_place", "test_polkit",
    ),
    ("test_properties", "test_pty", "test_register", "test_set_properties", "test_stop_command"),
)  # fmt: skip
"""Modules that share a sandbox, in this order."""

INSIDE = Path(__file__).parent / "inside"
ALONE = sorted({path.stem for path in INSIDE.glob("test_*.py")}.difference(*TOGETHER))
MODULES = [
    pytest.param(
        names,
        id="+".join(names),
        marks=[pytest.mark.xdist_group(DESCRIPTORS)] if names is SEND_DESCRIPTORS else [],
    )
    for names in (*TOGETHER, *((name,) for name in ALONE))
]


@pytest.mark.parametrize("names", MODULES)
def test_inside(boot: Callable[..., Sandbox], names: tuple[str, ...]) -> None:
    options = SANDBOXES.get(names[0], ())
    boot(*options).pytest(*(INSIDE / f"{name}.py" for name in names))
