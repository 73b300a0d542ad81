"""A pseudo terminal for a payload, connected to the standard streams of moorctl.

As with ``systemd-run --pty``, typed bytes go to the payload unchanged, Ctrl-C too; Ctrl-] three times within a second
is for moorctl itself. Standard input and output need not be terminals: at the end of an input that is not one, the
payload gets what ends input at a terminal, Ctrl-D.
"""

from __future__ import annotations

import contextlib
import fcntl
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
"""The escape: this many within this time, as in systemd-run(1) and machinectl(1)."""

CHUNK_BYTES: Final = 65536
"""Bytes to read at once: more than the kernel buffers for a terminal."""

END_SECONDS: Final = 0.05
END_SECONDS_MAX: Final = 5.0
"""First and longest pause between two checks whether the payload has read all of its input; it may never do so."""

END_KEYS: Final = 3
"""How often in a row Ctrl-D is sent to a payload in raw mode; a VMM passes each one to its guest as a key press."""

RETURN_SECONDS: Final = 0.1
"""Pause before it is looked again whether somebody has opened a terminal that everybody had closed, s."""

BEGIN_SECONDS: Final = 1.0
"""How long input that nobody types waits for the first output, s: a command that reads need not write."""

_TIOCGPTPEER: Final = 0x5441  # of asm-generic/ioctls.h

_CTRL_D: Final = b"\x04"
_STDIN, _STDOUT = 0, 1
_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6
"""Indices into the list that termios.tcgetattr() returns."""

_RAW_IFLAG: Final = (
    termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
    | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
)  # fmt: skip
_RAW_LFLAG: Final = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN
"""Flags that are off in the raw mode of termios(3)."""


class Escape:
    """Detects the escape in typed bytes."""

    def __init__(self) -> None:
        self._count = 0
        self._since = 0.0

    def found(self, typed: bytes, now: float) -> bool:
        """Return whether typed bytes complete the escape; `now` is the time in seconds."""
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
    """A pseudo terminal, pty(7), for a payload. A context manager.

    Attributes:
        payload_fd: the payload's side, None if it is not ours; for :meth:`moorage.launch.trio.Payload.run`.
        interactive: standard input is a terminal, so a person can type the escape.
    """

    def __init__(self, uid: int | None = None, *, ours: int | None = None) -> None:
        """Open a pseudo terminal whose payload's side belongs to a user, by default that of this process.

        Args:
            uid: of that user.
            ours: the controlling end of a terminal that is there, whose other side is none of ours. Owned.

        Raises:
            OSError: all pseudo terminals are in use, or /dev/pts does not exist.
        """
        self.interactive = os.isatty(_STDIN)
        self._saved: dict[int, list[Any]] = {}
        self._unwritten = memoryview(b"")
        self._output_lost = False
        with contextlib.ExitStack() as opened:
            # The payload's side stays open here, too, as a payload such as login(1) may close and reopen it.
            self._ours, self.payload_fd = os.openpty() if ours is None else (ours, None)
            opened.callback(os.close, self._ours)
            if self.payload_fd is not None:
                opened.callback(os.close, self.payload_fd)
            if uid is not None and self.payload_fd is not None:
                os.fchown(self.payload_fd, uid, -1)  # so that the user can open it by its path
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
        """Put moorctl's terminal into raw mode; the payload's terminal does the line editing.

        The mode is restored however the block ends.
        """
        self._resize()
        # A reader of our output that goes away must not end this process in the meantime.
        before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            self._make_raw()
            yield
        finally:
            for fd, attributes in self._saved.items():
                with contextlib.suppress(termios.error):  # the terminal was hung up
                    termios.tcsetattr(fd, termios.TCSANOW, attributes)
            signal.signal(signal.SIGPIPE, before)

    def _make_raw(self) -> None:
        # A background job must not touch the terminal. It gets SIGCONT when it comes to the foreground.
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
        """Pass typed bytes to the payload, and its output back. The end of the block passes on the rest of the output.

        Args:
            asked: called when the escape was typed.
            lost: called once, when output can no longer be written; further output is dropped.
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
            self._resize()  # the size may have changed before
            async for number in signals:
                with contextlib.suppress(termios.error):  # hung up; the end is noticed elsewhere
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
        """Signal the end of the input: whenever the payload waits for a line, and a few times if it is in raw mode.

        Ctrl-D must wait until the payload has read everything, as it loses its meaning if the mode changes in between.
        Once is not enough, as a shell may be handing the terminal over to another command at that very moment.
        """
        pause, told = END_SECONDS, 0
        while True:
            attributes = termios.tcgetattr(self._ours)
            reads_lines = bool(attributes[_LFLAG] & termios.ICANON)
            if (reads_lines or told < END_KEYS) and not self._unread():
                end = attributes[_CC][termios.VEOF] if reads_lines else _CTRL_D
                # Within a line, the first one only ends the line.
                await _write(self._ours, end * 2 if reads_lines and not line_ended else end)
                line_ended, told = True, 0 if reads_lines else told + 1
            await trio.sleep(pause)
            pause = min(pause * 2, END_SECONDS_MAX)

    def _unread(self) -> bool:
        """Whether the payload has not read all of its input yet, as far as that can be known."""
        if self.payload_fd is not None:
            return _readable(self.payload_fd)
        try:
            other = fcntl.ioctl(self._ours, _TIOCGPTPEER, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return _readable(other)
        finally:
            os.close(other)

    async def connect(self, lost: Callable[[OSError], None], *, returns: bool) -> None:
        """Pass bytes both ways until the other side is closed, or the escape was typed.

        Args:
            lost: as in :meth:`forwarding`.
            returns: whether the other side, once closed, is opened again, as that of a login is.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_signals)
            if not self.interactive:
                # The other side drops what it finds when it begins (TTYReset= of systemd.exec(5)).
                with trio.move_on_after(BEGIN_SECONDS):
                    await trio.lowlevel.wait_readable(self._ours)
            nursery.start_soon(self._pass_input, nursery.cancel_scope.cancel)
            while True:
                await self._pass_output(lost)
                if not returns:
                    break
                await trio.sleep(RETURN_SECONDS)
            nursery.cancel_scope.cancel()

    async def _pass_output(self, lost: Callable[[OSError], None]) -> None:
        while output := await _read(self._ours):
            self._unwritten = memoryview(output)
            await self._write_rest(lost)

    async def _drain(self, lost: Callable[[OSError], None]) -> None:
        # Limited to what the kernel buffered, as processes left behind may write for ever.
        left = CHUNK_BYTES
        while True:
            await self._write_rest(lost)
            try:
                output = os.read(self._ours, left)
            except OSError:  # nothing is left
                return
            if not output:
                return
            left -= len(output)
            self._unwritten = memoryview(output)

    async def _write_rest(self, lost: Callable[[OSError], None]) -> None:
        """Write pending output. Cancel safety: output that was not written stays pending."""
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
    """Return a non-blocking file descriptor for the same file, which may be the same one."""
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind) or stat.S_ISBLK(kind):
        return fd  # never blocks for long, and shares its position with other processes
    try:
        # Reopened, because O_NONBLOCK would also apply to other processes that inherited the file, and outlive us.
        again = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # a socket, or another user's terminal
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
        return True  # not our controlling terminal


def _size() -> tuple[int, int]:
    """Return the lines and columns of moorctl's terminal."""
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
    """Read what is available; return nothing at the end or after a hangup."""
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
