"""Which files there are, in which order, and which of them are read."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.configuration.files import (
    BYTES_MAX,
    DROP_INS_MAX,
    Listing,
    Locations,
    Unreadable,
    find,
    locations,
    read,
)

ME = frozenset({os.geteuid()})


def at(root: Path, *bases: str) -> Locations:
    """Locations below a directory."""
    return Locations(
        main=tuple(str(root / base / "moored.conf") for base in bases),
        drop_ins=tuple(str(root / base / "moored.conf.d") for base in bases),
        owners=ME,
    )


def put(path: Path, text: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_where_the_files_of_the_system_are() -> None:
    found = locations(user=False, environment={"HOME": "/root"})
    assert found.main == (
        "/etc/moorage/moored.conf",
        "/run/moorage/moored.conf",
        "/usr/local/lib/moorage/moored.conf",
        "/usr/lib/moorage/moored.conf",
    )
    assert found.drop_ins == tuple(f"{path}.d" for path in found.main)
    assert found.owners == {0, os.geteuid()}


@pytest.mark.parametrize(
    ("environment", "own"),
    [
        ({"HOME": "/home/alice"}, ["/home/alice/.config/moorage/user.conf"]),
        ({"HOME": "/home/alice", "XDG_CONFIG_HOME": "/srv/alice/"}, ["/srv/alice/moorage/user.conf"]),
        ({"HOME": "/home/alice", "XDG_CONFIG_HOME": "relative"}, ["/home/alice/.config/moorage/user.conf"]),
        ({"HOME": "home"}, []),
        ({}, []),
    ],
)
def test_where_those_of_a_user_are(environment: dict[str, str], own: list[str]) -> None:
    assert list(locations(user=True, environment=environment).main) == [
        *own,
        "/etc/moorage/user.conf",
        "/run/moorage/user.conf",
        "/usr/local/lib/moorage/user.conf",
        "/usr/lib/moorage/user.conf",
    ]


def test_nothing_is_there(tmp_path: Path) -> None:
    assert find(at(tmp_path, "etc", "run")) == Listing(None, ())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["etc", "run", "lib"]), st.sampled_from(["10-a", "10-b", "9", "ä", "zz", "A"])
        ),
        max_size=12,
    )
)
def test_of_each_name_the_first_directory_counts(
    tmp_path_factory: pytest.TempPathFactory, there: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("conf")
    for base, name in there:
        put(root / base / "moored.conf.d" / f"{name}.conf")
    names = sorted({f"{name}.conf" for _, name in there}, key=str.encode)
    first = {
        name: next(base for base in ("etc", "run", "lib") if (base, name[:-5]) in there) for name in names
    }
    assert find(at(root, "etc", "run", "lib")).drop_ins == tuple(
        str(root / first[name] / "moored.conf.d" / name) for name in names
    )


def test_of_the_main_file_the_first_counts(tmp_path: Path) -> None:
    run = put(tmp_path / "run/moored.conf", "a = 1")
    put(tmp_path / "lib/moored.conf")
    assert find(at(tmp_path, "etc", "run", "lib")).main == run
    etc = put(tmp_path / "etc/moored.conf")
    assert find(at(tmp_path, "etc", "run", "lib")).main == etc


def test_what_is_no_drop_in(tmp_path: Path) -> None:
    directory = tmp_path / "etc/moored.conf.d"
    for name in ("x.conf~", ".x.conf", "x", "x.conf.dpkg-old", "x.CONF"):
        put(directory / name)
    (directory / "d.conf").mkdir()
    (directory / "loop.conf").symlink_to("loop.conf")
    assert find(at(tmp_path, "etc")).drop_ins == (str(directory / "loop.conf"),)
    with pytest.raises(Unreadable, match="symbolic links"):
        read(str(directory / "loop.conf"), ME)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    path = put(tmp_path / "etc/moored.conf.d")
    assert find(at(tmp_path, "etc")).errors == ((path, "cannot be looked into: Not a directory"),)
    put(tmp_path / "run")
    assert find(at(tmp_path, "run")).main is None


def test_too_many_drop_ins(tmp_path: Path) -> None:
    paths = [put(tmp_path / f"etc/moored.conf.d/{number:04}.conf") for number in range(DROP_INS_MAX + 3)]
    found = find(at(tmp_path, "etc"))
    assert list(found.drop_ins) == paths[:DROP_INS_MAX]
    ((path, reason),) = found.errors
    assert path == paths[DROP_INS_MAX]
    assert f"only {DROP_INS_MAX}" in reason


def test_a_file_is_read(tmp_path: Path) -> None:
    path = put(tmp_path / "etc/moored.conf", "machinesMax = 5\n")
    assert read(path, ME) == b"machinesMax = 5\n"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read(str(link), ME) == b"machinesMax = 5\n"
    assert read(put(tmp_path / "full", "#" * BYTES_MAX), ME) == b"#" * BYTES_MAX


def test_a_mask_is_empty(tmp_path: Path) -> None:
    (tmp_path / "mask").symlink_to("/dev/null")
    assert read(str(tmp_path / "mask"), ME) == b""


def test_what_is_not_read(tmp_path: Path) -> None:
    def refused(path: str, match: str, owners: frozenset[int] = ME) -> None:
        with pytest.raises(Unreadable, match=match):
            read(path, owners)

    os.mkfifo(tmp_path / "fifo")
    refused(str(tmp_path / "fifo"), "not a file")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        refused(str(tmp_path / "socket"), "not a file")
    for device in ("/dev/zero", "/dev/tty"):
        (tmp_path / "device").symlink_to(device)
        refused(str(tmp_path / "device"), "not a file")
        (tmp_path / "device").unlink()
    refused(str(tmp_path), "not a file")
    refused(str(tmp_path / "none"), "No such file")
    refused(put(tmp_path / "large", "#" * (BYTES_MAX + 1)), f"more than {BYTES_MAX} bytes")
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(1 << 40)
    refused(str(tmp_path / "sparse"), f"more than {BYTES_MAX} bytes")
    mine = put(tmp_path / "mine")
    refused(mine, f"belongs to uid {os.geteuid()}", frozenset({os.geteuid() + 1}))
    os.chmod(mine, 0o666)
    refused(mine, "everybody can write it")
    (tmp_path / "dangling").symlink_to("nowhere")
    refused(str(tmp_path / "dangling"), "No such file")
