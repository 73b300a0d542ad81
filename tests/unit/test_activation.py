"""What the service manager hands over and keeps, over sockets that the test plays it at."""

import os
import socket
from collections.abc import Generator
from pathlib import Path

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


def test_what_is_stored_has_a_name_of_its_own(manager: socket.socket) -> None:
    notifier = Notifier()
    store = descriptor_store(notifier, {"references-7": 0, "references-x": 0})
    assert store is not None
    with socket.socket() as kept:
        found = os.fstat(kept.fileno())
        assert [store.put(kept.fileno()), store.put(kept.fileno())] == ["references-8", "references-9"]
    for number in (8, 9):
        assert heard(manager) == (f"FDSTORE=1\nFDNAME=references-{number}", [(found.st_dev, found.st_ino)])
    assert store.remove("references-7")
    assert heard(manager) == ("FDSTOREREMOVE=1\nFDNAME=references-7", [])
    notifier.close()


def test_a_manager_that_does_not_listen_stores_nothing(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "NOTIFY_SECONDS", 0.001)
    notifier = Notifier()
    store = descriptor_store(notifier, {})
    assert store is not None
    manager.close()
    assert store.put(0) is None
    assert not store.remove("references-1")
    notifier.close()


def test_without_a_store_there_is_none(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = Notifier()
    for most in ("0", ""):
        monkeypatch.setenv("FDSTORE", most)
        assert descriptor_store(notifier, {}) is None
        assert descriptor_store(notifier, {"references-1": 0}) is not None  # it is to be emptied
    monkeypatch.delenv("FDSTORE")
    assert descriptor_store(notifier, {}) is None
    notifier.close()


def test_what_is_passed_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listening, other = (
        activation.listen(str(tmp_path / "varlink")),
        activation.listen(str(tmp_path / "other")),
    )
    one, two = socket.socketpair()
    passed = {listening.detach(): "varlink", one.fileno(): "references-1", other.detach(): "http"}
    monkeypatch.setattr(daemon, "listen_fds_with_names", lambda unset_environment=True: passed)
    assert stored() == {"references-1": one.fileno()}
    (found,) = listeners()
    found.close()
    with one, two:  # neither closed nor read
        two.send(b"x")
        assert one.recv(1) == b"x"
    for descriptor, name in passed.items():
        if name != "references-1":
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)
