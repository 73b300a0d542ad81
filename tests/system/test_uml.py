"""Each module in inside/uml/ runs in a sandbox with a kernel of its own, in which limits bite."""

from collections.abc import Generator
from pathlib import Path

import pytest
from sandboxes import Sandbox, start, stop

MODULES = sorted((Path(__file__).parent / "inside" / "uml").glob("test_*.py"))


@pytest.fixture(scope="session")
def uml() -> Generator[Sandbox]:
    """One kernel for all modules: a boot of it takes longer than most of them."""
    sandbox = start("forky", ["--kind=uml"])
    yield sandbox
    stop(sandbox)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_uml(uml: Sandbox, module: Path) -> None:
    uml.pytest(module)
