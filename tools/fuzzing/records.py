"""Records of machines, found when the service starts."""

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import trio
import trio.testing
from hypothesis import strategies as st

from fuzzing.mutation import damaged, damaged_json, encode_json
from fuzzing.service_manager import Recorded
from fuzzing.target import Target, corpus
from moorage.api.moorage_machine.wording import Wording
from moorage.app import Core
from moorage.kernel.poller import Readiness
from moorage.kernel.process import boot_id
from moorage.kernel.system import system
from moorage.machines.event_files import EventFiles
from moorage.machines.helpers.units import RuntimeDirectories
from moorage.machines.store import BadRecord, Store, decode, encode
from moorage.pid1 import journal
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints
from moorage.pid1.references import BusReferences

NAME = "web"
"""Name of the machine, and of the file."""

BOOT = b"@BOOT@"
"""Stands for the ID of this boot in the corpus."""


@dataclass(frozen=True)
class Record:
    """A file with the name of a machine, and another one with an arbitrary name."""

    content: bytes
    other: str | None = None


def _of_file(data: bytes) -> Iterator[Record]:
    yield Record(data)


async def _start(directory: str) -> tuple[int, int]:
    """Start the service on these records. Return the number of machines before and after the first check."""
    recorded = Recorded()
    readiness = Readiness()
    async with recorded.listening(directory), trio.open_nursery() as nursery:
        manager = DBusManager(Endpoints(recorded.path, recorded.path), "private")
        await nursery.start(manager.run)
        store = Store(f"{directory}/machines")
        try:
            home = RuntimeDirectories(user=False, root=directory)
            files = EventFiles(f"{directory}/events", boot_id())
            core = Core(
                manager, store, files, Wording(), home, BusReferences(None), system(readiness), journal
            )
            found = sum(not isinstance(machine, BadRecord) for _, machine in store.load())
            await nursery.start(core.run)
            nursery.cancel_scope.cancel()
        finally:
            store.close()
    readiness.close()
    return found, len(core.services.registry)


def _examine(record: Record) -> str:
    before = len(os.listdir("/proc/self/fd"))
    content = record.content.replace(BOOT, boot_id().encode())
    with tempfile.TemporaryDirectory() as directory:
        machines = Path(directory, "machines")
        machines.mkdir()
        (machines / NAME).write_bytes(content)
        if record.other is not None:
            (machines / record.other).write_bytes(content)
        try:
            machine = decode(content, NAME)
        except BadRecord:
            outcome = "refused"
        else:
            assert encode(machine) == encode(decode(encode(machine), NAME))
            outcome = "taken"
        # A machine that ends with its lease may name any process of this system.
        with patch.object(signal, "pidfd_send_signal"):
            found, left = trio.run(_start, directory, clock=trio.testing.MockClock(autojump_threshold=0))
        assert left <= found <= 1 + (record.other is not None)
    assert len(os.listdir("/proc/self/fd")) == before, "file descriptors leaked"
    return outcome


def _inputs(goods: Sequence[bytes]) -> st.SearchStrategy[Record]:
    values: list[Any] = [msgspec.json.decode(good) for good in goods if _is_json(good)]
    contents = damaged(goods) | damaged_json(values, frozenset({"boot_id"})).map(encode_json)
    # Any possible file name.
    others = (
        st.just(f".start-{NAME}")
        | st.none()
        | st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=60).filter(
            lambda name: name not in {".", "..", NAME}
        )
    )
    return st.builds(Record, contents, others)


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


TARGET = Target("records", _inputs(corpus("records")), _examine, _of_file)
