"""The programs in docs/client.md do what the page says."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "client.md").read_text()
FAKE = Path(__file__).parents[1] / "cli" / "fake_moored.py"
SECONDS = 30.0

PROGRAMS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))

LAUNCHER = ["machine-web.scope", "3"]


@pytest.fixture
def address(tmp_path: Path) -> Generator[str]:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        service = subprocess.Popen([sys.executable, str(FAKE)], stdin=listener.fileno())
        yield path
        service.terminate()
        service.wait(SECONDS)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("trio_launcher.py", LAUNCHER),
        ("asyncio_launcher.py", LAUNCHER),
        ("blocking_launcher.py", LAUNCHER),
        ("calls.py", ["running vm", "['web']", "web machine-web.scope", "exited"]),
    ],
)
def test_the_program_prints_what_the_page_says(address: str, name: str, output: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAMS[name]],
        env={**os.environ, "MOORAGE_ADDRESS": address},
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", output)


def test_a_launcher_has_ten_lines() -> None:
    for name, text in PROGRAMS.items():
        if name.endswith("_launcher.py"):
            assert len([line for line in text.splitlines() if line]) <= 10
