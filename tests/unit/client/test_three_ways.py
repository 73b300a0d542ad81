"""The client on trio, on asyncio and without either, with a service that keeps no units."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from descriptors import children, open_descriptors
from flavours import FLAVOURS, Flavour, done, every, within

from moorage import client
from moorage.client import CALLER, Describe, Find, List, Register, Stop
from moorage.client.dialogue import Underway

pytestmark = pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda each: each.name)

FAKE = Path(__file__).parents[1] / "cli" / "fake_moored.py"
SECONDS = 20.0


@pytest.fixture(autouse=True)
def _nothing_left(flavour: Flavour) -> Generator[None]:
    """No test leaves a child, a thread or a file descriptor."""
    before, threads = (children(), open_descriptors()), threading.active_count()
    yield
    assert (children(), open_descriptors()) == before
    assert threading.active_count() <= threads  # trio lets idle ones of earlier tests go


@pytest.fixture
def listener(tmp_path: Path, _nothing_left: None) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(SECONDS)
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        yield listening


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The socket of a fake service for all tests: each of them leaves no machine."""
    path = str(tmp_path_factory.mktemp("fake") / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        service = subprocess.Popen([sys.executable, str(FAKE)], stdin=listening.fileno())
    yield path
    service.terminate()
    service.wait(SECONDS)


@pytest.fixture
def address(fake: str, _nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The socket of the fake service, which is also the default."""
    monkeypatch.setenv("MOORAGE_ADDRESS", fake)
    return fake


def test_a_launcher(flavour: Flavour, address: str) -> None:
    async def test() -> None:
        read, write = os.pipe()
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            assert (web.machine.name, web.machine.unit) == ("web", "machine-web.scope")
            await done(web.run(["sh", "-c", "echo $SCOPE; exit 3"], env={"SCOPE": "s"}, fds={1: write}))
            verdict = await done(web.wait())
        assert (verdict.result, os.read(read, 10)) == ("success", b"s\n")
        os.close(read)
        os.close(write)

    flavour.run(test)


def test_a_body_that_fails_leaves_nothing(flavour: Flavour, address: str) -> None:
    async def test() -> None:
        async def body() -> None:
            async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
                await done(web.run(["sleep", "infinity"]))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await body()
        async with within(await done(flavour.client.Client.connect())) as moored:
            assert await done(moored.machines()) == []
            assert (await done(moored.call(Describe("web")))).machine.phase == "exited"

    flavour.run(test)


def test_one_that_is_never_run_leaves_nothing(flavour: Flavour, address: str) -> None:
    async def test() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"), address=address)):
            pass
        async with within(await done(flavour.client.Client.connect(address))) as moored:
            assert await done(moored.machines()) == []

    flavour.run(test)


def test_a_body_that_is_cancelled_leaves_nothing(flavour: Flavour, address: str) -> None:
    async def body() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            await done(web.run(["sleep", "infinity"]))
            if flavour.name == "blocking":
                timer = threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
                timer.start()
            await done(web.wait())

    async def test() -> None:
        match flavour.name:
            case "trio":
                with trio.move_on_after(0.05):
                    await body()
            case "asyncio":
                task = asyncio.create_task(body())
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            case _:
                with pytest.raises(KeyboardInterrupt):
                    await body()
        async with within(await done(flavour.client.Client.connect())) as moored:
            assert await done(moored.machines()) == []

    flavour.run(test)


def test_a_child_as_the_leader(flavour: Flavour, address: str) -> None:
    async def test() -> None:
        with subprocess.Popen(["sleep", "infinity"]) as child:  # noqa: ASYNC220  # it does not wait
            pidfd = os.pidfd_open(child.pid)
            for leader in (child, pidfd):
                async with within(
                    flavour.client.machine(Register("web", class_="vm"), leader=leader)
                ) as web:
                    assert web.machine.leader.pid == child.pid
                    with pytest.raises(RuntimeError, match="runs already"):
                        await done(web.run(["true"]))
                    if leader == pidfd:
                        child.kill()
                        await done(web.wait())
                    else:
                        break  # leaves the block: stopped
            os.close(pidfd)
            assert child.wait(SECONDS) in {-signal.SIGTERM, -signal.SIGKILL}

    flavour.run(test)


@pytest.mark.parametrize("leader", [0, 987654, pytest.param(None, id="not started")])
def test_what_is_no_leader(flavour: Flavour, address: str, leader: int | None) -> None:
    class NotStarted:
        pid = None

    async def test() -> None:
        given = NotStarted() if leader is None else leader
        with pytest.raises(ValueError, match="leader: "):
            async with within(flavour.client.machine(Register("web", class_="vm"), leader=given)):
                pass

    flavour.run(test)


def test_errors_have_their_fields(flavour: Flavour, address: str) -> None:
    async def test() -> None:
        async with within(flavour.client.machine(Register("web", class_="vm"))) as web:
            with pytest.raises(client.MachineExists) as exists:
                async with within(flavour.client.machine(Register("web", class_="vm"))):
                    pass
            assert (exists.value.name, exists.value.unit) == ("web", web.machine.unit)
            assert exists.value.invocationId == web.machine.invocation_id
            register = Register("b", class_="vm", properties={"Colour": 1})
            with pytest.raises(client.NoSuchProperty) as property_:
                async with within(flavour.client.machine(register)):
                    pass
            assert property_.value.property == "Colour"
        async with within(await done(flavour.client.Client.connect())) as moored:
            with pytest.raises(client.NoSuchMachine) as gone:
                await done(moored.call(Stop("nobody")))
            assert gone.value.name == "nobody"
            with pytest.raises(client.InvalidParameter) as invalid:
                await done(moored.call(Register("", class_="vm", leader_file_descriptor=0), fds=[0]))
            assert invalid.value.parameter == "name"

    flavour.run(test)


def test_calls(flavour: Flavour, address: str) -> None:
    async def test() -> None:
        async with (
            within(flavour.client.machine(Register("a", class_="vm"))) as a,
            within(flavour.client.machine(Register("b", class_="container"))),
            within(await done(flavour.client.Client.connect())) as moored,
        ):
            assert sorted(machine.name for machine in await done(moored.machines())) == ["a", "b"]
            async with within(moored.stream(List())) as replies:
                assert sorted(reply.machine.name for reply in await every(replies)) == ["a", "b"]
            assert (await done(moored.call(Find(unit=a.machine.unit)))).machine == a.machine
            # An open stream has the connection to itself, and takes it along when it is left early.
            replies = moored.stream(List())
            async with within(replies):
                await done(replies.__next__() if flavour.name == "blocking" else replies.__anext__())
                with pytest.raises(Underway):
                    await done(moored.call(Describe("a")))
            assert moored.closed
            with pytest.raises(client.Disconnected):
                await done(moored.call(Describe("a")))

    flavour.run(test)


def test_no_service(flavour: Flavour, tmp_path: Path) -> None:
    async def test() -> None:
        nowhere = str(tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            await done(flavour.client.Client.connect(nowhere))
        with pytest.raises(FileNotFoundError):
            async with within(flavour.client.machine(Register("web", class_="vm"), address=nowhere)):
                pass

    flavour.run(test)


class Service(threading.Thread):
    """Answers Register, and hangs up a few times; then Stop, and Describe."""

    def __init__(self, listener: socket.socket, times: int) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, Any], int]] = []
        self._listener = listener
        self._times = times

    def run(self) -> None:
        for _ in range(self._times):
            with self._listener.accept()[0] as connected:
                self._answer(connected)
        with self._listener.accept()[0] as kept:
            self._answer(kept)
            while self.calls[-1][0]["method"].endswith("Register"):
                with self._listener.accept()[0] as connected:
                    self._answer(connected)

    def _answer(self, connected: socket.socket) -> None:
        text, fds, _, _ = socket.recv_fds(connected, 65536, 5)
        for fd in fds:
            os.close(fd)
        machine = {
            "name": "web", "class": "vm", "phase": "running", "freezer": "running", "uid": 0, "unit": "u",
            "slice": "s", "controlGroup": "/g", "controlGroupId": 1, "invocationId": "a" * 32, "timestamp": {},
        }  # fmt: skip
        connected.sendall(
            json.dumps({"parameters": {"machine": machine, "differences": []}}).encode() + b"\0"
        )
        self.calls.append((json.loads(text[:-1]), len(fds)))


def test_a_lease_that_is_lost_is_taken_again(flavour: Flavour, listener: socket.socket) -> None:
    service = Service(listener, times=3)
    service.start()

    async def test() -> None:
        address = str(listener.getsockname())
        async with within(flavour.client.machine(Register("web", class_="vm"), address=address)):
            await flavour.until(lambda: len(service.calls) == 4)

    flavour.run(test)
    service.join(SECONDS)
    first, *again, stop = service.calls
    assert again == [first] * 3
    assert (first[0]["parameters"]["lease"], stop[0]["parameters"]) == (
        True,
        {"name": "web", "ifInvocationId": "a" * 32},
    )


def test_the_caller_as_the_leader(flavour: Flavour, listener: socket.socket) -> None:
    """Its machine has no lease, and does not end with the block."""
    calls: list[dict[str, Any]] = []

    def serve() -> None:
        with listener.accept()[0] as connected:
            calls.append(json.loads(connected.recv(65536)[:-1]))
            connected.sendall(b'{"error":"io.moorage.Machine.Busy","parameters":{"operation":"Register"}}\0')

    service = threading.Thread(target=serve)
    service.start()

    async def test() -> None:
        address = str(listener.getsockname())
        with pytest.raises(client.Busy) as busy:
            async with within(
                flavour.client.machine(Register("web", class_="vm"), leader=CALLER, address=address)
            ):
                pass
        assert busy.value.operation == "Register"

    flavour.run(test)
    service.join(SECONDS)
    assert calls == [{"method": "io.moorage.Machine.Register", "parameters": {"name": "web", "class": "vm"}}]
