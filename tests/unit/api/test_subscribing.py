"""Subscribe over a real socket, by those who do not read."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import trio
from fakes.played import PlayedManager

from moorage.api.calls import Authority
from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.moorage_machine.wording import Wording
from moorage.app import Core
from moorage.authz.policy import Policy
from moorage.configuration.current import Configuration
from moorage.configuration.settings import Loaded, Settings
from moorage.kernel.poller import Readiness
from moorage.kernel.process import boot_id, identify
from moorage.kernel.system import system
from moorage.machines.errors import Full
from moorage.machines.event_files import EventFiles
from moorage.machines.events import Extent
from moorage.machines.helpers.units import RuntimeDirectories
from moorage.machines.model import MachineClass, Registration
from moorage.machines.store import Store
from moorage.pid1 import journal
from moorage.pid1.references import BusReferences
from moorage.wire.client import Client
from moorage.wire.server import Server
from moorage.wire.service import Service

KEPT = 16 * 1024
"""Events; that there are four times as many by default makes no difference but to the time that it takes."""
EVENTS = KEPT + KEPT // 2
AT_ONCE = 100
READ_SECONDS = 60.0

SUBSCRIBE = "io.moorage.Machine.Subscribe"


async def test_who_never_reads_is_told_how_much_was_lost_and_nobody_else_notices(tmp_path: Path) -> None:
    readiness, store, manager = Readiness(), Store(str(tmp_path / "records")), PlayedManager()
    core = Core(
        manager,
        store,
        EventFiles(str(tmp_path / "events"), boot_id(), extent=Extent(KEPT)),
        Wording(),
        RuntimeDirectories(user=False, root="/run"),
        BusReferences(None),
        system(readiness),
        journal,
    )
    configuration = Configuration(lambda: Loaded(Settings(), {}, ()))
    door = MoorageMachine(core.services, Authority(Policy(None)), manager, configuration)
    server = Server()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as deaf:
        listener.bind(path)
        listener.listen()
        server.listen(listener, Service(vendor="", product="", version="", url="", interfaces=(door,)))
        async with trio.open_nursery() as nursery:
            await nursery.start(core.run)
            await nursery.start(server.serve)
            deaf.connect(path)
            deaf.send(json.dumps({"method": SUBSCRIBE, "more": True}).encode() + b"\0")
            async with (
                await Client.connect(path) as client,
                client.call_more(SUBSCRIBE, {"names": ["last"]}) as replies,
            ):
                assert (await anext(replies))["event"]["event"] == "snapshotDone"
                await happen(core, EVENTS, "many")
                await happen(core, 1, "last")
                with trio.fail_after(READ_SECONDS):
                    assert (await anext(replies))["event"]["name"] == "last"
            told, lost = await heard(deaf)
            assert told + lost == EVENTS
            assert told <= KEPT + KEPT // 16
            nursery.cancel_scope.cancel()
    readiness.close()
    store.close()


async def happen(core: Core, count: int, name: str) -> None:
    """Have registrations fail."""
    wanted = Registration(name, MachineClass.vm, 0, identify(1), -1, 0, None, allocate_unit=True)
    for number in range(count):
        with contextlib.suppress(Full), core.followers.failures(wanted):
            raise Full
        if number % AT_ONCE == 0:
            await trio.lowlevel.checkpoint()


async def heard(deaf: socket.socket) -> tuple[int, int]:
    """Read what there is until the last event: how many came, and how many were lost."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(deaf.dup()))
    rest, told, lost = b"", -1, 0  # without the end of the snapshot
    with trio.fail_after(READ_SECONDS):
        async with stream:
            while True:
                *messages, rest = (rest + await stream.receive_some(1 << 20)).split(b"\0")
                told += len(messages)
                for message in messages:
                    if b'"lost"' in message:
                        told -= 1
                        lost += json.loads(message)["parameters"]["event"]["data"]["count"]
                    if b'"last"' in message:
                        return told - 1, lost
