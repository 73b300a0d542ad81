"""The modules in inside/attack/: what ordinary users try, as a list to be read.

They share a sandbox, in which their users have logged in once: each of them has to leave the service as it was.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import DESCRIPTORS, Sandbox


@pytest.mark.xdist_group(DESCRIPTORS)
def test_attack(boot: Callable[..., Sandbox]) -> None:
    boot().pytest(Path(__file__).parent / "inside" / "attack")
