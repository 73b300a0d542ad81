"""Commands and identities of payloads, checked and encoded for the holder.

Pure, but for a look at file descriptors that are passed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypedDict

from moorage.launch import holder
from moorage.launch.errors import BadCommand

Text = str | bytes | os.PathLike[str]


class Identity(TypedDict, total=False):
    """How a payload waits.

    Attributes:
        uid: user that the process runs as from the start, so that things can be made for that user; by default that
            of this process.
        gid: group; required with `uid`.
        groups: supplementary groups, if `uid` is given.
        seconds: how long the process waits for its command before it ends; by default
            :data:`moorage.launch.HOLD_SECONDS`.
    """

    uid: int | None
    gid: int | None
    groups: Sequence[int]
    seconds: int


class Settings(TypedDict, total=False):
    """What a program is executed with.

    Attributes:
        env: environment; by default that of this process.
        cwd: working directory, to which a relative `argv[0]` refers.
        fds: file descriptors to pass, by their number in the payload. They stay open in this process.
        tty: file descriptor of a terminal, which becomes the controlling terminal, and also those standard streams
            that `fds` does not name.
        umask: file mode creation mask.
        subgroup: control group to create below that of the machine, and to move to first. The machine must be
            delegated (class container, or ``Delegate=``). A control group that has processes cannot enable
            controllers for those below it (cgroups(7), "no internal processes"), so a payload that manages control
            groups needs this. In a user's service manager all control groups belong to the user, so there the
            caller must make sure that the machine is delegated.
    """

    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    cwd: Text | None
    fds: Mapping[int, int] | None
    tty: int | None
    umask: int | None
    subgroup: str | None


_ID_END: Final = 2**32 - 1
"""The last number means "no change" in setresuid(2)."""

_FD_END: Final = 2**31

_ALARM_END: Final = 2**31


def holder_arguments(seconds: int, uid: int | None, gid: int | None, groups: Sequence[int]) -> list[str]:
    """Return the arguments of the holder.

    Raises:
        BadCommand: they contradict each other, or are out of range.
    """
    if not 0 < seconds < _ALARM_END:
        raise BadCommand("seconds", f"{seconds} is out of range")
    if uid is None:
        if gid is not None or groups:
            raise BadCommand("uid", "required together with gid or groups")
        return [str(seconds)]
    if gid is None:
        raise BadCommand("gid", "required together with uid")
    for field, numbers in (("uid", [uid]), ("gid", [gid]), ("groups", groups)):
        _check_range(field, numbers, _ID_END)
    return [str(number) for number in (seconds, uid, gid, *groups)]


def encoded_command(
    argv: Sequence[Text],
    env: Mapping[str, str] | Mapping[bytes, bytes] | None,
    cwd: Text | None,
    fds: Mapping[int, int],
    tty: int | None,
    umask: int | None,
    subgroup: str | None,
) -> bytes:
    """Check a command as far as possible, and encode it for the holder.

    Raises:
        BadCommand: the arguments make no command.
    """
    words = [_encoded("argv", word) for word in argv]
    if not words or not words[0]:
        raise BadCommand("argv", "there is no program")
    variables = {
        _encoded("env", name): _encoded("env", value)
        for name, value in (os.environb if env is None else env).items()
    }
    if any(not name or b"=" in name for name in variables):
        raise BadCommand("env", "the name of a variable is empty, or contains '='")
    for field, fd in [*(("fds", fd) for fd in fds.values()), *([] if tty is None else [("tty", tty)])]:
        try:
            os.fstat(fd)
        except (OSError, OverflowError):
            raise BadCommand(field, f"file descriptor {fd} is not open") from None
    if len(fds) + (tty is not None) > holder.FDS_MAX:
        raise BadCommand("fds", f"{len(fds)} file descriptors are too many: the maximum is {holder.FDS_MAX}")
    _check_range("fds", fds, _FD_END)
    _check_range("umask", [] if umask is None else [umask], 0o1000)
    if subgroup is not None and (
        subgroup in {"", ".", ".."} or "/" in subgroup or "\0" in subgroup or subgroup.startswith("cgroup.")
    ):
        raise BadCommand("subgroup", f"{subgroup!r} is not the name of a control group")
    command: holder.Command = {
        "argv": words,
        "paths": _paths(words[0], variables),
        "env": variables,
        "cwd": None if cwd is None else _encoded("cwd", cwd),
        "fds": list(fds),
        "tty": tty is not None,
        "umask": umask,
        "subgroup": None if subgroup is None else os.fsencode(subgroup),
    }
    encoded = holder.encode(command)
    if len(encoded) > holder.COMMAND_BYTES_MAX:
        raise BadCommand(
            "argv", f"together with the environment it exceeds {holder.COMMAND_BYTES_MAX} bytes"
        )
    return encoded


def _check_range(field: str, numbers: Iterable[int], end: int) -> None:
    for number in numbers:
        if not 0 <= number < end:
            raise BadCommand(field, f"{number} is out of range")


def _encoded(field: str, text: Text) -> bytes:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise BadCommand(field, "it contains a zero byte")
    return encoded


def _paths(program: bytes, env: Mapping[bytes, bytes]) -> list[bytes]:
    if b"/" in program:
        return [program]
    search = env.get(b"PATH", os.fsencode(os.defpath))
    return [os.path.join(directory or b".", program) for directory in search.split(b":")]
