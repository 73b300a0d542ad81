"""Each module in inside/ runs in a sandbox of its own, so that none lives on what another left."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxes import VMM, Sandbox

MODULES = sorted((Path(__file__).parent / "inside").glob("test_*.py"))

SANDBOXES = {
    "test_qemu": ("--packages", VMM, "--read-only", "--no-broker", "--mask", "tmp.mount"),
}
"""Modules that need another one than the usual, with its options."""


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_inside(boot: Callable[..., Sandbox], module: Path) -> None:
    boot(*SANDBOXES.get(module.stem, ())).pytest(module)
