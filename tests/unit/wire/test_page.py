"""The programs in docs/wire.md do what the page says."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "wire.md").read_text()
STARTED_SECONDS = 30.0


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
        return attempt.connect_ex(str(path)) == 0


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_client_prints_what_the_page_says(programs: Path) -> None:
    path = programs / "socket"
    with subprocess.Popen([sys.executable, "-W", "error", programs / "server.py", path]) as server:
        try:
            end = time.monotonic() + STARTED_SECONDS
            while not listens(path):
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            done = subprocess.run(
                [sys.executable, "-W", "error", programs / "client.py", path],
                check=True,
                capture_output=True,
                text=True,
                timeout=STARTED_SECONDS,
            )
        finally:
            server.terminate()
    assert done.stdout.splitlines() == ["2", "2", "1", "0", "at most 100"]


def test_the_service_is_what_it_describes(programs: Path) -> None:
    check = (
        "import server; from moorage.wire.conformance import check;"
        "print(check(server.Countdown, server.DESCRIPTION, errors=[server.TooFar]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=programs, check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
