"""Thousands of runs of the core in memory, always the same. Longer searches are made by hand."""

import re
import subprocess

from sandboxes import CHECKOUT

RUNS = 5000
JOBS = 2
SECONDS = 900.0
"""On the slowest machine, with everything else; on two idle processors they take about a minute."""


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
