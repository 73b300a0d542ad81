"""What is looked up inside a container is what its user put there: nothing of the host's root is read for it."""

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from moored import until
from sessions import Session

SECRET = Path("/usr/lib/secret")

CONTAINER = r"""
import ctypes, os, signal, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *args):
    if function(*args) < 0:
        raise OSError(ctypes.get_errno(), function.__name__)
uids, marker = sys.argv[1:]
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
if uids:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(uids)
    open("/proc/self/gid_map", "w").write(uids)
call(libc.mount, b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
call(libc.mount, b"/usr/lib/secret", b"/usr/lib/os-release", None, 0x1000, None)  # MS_BIND
open(marker, "w")
signal.pause()
"""
"""A leader that has bound a file of root's over its OS release, which every user may do in a namespace."""


@pytest.fixture
def secret() -> Generator[None]:
    """A file of root's, in the form of what is asked for."""
    SECRET.write_text("PASSWORD=hunter2\n")
    SECRET.chmod(0o600)
    yield
    SECRET.unlink()


@pytest.mark.parametrize("uids", ["", "1 2002 1", "65534 2002 1", "0 2002 1"])
async def test_no_line_of_a_file_of_root_is_told(
    nothing_left: None, secret: None, registrant: Session, uids: str
) -> None:
    marker = Path("/home/registrant/ready")
    leader = registrant.spawn("python3", "-c", CONTAINER, uids, str(marker))
    await until(marker.exists)
    os.unlink(marker)
    registered = registrant.register("box", leader, **{"class": "container"}, allocateUnit=False)
    assert "error" not in registered

    def told(how: str) -> Any:
        answer = registrant.call("io.systemd.Machine.List", {"name": "box", "acquireMetadata": how})
        assert "hunter2" not in json.dumps(answer)
        return answer

    told("graceful")
    # What has nothing to do with it is known all the same.
    await until(lambda: told("yes").get("error") == "io.systemd.Machine.NoPrivateNetworking")
    assert "error" not in registrant.call("Forget", {"name": "box"})
    registrant.kill(leader)
