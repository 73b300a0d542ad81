"""Asks polkit, over the system bus, whether a caller may do something.

The subject is the process that made the connection, by the pidfd that the kernel kept of it since then, with the uid
that it had: a later process with its number, or what it turned into by executing a set-user-ID program, is judged no
better. That needs polkit 124 or later.

The connection to the bus is there while questions are pending. Where nobody but root calls, nothing is asked and no
broker needed.

Interface: "org.freedesktop.PolicyKit1.Authority" of https://www.freedesktop.org/software/polkit/docs/latest/
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Final

import trio

from moorage.dbus.bus import Bus, BusClosed, BusError, CallFailed, CallTimeout
from moorage.dbus.message import BusCall
from moorage.kernel.peer import Peer
from moorage.kernel.process import ProcessGone

ANSWER_SECONDS: Final = 25.0
"""For an answer that needs no person. A broker gives a service as long to be started (service_start_timeout of
dbus-daemon(1))."""

PERSON_SECONDS: Final = 300.0
"""For one that does: who has not found the password in five minutes has left."""

CANCEL_SECONDS: Final = 5.0
"""For taking a question back, which who leaves waits for. If it fails, a person sees a dialogue too many."""

QUESTIONS_MAX: Final = 64
"""Questions pending in all. Two thirds of what one connection to the bus may have (dbus.BUS_CALLS_MAX): the rest is
for taking them back."""

QUESTIONS_PER_UID_MAX: Final = 8
"""Questions pending of one user, so that one of them cannot take all places. A person answers one at a time."""

PERSONS_MAX: Final = 32
"""Questions pending that a person may be asked, in all. These last for minutes, and one person may have many uids
(subuid(5)): the other half is left to those that polkit answers by itself."""

ATTEMPTS_MAX: Final = 3
"""A broker or polkitd that is being restarted is asked again; one that goes again and again is not."""

AGAIN_SECONDS: Final = 1.0
"""Pause before a polkitd that went away is asked again. The broker sees that before systemd does, and a start that is
asked for in between is lost (seen on systemd 262)."""

SYSTEM_BUS: Final = "/run/dbus/system_bus_socket"

_NAME: Final = "org.freedesktop.PolicyKit1"
_PATH: Final = "/org/freedesktop/PolicyKit1/Authority"
_AUTHORITY: Final = f"{_NAME}.Authority"
_BUS: Final = "org.freedesktop.DBus"
_BUS_PATH: Final = "/org/freedesktop/DBus"
_ALLOW_USER_INTERACTION: Final = 1

_LOST: Final = frozenset({f"{_BUS}.Error.NoReply", f"{_BUS}.Error.Disconnected"})
"""polkitd went away before it answered."""

_log = logging.getLogger(__name__)


class Answer(Enum):
    """What polkit says.

    Attributes:
        YES: the caller may.
        NO: it may not; also where nobody could be asked.
        CHALLENGE: it may if somebody authenticates, and that was not allowed, or nobody is there to do it.
        SILENCE: polkit did not answer in time, nor did the person that it asked.
    """

    YES = auto()
    NO = auto()
    CHALLENGE = auto()
    SILENCE = auto()


class TooManyQuestions(Exception):
    """As many questions are pending as may be, in all or of this user."""


class Polkit:
    """Asks polkit. Works while `run` runs.

    Args:
        address: of the system bus.
    """

    def __init__(self, address: str = SYSTEM_BUS) -> None:
        self._address = address
        self._link: Bus | None = None
        self._users = 0
        self._connecting = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._pending: Counter[int] = Counter()
        self._persons = 0
        self._numbers = itertools.count(1)
        self._complained = ""

    @property
    def pending(self) -> int:
        """Number of questions without an answer."""
        return self._pending.total()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve those who ask."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def check(
        self, peer: Peer, action: str, details: Mapping[str, str], *, interactive: bool
    ) -> Answer:
        """Ask whether a peer may do something. The question is taken back when this is cancelled.

        Args:
            peer: who wants to.
            action: what, as a policy file has it.
            details: shown to who is asked, and seen by the rules.
            interactive: the user may be asked for authentication.

        Raises:
            TooManyQuestions: ask later.
            OSError: no file descriptor is left.
        """
        if self.pending >= QUESTIONS_MAX or self._pending[peer.uid] >= QUESTIONS_PER_UID_MAX:
            raise TooManyQuestions
        try:
            pidfd = peer.pidfd()
        except ProcessGone:
            return Answer.NO  # whom to ask about?
        self._pending[peer.uid] += 1
        person = interactive and self._persons < PERSONS_MAX
        self._persons += person
        try:
            with trio.move_on_after(PERSON_SECONDS if person else ANSWER_SECONDS):
                answer = await self._ask(pidfd, peer.uid, action, details, interactive=person)
                if answer is Answer.CHALLENGE and interactive and not person:
                    raise TooManyQuestions
                return answer
            self._complain("CallTimeout", CallTimeout("CheckAuthorization"))
            return Answer.SILENCE
        finally:
            self._persons -= person
            self._pending[peer.uid] -= 1
            if not self._pending[peer.uid]:
                del self._pending[peer.uid]
            os.close(pidfd)

    async def _ask(
        self, pidfd: int, uid: int, action: str, details: Mapping[str, str], *, interactive: bool
    ) -> Answer:
        # The type of the uid is signed, its value is not (polkit_unix_process_set_uid()).
        subject = (
            "unix-process",
            {"pidfd": ("h", pidfd), "uid": ("i", uid - 2**32 if uid >= 2**31 else uid)},
        )
        flags = _ALLOW_USER_INTERACTION if interactive else 0
        for _ in range(ATTEMPTS_MAX):
            number = f"moored-{next(self._numbers)}"
            body = (subject, action, dict(details), flags, number)
            call = _call("CheckAuthorization", "(sa{sv})sa{ss}us", body, "(bba{ss})")
            try:
                async with self._connected() as link:
                    try:
                        ((authorized, challenge, _),) = await link.call(
                            call, deadline=trio.current_effective_deadline()
                        )
                    except (trio.Cancelled, CallTimeout):
                        await self._take_back(link, number)
                        raise
            except BusError as error:
                # What polkitd says may hold anything that a caller made up: its name is enough to tell errors apart.
                reason = error.name if isinstance(error, CallFailed) else type(error).__name__
                self._complain(reason, error)
                if reason not in _LOST and not isinstance(error, BusClosed):
                    break
                await trio.sleep(AGAIN_SECONDS)
            else:
                self._complained = ""
                return Answer.YES if authorized else Answer.CHALLENGE if challenge else Answer.NO
        return Answer.NO

    def _complain(self, reason: str, error: BusError) -> None:
        # What polkitd complains of is what a caller did, such as to leave: anyone could fill the log with that. That
        # it cannot be asked is said once.
        about_caller = reason.startswith(_NAME)
        level = logging.DEBUG if about_caller or reason == self._complained else logging.WARNING
        if not about_caller:
            self._complained = reason
        _log.log(level, "Failed to ask polkit, assuming that the answer is no: %s", error)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Bus]:
        """Use the connection; it is made for the first who needs it, and ended after the last.

        Raises:
            BusError: that is impossible.
        """
        self._users += 1
        try:
            async with self._connecting:
                if self._link is None or self._link.closed:
                    self._link = await self._connect()
            yield self._link
        finally:
            self._users -= 1
            if not self._users and self._link is not None:
                self._link.close("nobody asks any more")
                self._link = None

    async def _connect(self) -> Bus:
        assert self._nursery is not None, "nobody runs this"
        deadline = min(trio.current_effective_deadline(), trio.current_time() + ANSWER_SECONDS)
        link = await Bus.connect(self._address, lambda _: None, lambda _: None, deadline=deadline)
        self._nursery.start_soon(link.run)
        try:
            await link.call(BusCall(_BUS, _BUS_PATH, _BUS, "Hello", reply="s"), deadline=deadline)
        except BaseException:
            link.close("not greeted")
            raise
        return link

    @staticmethod
    async def _take_back(link: Bus, number: str) -> None:
        """Tell polkitd that nobody waits for an answer any more."""
        call = _call("CancelCheckAuthorization", "s", (number,))
        with trio.CancelScope(shield=True):
            try:
                await link.call(call, deadline=trio.current_time() + CANCEL_SECONDS)
            except (
                BusError
            ) as error:  # it was answered meanwhile, or the end of the link ends the question too
                _log.debug("Failed to take back a question to polkit, ignoring: %s", error)


def _call(member: str, signature: str, body: tuple[object, ...], reply: str = "") -> BusCall:
    return BusCall(_NAME, _PATH, _AUTHORITY, member, signature, body, reply)
