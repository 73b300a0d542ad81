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


LAUNCHED = """
echo runs >>/shared/launched
while [ ! -e /shared/pressed ]; do sleep 0.01; done
echo shutdown >>/shared/launched
"""
"""Stands for a guest that shuts down when its launcher asks it to, and ends by SIGTERM else."""


def test_machines_and_launchers_are_asked_before_machines_are_told(
    boot: Callable[..., Sandbox], tmp_path: Path
) -> None:
    story, launched = tmp_path / "story", tmp_path / "launched"
    story.touch()
    launched.touch()
    sandbox = boot("--bind", f"{tmp_path}:/shared")
    sandbox.run(["systemctl", "start", "moored.socket"])
    launcher = ["systemd-run", "--quiet", "--unit=launcher", "moorctl", "run", "--name=web", "--no-lease"]
    sandbox.run([*launcher, f"--exec-stop=sh -c '{PRESS}'", "--", "sh", "-c", GUEST])
    # One whose launcher is told: of a guest that takes a while to shut down.
    # Its own service gets SIGTERM at the same time: moorctl alone, or the command that asks the guest would end by it.
    launcher = [
        "systemd-run",
        "--quiet",
        "--unit=other-launcher",
        "--property=KillMode=mixed",
        "moorctl",
        "run",
        "--name=db",
    ]
    on_stop = "sh -c 'echo told >>/shared/launched; sleep 1; touch /shared/pressed'"
    sandbox.run([*launcher, f"--on-stop={on_stop}", "--", "sh", "-c", LAUNCHED])
    for unit in ("machine-web--ask.service", "machine-db.scope", "moored-shutdown.service"):
        ready = f"until systemctl --quiet is-active {unit}; do sleep 0.05; done"
        sandbox.run(["sh", "-c", ready])
    # The launcher waits to be told before it has the command executed.
    sandbox.run(["sh", "-c", "until grep -q runs /shared/launched; do sleep 0.05; done"])
    subprocess.run(
        sandbox.command(["systemctl", "poweroff"]), check=False, capture_output=True, timeout=UP_SECONDS
    )
    deadline = time.monotonic() + DOWN_SECONDS
    expected = ("shutdown\n", "runs\ntold\nshutdown\n")
    while (story.read_text(), launched.read_text()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (story.read_text(), launched.read_text()) == expected
