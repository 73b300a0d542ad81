"""QEMU whose limits are changed while its guest runs."""

import contextlib
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import OURS, Processes, connect, register, run, show, until, verdict

MIB = 1024 * 1024
SCOPE = "machine-web.scope"

BOOT_SECTOR = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"
"""A guest that keeps its processor busy for ever: a jump to itself."""


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def kernel(group: str, attribute: str) -> str:
    return Path(f"/sys/fs/cgroup{group}/{attribute}").read_text().strip()


def throttled(group: str) -> int:
    """For how long a quota kept a group from running, µs."""
    return int(dict(line.split() for line in kernel(group, "cpu.stat").splitlines())["throttled_usec"])


class Qmp:
    """A connection to QEMU's machine protocol."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._execute("qmp_capabilities")

    def _execute(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        for line in self._lines:
            message = json.loads(line)
            if "return" in message:
                return message["return"]
        raise AssertionError("QEMU has hung up")

    def status(self) -> str:
        """What it says of its guest."""
        return self._execute("query-status")["status"]

    def save(self, path: Path) -> None:
        """Write half of its memory to a file; raises AssertionError if it dies of that."""
        self._execute("pmemsave", val=0, size=32 * MIB, filename=str(path))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


async def test_its_limits_change_while_its_guest_runs(spawn: Processes, tmp_path: Path) -> None:
    disk, path = tmp_path / "disk", tmp_path / "qmp"
    disk.write_bytes(BOOT_SECTOR)
    process = spawn(
        ("qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none",
         "-drive", f"file={disk},format=raw", "-qmp", f"unix:{path},server,nowait")
    )  # fmt: skip
    await until(path.exists, "QEMU listens")
    qmp = Qmp(path)
    async with await connect() as client:
        group = (await register(client, "web", process, properties={"MemorySwapMax": 0}))["machine"][
            "controlGroup"
        ]

        # Nothing is reclaimed or killed for these, but threads, processor time and memory have their bounds.
        threads = int(kernel(group, "pids.current"))
        run("moorctl", "set-property", "web", "CPUQuota=20%", "MemoryMax=256M", f"TasksMax={threads}")
        assert [kernel(group, name) for name in ("cpu.max", "memory.max", "pids.max")] == [
            "20000 100000", str(256 * MIB), str(threads),
        ]  # fmt: skip
        names = ("CPUQuotaPerSecUSec", "MemoryMax", "TasksMax")
        assert show(SCOPE, *names) == dict(zip(names, ("200ms", str(256 * MIB), str(threads)), strict=True))
        await until(lambda: throttled(group) > 100_000)
        assert qmp.status() == "running"

        run("systemctl", "set-property", "--runtime", SCOPE, "CPUQuota=30%")
        assert kernel(group, "cpu.max") == "30000 100000"
        run("systemctl", "daemon-reload")
        assert kernel(group, "memory.max") == str(256 * MIB)

        found = await client.call(f"{OURS}Describe", {"name": "web"})
        assert (found["limits"]["CPUQuotaPerSecUSec"], found["limits"]["TasksMax"]) == (300_000, threads)
        assert found["accounting"]["cpuThrottledNSec"] > 100_000_000
        run("moorctl", "set-property", "web", "CPUQuota=")
        used = found["accounting"]["cpuUsageNSec"]

        async def goes_on() -> bool:
            return (await client.call(f"{OURS}Describe", {"name": "web"}))["accounting"][
                "cpuUsageNSec"
            ] > used

        await until(goes_on)
        assert qmp.status() == "running"

        # What is below all that it needs ends it as soon as it needs more, and the verdict tells why.
        asked = {"name": "web", "properties": {"MemoryMax": MIB}}
        for each in (await client.call(f"{OURS}SetProperties", asked))["differences"]:
            assert each["effective"] == str(MIB)  # it says what became of what was in use
        with contextlib.suppress(AssertionError, OSError):
            qmp.save(tmp_path / "memory")
        assert await trio.to_thread.run_sync(process.wait) == -signal.SIGKILL
        found = await verdict(client, "web")
        assert (found["cause"], found["oomKilled"]) == ("oomKilled", True)
        assert found.get("leaderSignal", signal.SIGKILL) == signal.SIGKILL  # left out where it is not known
    qmp.close()
