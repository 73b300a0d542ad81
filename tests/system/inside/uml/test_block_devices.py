"""Limits for block devices, on a loop device: they slow what reads and writes, and each is on the whole disk."""

import os
import struct
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doer import doer, does
from moored import OURS, Process, Processes, connect, register, run, show, until, verdict

from moorage.wire.client import Client

MIB = 1024 * 1024
SCOPE = "machine-web.scope"
DISK, PARTITION = "/dev/loop0", "/dev/loop0p1"
NUMBERS = "7:0"
CHUNK = 64 * 1024

TRANSFERS = f"""
import mmap, os, sys
file = os.open("{DISK}", os.O_RDWR | os.O_DIRECT)
chunk = mmap.mmap(-1, {CHUNK})  # aligned, as O_DIRECT wants it
for line in sys.stdin:
    for number in range(int(line)):
        os.lseek(file, number * {CHUNK} % {16 * MIB}, os.SEEK_SET)
        os.{{}}(file, [chunk])
    print("done", flush=True)
"""
"""Reads or writes as many chunks as it is told to, past any cache."""


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def attach(backing: Path) -> None:
    run("losetup", "--partscan", DISK, str(backing))


@pytest.fixture(autouse=True)
def backing(tmp_path: Path) -> Generator[Path]:
    """A disk with one partition, and the file that it is in."""
    if not Path("/dev/loop-control").exists():
        run("insmod", *map(str, Path("/usr/lib/uml/modules").rglob("loop.ko")))
    found = tmp_path / "disk"
    # A partition table of MBR: from sector 2048 to the end, of type Linux.
    entry = struct.pack("<B3sB3sII", 0, b"\xff" * 3, 0x83, b"\xff" * 3, 2048, 32 * MIB // 512 - 2048)
    with found.open("wb") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.truncate(32 * MIB)
    attach(found)
    yield found
    run("losetup", "--detach-all")


def kernel(group: str, attribute: str) -> str:
    return Path(f"/sys/fs/cgroup{group}/{attribute}").read_text().strip()


def transfer(process: Process, chunks: int) -> float:
    """Have so many chunks read or written; return how long it took, s."""
    assert process.stdin is not None
    assert process.stdout is not None
    began = time.monotonic()
    process.stdin.write(b"%d\n" % chunks)
    process.stdin.flush()
    assert process.stdout.readline() == b"done\n"
    return time.monotonic() - began


async def change(client: Client, properties: dict[str, Any], **parameters: Any) -> list[dict[str, Any]]:
    asked = {"name": "web", "properties": properties, **parameters}
    return (await client.call(f"{OURS}SetProperties", asked))["differences"]


def transfers(spawn: Processes, how: str) -> Process:
    script = TRANSFERS.format(how)
    return spawn((sys.executable, "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_a_rate_slows_a_writer(spawn: Processes) -> None:
    """A limit gives the least time that something takes, however slow the machine is."""
    async with await connect() as client:
        process = transfers(spawn, "writev")
        reply = await register(client, "web", process, properties={"IOWriteBandwidthMax": [[DISK, MIB]]})
        assert reply["differences"] == []
        group = reply["machine"]["controlGroup"]
        assert kernel(group, "io.max") == f"{NUMBERS} rbps=max wbps={MIB} riops=max wiops=max"
        assert show(SCOPE, "IOWriteBandwidthMax")["IOWriteBandwidthMax"] == f"{DISK} {MIB}"
        assert transfer(process, 16) >= 0.8  # a MiB; the kernel lets the first chunks go ahead

        # While it runs: slower, not at all, and as somebody else says.
        assert await change(client, {"IOWriteBandwidthMax": [[DISK, MIB // 4]]}) == []
        assert f"wbps={MIB // 4}" in kernel(group, "io.max")
        assert transfer(process, 4) >= 0.8
        run("systemctl", "daemon-reload")
        assert f"wbps={MIB // 4}" in kernel(group, "io.max")
        assert await change(client, {"IOWriteBandwidthMax": [[DISK, "infinity"]]}) == []
        assert "wbps=max" in kernel(group, "io.max") or kernel(group, "io.max") == ""
        transfer(process, 256)  # at the last rate this would be the end of the test
        run("systemctl", "set-property", "--runtime", SCOPE, f"IOWriteBandwidthMax={DISK} 3M")
        assert "wbps=3000000" in kernel(group, "io.max")

        found = await client.call(f"{OURS}Describe", {"name": "web"})
        assert found["accounting"]["ioWriteBytes"] == 276 * CHUNK
        device = found["io"]["loop0"]
        assert device["majMin"] == NUMBERS
        assert (device["writeBytes"], device["writeOperations"]) == (276 * CHUNK, 276)

        # From here on it is counted anew, of the device too; peaks stay, and the end tells of all.
        await client.call(f"{OURS}ResetAccounting", {"name": "web"})
        transfer(process, 4)
        since = await client.call(f"{OURS}Describe", {"name": "web"})
        assert since["accounting"]["ioWriteBytes"] == 4 * CHUNK
        assert since["io"]["loop0"]["writeOperations"] == 4
        assert since["accounting"]["memoryPeak"] >= found["accounting"]["memoryPeak"]
        await client.call(f"{OURS}Stop", {"name": "web"})
        assert (await verdict(client, "web"))["accounting"]["ioWriteBytes"] == 280 * CHUNK


async def test_a_number_of_operations_slows_a_reader(spawn: Processes) -> None:
    async with await connect() as client:
        process = transfers(spawn, "readv")
        group = (await register(client, "web", process))["machine"]["controlGroup"]
        assert await change(client, {"IOReadIOPSMax": [[DISK, 8]], "IOWriteIOPSMax": [[DISK, 99]]}) == []
        assert kernel(group, "io.max") == f"{NUMBERS} rbps=max wbps=max riops=8 wiops=99"
        assert transfer(process, 16) >= 0.8  # two seconds' worth


async def test_what_was_written_is_told_however_fast_it_ends(spawn: Processes) -> None:
    async with await connect() as client:
        for _ in range(10):
            process = transfers(spawn, "writev")
            await register(client, "web", process, properties={"IOWriteBandwidthMax": [[DISK, 64 * MIB]]})
            transfer(process, 4)
            process.kill()
            assert (await verdict(client, "web"))["accounting"].get("ioWriteBytes") == 4 * CHUNK


async def test_rules_for_block_devices(spawn: Processes) -> None:
    async with await connect() as client:
        process = doer(spawn)
        await register(client, "web", process, properties={"DevicePolicy": "closed"})
        for path, access, said in (
            (DISK, "r", "EPERM"),
            (DISK, "rw", "ok"),
            ("block-loop", "rw", "ok"),
            ("block-l?o*", "rw", "ok"),
            ("block-blkext", "rw", "EPERM"),
        ):
            assert await change(client, {"DeviceAllow": []}) == []
            assert does(process, "open", DISK, "rw") == "EPERM"
            assert await change(client, {"DeviceAllow": [[path, access]]}) == []
            assert does(process, "open", DISK, "rw") == said, path


async def test_a_partition_is_on_its_disk_and_one_that_is_gone_is_told(
    spawn: Processes, backing: Path
) -> None:
    assert os.stat(PARTITION).st_rdev != os.stat(DISK).st_rdev
    limits = {"IOWriteBandwidthMax": [[PARTITION, 5 * MIB]]}
    async with await connect() as client:
        for dry_run in (True, False):
            reply = await register(client, "web", spawn(), properties=limits, dryRun=dry_run)
            assert reply["differences"] == []
        group = reply["machine"]["controlGroup"]
        assert f"{NUMBERS} rbps=max wbps={5 * MIB}" in kernel(group, "io.max")

        run("losetup", "--detach", DISK)
        await until(lambda: not Path(PARTITION).exists())
        for dry_run in (True, False):
            [told] = await change(client, {"IOReadBandwidthMax": [[PARTITION, MIB]]}, dryRun=dry_run)
            assert (told["property"], told["wanted"]) == ("IOReadBandwidthMax", f"{PARTITION} {MIB}")
            assert (told.get("effective"), told["reason"]) == (None, f"there is no {PARTITION}")
        # What else is asked for is set all the same.
        await change(client, {"IOReadBandwidthMax": [[PARTITION, MIB]], "TasksMax": 77})
        assert kernel(group, "pids.max") == "77"
        attach(backing)


@pytest.fixture
def mapped(backing: Path) -> Generator[str]:
    """A mapped device on the partition (dm-linear)."""
    if not Path("/dev/mapper/control").exists():
        run("insmod", *map(str, Path("/usr/lib/uml/modules").rglob("dm-mod.ko")))
    sectors = int(run("blockdev", "--getsz", PARTITION))
    run("dmsetup", "create", "--noudevsync", "layer", "--table", f"0 {sectors} linear {PARTITION} 0")
    yield "/dev/" + run("dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", "layer").strip()
    run("dmsetup", "remove", "--noudevsync", "layer")


async def test_a_mapped_device_is_on_the_disk_below_it(spawn: Processes, mapped: str) -> None:
    assert os.stat(mapped).st_rdev not in {os.stat(DISK).st_rdev, os.stat(PARTITION).st_rdev}
    limits = {"IOWriteBandwidthMax": [[mapped, 5 * MIB]]}
    async with await connect() as client:
        for dry_run in (True, False):
            reply = await register(client, "web", spawn(), properties=limits, dryRun=dry_run)
            assert reply["differences"] == []
        group = reply["machine"]["controlGroup"]
        assert f"{NUMBERS} rbps=max wbps={5 * MIB}" in kernel(group, "io.max")
        assert await change(client, {"IOReadIOPSMax": [[mapped, 50]]}) == []
        assert "riops=50" in kernel(group, "io.max")
        effective = (await client.call(f"{OURS}Describe", {"name": "web"}))["effective"]
        assert effective["IOWriteBandwidthMax"] == [["/dev/loop0", 5 * MIB]]


@contextmanager
def on_btrfs(directory: Path, *devices: str) -> Generator[str]:
    """A file whose device number is that of no disk."""
    run("mkfs.btrfs", "--quiet", "--mixed", "--data", "single", "--metadata", "single", *devices)
    run(
        "mount",
        "-t",
        "btrfs",
        devices[0],
        str(directory),
        "-o",
        ",".join(f"device={each}" for each in devices),
    )
    try:
        file = directory / "image"
        file.write_bytes(bytes(4096))
        assert os.major(os.stat(file).st_dev) == 0
        yield str(file)
    finally:
        run("umount", str(directory))


async def test_a_file_is_on_the_disk_below_its_file_system(
    spawn: Processes, mapped: str, tmp_path: Path
) -> None:
    with on_btrfs(tmp_path, mapped) as file:
        async with await connect() as client:
            limits = {"IOReadBandwidthMax": [[file, 3 * MIB]]}
            reply = await register(client, "web", spawn(), properties=limits)
            assert reply["differences"] == []
            group = reply["machine"]["controlGroup"]
            assert f"{NUMBERS} rbps={3 * MIB}" in kernel(group, "io.max")


async def test_a_file_that_may_be_on_several_disks_is_on_none(
    spawn: Processes, mapped: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"")
    os.truncate(other, 32 * MIB)
    second = run("losetup", "--find", "--show", str(other)).strip()
    place = tmp_path / "there"
    place.mkdir()
    with on_btrfs(place, mapped, second) as file:
        async with await connect() as client:
            limits = {"IOReadBandwidthMax": [[file, 3 * MIB]]}
            reply = await register(client, "web", spawn(), properties=limits)
            [told] = reply["differences"]
            assert (told["property"], told.get("effective")) == ("IOReadBandwidthMax", None)
            assert told["reason"] == f"{file} is not a block device, nor on one"
            assert kernel(reply["machine"]["controlGroup"], "io.max") == ""


async def test_a_helper_has_limits_of_its_own(spawn: Processes) -> None:
    helper = {
        "name": "fs",
        "execStart": ["/usr/bin/sleep", "infinity"],
        "properties": {"IOReadIOPSMax": [[PARTITION, 50]]},
    }
    async with await connect() as client:
        reply = await register(client, "web", spawn(), helpers=[helper])
        assert reply["differences"] == []
        own = reply["machine"]["controlGroup"].rpartition("/")[0] + "/machine-web-fs.service"
        assert f"{NUMBERS} rbps=max wbps=max riops=50" in kernel(own, "io.max")
        assert await change(client, {"IOReadIOPSMax": [[DISK, 60]]}, helper="fs") == []
        assert "riops=60" in kernel(own, "io.max")
