"""Messages of the service manager over D-Bus: replies, errors and signals."""

import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import trio
import trio.testing
from hypothesis import strategies as st

from fuzzing.mutation import Operation, chosen, operations
from fuzzing.service_manager import RECORDED, Recorded
from fuzzing.target import Target, corpus
from moorage.pid1.errors import ManagerError, ManagerUnavailable
from moorage.pid1.manager import Job, ScopeSpec, UnitHint, UnitStatus
from moorage.pid1.over_dbus.calls import DBusManager
from moorage.pid1.over_dbus.session import Endpoints

MESSAGES = 40
"""Maximum number of damaged messages in one session: two for authentication, one for each reply or signal."""

SECONDS = 5.0
"""Deadline for each query, on a clock that does not wait."""

UNIT = "machine-web.scope"
"""The unit of the recorded replies."""


@dataclass(frozen=True)
class Session:
    """One connection to a service manager, and those that replace it.

    Attributes:
        damages: number of a message, and what is done to it.
        each: bytes that are written at once.
    """

    damages: tuple[tuple[int, Operation], ...] = ()
    each: int = 65536

    def damage(self, number: int, data: bytes) -> bytes:
        """Return what to send in place of a message."""
        for wanted, operate in self.damages:
            if wanted == number:
                data = operate(data)
        return data


async def _asked(manager: DBusManager, pidfd: int) -> set[str]:
    """Query everything, and return the outcomes."""

    def by() -> float:
        return trio.current_time() + SECONDS

    async def start() -> Job:
        types = await manager.property_types("scope", deadline=by())
        properties = types.convert({"MemoryMax": 2**30})
        spec = ScopeSpec(UNIT, (pidfd,), "machine.slice", "Machine", properties)
        return await manager.start_scope(spec, deadline=by())

    names = ("MemoryMax", "CPUWeight", "OOMPolicy", "DeviceAllow", "AllowedCPUs")
    questions: Sequence[tuple[Any, Callable[[], Awaitable[object]]]] = (
        (Job, start),
        (UnitStatus | None, lambda: manager.status(UNIT, deadline=by())),
        (tuple[str, str], lambda: manager.unit_of_process(pidfd, deadline=by())),
        (dict[str, object], lambda: manager.properties(UNIT, names, deadline=by())),
        (type(None), lambda: manager.thaw(UNIT, deadline=by())),
        (type(None), lambda: manager.kill(UNIT, "all", 15, deadline=by())),
        (Job, lambda: manager.stop(UNIT, deadline=by())),
        (type(None), lambda: manager.reset_failed(UNIT, deadline=by())),
    )
    outcomes: set[str] = set()
    for kind, ask in questions:
        try:
            answer = await ask()
        except ManagerError:
            outcomes.add("refused")
        else:
            outcomes.add("answered")
            # Of the type that it should be, down to the last field.
            msgspec.json.decode(msgspec.json.encode(answer), type=kind)
    return outcomes


async def _session(session: Session) -> str:
    recorded = Recorded(session.damage, session.each)
    hints: list[UnitHint] = []
    pidfd = os.pidfd_open(os.getpid())
    outcomes: set[str] = set()
    try:
        with tempfile.TemporaryDirectory() as directory:
            async with recorded.listening(directory):
                manager = DBusManager(Endpoints(recorded.path, recorded.path), "private")
                manager.watch(hints.append, lambda _: True)
                try:
                    async with trio.open_nursery() as nursery:
                        await nursery.start(manager.run)
                        outcomes = await _asked(manager, pidfd)
                        nursery.cancel_scope.cancel()
                except* ManagerUnavailable:
                    outcomes.add("unavailable")
    finally:
        os.close(pidfd)
    msgspec.json.decode(msgspec.json.encode(hints), type=list[UnitHint])
    return " and ".join(sorted(outcomes))


def _examine(session: Session) -> str:
    before = len(os.listdir("/proc/self/fd"))
    outcome = trio.run(_session, session, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(os.listdir("/proc/self/fd")) == before, "file descriptors leaked"
    return outcome


def _of_file(data: bytes) -> Iterator[Session]:
    """Return a strategy for a message that replaces another one."""
    for number in range(2, MESSAGES, 8):
        yield Session(((number, lambda _: data),))


_SIGNALS = [path.read_bytes() for path in sorted(RECORDED.glob("signal-*"))]


def _before(signal: bytes, data: bytes) -> bytes:
    return signal + data


_OPERATIONS: st.SearchStrategy[Operation] = operations(corpus("manager")) | st.builds(
    partial, st.just(_before), chosen(_SIGNALS)
)

TARGET = Target(
    "manager",
    st.builds(
        Session,
        st.lists(st.tuples(st.integers(0, MESSAGES - 1), _OPERATIONS), max_size=4).map(tuple),
        st.sampled_from((65536, 65536, 1000, 200)),
    ),
    _examine,
    _of_file,
)
