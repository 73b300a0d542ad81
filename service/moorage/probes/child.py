"""A child of `moorage.probes.fork_server`: waits for its task, does it, and ends.

Only the standard library and what is as plain: it is run without site-packages.
"""

import contextlib
import json
import os
import resource
import select
import socket
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from moorage.probes import copy, mount, network, root, terminal
from moorage.probes.capabilities import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_MKNOD,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    CAP_SYS_CHROOT,
    CAP_SYS_PTRACE,
    keep,
)
from moorage.probes.handing import ANSWER_FD, LEADER_FD, send_descriptors
from moorage.probes.namespaces import enter_network, find_inside, open_root

LINK_FD: Final = 5
"""Where a child is told its tasks, and where it says that it has done one; it has nothing else of the server's."""

REQUEST_MAX: Final = 4096
"""Bytes of a request, without its question."""

READY_SECONDS: Final = 0.005
"""Without a task, until that child gets ready for one, s. It takes 0.5 ms of CPU time, for which nobody is to wait who
asks again at once."""

DONE: Final = b"done"
"""A child says that it waits for another task."""

CHILD_DATA_MAX: Final = 128 * 1024 * 1024
"""Bytes of a child's own memory; ten times what it needs (RLIMIT_DATA)."""


class Task(NamedTuple):
    """What a child does.

    Attributes:
        main: does it; finds the leader at LEADER_FD, and question and answer at ANSWER_FD.
        capabilities: what it needs, by their bits.
        lasting: the child may have another task of this kind after it.
    """

    main: Callable[[], None]
    capabilities: int
    lasting: bool = False


TASKS: Final = {
    "addresses": Task(network.main, CAP_SYS_PTRACE | CAP_SYS_ADMIN, lasting=True),
    "root": Task(root.main, CAP_SYS_PTRACE | CAP_DAC_READ_SEARCH, lasting=True),
    "tty": Task(terminal.main_alone, CAP_SYS_PTRACE | CAP_SETUID | CAP_SETGID, lasting=True),
    "copy": Task(
        copy.main,
        CAP_SYS_PTRACE
        | CAP_DAC_OVERRIDE
        | CAP_DAC_READ_SEARCH
        | CAP_CHOWN
        | CAP_FOWNER
        | CAP_FSETID
        | CAP_MKNOD,
    ),
    "bind": Task(
        mount.main,
        CAP_SYS_PTRACE | CAP_SYS_ADMIN | CAP_SYS_CHROOT | CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH,
        lasting=True,
    ),
    "terminal": Task(
        terminal.main, CAP_SYS_CHROOT | CAP_SYS_PTRACE | CAP_SYS_ADMIN | CAP_SETUID | CAP_SETGID
    ),
}


def be_child(link: socket.socket) -> NoReturn:
    """Wait for a task, do it, and end; before, do others of its kind, if it is of that kind."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(link.fileno(), LINK_FD)
        # What the server has, of others as well.
        os.closerange(LEADER_FD, LINK_FD)
        os.closerange(LINK_FD + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        resource.setrlimit(resource.RLIMIT_DATA, (CHILD_DATA_MAX, CHILD_DATA_MAX))
        with socket.socket(fileno=LINK_FD) as own:
            if not select.select([own], [], [], READY_SECONDS)[0]:
                with contextlib.suppress(OSError):  # it is slower then, and that is all
                    get_ready()
            _do_tasks(own)
        status = 0
    except BaseException as error:  # noqa: BLE001  # whatever it is, this is not to go on as the server
        complain(error)
    finally:
        os._exit(status)


def _do_tasks(link: socket.socket) -> None:
    first = None
    while True:
        name, fds, _, _ = socket.recv_fds(link, REQUEST_MAX, 2)
        if not name:
            return
        leader, answer = fds
        _move(leader, LEADER_FD)
        _move(answer, ANSWER_FD)
        task = TASKS[name.decode()]
        if first is None and os.geteuid() == 0:
            keep(task.capabilities)
        elif first not in {None, name}:
            raise ValueError("another task than before")
        first = name
        if not task.lasting:
            link.close()
            task.main()
            return
        task.main()
        # Whatever it had for that task.
        os.closerange(LEADER_FD, LINK_FD)
        os.closerange(LINK_FD + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        link.send(DONE)


def get_ready() -> None:
    """Do to this process itself what tasks do first to others, and nothing to anybody else.

    After a fork the first access to each page of memory takes longer than what is done with it, and those of a short
    task are half of its time. They are behind this process then.

    Raises:
        OSError: there is no file descriptor or no memory left.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        found: list[int] = []
        try:
            found.append(os.pidfd_open(os.getpid()))
            found.append(open_root(found[0], os.O_RDONLY))
            found.append(find_inside(b"/"))
            enter_network(found[0])
            send_descriptors(ours, b'{"text": ["", 0, null, false]}', found[:2])
            data, fds, _, _ = socket.recv_fds(theirs, REQUEST_MAX, 2)
            found += fds
            json.dumps(json.loads(data)).encode()
        finally:
            for fd in found:
                os.close(fd)


def _move(fd: int, to: int) -> None:
    if fd != to:
        os.dup2(fd, to)
        os.close(fd)


def complain(error: BaseException) -> None:
    """Write an error to the journal."""
    # Without the lines of the program, which would be looked for in the files of the machine.
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stderr.flush()
