"""What tests with programs of others have in common."""

from collections.abc import Generator

import pytest
from moored import ALONE, run


@pytest.fixture(autouse=True)
def beside_machined(beside: None) -> Generator[None]:
    """Have machined and a moored as it is installed, beside each other."""
    assert not ALONE.exists()
    run("systemctl", "start", "systemd-machined.service")
    return
