"""A pager for what may not fit into the window: chosen, and kept from harm, as systemctl(1) has it."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from moorage.kernel import process

LESS_OPTIONS: Final = "FRSXMK"
"""Default of $SYSTEMD_LESS, systemctl(1)."""

_KNOWN: Final = ("pager", "less", "more")
"""Pagers to look for, the first one is Debian's alternative."""
_SECURE: Final = ("less",)
"""Those that implement a secure mode, systemctl(1)."""

_TRUE: Final = frozenset({"1", "yes", "y", "true", "t", "on"})
_FALSE: Final = frozenset({"0", "no", "n", "false", "f", "off"})
"""As parse_boolean() of systemd reads them."""


class Pager(NamedTuple):
    """A pager to run.

    Attributes:
        argv: program, by its path, and arguments.
        variables: set for it.
    """

    argv: Sequence[str]
    variables: Mapping[str, str]

    @property
    def ends_on_interrupt(self) -> bool:
        """It ends on Ctrl-C, so that we may."""
        return os.path.basename(self.argv[0]) != "less" or "K" in self.variables["LESS"]


def choose(environment: Mapping[str, str], *, elevated: bool) -> Pager | None:
    """Return the pager for an environment; None if there is to be none, or if none is installed.

    Whoever may run commands with the rights of another must not start any from a pager: without
    $SYSTEMD_PAGERSECURE, the pager of the environment is ignored, and less(1) runs in its secure mode where rights are
    elevated (systemctl(1), "Environment").

    Args:
        environment: variables.
        elevated: we have not the rights of the user who has logged in.
    """
    wished = environment.get("SYSTEMD_PAGER", environment.get("PAGER"))
    words = None if wished is None else wished.split()
    if words in ([], ["cat"]):
        return None
    said = environment.get("SYSTEMD_PAGERSECURE")
    secure = elevated if said is None else said.lower() not in _FALSE
    trusted = said is not None and said.lower() in _TRUE | _FALSE
    candidates = [[name] for name in (_SECURE if secure else _KNOWN)]
    if words and trusted:
        candidates.insert(0, words)
    variables = {"LESS": environment.get("SYSTEMD_LESS", LESS_OPTIONS)}
    if secure:
        variables["LESSSECURE"] = "1"
    charset = environment.get("SYSTEMD_LESSCHARSET") or ("utf-8" if sys.stdout.encoding == "utf-8" else "")
    if charset:
        variables["LESSCHARSET"] = charset
    for name, *arguments in candidates:
        if (path := shutil.which(name, path=environment.get("PATH"))) is not None:
            return Pager([path, *arguments], variables)
    return None


def is_elevated() -> bool:
    """Whether we have other rights than the user who has logged in, or that is not known; sd_pid_get_owner_uid(3)."""
    try:
        group = process.control_group(os.getpid())
    except (OSError, process.ProcessGone, process.NotAProcess):
        return True
    match = re.match(r"/user\.slice/user-([0-9]+)\.slice(?:/|$)", group)
    return match is None or int(match[1]) != os.geteuid()


class _SeenEnough(Exception):
    """The person has ended the pager."""


class _Paged(io.TextIOWrapper):
    """What is written to a pager is seen on a terminal."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise _SeenEnough from None

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise _SeenEnough from None


@contextmanager
def paging(*, wanted: bool) -> Generator[None]:
    """Have a pager show what is printed, if that goes to a terminal; then wait until the person has read it.

    Args:
        wanted: without it, nothing is done.
    """
    pager = None
    # None if it was closed
    if (
        wanted
        and sys.stdout is not None
        and sys.stdout.isatty()
        and os.environ.get("TERM", "dumb") != "dumb"
    ):
        pager = choose(os.environ, elevated=is_elevated())
    if pager is None:
        yield
        return
    # What is printed has to fit into the window, which is no terminal of ours from here on.
    os.environ.setdefault("COLUMNS", str(os.get_terminal_size(1).columns))
    before = sys.stdout, sys.stderr
    with _ignored(pager), _started(pager) as paged:
        sys.stdout = paged
        if before[1] is not None and before[1].isatty():
            sys.stderr = paged
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def _ignored(pager: Pager) -> Generator[None]:
    """Have the pager handle its end, and Ctrl-C if it does not end then."""
    numbers = [signal.SIGPIPE, *([] if pager.ends_on_interrupt else [signal.SIGINT])]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _started(pager: Pager) -> Generator[_Paged]:
    # It must not stay at the terminal if this process is killed.
    argv = ["setpriv", "--pdeathsig=TERM", "--", *pager.argv]
    environment = {name: value for name, value in os.environ.items() if name != "LESSSECURE"}
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, env={**environment, **pager.variables})
    assert child.stdin is not None
    paged = _Paged(child.stdin, sys.stdout.encoding, sys.stdout.errors)
    with suppress(_SeenEnough):
        try:
            yield paged
        finally:
            with suppress(_SeenEnough, BrokenPipeError):
                paged.close()
            child.wait()
