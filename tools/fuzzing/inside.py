"""The part that runs in the sandbox: python3 -m fuzzing.inside SECONDS SEED. Damaged conversations with the service.

What must hold after each of them, and what is put back before the next one, is in `Service`.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from hypothesis import strategies as st

from fuzzing.hand import OPEN, SERVICE, Order, Report
from fuzzing.loop import fuzz
from fuzzing.mutation import POSITIONS, damaged, damaged_json, encode_json
from fuzzing.target import Target, corpus

OURS = "io.moorage.Machine."
THEIRS = "io.systemd.Machine."

MAKES = frozenset({f"{OURS}Register", f"{THEIRS}Register"})
CHANGES = frozenset(
    {f"{OURS}{name}" for name in ("Stop", "Kill", "Forget", "AddHelpers", "RemoveHelper", "Reload")}
    | {f"{THEIRS}{name}" for name in ("Terminate", "Kill", "Unregister")}
)
TAKES_LONG = frozenset(
    {f"{OURS}{name}" for name in ("Register", "Stop", "AddHelpers", "RemoveHelper", "Reload")}
    | {f"{THEIRS}Terminate"}
)
"""Methods that may wait for a process, which may not do what it is told."""

KEPT = "kept"
"""A machine that exists all the time, with a helper. A conversation that does not name it must not touch it."""

NOTE = ".beside-"
"""What the names of notes begin with, beside the records: of what systemd-machined has."""

EIO = 5
"""Error that the service replies after a bug of its own."""

FDS_OF_MACHINE = 2
"""File descriptors of the service for each machine: the pidfd of its leader, and the socket where it is controlled."""

WAIT_SECONDS = 20.0
"""Deadline for anything that should happen at once."""
INPUT_SECONDS = 200.0
"""Deadline for one conversation, undoing its effects, and a new hand."""

LOOKS = 50
"""Conversations between two expensive checks: of units, records, file descriptors, and the journal."""

PIECES_MAX = 5
UNIT = "fuzz-hand.service"
LISTENER = "/run/fuzz-hand"
RECORDS = Path("/run/moorage/machines")
CHECKOUT = Path(__file__).resolve().parents[2]
DESCRIPTIONS = CHECKOUT / "interfaces"
WIRE = CHECKOUT / "service" / "moorage" / "wire"


def _known_errors() -> frozenset[str]:
    known = {"io.systemd.System", "io.systemd.TimedOut"}
    for path in (*DESCRIPTIONS.glob("*.varlink"), *WIRE.glob("*.varlink")):
        known |= {
            f"{path.stem}.{name}" for name in re.findall(r"^error (\w+)", path.read_text(), re.MULTILINE)
        }
    return frozenset(known)


ERRORS = _known_errors()


def run(*argv: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout


def until(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    """Wait until a condition holds that the system does not announce.

    Raises:
        AssertionError: it was not in time.
    """
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.01)


def calls(data: bytes) -> Iterator[tuple[str, Any]]:
    """Return methods and parameters of the calls in a conversation, parsed by other means than the service's own.

    What is not among them cannot be carried out.
    """
    for text in data.split(b"\0")[:-1]:
        try:
            call = json.loads(text)
            method, parameters = call["method"], call.get("parameters")
        except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
            return
        if isinstance(method, str):
            yield method, parameters


def named(data: bytes, methods: Container[str]) -> set[str]:
    """Return the names of the machines that calls of some methods are about."""
    found: set[str] = set()
    for method, parameters in calls(data):
        if method in methods and isinstance(parameters, dict):
            name = cast("dict[str, Any]", parameters).get("name")
            found |= {name} if isinstance(name, str) else set()
    return found


class Hand:
    """The process that talks, restarted when it was stopped."""

    def __init__(self) -> None:
        Path(LISTENER).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(LISTENER)
        self._listener.listen()
        self._listener.settimeout(WAIT_SECONDS)
        self._connected: socket.socket | None = None

    def close(self) -> None:
        """End the process."""
        self._end()
        self._listener.close()

    def _end(self) -> None:
        if self._connected is not None:
            self._connected.close()
            self._connected = None
        subprocess.run(["systemctl", "kill", "--signal=KILL", UNIT], check=False, capture_output=True)
        subprocess.run(["systemctl", "stop", UNIT], check=False, capture_output=True)
        subprocess.run(["systemctl", "reset-failed", UNIT], check=False, capture_output=True)

    def carry_out(self, order: Order) -> Report | None:
        """Let it hold a conversation. Return None if it did not survive that."""
        if self._connected is None:
            path = os.environ["PYTHONPATH"]
            run("systemd-run", "--quiet", f"--unit={UNIT}", f"--setenv=PYTHONPATH={path}", "--collect",
                sys.executable, "-m", "fuzzing.hand", LISTENER)  # fmt: skip
            self._connected, _ = self._listener.accept()
            self._connected.settimeout(2 * WAIT_SECONDS)
        line = bytearray()
        with contextlib.suppress(OSError):
            self._connected.sendall(json.dumps(asdict(order)).encode() + b"\n")
            while not line.endswith(b"\n"):
                data = self._connected.recv(1 << 16)
                if not data:
                    break
                line += data
        if not line.endswith(b"\n"):
            self._end()
            return None
        return Report(**json.loads(line))


class Service:
    """The service, and facts that must hold for it. A context manager."""

    def __enter__(self) -> Self:
        run("systemctl", "start", "moored.socket")
        self._leader = subprocess.Popen(["sleep", "infinity"])
        self._hand = Hand()
        self._connected = socket.socket(socket.AF_UNIX)
        self._connected.settimeout(WAIT_SECONDS)
        self._connected.connect(SERVICE)
        self.ask("io.systemd.service.Ping")
        self._pid = self._main_pid()
        self._count = 0
        run("journalctl", "--sync")
        self._cursor = run("journalctl", "--lines=0", "--show-cursor").rpartition("-- cursor: ")[2].strip()
        self._fds = self._open_fds()
        self._keep()
        self._units = self._loaded()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand.close()
        self.ask(f"{OURS}Stop", {"name": KEPT})
        self._connected.close()
        self._leader.kill()
        self._leader.wait()

    def _keep(self) -> None:
        """Register the permanent machine."""
        # Earlier calls may still be carried out while their connection exists.
        until(
            lambda: self._open_fds() <= self._fds,
            lambda: f"{self._open_fds()} of {self._fds} file descriptors",
        )
        helper = {
            "name": "fs",
            "execStart": ["/usr/bin/sleep", "infinity"],
            "sockets": [{"name": "fs.sock"}],
        }
        self._leader.kill()
        self._leader.wait()
        self._leader = subprocess.Popen(["sleep", "infinity"])
        parameters: dict[str, Any] = {
            "name": KEPT,
            "class": "vm",
            "leader": {"pid": self._leader.pid},
            "helpers": [helper],
        }
        (reply,) = self.ask(f"{OURS}Register", parameters)
        assert "error" not in reply, reply
        self._kept = self._listed()

    def ask(
        self, method: str, parameters: Mapping[str, Any] | None = None, *, more: bool = False
    ) -> list[dict[str, Any]]:
        """Call the service by the rules, and return its replies."""
        call = {"method": method, "parameters": parameters} | ({"more": True} if more else {})
        self._connected.sendall(json.dumps(call).encode() + b"\0")
        received = bytearray()
        while True:
            while not received.endswith(b"\0"):
                data = self._connected.recv(1 << 16)
                assert data, f"closed after {method}"
                received += data
            replies = [json.loads(text) for text in received.split(b"\0")[:-1]]
            if not replies[-1].get("continues"):
                return replies

    def _listed(self) -> dict[str, tuple[Any, ...]]:
        replies = self.ask(f"{OURS}List", more=True)
        machines = [reply["parameters"]["machine"] for reply in replies if "error" not in reply]
        return {
            machine["name"]: (
                machine["invocationId"],
                machine["leader"],
                machine["phase"],
                [
                    (helper["name"], helper["activeState"], helper["invocationId"])
                    for helper in machine["helpers"]
                ],
            )
            for machine in machines
        }

    def _main_pid(self) -> int:
        return int(run("systemctl", "show", "--value", "--property=MainPID", "moored.service"))

    def _open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def _loaded(self) -> set[str]:
        text = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "machine-*")
        return {line.split()[0] for line in text.splitlines()} - {"machine.slice"}

    def converse(self, order: Order) -> str:
        """Hold one conversation, and check what became of it.

        Raises:
            AssertionError: what should not.
        """
        report = self._hand.carry_out(order)
        data = "".join(order.pieces).encode("latin-1")
        outcome = "survived by the service only"
        if report is not None:
            data = report.sent.encode("latin-1")
            outcome = self._judge(order, report)
        self._put_back(data)
        self._count += 1
        if self._count % LOOKS == 0:
            self.look()
        return outcome

    def _judge(self, order: Order, report: Report) -> str:
        received = report.received.encode("latin-1")
        assert report.closed or order.patient, f"no answer: {received!r}"
        if report.closed and order.end == "reads":
            assert received.endswith(b"\0") or not received, received
        replies = [json.loads(text) for text in received.split(b"\0")[:-1]]
        for reply in replies:
            assert reply.keys() <= {"error", "parameters", "continues"}, reply
            if "error" in reply:
                assert reply["error"] in ERRORS, reply
                assert (reply["error"], reply["parameters"].get("errno")) != ("io.systemd.System", EIO), (
                    reply
                )
        if order.end != "reads":
            return "left"
        if any("error" not in reply for reply in replies):
            return "answered"
        return "refused" if replies else "closed"

    def _put_back(self, data: bytes) -> None:
        """Check that only effects remain that the conversation may have had, and undo those."""
        for name in named(data, MAKES) - {KEPT}:
            # This waits if its registration is under way.
            self.ask(f"{OURS}Stop", {"name": name, "timeoutUSec": 10_000_000})
            self.ask(f"{OURS}Forget", {"name": name})
        found = self._listed()
        if KEPT not in named(data, CHANGES):
            assert found == self._kept, f"it was {self._kept}, and is {found}"
            return
        # Effects of the calls may be under way.
        assert found.keys() <= self._kept.keys(), f"not asked for: {found.keys() - self._kept.keys()}"
        self.ask(f"{OURS}Stop", {"name": KEPT})
        self.ask(f"{OURS}Forget", {"name": KEPT})
        subprocess.run(["systemctl", "stop", f"machine-{KEPT}.scope"], check=False, capture_output=True)
        self._keep()

    def look(self) -> None:
        """Check that conversations left nothing behind, and the service logged no bug of its own."""
        assert self._main_pid() == self._pid, "it is another process"
        until(lambda: self._loaded() == self._units, lambda: f"left: {self._loaded() ^ self._units}")
        # Beside the record may be the note that machined has the machine, too.
        until(
            lambda: set(os.listdir(RECORDS)) - {NOTE + KEPT} == {KEPT},
            lambda: f"records: {os.listdir(RECORDS)}",
        )
        allowed = self._fds + FDS_OF_MACHINE
        until(
            lambda: self._open_fds() <= allowed, lambda: f"{self._open_fds()} of {allowed} file descriptors"
        )
        run("journalctl", "--sync")
        logged = run(
            "journalctl",
            "--unit=moored.service",
            f"--after-cursor={self._cursor}",
            "--output=cat",
            "--no-pager",
        )
        assert "Traceback" not in logged, logged


def inputs() -> st.SearchStrategy[Order]:
    """Return a strategy for conversations."""
    goods = corpus("calls")
    values: list[Any] = []
    for message in sorted({text for good in goods for text in good.split(b"\0") if text}):
        with contextlib.suppress(ValueError, RecursionError):
            values.append(json.loads(message))
    # With this name, what is not damaged is about the permanent machine.
    texts = st.lists(damaged_json(values).map(encode_json), min_size=1, max_size=4).map(
        lambda texts: b"".join(text + b"\0" for text in texts)
    )
    data = (damaged(goods) | texts | texts).flatmap(
        lambda each: st.sampled_from([each] * 5 + [each.replace(b'"web"', b'"%b"' % KEPT.encode())])
    )

    def order(data: bytes, cuts: list[int], fds: list[str], end: str) -> Order:
        places = sorted({cut * len(data) // POSITIONS for cut in cuts})
        pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]
        patient = any(method in TAKES_LONG for method, _ in calls(data))
        return Order([piece.decode("latin-1") for piece in pieces] or [""], fds, end, patient)

    return st.builds(
        order,
        data,
        st.lists(st.integers(0, POSITIONS - 1), max_size=PIECES_MAX),
        st.just(["leader"]) | st.lists(st.sampled_from(sorted(OPEN)), max_size=3),
        st.sampled_from(("reads", "reads", "reads", "hangs up", "resets")),
    )


def main() -> int:
    """Run, and return the exit status: 1 if something was found."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    with Service() as service:
        target = Target("live", inputs(), service.converse, lambda _: ())
        good = fuzz(target, seconds, seed, input_seconds=INPUT_SECONDS)
        if good:
            service.look()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
