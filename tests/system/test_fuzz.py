"""A minute of damaged input and of hostile users, always the same: tools/fuzz says what is tried.

Longer runs are made by hand.
"""

import re
import subprocess

from sandboxes import CHECKOUT

SECONDS = 60
SEED = 4
MORE_SECONDS = 700.0
"""For the sandbox, and to make smaller what is found."""

TARGETS = ("calls", "replies", "records", "manager", "helpers", "configuration", "os-release", "live")
FEW = 50
"""Inputs that each of them is through with on the slowest machine."""


BOUNDARY_SECONDS = 25
BOUNDARY_FEW = 40
"""Calls; an idle machine makes ten in a second."""


def fuzz(seconds: int, *options: str) -> dict[str, int]:
    """Run it; return how many inputs there were, by target."""
    done = subprocess.run(
        [CHECKOUT / "tools" / "fuzz", f"--seconds={seconds}", f"--seed={SEED}", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + MORE_SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return {
        name: int(count) for name, count in re.findall(r"^(\S+): (\d+) inputs", done.stdout, re.MULTILINE)
    }


def test_damaged_input() -> None:
    counts = fuzz(SECONDS, *(f"--target={name}" for name in TARGETS))
    assert counts.keys() == set(TARGETS)
    assert min(counts.values()) >= FEW, counts


def test_users_at_the_boundary(suite: str) -> None:
    counts = fuzz(BOUNDARY_SECONDS, "--target=boundary", f"--suite={suite}")
    assert counts.keys() == {"boundary"}
    assert counts["boundary"] >= BOUNDARY_FEW, counts
