"""Thousands of machines and callers, one after the other; once, on the newer systemd."""

from collections.abc import Generator
from pathlib import Path

import pytest
import sandboxes
from sandboxes import Sandbox

MODULE = Path(__file__).parent / "inside" / "growth.py"
SECONDS = 900.0


@pytest.fixture
def own_sandbox() -> Generator[Sandbox]:
    one = sandboxes.start("forky")
    yield one
    sandboxes.stop(one)


def test_nothing_grows(own_sandbox: Sandbox) -> None:
    own_sandbox.pytest(MODULE, options=("-o", f"faulthandler_timeout={SECONDS:.0f}"), timeout=SECONDS)
