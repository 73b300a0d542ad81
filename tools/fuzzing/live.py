"""The host's side of the target "live": a sandbox for the service."""

import secrets
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SANDBOX = CHECKOUT / "tools" / "sandbox"

PATHS = ("/moorage/tools", "/moorage/tests/support")
"""Directories with modules, inside the sandbox."""

UP_SECONDS = 1200.0
"""Includes making an image."""
DOWN_SECONDS = 60.0
MORE_SECONDS = 600.0
"""Time on top of the requested one, for shrinking what was found."""


def fuzz(suite: str, module: str, seconds: float, *options: int) -> bool:
    """Fuzz the service in a sandbox of its own, and print what is found.

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
