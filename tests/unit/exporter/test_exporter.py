"""The exporter as a server, with something at the other end that is not moored, or not there."""

import http.client
import socket
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from moorage.exporter.collector import Machines
from moorage.exporter.serving import Exporter

DEADLINE = 0.3
REPLY = (
    b'{"parameters":{"name":"io.moorage.Machine.TasksCurrent","object":"web","value":7},"continues":true}\0'
    b'{"parameters":{"name":"io.moorage.Machine.Version","value":"1"}}\0'
)

Answer = Callable[[socket.socket], None]


@pytest.fixture
def get(tmp_path: Path) -> Generator[Callable[..., tuple[int, str]]]:
    """Make a request of an exporter that runs; return the status and the body."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    (tmp_path / "service").touch()
    machines = Machines(str(tmp_path / "metrics"), str(tmp_path / "service"), DEADLINE)
    exporter = Exporter(listener, machines, 0.5)
    thread = threading.Thread(target=exporter.serve)
    thread.start()

    def request(path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    request.port = port  # type: ignore[attr-defined]
    yield request
    thread.join(20)
    assert not thread.is_alive(), "it ends when nobody asks"


@pytest.fixture
def moored(tmp_path: Path) -> Generator[Callable[[Answer], None]]:
    """Be at the other end: each connection is answered in a thread."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "metrics"))
    threads: list[threading.Thread] = []

    def serve(answer: Answer) -> None:
        listener.listen()

        def run() -> None:
            while True:
                try:
                    connected, _ = listener.accept()
                except OSError:
                    return
                with connected:
                    try:
                        answer(connected)
                    except OSError:
                        continue

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield serve
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(20)


def replies(connected: socket.socket) -> None:
    assert connected.recv(4096).startswith(b'{"method":"io.systemd.Metrics.List"')
    connected.sendall(REPLY)


def hangs(connected: socket.socket) -> None:
    while connected.recv(4096):
        pass


def hangs_in_the_middle(connected: socket.socket) -> None:
    connected.sendall(REPLY[:-70])
    hangs(connected)


def goes_on_for_ever(connected: socket.socket) -> None:
    first = REPLY.partition(b"\0")[0] + b"\0"
    while True:
        connected.sendall(first * 100)


def hangs_up(connected: socket.socket) -> None:
    connected.recv(4096)


def talks_nonsense(connected: socket.socket) -> None:
    connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\0")


def says_something_else(connected: socket.socket) -> None:
    connected.sendall(b'{"parameters":{"name":7,"value":"1"}}\0')


def refuses(connected: socket.socket) -> None:
    connected.recv(4096)
    connected.sendall(b'{"error":"org.varlink.service.PermissionDenied","parameters":{}}\0')


def states(text: str) -> tuple[float, float]:
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return float(lines["moorage_up"]), float(lines["moorage_idle"])


def test_what_moored_says(get: Callable[..., tuple[int, str]], moored: Callable[[Answer], None]) -> None:
    moored(replies)
    status, text = get()
    assert (status, states(text)) == (200, (1, 0))
    assert 'moorage_machine_tasks{machine="web"} 7.0' in text


@pytest.mark.parametrize(
    "answer",
    [hangs, hangs_in_the_middle, goes_on_for_ever, hangs_up, talks_nonsense, says_something_else, refuses],
    ids=lambda answer: answer.__name__,
)
def test_what_is_no_moored_is_down(
    answer: Answer, get: Callable[..., tuple[int, str]], moored: Callable[[Answer], None]
) -> None:
    moored(answer)
    status, text = get()
    assert (status, states(text)) == (200, (0, 0))
    assert "moorage_machine" not in text


def test_one_that_has_nothing_to_do_is_idle(get: Callable[..., tuple[int, str]]) -> None:
    assert states(get()[1]) == (0, 1)


def test_one_that_was_killed_is_not(
    get: Callable[..., tuple[int, str]], moored: Callable[[Answer], None]
) -> None:
    assert states(get()[1]) == (0, 0), "its socket is there, and nobody listens"


def test_one_whose_socket_is_gone_is_not(get: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "service").unlink()
    assert states(get()[1]) == (0, 0)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/", "GET", 200), ("/metrics", "HEAD", 405), ("/other", "GET", 404), ("/metrics", "POST", 405)],
)
def test_other_requests(get: Callable[..., tuple[int, str]], path: str, method: str, status: int) -> None:
    assert get(path, method)[0] == status


def test_peers_that_send_garbage_or_nothing(get: Callable[..., tuple[int, str]]) -> None:
    port: int = get.port  # type: ignore[attr-defined]
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    for garbage in (b"\0" * 100, b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n", b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(garbage)
    assert get()[0] == 200
    for each in silent:
        each.close()
