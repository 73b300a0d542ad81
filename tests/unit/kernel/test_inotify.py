"""inotify(7), with the limits of a user namespace."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.kernel.inotify import IN_MODIFY, Inotify, InotifyLimit


class NoReadiness:
    """Never says that anything is ready."""

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Have nothing called."""

    def remove(self, fd: int) -> None:
        """Nothing is to be undone."""


AT_A_LIMIT = """
import sys
from test_inotify import reach

print(reach(sys.argv[1]))
"""


def reach(path: str) -> str:
    """Watch a file, and return the text of the limit that has been reached."""
    try:
        with contextlib.closing(Inotify(NoReadiness(), lambda _events: None)) as watching:
            watching.add(path, IN_MODIFY)
    except InotifyLimit as error:
        return str(error.strerror)
    return ""


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        ("max_inotify_instances", "fs.inotify.max_user_instances"),
        ("max_inotify_watches", "fs.inotify.max_user_watches"),
    ],
)
def test_a_limit_is_named(tmp_path: Path, limit: str, named: str) -> None:
    file = tmp_path / "file"
    file.touch()
    assert reach(str(file)) == ""
    shell = f'echo 0 >/proc/sys/user/{limit} && exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", shell, sys.executable, AT_A_LIMIT, str(file)],
        cwd=Path(__file__).parent, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert named in done.stdout


def test_what_is_not_there_is_no_limit(tmp_path: Path) -> None:
    with (
        contextlib.closing(Inotify(NoReadiness(), lambda _events: None)) as watching,
        pytest.raises(FileNotFoundError),
    ):
        watching.add(str(tmp_path / "nothing"), IN_MODIFY)
