"""Each module in inside/uml/ runs in a sandbox with a kernel of its own, in which limits bite."""

from collections.abc import Generator
from pathlib import Path

import pytest
from sandboxes import Sandbox, start, stop

MODULES = sorted((Path(__file__).parent / "inside" / "uml").glob("test_*.py"))


@pytest.fixture(scope="module")
def uml() -> Generator[Sandbox]:
    """One kernel for all modules: a boot of it takes longer than most of them.

    So they are one group: each worker that has one of them would boot a kernel of its own.
    """
    sandbox = start("forky", ["--kind=uml"])
    yield sandbox
    stop(sandbox)


@pytest.mark.xdist_group("uml")
@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_uml(uml: Sandbox, module: Path) -> None:
    uml.pytest(module)
