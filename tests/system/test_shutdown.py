"""The host shuts down, and asks its machines first."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from sandboxes import UP_SECONDS, Sandbox

DOWN_SECONDS = 60.0

GUEST = """
trap 'echo plug >>/shared/story; exit 9' TERM
while [ ! -e /shared/button ]; do sleep 0.01; done
echo shutdown >>/shared/story
"""
PRESS = "touch /shared/button; while ! grep -q shutdown /shared/story; do sleep 0.01; done"


def test_machines_are_asked_to_end_before_they_are_told(
    boot: Callable[..., Sandbox], tmp_path: Path
) -> None:
    story = tmp_path / "story"
    story.touch()
    sandbox = boot("--bind", f"{tmp_path}:/shared")
    sandbox.run(["systemctl", "start", "moored.socket"])
    launcher = ["systemd-run", "--quiet", "--unit=launcher", "moorctl", "run", "--name=web", "--no-lease"]
    sandbox.run([*launcher, f"--exec-stop=sh -c '{PRESS}'", "--", "sh", "-c", GUEST])
    ready = "until systemctl --quiet is-active machine-web--ask.service; do sleep 0.05; done"
    sandbox.run(["sh", "-c", ready])
    subprocess.run(
        sandbox.command(["systemctl", "poweroff"]), check=False, capture_output=True, timeout=UP_SECONDS
    )
    deadline = time.monotonic() + DOWN_SECONDS
    while not story.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert story.read_text() == "shutdown\n"
