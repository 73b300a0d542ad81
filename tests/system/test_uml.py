"""Each module in inside/uml/ runs in a sandbox with a kernel of its own, in which limits bite."""

from pathlib import Path

import pytest
from sandboxes import start, stop

MODULES = sorted((Path(__file__).parent / "inside" / "uml").glob("test_*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_uml(module: Path) -> None:
    sandbox = start("forky", ["--kind=uml"])
    try:
        sandbox.pytest(module)
    finally:
        stop(sandbox)
