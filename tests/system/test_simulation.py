"""Thousands of runs of the core in memory, always the same. Longer searches are made by hand."""

import re
import subprocess

import pytest
from sandboxes import CHECKOUT

RUNS = 5000
JOBS = 2
SECONDS = 900.0
"""On the slowest machine, with everything else; on two idle processors they take about a minute."""


@pytest.mark.xfail(
    strict=False,
    reason="one run in a thousand ends with units of a start that failed, an orphaned scope, or a name refused (seeds"
    " 1212, 1493, 2346, 3816): each is to be mended, in the core or in the fake",
)
def test_nothing_goes_wrong_in_memory() -> None:
    done = subprocess.run(
        [CHECKOUT / "tools" / "simulate", f"--runs={RUNS}", f"--jobs={JOBS}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert re.search(rf"^{RUNS} runs in", done.stdout, re.MULTILINE), done.stdout
