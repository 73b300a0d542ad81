"""A minute and a half of tools/chaos with a fixed seed; longer runs are made by hand, with other seeds."""

import re
import subprocess

from sandboxes import CHECKOUT

SECONDS = 90
SEED = 4
STEPS_MIN = 10
"""A loaded machine does fifteen in that time, an idle one forty."""

TIMEOUT_SECONDS = 900.0
"""The last step may be one in which the manager does not answer, and the image may have to be made first."""


def test_nothing_is_lost_and_nobody_else_is_harmed() -> None:
    argv = [CHECKOUT / "tools" / "chaos", f"--seconds={SECONDS}", f"--seed={SEED}", "--suite=forky"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^in all +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    injected, survived = map(int, found.groups())
    assert injected == survived
    assert injected >= STEPS_MIN
