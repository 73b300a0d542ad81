"""A terminal of its own for a payload, and what goes to and fro between it and the streams of moorctl.

As with ``systemd-run --pty``, what is typed goes to the payload byte for byte, Ctrl-C too; three times Ctrl-] within a
second is for moorctl itself. Standard input and output need not be terminals: the end of an input that is none becomes
what ends it at a terminal, Ctrl-D.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import stat
import termios
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Self

import trio

ESCAPE: Final = 0x1D
"""Ctrl-]."""

ESCAPE_COUNT: Final = 3
ESCAPE_SECONDS: Final = 1.0
"""So often within this time, as in systemd-run(1) and machinectl(1)."""

CHUNK_BYTES: Final = 65536
"""Read at once: more than the kernel keeps for a terminal."""

END_SECONDS: Final = 0.05
END_SECONDS_MAX: Final = 5.0
"""Pause between two looks at whether the payload has read all that there was; it doubles, as that may never be."""

END_KEYS: Final = 3
"""So often in a row a payload that reads keys is told: to the guest of a VMM it would go on and on as a key."""

_CTRL_D: Final = b"\x04"
_STDIN, _STDOUT = 0, 1
_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6
"""Places in what termios.tcgetattr() returns."""

_RAW_IFLAG: Final = (
    termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
    | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
)  # fmt: skip
_RAW_LFLAG: Final = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN
"""What is off in the raw mode of termios(3)."""


class Escape:
    """Finds in what is typed whether moorctl is meant."""

    def __init__(self) -> None:
        self._count = 0
        self._since = 0.0

    def found(self, typed: bytes, now: float) -> bool:
        """Take what was typed at a time, in seconds; tell whether that made it complete."""
        found = False
        for byte in typed:
            if byte != ESCAPE:
                self._count = 0
                continue
            if self._count == 0 or now > self._since + ESCAPE_SECONDS:
                self._count, self._since = 0, now
            self._count += 1
            if self._count == ESCAPE_COUNT:
                self._count, found = 0, True
        return found


class Terminal:
    """A pseudo terminal, pty(7), for a payload. To be used with ``with``.

    Attributes:
        payload_fd: the payload's side of it, for :meth:`moorage.launch.payload.Payload.run`.
        interactive: there is somebody who can type.
    """

    def __init__(self, uid: int | None = None) -> None:
        """Open one whose payload's side belongs to a user, by default that of this process.

        Raises:
            OSError: there are no more, or there is no /dev/pts.
        """
        self.interactive = os.isatty(_STDIN)
        self._saved: dict[int, list[Any]] = {}
        self._unwritten = memoryview(b"")
        self._output_lost = False
        with contextlib.ExitStack() as opened:
            # The payload's side stays open here too: a payload that closes it, such as login(1), may open it again.
            self._ours, self.payload_fd = os.openpty()
            opened.callback(os.close, self._ours)
            opened.callback(os.close, self.payload_fd)
            if uid is not None:
                os.fchown(self.payload_fd, uid, -1)  # who can then open it by its path, as others do
            os.set_blocking(self._ours, False)
            self._input = _without_blocking(_STDIN, os.O_RDONLY, opened)
            self._output = _without_blocking(_STDOUT, os.O_WRONLY, opened)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @contextmanager
    def raw(self) -> Generator[None]:
        """Have the terminal of moorctl pass on everything as it comes: that of the payload is who interprets it.

        However the block ends, it is as it was before.
        """
        self._resize()
        # A reader of ours that goes away does not end this process in between.
        before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            self._make_raw()
            yield
        finally:
            for fd, attributes in self._saved.items():
                with contextlib.suppress(termios.error):  # it was hung up
                    termios.tcsetattr(fd, termios.TCSANOW, attributes)
            signal.signal(signal.SIGPIPE, before)

    def _make_raw(self) -> None:
        # In the background it belongs to others. Who is taken to the foreground gets SIGCONT.
        fds = [fd for fd in (_STDIN, _STDOUT) if os.isatty(fd) and _in_foreground(fd)]
        for fd in fds:
            self._saved.setdefault(fd, termios.tcgetattr(fd))
        for fd in fds:
            attributes = termios.tcgetattr(fd)
            if fd == _STDIN:
                attributes[_IFLAG] &= ~_RAW_IFLAG
                attributes[_LFLAG] &= ~_RAW_LFLAG
                attributes[_CC][termios.VMIN], attributes[_CC][termios.VTIME] = 1, 0
            else:
                attributes[_OFLAG] &= ~termios.OPOST
            termios.tcsetattr(fd, termios.TCSANOW, attributes)

    def _resize(self) -> None:
        termios.tcsetwinsize(self._ours, _size())

    @asynccontextmanager
    async def forwarding(
        self, asked: Callable[[], None], lost: Callable[[OSError], None]
    ) -> AsyncGenerator[None]:
        """Pass on what is typed and what the payload writes; at the end of the block, what is left of the latter.

        Args:
            asked: called when moorctl is meant by what is typed.
            lost: called once, when the output can no longer be written; what follows is dropped.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_signals)
            nursery.start_soon(self._pass_input, asked)
            nursery.start_soon(self._pass_output, lost)
            yield
            nursery.cancel_scope.cancel()
        await self._drain(lost)

    async def _follow_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGCONT) as signals:
            self._resize()  # it may have changed before
            async for number in signals:
                with contextlib.suppress(termios.error):  # hung up: the end comes by itself
                    if number == signal.SIGCONT:
                        self._make_raw()
                    self._resize()

    async def _pass_input(self, asked: Callable[[], None]) -> None:
        escape = Escape()
        line_ended = True
        while typed := await _read(self._input):
            if self.interactive and escape.found(typed, trio.current_time()):
                asked()
            await _write(self._ours, typed)
            line_ended = typed.endswith(b"\n")
        await self._end_input(line_ended)

    async def _end_input(self, line_ended: bool) -> None:
        """Let the payload find the end of its input: each time that it reads lines, a few times if it reads keys.

        Ctrl-D must not come before the payload waits for input, for between the two ways of reading it loses its
        meaning. Nor does once do: a shell may have handed over to a command that reads lines at that very moment.
        """
        pause, told = END_SECONDS, 0
        while True:
            attributes = termios.tcgetattr(self._ours)
            reads_lines = bool(attributes[_LFLAG] & termios.ICANON)
            if (reads_lines or told < END_KEYS) and not _readable(self.payload_fd):
                end = attributes[_CC][termios.VEOF] if reads_lines else _CTRL_D
                # Within a line the first one ends the line only.
                await _write(self._ours, end * 2 if reads_lines and not line_ended else end)
                line_ended, told = True, 0 if reads_lines else told + 1
            await trio.sleep(pause)
            pause = min(pause * 2, END_SECONDS_MAX)

    async def _pass_output(self, lost: Callable[[OSError], None]) -> None:
        while output := await _read(self._ours):
            self._unwritten = memoryview(output)
            await self._write_rest(lost)

    async def _drain(self, lost: Callable[[OSError], None]) -> None:
        # What the kernel had kept when the payload ended; processes that it left behind may write without an end.
        left = CHUNK_BYTES
        while True:
            await self._write_rest(lost)
            try:
                output = os.read(self._ours, left)
            except OSError:  # there is nothing left
                return
            if not output:
                return
            left -= len(output)
            self._unwritten = memoryview(output)

    async def _write_rest(self, lost: Callable[[OSError], None]) -> None:
        """Write what was read; what is not written when this is cancelled, is kept."""
        while self._unwritten:
            try:
                written = os.write(self._output, self._unwritten)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._output)
                continue
            except OSError as error:
                written = len(self._unwritten)
                if not self._output_lost:
                    self._output_lost = True
                    lost(error)
            self._unwritten = self._unwritten[written:]


def _without_blocking(fd: int, mode: int, opened: contextlib.ExitStack) -> int:
    """Return a file descriptor of the same file that does not block, as far as reading and writing it may."""
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind) or stat.S_ISBLK(kind):
        return fd  # it never blocks for long, and its position is shared with others
    try:
        # Anew, since how a file is open is shared with those who have it from the same parent, and stays.
        again = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # a socket, or the terminal of another user
        if os.get_blocking(fd):
            os.set_blocking(fd, False)
            opened.callback(os.set_blocking, fd, True)
        return fd
    opened.callback(os.close, again)
    return again


def _in_foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # not the terminal that controls this process


def _size() -> tuple[int, int]:
    """Return lines and columns of the terminal that moorctl is used from."""
    for fd in (_STDOUT, _STDIN):
        if os.isatty(fd):
            return termios.tcgetwinsize(fd)
    columns, lines = shutil.get_terminal_size()
    return lines, columns


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def _read(fd: int) -> bytes:
    """Read what there is; nothing at the end, which a hangup is as well."""
    await trio.lowlevel.checkpoint()
    while True:
        try:
            return os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
        except OSError:
            return b""


async def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(fd)
