"""A process that serves, or another implementation that does."""

import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Start = Callable[[Sequence[str], str], None]


@pytest.fixture
def start() -> Generator[Start]:
    """Starts a Python program, waits until it has said that it is ready, and ends it with the test."""
    with ExitStack() as stack:

        def run(arguments: Sequence[str], ready: str) -> None:
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-u", *arguments], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline().startswith(ready)

        yield run


@pytest.fixture
def ours(tmp_path: Path, start: Start) -> str:
    """Path of a socket that served.py listens on."""
    path = str(tmp_path / "ours")
    start([str(HERE / "served.py"), path], "ready")
    return path
