"""The host's side of what is tried with the service itself: a sandbox for it."""

import secrets
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SANDBOX = CHECKOUT / "tools" / "sandbox"

PATHS = ("/moorage/tools", "/moorage/tests/support")
"""Of modules, inside."""

UP_SECONDS = 1200.0
"""With an image that has to be made first."""
DOWN_SECONDS = 60.0
MORE_SECONDS = 600.0
"""Beyond the time that was asked for: what was found is made smaller, conversation by conversation."""


def fuzz(suite: str, module: str, seconds: float, *options: int) -> bool:
    """Fuzz the service in a sandbox of its own; what is found is printed.

    Args:
        suite: of the sandbox.
        module: what runs inside.
        seconds: for how long.
        options: of the module: the seed first.

    Returns:
        Whether nothing was found.

    Raises:
        subprocess.SubprocessError: the sandbox cannot be had.
    """
    name = f"fuzz-{secrets.token_hex(2)}"
    up = [SANDBOX, "up", suite, "--name", name]
    subprocess.run(up, check=True, timeout=UP_SECONDS, stdout=subprocess.DEVNULL)
    try:
        command = [SANDBOX, "exec", f"--env=PYTHONPATH={':'.join(PATHS)}", name, "--"]
        inside = ["python3", "-m", module, str(seconds), *map(str, options)]
        done = subprocess.run([*command, *inside], check=False, timeout=seconds + MORE_SECONDS)
    finally:
        subprocess.run([SANDBOX, "down", name], check=True, timeout=DOWN_SECONDS)
    return done.returncode == 0
