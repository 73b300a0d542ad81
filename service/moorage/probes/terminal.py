"""A pseudo terminal of a container or of the host, and a login or a shell at it, by the service manager in there.

Done by a child of `moorage.probes.fork_server`, which finds one JSON object at its socket, the question, which is
null where nothing is to run:

    {"bus": PATH, "hello": BOOL, "start": null, "getty" or {"user", "path", "args", "environment"}}

and answers with one JSON object and, if the terminal could be opened, its controlling end (pty(7)):

    {"number": N or null, "failed": [STEP, ERRNO] or null}

It is the root of the container in there, without a capability (`moorage.probes.namespaces`): the terminal belongs to
that root, and the bus takes it for that. What the bus says is read here, and not where it could do harm.

A terminal alone needs less (`main_alone`): it is found below the root directory of the container from outside, with
the rights to files of that root, and nothing of the container is read.

Only the standard library and what is as plain: it is run without site-packages.
"""

import array
import errno
import fcntl
import json
import os
import re
import socket
import stat
import sys
from time import monotonic
from typing import Any, Final

from moorage.dbus.message import (
    ERROR,
    ERROR_NAME,
    METHOD_RETURN,
    REPLY_SERIAL,
    BusCall,
    Received,
    Violation,
    call_bytes,
    message_size,
    parse,
)
from moorage.probes.handing import ANSWER_FD, LEADER_FD, receive_question, send_descriptors
from moorage.probes.namespaces import change_root, enter, files_as_root_of, find_inside, open_root

BUS_SECONDS: Final = 20.0
"""For all that the bus in there has to say; it may have to be started for it. sd-bus waits for 25 s."""

_READ: Final = 64 * 1024

_MAJOR, _MINOR = 5, 2
"""Of the device that makes terminals (Documentation/admin-guide/devices.txt of the kernel)."""

# Of asm-generic/ioctls.h.
_TIOCGPTN: Final = 0x80045430
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTPEER: Final = 0x5441

_MANAGER: Final = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
_HELLO: Final = BusCall(
    "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", reply="s"
)

_AUTHENTICATION: Final = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
"""The name is what the kernel says of the sender, as a number would be another one in another namespace."""
_AUTHENTICATED: Final = re.compile(rb"DATA\r\nOK [^\r\n]*\r\nAGREE_UNIX_FD\r\n")
_AUTHENTICATED_MAX: Final = 1024

_STANDARD: Final = "org.freedesktop.DBus.Error."
_SYSTEMD: Final = "org.freedesktop.systemd1."
_SYSTEM: Final = "System.Error."
_NUMBERS: Final = {
    f"{_STANDARD}Failed": errno.EACCES,
    f"{_STANDARD}NoMemory": errno.ENOMEM,
    f"{_STANDARD}ServiceUnknown": errno.EHOSTUNREACH,
    f"{_STANDARD}NameHasNoOwner": errno.ENXIO,
    f"{_STANDARD}NoReply": errno.ETIMEDOUT,
    f"{_STANDARD}NotSupported": errno.EOPNOTSUPP,
    f"{_STANDARD}LimitsExceeded": errno.ENOBUFS,
    f"{_STANDARD}AccessDenied": errno.EACCES,
    f"{_STANDARD}AuthFailed": errno.EACCES,
    f"{_STANDARD}Timeout": errno.ETIMEDOUT,
    f"{_STANDARD}TimedOut": errno.ETIMEDOUT,
    f"{_STANDARD}Disconnected": errno.ECONNRESET,
    f"{_STANDARD}InvalidArgs": errno.EINVAL,
    f"{_STANDARD}FileNotFound": errno.ENOENT,
    f"{_STANDARD}FileExists": errno.EEXIST,
    f"{_STANDARD}UnknownMethod": errno.EBADR,
    f"{_STANDARD}UnknownObject": errno.EBADR,
    f"{_STANDARD}UnknownInterface": errno.EBADR,
    f"{_STANDARD}UnknownProperty": errno.EBADR,
    f"{_STANDARD}PropertyReadOnly": errno.EROFS,
    f"{_STANDARD}InconsistentMessage": errno.EBADMSG,
    f"{_STANDARD}InteractiveAuthorizationRequired": errno.EACCES,
    f"{_SYSTEMD}NoSuchUnit": errno.ENOENT,
    f"{_SYSTEMD}UnitExists": errno.EEXIST,
    f"{_SYSTEMD}LoadFailed": errno.EIO,
    f"{_SYSTEMD}BadUnitSetting": errno.ENOEXEC,
    f"{_SYSTEMD}JobFailed": errno.EREMOTEIO,
    f"{_SYSTEMD}TransactionJobsConflicting": errno.EDEADLK,
    f"{_SYSTEMD}UnitMasked": errno.ERFKILL,
}
"""The errno that sd-bus(3) has for an error; EIO for all others."""


class Failed(Exception):
    """A step failed.

    Attributes:
        step: "terminal" or "start".
        number: errno(3) that says why.
    """

    def __init__(self, step: str, number: int) -> None:
        super().__init__(f"{step}: {os.strerror(number)}")
        self.step = step
        self.number = number


def open_terminal(descriptors: int, root: int | None = None) -> tuple[int, int]:
    """Open a pseudo terminal below a root directory.

    Args:
        descriptors: the directory of this process's own descriptors, /proc/self/fd of the host.
        root: which; None for that of this process.

    Returns:
        Its controlling end, and its number in /dev/pts.

    Raises:
        OSError: there is none to be had.
    """
    found = find_inside(b"/dev/ptmx", root)
    try:
        status = os.fstat(found)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(_MAJOR, _MINOR):
            # Opening anything else may have effects, or never return.
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        terminal = os.open(str(found), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=descriptors)
    finally:
        os.close(found)
    try:
        number = array.array("I", [0])
        fcntl.ioctl(terminal, _TIOCGPTN, number)
        fcntl.ioctl(terminal, _TIOCSPTLCK, array.array("i", [0]))
    except BaseException:
        os.close(terminal)
        raise
    return terminal, number[0]


class Link:
    """A connection to a bus, or to the service manager's own socket. One call after the other.

    Args:
        connected: stream socket.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._until = monotonic() + BUS_SECONDS
        self._received = b""
        self._serial = 0

    def authenticate(self) -> None:
        """Say who we are, which the kernel confirms, and agree to pass file descriptors.

        Raises:
            OSError: EACCES if that is refused.
        """
        self._wait()
        self._socket.sendall(_AUTHENTICATION)
        while not (said := _AUTHENTICATED.match(self._received)):
            if len(self._received) > _AUTHENTICATED_MAX or b"REJECTED" in self._received:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._read()
        self._received = self._received[said.end() :]

    def call(self, call: BusCall) -> None:
        """Make a call, and wait until it was done.

        Raises:
            OSError: it was not done; the errno is that of sd-bus.
            Violation: what comes is no D-Bus.
        """
        self._serial += 1
        data, fds = call_bytes(call, self._serial)
        self._wait()
        sent = send_descriptors(self._socket, data, fds) if fds else 0
        self._socket.sendall(data[sent:])
        while True:
            reply = self._next()
            if reply.kind in {METHOD_RETURN, ERROR} and reply.fields.get(REPLY_SERIAL) == self._serial:
                break
        if reply.kind == ERROR:
            number = number_of(reply.text(ERROR_NAME))
            raise OSError(number, os.strerror(number))

    def _next(self) -> Received:
        while len(self._received) < 16 or len(self._received) < message_size(self._received, 0):
            self._read()
        size = message_size(self._received, 0)
        message, self._received = self._received[:size], self._received[size:]
        return parse(message)

    def _read(self) -> None:
        self._wait()
        data = self._socket.recv(_READ)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._received += data

    def _wait(self) -> None:
        left = self._until - monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        self._socket.settimeout(left)


def number_of(error: str) -> int:
    """Return the errno for the name of an error (``bus_error_name_to_errno()`` of systemd)."""
    if error.startswith(_SYSTEM):
        number: Any = getattr(errno, error.removeprefix(_SYSTEM), None)
        return number if isinstance(number, int) else errno.EIO
    return _NUMBERS.get(error, errno.EIO)


def connect(path: str, descriptors: int) -> socket.socket:
    """Connect to a socket below this root directory, and to nothing that a link of /proc would lead to.

    Raises:
        OSError: ENOENT if there is none, ECONNREFUSED if nobody listens.
    """
    found = find_inside(path.encode())
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connected.settimeout(BUS_SECONDS)
            # By what was found, not by its path again, which may lead to something else by now.
            os.fchdir(descriptors)
            connected.connect(str(found))
        except BaseException:
            connected.close()
            raise
    finally:
        os.close(found)
    return connected


def start_call(start: Any, terminal: int, number: int) -> BusCall:
    """Describe the call that starts a login or a shell, as machined makes it.

    Args:
        start: "getty", or the shell of a question.
        terminal: the controlling end.
        number: of the terminal.
    """
    if start == "getty":
        return BusCall(*_MANAGER, "StartUnit", "ss", (f"container-getty@{number}.service", "replace"), "o")
    payload = fcntl.ioctl(terminal, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    properties: list[tuple[str, tuple[str, object]]] = [
        ("Description", ("s", f"Shell for User {start['user']}")),
        ("StandardInputFileDescriptor", ("h", payload)),
        ("StandardOutputFileDescriptor", ("h", payload)),
        ("StandardErrorFileDescriptor", ("h", payload)),
        ("SendSIGHUP", ("b", True)),
        ("IgnoreSIGPIPE", ("b", False)),
        ("KillMode", ("s", "mixed")),
        ("TTYPath", ("s", f"/dev/pts/{number}")),
        ("TTYReset", ("b", True)),
        ("UtmpIdentifier", ("s", f"pts/{number}")),
        ("UtmpMode", ("s", "user")),
        ("PAMName", ("s", "login")),
        ("WorkingDirectory", ("s", "-~")),
        ("User", ("s", start["user"])),
    ]
    if start["environment"]:
        properties.append(("Environment", ("as", start["environment"])))
    # The command may fail without the unit being taken for failed, as in machined.
    properties.append(("ExecStart", ("a(sasb)", [(start["path"], start["args"], True)])))
    others: list[object] = []
    body = (f"container-shell@{number}.service", "fail", properties, others)
    return BusCall(*_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body, "o")


def _start(question: Any, terminal: int, number: int, descriptors: int) -> None:
    try:
        with connect(question["bus"], descriptors) as connected:
            link = Link(connected)
            link.authenticate()
            if question["hello"]:
                link.call(_HELLO)
            link.call(start_call(question["start"], terminal, number))
    except TimeoutError:
        raise Failed("start", errno.ETIMEDOUT) from None
    except OSError as exc:
        raise Failed("start", exc.errno or errno.EIO) from None
    except Violation:
        raise Failed("start", errno.EBADMSG) from None


def main() -> None:
    """Enter the container, open a terminal, start what is to run at it, and hand it over."""
    answer = socket.socket(fileno=ANSWER_FD)
    question = json.loads(receive_question(answer))
    descriptors = _own_descriptors()
    # What is not loaded by now would be the container's.
    sys.meta_path.clear()
    number: int | None = None
    terminals: list[int] = []
    failed: tuple[str, int] | None = None
    try:
        try:
            _, root = enter(LEADER_FD, as_root=True)
            assert root is not None  # there is somebody to be in there
            change_root(root)
            terminal, number = open_terminal(descriptors)
        except OSError as exc:
            raise Failed("terminal", exc.errno or errno.EIO) from None
        if question["start"] is not None:
            _start(question, terminal, number, descriptors)
        terminals.append(terminal)
    except Failed as exc:
        failed = (exc.step, exc.number)
    _tell(answer, number, failed, terminals)


def main_alone() -> None:
    """Open a terminal of the container from outside, and hand it over. EACCES may be because it is outside."""
    number: int | None = None
    terminals: list[int] = []
    failed: tuple[str, int] | None = None
    with socket.socket(fileno=ANSWER_FD) as answer:
        receive_question(answer)
        try:
            descriptors = _own_descriptors()
            root = open_root(LEADER_FD, os.O_PATH)
            with files_as_root_of(LEADER_FD):
                terminal, number = open_terminal(descriptors, root)
            terminals.append(terminal)
        except OSError as exc:
            failed = ("terminal", exc.errno or errno.EIO)
        _tell(answer, number, failed, terminals)


def _own_descriptors() -> int:
    return os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _tell(
    answer: socket.socket, number: int | None, failed: tuple[str, int] | None, terminals: list[int]
) -> None:
    send_descriptors(answer, json.dumps({"number": number, "failed": failed}).encode(), terminals)
