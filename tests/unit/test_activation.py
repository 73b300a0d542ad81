"""What the service manager hands over and keeps, over sockets that the test plays it at."""

import errno
import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from systemd import daemon

from moorage import activation
from moorage.activation import Notifier, descriptor_store, listeners, stored


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[socket.socket]:
    """The end of the service manager, to which messages go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("FDSTORE", "4")
        yield heard


def heard(manager: socket.socket) -> tuple[str, list[tuple[int, int]]]:
    """Return the next message, and which files came with it."""
    data, descriptors, _, _ = socket.recv_fds(manager, 1000, 4)
    files = [os.fstat(each) for each in descriptors]
    for each in descriptors:
        os.close(each)
    return data.decode(), [(each.st_dev, each.st_ino) for each in files]


def test_a_duplicate_is_stored(manager: socket.socket) -> None:
    notifier = Notifier()
    store = descriptor_store(notifier, [])
    assert store is not None
    with socket.socket() as kept:
        found = os.fstat(kept.fileno())
        assert store.put(kept.fileno())
    assert heard(manager) == ("FDSTORE=1\nFDNAME=references", [(found.st_dev, found.st_ino)])
    notifier.close()


@pytest.mark.parametrize(
    ("refusals", "reaches"), [([errno.ENOMEM], True), ([errno.ENOBUFS] * 3, False), ([errno.EPERM], False)]
)
def test_a_message_without_memory_is_sent_again(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, refusals: list[int], reaches: bool
) -> None:
    class Refused(socket.socket):
        def sendmsg(self, *arguments: Any) -> int:
            if refusals:
                raise OSError(number := refusals.pop(), os.strerror(number))
            return super().sendmsg(*arguments)

    monkeypatch.setattr(socket, "socket", Refused)
    notifier = Notifier()
    assert notifier.notify("READY=1") is reaches
    assert refusals == []
    if reaches:
        assert heard(manager) == ("READY=1", [])
    notifier.close()


def test_a_manager_that_does_not_listen_stores_nothing(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "NOTIFY_SECONDS", 0.001)
    notifier = Notifier()
    store = descriptor_store(notifier, [])
    assert store is not None
    manager.close()
    assert not store.put(0)
    notifier.close()


def test_without_a_store_there_is_none(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = Notifier()
    for most in ("0", ""):
        monkeypatch.setenv("FDSTORE", most)
        assert descriptor_store(notifier, []) is None
        assert descriptor_store(notifier, [0]) is not None  # it is to be emptied
    monkeypatch.delenv("FDSTORE")
    assert descriptor_store(notifier, []) is None
    notifier.close()


def test_what_is_passed_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listening, other = (
        activation.listen(str(tmp_path / "varlink")),
        activation.listen(str(tmp_path / "other")),
    )
    one, two = socket.socketpair()
    passed = {listening.detach(): "varlink", one.fileno(): "references", other.detach(): "http"}
    monkeypatch.setattr(daemon, "listen_fds_with_names", lambda unset_environment=True: passed)
    assert stored() == [one.fileno()]
    (found,) = listeners()
    found.close()
    with one, two:  # neither closed nor read
        two.send(b"x")
        assert one.recv(1) == b"x"
    for descriptor, name in passed.items():
        if name != "references":
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)
