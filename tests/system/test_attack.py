"""Each module in inside/attack/ runs in a sandbox of its own: what ordinary users try, as a list to be read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import Sandbox, modules

MODULES = modules(Path(__file__).parent / "inside" / "attack")


@pytest.mark.parametrize("module", MODULES)
def test_attack(boot: Callable[..., Sandbox], module: Path) -> None:
    boot().pytest(module)
