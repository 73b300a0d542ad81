"""What needs no container: reading os-release files, and the host."""

import errno
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import record

from moorage.machines.metadata import (
    Metadata,
    MetadataError,
    NotAvailable,
    Unreadable,
    acquire,
    parse_os_release,
)
from moorage.machines.model import MachineClass
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints
from moorage.probes import namespaces as namespace_probe
from moorage.probes.handing import LEADER_FD


def unconnected() -> DBusManager:
    """A manager that cannot be asked anything."""
    return DBusManager(Endpoints("/nonexistent", "/nonexistent"))


@pytest.mark.parametrize(
    ("content", "strings"),
    [
        (b"", []),
        (b"ID=debian\nVERSION_ID=13\n", ["ID=debian", "VERSION_ID=13"]),
        (b"ID=debian", ["ID=debian"]),
        (b"ID=debian\r\nB=1\r\n", ["ID=debian", "B=1"]),
        (b"\n \t\n  ID=debian\n", ["ID=debian"]),
        (b"# ID=x\n; ID=y\nID=z\n", ["ID=z"]),
        (b"# goes not on \\\nID=z\n", ["ID=z"]),
        (b"no key\nID=z\n", ["ID=z"]),
        (b"=\n=a=b\n", ["=a=b"]),
        (b"a#b;=c#d;e\n", ["a#b;=c#d;e"]),
        (b" ID \t= \t a  b \t\n", ["ID=a  b"]),
        (b"A=\nB= \nC=''\n", ["A=", "B=", "C="]),
        (b"""A='it is "$HOME" \\n'\n""", ['A=it is "$HOME" \\n']),
        (b"""A="\\"\\\\\\$\\` \\n \\a"\n""", ['A="\\$` \\n \\a']),
        (b'A="one\\\ntwo\nthree"\n', ["A=onetwo\nthree"]),
        (b"A='a' \"b\"c 'd' \"e\"\n", ["A=abc 'd' \"e\""]),
        (b"A=a\\ \\ \\\nb\\'  \n", ["A=a  b'"]),
        (b"A=a  \\\n\n", ["A=a  "]),
        (b"A=a\\", ["A=a"]),
        (b'A="a\\', ["A=a"]),
        (b'A="a\nB=b', ["A=a\nB=b"]),
        (b"A=1\nB=2\nA=3\n", ["A=3", "B=2"]),
        (b"# caf\xe9\nID=caf\xc3\xa9\n", ["ID=café"]),
        (b"\vID\v=\va\v\n", ["\vID\v=\va\v"]),
    ],
)
def test_an_os_release_is_read(content: bytes, strings: list[str]) -> None:
    assert parse_os_release(content) == strings


@pytest.mark.parametrize("content", [b"ID=a\0", b"#\0", b"ID=caf\xe9", b"\xff=a", b"A=\xed\xa0\x80"])
def test_a_binary_file_is_no_os_release(content: bytes) -> None:
    with pytest.raises(Unreadable):
        parse_os_release(content)


@given(st.lists(st.sampled_from(list(b"AB==  \t\n\n\r\\\\''\"\"#;$`\xc3\xa9"))).map(bytes))
def test_whatever_it_is_it_is_strings_of_keys_and_values_or_refused(content: bytes) -> None:
    try:
        strings = parse_os_release(content)
    except Unreadable:
        return
    assert all("=" in each and each[0] not in " \t\r\n#;" for each in strings)


READ_SECONDS = 2.0
"""Of the processor, whatever else runs on it: a hundred times as much as it needs. By the square of the size it would
be minutes."""


@contextmanager
def processor_time_at_most(seconds: float) -> Generator[None]:
    """Fail a block that needs more time of the processor."""

    def late(_: int, __: object) -> None:
        raise AssertionError(f"it needs more than {seconds} s of the processor")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize(
    "piece", [b" ", b"\\", b"'", b'"', b"\\\\\n ", b"A=", b"A", b"=", b"A='' ", b"#\n", b"A \n"]
)
def test_the_largest_file_is_read_like_a_small_one(piece: bytes) -> None:
    for before in (b"", b"A=", b'A="'):
        content = (before + piece * namespace_probe.OS_RELEASE_MAX)[: namespace_probe.OS_RELEASE_MAX]
        with processor_time_at_most(READ_SECONDS):
            parse_os_release(content)


async def test_the_host_is_seen_without_asking_anybody() -> None:
    found = await acquire(record(class_=MachineClass.host), unconnected(), graceful=False)
    assert found.os_release is not None
    assert {"NAME=Linux", "ID=linux", "PRETTY_NAME=Linux", *found.os_release} >= {
        f"{key}={value}" for key, value in platform.freedesktop_os_release().items()
    }
    assert found.uid_shift == 0
    assert found.addresses is not None
    for address in found.addresses:
        # Only an address of our own can be bound.
        family = socket.AddressFamily(address.family)
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            text = socket.inet_ntop(family, address.address)
            one.bind((text, 0) if family == socket.AF_INET else (text, 0, 0, address.ifindex))
    assert [each.family for each in found.addresses] == sorted(each.family for each in found.addresses)


@pytest.mark.parametrize(
    ("class_", "error"), [(MachineClass.vm, NotAvailable), (MachineClass.container, Unreadable)]
)
async def test_what_cannot_be_had_is_an_error_or_nothing(
    class_: MachineClass, error: type[MetadataError]
) -> None:
    assert await acquire(record(class_=class_), unconnected(), graceful=True) == Metadata(None, None, None)
    with pytest.raises(error):
        await acquire(record(class_=class_), unconnected(), graceful=False)


def test_addresses_that_are_not_for_use_and_damaged_messages_are_not_told() -> None:
    assert namespace_probe._wanted(bytes(8)) is None
    deprecated = bytes([socket.AF_INET, 24, 0x20, 0, 1, 0, 0, 0]) + b"\x08\x00\x02\x00\x7f\x00\x00\x01"
    assert namespace_probe._wanted(deprecated) is None
    with pytest.raises(OSError, match=r"Bad message") as caught:
        namespace_probe._wanted(bytes([socket.AF_INET, 24, 0, 0, 1, 0, 0, 0]) + b"\xff\x00\x02\x00")
    assert caught.value.errno == errno.EBADMSG
    with pytest.raises(OSError, match=r"Bad message"):
        list(namespace_probe._messages(bytes(16)))


def run_probe(pidfd: int) -> object:
    argv = [sys.executable, "-I", "-S", "-B", namespace_probe.__file__]
    place = f"import os, sys; os.dup2({pidfd}, {LEADER_FD}); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", place, *argv], pass_fds=[pidfd], check=True, capture_output=True, timeout=30
    )
    assert done.stderr == b""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("maps", "wanted"),
    [
        ("         0     100000      65536\n", 0),
        ("0 1000 1\n", 0),
        ("0 1000 1\n1 100000 65536\n", 0),
        ("0 0 4294967295\n", 65534),
        ("0 0 1\n1 100000 65536\n", 65534),
        ("1 0 1\n0 100000 1\n", 0),
        ("1 1000 1\n", None),
        ("65534 0 1\n", None),
        ("0 0 1\n", None),
        ("", None),
    ],
)
def test_nobody_becomes_root_of_the_host_in_a_container(maps: str, wanted: int | None) -> None:
    assert namespace_probe._harmless(maps.encode()) == wanted


def test_links_to_what_others_have_open_are_not_followed() -> None:
    os.close(namespace_probe.find_inside(b"/etc/os-release"))
    for path in (b"/proc/self/exe", b"/proc/self/root/etc/os-release"):
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            namespace_probe.find_inside(path)
    with pytest.raises(FileNotFoundError):
        namespace_probe.find_inside(b"/nonexistent")


def test_a_probe_of_ourselves_needs_no_rights_and_only_the_standard_library() -> None:
    pidfd = os.pidfd_open(os.getpid())
    release = namespace_probe.os_release().decode("latin-1")
    assert run_probe(pidfd) == {"addresses": errno.ENONET, "os_release": release}
    os.close(pidfd)


def test_a_probe_of_nobody_says_so() -> None:
    process = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(process.pid)
    process.wait()
    assert run_probe(pidfd) == {"addresses": errno.ESRCH, "os_release": errno.ESRCH}
    os.close(pidfd)
    with open("/dev/null") as other:
        assert run_probe(other.fileno()) == {"addresses": errno.ESRCH, "os_release": errno.ESRCH}
