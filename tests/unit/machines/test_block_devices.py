"""Which disk a path is on, below partitions, mapped devices, loops and file systems, in a /sys that the test makes."""

import os
import stat
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from moorage.probes import effective

DISK, PARTITION, CRYPT, VOLUME, LOOP, MIRROR = "8:0", "8:1", "253:0", "253:1", "7:0", "9:0"


@pytest.fixture(autouse=True)
def sys_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with a partition, an encrypted volume on that, a logical volume on that; a loop; a mirror of two."""

    def add(path: str, numbers: str, *slaves: str) -> None:
        directory = tmp_path / path
        (directory / "slaves").mkdir(parents=True)
        (directory / "dev").write_text(f"{numbers}\n")
        for slave in slaves:
            (directory / "slaves" / Path(slave).name).symlink_to(tmp_path / slave)
        places[numbers] = directory

    places: dict[str, Path] = {}
    add("sda", DISK)
    add("sda/sda1", PARTITION)
    (tmp_path / "sda/sda1/partition").write_text("1\n")
    add("dm-0", CRYPT, "sda/sda1")
    add("dm-1", VOLUME, "dm-0")
    add("loop0", LOOP)
    add("md0", MIRROR, "sda", "loop0")
    realpath: Callable[[str], str] = os.path.realpath

    def in_sys(path: str) -> str:
        numbers = path.removeprefix("/sys/dev/block/")
        return realpath(path) if numbers == path else str(places.get(numbers, tmp_path / "none"))

    monkeypatch.setattr(os.path, "realpath", in_sys)


def number(numbers: str) -> int:
    return os.makedev(*map(int, numbers.split(":")))


@pytest.mark.parametrize(
    ("numbers", "disk"),
    [
        (DISK, DISK), (PARTITION, DISK), (CRYPT, DISK), (VOLUME, DISK), (LOOP, LOOP),
        (MIRROR, MIRROR),  # of several disks none is meant, so that the limit is that of the mirror
        ("1:2", None),
    ],
)  # fmt: skip
def test_the_whole_disk_below(numbers: str, disk: str | None) -> None:
    assert effective.whole_disk(number(numbers)) == disk


@pytest.mark.parametrize(
    ("device", "mount", "system", "disk"),
    [
        (PARTITION, "30", "ext4 /dev/sda1", DISK),
        (VOLUME, "30", "ext4 /dev/mapper/root", DISK),
        # btrfs has a number for each subvolume, which no mount has
        ("0:42", "31", "btrfs /dev/sda1", DISK),
        ("0:42", "31", "btrfs /dev/loop0", None),  # with a second device
        ("0:42", "32", "btrfs /dev/sda1", None),  # not mounted here
        ("0:42", "31", "tmpfs tmpfs", None),
        ("0:42", "31", "overlay /dev/sda1", None),
    ],
)
def test_the_disk_that_a_file_is_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, mount: str, system: str, disk: str | None
) -> None:
    mounted = f"31 1 0:40 / /srv\\040a rw shared:1 - {system} rw\n"
    found = {
        "/srv/image": SimpleNamespace(st_mode=stat.S_IFREG, st_dev=number(device)),
        "/dev/sda1": SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=number(PARTITION)),
        "/dev/loop0": SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=number(LOOP)),
    }
    for name in ("one/devices/sda1", "two/devices/loop0", "two/devices/dm-1"):
        (tmp_path / "btrfs" / name).mkdir(parents=True)
    (tmp_path / "btrfs/features").mkdir()

    def opened(*_arguments: object, **_options: object) -> StringIO:
        return StringIO(mounted)

    def read(path: str) -> str:
        return Path(path).read_text().strip()

    def status(path: str) -> SimpleNamespace:
        return found[path]

    def mount_of(_path: str) -> str:
        return mount

    monkeypatch.setattr(effective, "open", opened, raising=False)
    monkeypatch.setattr(effective, "_read", read)
    monkeypatch.setattr(effective, "_mount", mount_of)
    monkeypatch.setattr(effective, "_BTRFS", str(tmp_path / "btrfs"))
    monkeypatch.setattr(effective, "os", SimpleNamespace(**{**vars(os), "stat": status}))
    assert effective.device("/srv/image") == ("file", disk)
