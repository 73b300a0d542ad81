"""A virtual machine whose guest is up: QEMU under TCG, and a file server of ours."""

from pathlib import Path

import pytest
import trio
from guests import UP_SECONDS, console, kernel, make_initrd, up
from moored import connect, verdict

EXAMPLE = "/moorage/examples/helpers/qemu-virtiofs-swtpm.toml"


@pytest.fixture
def shared() -> Path:
    """The directory that the example shares."""
    directory = Path("/srv/shares")
    directory.mkdir(exist_ok=True)
    (directory / "question").write_text("who is there?\n")
    return directory


async def test_a_guest_mounts_what_a_helper_serves(nothing_left: None, shared: Path, tmp_path: Path) -> None:
    """The example of helpers as it is: the guest's own userland reads and writes files of the host."""
    initrd = make_initrd(tmp_path)
    words = "console=ttyS0 quiet guest.share=shared guest.off=1"
    with console(
        "moorctl", "run", "--name=shares", f"--helpers={EXAMPLE}", "--",
        "-kernel", kernel(), "-initrd", initrd, "-append", words,
    ) as guest:  # fmt: skip
        await up(guest, "guest: wrote")
        assert guest.has("guest: read who is there?")
        assert await trio.to_thread.run_sync(guest.process.wait, UP_SECONDS) == 0
    assert (shared / "answer").read_text() == "the guest was here\n"
    async with await connect() as client:
        ended = await verdict(client, "shares")
        assert (ended["result"], ended["leaderStatus"]) == ("success", 0)
        assert ended["accounting"]["cpuUsageNSec"] > 10**9
