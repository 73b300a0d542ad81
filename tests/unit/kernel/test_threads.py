"""What happens where no thread can be started."""

import errno
import subprocess
import sys

import pytest

from moorage.kernel.threads import in_thread

WITHOUT_THREADS = """
import os, resource, trio
from moorage.kernel.threads import in_thread

async def main():
    try:
        await in_thread(lambda: print("ran"))
    except OSError as error:
        print(error.errno)

trio.run(trio.sleep, 0)
if os.geteuid() == 0:  # root may have as many as there may be
    os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
trio.run(main)
"""


def test_that_no_thread_can_be_started_is_an_error_of_the_kernel() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{errno.EAGAIN}\n"


async def test_errors_of_what_runs_in_one_are_its_own() -> None:
    def fail() -> None:
        raise RuntimeError("of mine")

    with pytest.raises(RuntimeError, match="of mine"):
        await in_thread(fail)
    assert await in_thread(lambda: 5) == 5
