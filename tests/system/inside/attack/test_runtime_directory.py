"""Whoever owns a machine's runtime directory, or breaks into what does, cannot fill what everybody needs."""

import os
from pathlib import Path

from moored import (
    OURS,
    RECORDS,
    Processes,
    assert_everything_gone,
    assert_nothing_left,
    connect,
    control_group,
    directories,
    register,
    run,
    until,
)
from sessions import Session

DIRECTORY = Path("/run/moorage/m/web")

FILLER = r"""
import itertools, os, sys
directory, marker = sys.argv[1:]
os.chdir(directory)
full = False
for number in itertools.count():
    try:
        with open(f"block{number}", "wb", buffering=0) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        try:
            os.mkdir(f"empty{number}")
        except OSError:
            if not full:
                open(marker, "w").close()
            full = True
"""
"""Fills the directory that it is in with bytes and with files, and goes on for ever."""

HELPER = {"name": "fs", "execStart": ["/usr/bin/sleep", "infinity"], "sockets": [{"name": "fs.sock"}]}


def left() -> tuple[int, int]:
    """Bytes and inodes that are left in /run."""
    found = os.statvfs("/run")
    return found.f_bavail * found.f_bsize, found.f_favail


def mounted() -> list[str]:
    """Where file systems are mounted for machines."""
    return [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4].startswith("/run/moorage/")
    ]


async def test_filling_it_harms_nobody_else(spawn: Processes, creator: Session) -> None:
    leader = creator.spawn()
    async with await connect() as client:
        machine = (await register(client, "web", leader, helpers=[HELPER]))["machine"]
        assert machine["runtimeDirectory"] == str(DIRECTORY)
        status = os.stat(DIRECTORY)
        assert (status.st_uid, status.st_mode & 0o777) == (creator.uid, 0o700)
        bytes_before, inodes_before = left()

        marker = Path("/home/creator/full")
        filler = creator.spawn("python3", "-c", FILLER, str(DIRECTORY), str(marker))
        await until(marker.exists, "the directory is full")
        bytes_left, inodes_left = left()
        # What others do meanwhile is little: it is the filler that must not be seen.
        assert bytes_before - bytes_left < 16 << 20
        assert inodes_before - inodes_left < 1000

        # Everything works as ever: for root, and for the service itself.
        await register(client, "db", spawn(), helpers=[HELPER])
        assert (RECORDS / "db").exists()
    run("systemctl", "restart", "moored.service")
    async with await connect() as client:
        for name in ("web", "db"):
            await client.call(f"{OURS}Stop", {"name": name})
        await until(lambda: not directories(), "the directories are gone, with the filler at work")
        assert not mounted()
        assert control_group(filler)
        await register(client, "web", spawn(), helpers=[HELPER])
        await client.call(f"{OURS}Stop", {"name": "web"})
    creator.kill(filler)
    creator.kill(leader)
    await assert_nothing_left()
    await assert_everything_gone()


async def test_nobody_can_write_below_what_is_mounted(spawn: Processes, creator: Session) -> None:
    leader = creator.spawn()
    async with await connect() as client:
        await register(client, "web", leader, helpers=[HELPER])
        run("umount", "--lazy", str(DIRECTORY))
        status = os.stat(DIRECTORY)
        assert (status.st_uid, status.st_mode & 0o777) == (0, 0o700)
        await client.call(f"{OURS}Stop", {"name": "web"})
    creator.kill(leader)
    await assert_everything_gone()


async def test_it_is_nothing_but_data(spawn: Processes, creator: Session) -> None:
    leader = creator.spawn()
    async with await connect() as client:
        # Names are escaped in each their way: of units, of directories, of options of mount(8).
        for name in ("web", "a:b\\c@d_e", "-".join("x" * 20)):
            machine = (await register(client, name, leader, helpers=[HELPER]))["machine"]
            directory = machine["runtimeDirectory"]
            assert mounted() == [directory]
            flags = os.statvfs(directory).f_flag
            for flag in (os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC):
                assert flags & flag
            await client.call(f"{OURS}Stop", {"name": name})
            creator.kill(leader)
            leader = creator.spawn()
            await until(lambda: not mounted() and not directories())
    creator.kill(leader)
    await assert_everything_gone()
