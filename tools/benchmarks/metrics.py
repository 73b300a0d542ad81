"""Scrapes of metrics: of moored itself, by systemd-report, and by way of the exporter."""

import subprocess
import time
import urllib.request

from benchmarks.wire import Unmeasurable, connect, encode, exchange_all

SOCKET = "/run/systemd/report/io.moorage.Machine"
EXPORTER = "http://127.0.0.1:9958/metrics"
REPORT = "/usr/lib/systemd/systemd-report"
PACKAGES = "python3-prometheus-client,systemd-report"

LIST = encode("io.systemd.Metrics.List", more=True)

SECONDS = 60.0
"""For one scrape, in s."""


def install() -> None:
    """Start what scrapes, and is scraped.

    Raises:
        subprocess.CalledProcessError: it cannot be started.
    """
    sockets = ("moorage-exporter.socket", "systemd-report-cgroup.socket")
    subprocess.run(["systemctl", "start", *sockets], check=True, timeout=SECONDS)


def scrape(prefix: str, count: int) -> float:
    """Return how long all values of moored take, in ms.

    Raises:
        Unmeasurable: not all machines are among them.
    """
    begin = time.perf_counter()
    with connect(SOCKET) as sock:
        replies = exchange_all(sock.fileno(), LIST)
    duration = (time.perf_counter() - begin) * 1000
    _check(replies.count(b'Machine.Phase","object":"' + prefix.encode()), count)
    return duration


def report(source: str, pattern: str, count: int) -> float:
    """Return how long systemd-report takes to print what a source has, in ms.

    Raises:
        Unmeasurable: not all machines are in it.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        [REPORT, "metrics", "--json=short", source], check=True, capture_output=True, timeout=SECONDS
    )
    duration = (time.perf_counter() - begin) * 1000
    _check(done.stdout.count(pattern.encode()), count)
    return duration


def export(prefix: str, count: int) -> float:
    """Return how long a scrape of the exporter takes, in ms.

    Raises:
        Unmeasurable: not all machines are in it.
    """
    begin = time.perf_counter()
    with urllib.request.urlopen(EXPORTER, timeout=SECONDS) as reply:
        text = reply.read()
    duration = (time.perf_counter() - begin) * 1000
    _check(text.count(b'moorage_machine_frozen{machine="' + prefix.encode()), count)
    return duration


def _check(found: int, count: int) -> None:
    if found < count:
        raise Unmeasurable(f"{found} of {count} machines are told of")
