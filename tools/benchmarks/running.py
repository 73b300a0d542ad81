"""Machines that run: their limits changed, frozen, measured, and watched, by moored and by systemd's own tools."""

import fcntl
import os
import pty
import resource
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator

from benchmarks.apart import OtherCaller
from benchmarks.machines import Leaders
from benchmarks.peers import COMMAND_SECONDS, MOORED, Peer, settle
from benchmarks.wire import Unmeasurable, connect, encode, exchange, exchange_all, quantile

CHANGES = 20
"""Changes of limits, and pairs of Freeze and Thaw, in one round."""

MEASURES = 10
"""Looks at all machines in one round."""

TOP_SECONDS = 8.0
"""How long the CPU time of a live table is counted, with a refresh each second; after WARM_SECONDS."""
WARM_SECONDS = 3.0

OF_CGTOP = {"counters": ["cpu", "memory", "tasks", "io"]}
"""What systemd-cgtop reads."""

CGTOP = ("systemd-cgtop", "--iterations=1", "--raw", "--batch")

_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_WINDOW = struct.pack("HHHH", 50, 120, 0, 0)

Figures = Iterator[tuple[str, float]]
"""Keys and values."""


def by_moored(leaders: Leaders) -> Figures:
    """Measure moored with machines that it has."""
    with connect(MOORED.socket) as sock:
        fd, name = sock.fileno(), leaders.names[0]
        for number in range(CHANGES):
            limits = {
                "MemoryHigh": (1 << 30) + (number << 12),
                "TasksMax": 1000 + number,
                "CPUWeight": 100 + number,
            }
            yield (
                "set",
                _timed(fd, encode("io.moorage.Machine.SetProperties", {"name": name, "properties": limits})),
            )
        for _ in range(CHANGES):
            calls = (encode(f"io.moorage.Machine.{method}", {"name": name}) for method in ("Freeze", "Thaw"))
            yield "freeze", sum(_timed(fd, call) for call in calls)
        for key, parameters in (("measure", OF_CGTOP), ("whole", {})):
            yield from _measured(fd, key, encode("io.moorage.Machine.Measure", parameters, more=True))
    with OtherCaller(MOORED.socket) as other, connect(MOORED.socket) as sock:
        for _ in range(MEASURES):
            exchange_all(sock.fileno(), encode("io.moorage.Machine.Measure", {}, more=True))
    yield "other", quantile(other.waits, 0.99)
    yield from _watched(["moorctl", "top"], MOORED)


def _timed(fd: int, request: bytes) -> float:
    begin = time.perf_counter()
    exchange(fd, request)
    return (time.perf_counter() - begin) * 1000


def _measured(fd: int, key: str, request: bytes) -> Figures:
    settle()
    used, begin = MOORED.cpu(), time.perf_counter()
    for _ in range(MEASURES):
        exchange_all(fd, request)
    yield f"{key}/wall", (time.perf_counter() - begin) * 1000 / MEASURES
    yield f"{key}/cpu", (MOORED.cpu() - used) / MEASURES


def by_busctl(leaders: Leaders) -> Figures:
    """Make the bare calls of the service manager, by busctl."""
    unit = f"machine-{leaders.names[1]}.scope"
    for number in range(CHANGES):
        limits = {
            "MemoryHigh": (1 << 30) + (number << 12),
            "TasksMax": 1000 + number,
            "CPUWeight": 100 + number,
        }
        words = [word for name, value in limits.items() for word in (name, "t", str(value))]
        yield "set", _busctl("SetUnitProperties", "sba(sv)", unit, "true", str(len(limits)), *words)
    for _ in range(CHANGES):
        yield "freeze", _busctl("FreezeUnit", "s", unit) + _busctl("ThawUnit", "s", unit)


def _busctl(*words: str) -> float:
    begin = time.perf_counter()
    subprocess.run(
        ["busctl", "--quiet", "call", *_MANAGER, *words],
        check=True,
        timeout=COMMAND_SECONDS,
        stdout=subprocess.DEVNULL,
    )
    return (time.perf_counter() - begin) * 1000


def by_cgtop() -> Figures:
    """Measure systemd-cgtop with the same machines."""
    for _ in range(MEASURES):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(CGTOP, check=True, timeout=COMMAND_SECONDS, stdout=subprocess.DEVNULL)
        wall = (time.perf_counter() - begin) * 1000
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000
        for key in ("measure", "whole"):
            yield f"{key}/wall", wall
            yield f"{key}/cpu", cpu
    yield from _watched(["systemd-cgtop", "--delay=1"], None)


def _watched(argv: list[str], service: Peer | None) -> Figures:
    """Run a live table on a terminal of its own, and count its CPU time for each refresh."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execvp(argv[0], argv)
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, _WINDOW)
        threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
        time.sleep(WARM_SECONDS)
        before = _cpu_of_process(pid), service.cpu() if service else 0.0
        time.sleep(TOP_SECONDS)
        after = _cpu_of_process(pid), service.cpu() if service else 0.0
    finally:
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        os.close(terminal)
    client, served = ((b - a) / TOP_SECONDS for a, b in zip(before, after, strict=True))
    yield "top/client", client
    yield "top/service", served if service else client


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:
        pass  # EIO: the other end is closed, pty(7)


def _cpu_of_process(pid: int) -> float:
    """Return the CPU time of a process, in ms."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise Unmeasurable("the live table has ended")
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
