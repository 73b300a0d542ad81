"""Each module in inside/ runs in a sandbox of its own, so that none lives on what another left."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import Sandbox, modules

MODULES = modules(Path(__file__).parent / "inside")

SANDBOXES = {
    "test_qemu": ("--read-only", "--no-broker", "--mask", "tmp.mount"),
}
"""Modules that need another one than the usual, with its options."""


@pytest.mark.parametrize("module", MODULES)
def test_inside(boot: Callable[..., Sandbox], module: Path) -> None:
    boot(*SANDBOXES.get(module.stem, ())).pytest(module)
