"""moorctl doctor, on a host that has a service manager."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system_instance("it is about the host")

POLICY = Path("/usr/share/polkit-1/actions/io.moorage.policy")
RUN_SECONDS = 30.0


def doctor(*options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status, and the findings by their subjects."""
    done = subprocess.run(
        ["moorctl", "doctor", "--json", *options],
        capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {finding["subject"]: finding for finding in findings}


def systemctl(*arguments: str) -> str:
    return subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=RUN_SECONDS, check=True
    ).stdout


def test_a_service_that_can_be_called() -> None:
    systemctl("start", "moored.socket")
    status, findings = doctor()
    assert status == 0, findings
    assert findings["service"]["state"] == "ok"
    assert "io.moorage.Machine" in findings["service"]["words"]
    assert findings["configuration"]["state"] == "ok"
    assert findings["polkit"] == {
        "subject": "polkit",
        "state": "ok",
        "words": "there, with moored's actions",
    }
    version = systemctl("show", "--value", "--property=Version").strip()
    assert findings["service manager"]["words"] == f"systemd {version}"
    with open("/sys/fs/cgroup/cgroup.controllers") as controllers:
        missing = {"cpu", "cpuset", "io", "memory", "pids"} - set(controllers.read().split())
    assert findings["controllers"]["state"] == ("limited" if missing else "ok")
    assert all(name in findings["controllers"]["words"] for name in missing)


def test_a_socket_that_does_not_listen() -> None:
    systemctl("stop", "moored.socket", "moored.service")
    try:
        status, findings = doctor()
    finally:
        systemctl("start", "moored.socket")
    assert status == 1
    assert findings["socket"]["remedy"] == "systemctl enable --now moored.socket"
    assert "service" not in findings


def test_polkit_without_the_actions() -> None:
    hidden = POLICY.with_suffix(".hidden")
    os.rename(POLICY, hidden)
    try:
        status, findings = doctor()
    finally:
        os.rename(hidden, POLICY)
    assert status == 0
    assert findings["polkit"]["state"] == "limited"
