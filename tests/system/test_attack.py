"""Each module in inside/attack/ runs in a sandbox of its own: what ordinary users try, as a list to be read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxes import Sandbox

MODULES = sorted((Path(__file__).parent / "inside" / "attack").glob("test_*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_attack(boot: Callable[..., Sandbox], module: Path) -> None:
    boot().pytest(module)
