"""What tests with programs of others have in common."""

from collections.abc import Generator

import pytest
from moored import ALONE, give_place_back, run, take_place


@pytest.fixture(autouse=True)
def beside_machined(beside: None) -> None:
    """Have machined and a moored as it is installed, beside each other."""
    assert not ALONE.exists()
    run("systemctl", "start", "systemd-machined.service")


@pytest.fixture
def in_place(beside_machined: None) -> Generator[None]:
    """Put moored in machined's place."""
    take_place()
    yield
    give_place_back()
