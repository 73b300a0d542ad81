"""A minute of damaged input, always the same: tools/fuzz says what is tried. Longer runs are made by hand."""

import re
import subprocess

from sandboxes import CHECKOUT

SECONDS = 60
SEED = 4
MORE_SECONDS = 700.0
"""For the sandbox, and to make smaller what is found."""

TARGETS = ("calls", "replies", "records", "manager", "helpers", "os-release", "live")
FEW = 50
"""Inputs that each of them is through with on the slowest machine."""


def test_damaged_input() -> None:
    done = subprocess.run(
        [CHECKOUT / "tools" / "fuzz", f"--seconds={SECONDS}", f"--seed={SEED}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS + MORE_SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    counts = {
        name: int(count) for name, count in re.findall(r"^(\S+): (\d+) inputs", done.stdout, re.MULTILINE)
    }
    assert counts.keys() == set(TARGETS)
    assert min(counts.values()) >= FEW, done.stdout
