"""Short-lived units that look at a process, or at the host, with rights that moored does not have."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import Final
from weakref import WeakValueDictionary

import msgspec
import trio

from moorage.pid1.errors import ManagerError, UnitExists
from moorage.pid1.manager import Job, Json, Manager, ServiceSpec

PROBE_SECONDS: Final = 5.0
"""How long the unit may run: a file of a container may be one that never lets itself be read (fuse(4))."""

PROBE_STOP_SECONDS: Final = 1.0
"""From SIGTERM to SIGKILL: a probe has nothing to put in order."""

PROBES_MAX: Final = 16
"""Units at the same time that look at processes, and as many that look at the host: each is a Python of some 10 MiB.
More wait, within their deadline."""

PROBES_OF_USERS_MAX: Final = 12
"""Of PROBES_MAX, units on accounts of users. A few users together can keep so many until PROBE_SECONDS have passed;
the other places are root's, who does not wait for them."""

PROBES_PER_ACCOUNT_MAX: Final = 4
"""Units on one account: those of one user's machines, or of one machine of root's. A container can keep a unit that
looks at its files for as long as it likes: a process that waits for a file server (fuse(4)) is not to be killed. So
many may stay, and nobody else waits for them."""

AGAIN_SECONDS: Final = 0.5
"""Pause before it is looked again whether a unit that had stayed has gone; whoever waits for that waits anyway."""

PROBE_MEMORY_MAX: Final = 128 * 1024 * 1024
"""Bytes; ten times what a probe needs."""

PROBE_NOFILE: Final = 65536
"""File descriptors, as moored has: the kernel counts those that are on their way against it, of all root's processes
together (``too_many_unix_fds()``)."""

ANSWER_MAX: Final = 1024 * 1024
"""Bytes of a probe's answer; that of `moorage.probes.namespaces` is the longest: ADDRESSES_MAX addresses of 60, and
OS_RELEASE_MAX characters of up to 6."""

FAMILIES: Final = ("AF_NETLINK",)
"""Of the sockets that a probe may have, unless it needs others."""


class Account(msgspec.Struct, frozen=True):
    """Whose unit it is that looks at a process.

    Attributes:
        name: a part of the unit's name.
        of_user: what is looked at is in the hands of somebody who is not root.
    """

    name: str
    of_user: bool


class _Places:
    """Places for the units on one account.

    Each has a name, which the manager gives to one unit only: so a unit that stays has its place, also after a restart
    of this service.
    """

    def __init__(self) -> None:
        self.places = trio.Semaphore(PROBES_PER_ACCOUNT_MAX)
        self.free = set(range(PROBES_PER_ACCOUNT_MAX))


_host_probes = trio.Semaphore(PROBES_MAX)
_probes = trio.Semaphore(PROBES_MAX)
_probes_of_users = trio.Semaphore(PROBES_OF_USERS_MAX)
_accounts: WeakValueDictionary[str, _Places] = WeakValueDictionary()


class ProbeFailed(Exception):
    """The unit could not be started, or did not end well."""


async def probe(
    manager: Manager,
    program: str,
    subject: int,
    description: str,
    *,
    account: Account | None,
    capabilities: int,
    system_calls: tuple[str, ...] = (),
    families: tuple[str, ...] = FAMILIES,
    seconds: float = PROBE_SECONDS,
) -> bytes:
    """Have a unit look at something, within the deadline of the caller's task.

    Args:
        manager: starts the unit.
        program: path of a Python program that runs by itself.
        subject: its file descriptor 3: the pidfd of a process, or a file with a question.
        description: of the unit.
        account: whose it is; None: of the host.
        capabilities: what it needs, by their bits (capabilities(7)).
        system_calls: what it needs beside ``@system-service`` (systemd.exec(5)).
        families: of the sockets that it needs.
        seconds: how long the unit may run.

    Returns:
        What it printed.

    Raises:
        ProbeFailed: there is no answer.
    """
    deadline = trio.current_effective_deadline()
    try:
        # A file, not a pipe: when the job has ended, the answer is whole.
        output = os.memfd_create("answer", os.MFD_CLOEXEC)
    except OSError as exc:
        raise ProbeFailed(str(exc)) from exc
    try:
        types = await manager.property_types("service", deadline=deadline)
        spec = ServiceSpec(
            unit=f"moored-probe-{os.urandom(8).hex()}.service",
            description=description,
            properties=types.convert(_properties(program, capabilities, system_calls, families, seconds)),
            standard_output=output,
            file_descriptors=((subject, "given"),),
        )
        if account is None:
            async with _host_probes:
                job = await manager.start_service(spec, deadline=deadline)
        else:
            job = await _start(manager, spec, account, deadline)
        data = os.pread(output, ANSWER_MAX, 0)
    except (ManagerError, OSError) as exc:
        raise ProbeFailed(str(exc)) from exc
    finally:
        os.close(output)
    return _checked(job, data)


def _checked(job: Job, data: bytes) -> bytes:
    if job.result != "done":
        raise ProbeFailed(f"job of {job.unit} ended with {job.result!r}")
    return data


async def _start(manager: Manager, spec: ServiceSpec, account: Account, deadline: float) -> Job:
    """Start a unit in one of the places of an account, and wait for its end."""
    of = _accounts.setdefault(account.name, _Places())
    async with of.places, _probes_of_users if account.of_user else nullcontext():
        while True:
            for place in tuple(of.free):
                of.free.discard(place)
                named = msgspec.structs.replace(spec, unit=f"moored-probe-{account.name}-{place}.service")
                try:
                    async with _probes:
                        return await manager.start_service(named, deadline=deadline)
                except UnitExists:
                    continue
                finally:
                    of.free.add(place)
            await trio.sleep(AGAIN_SECONDS)


def _properties(
    program: str,
    capabilities: int,
    system_calls: tuple[str, ...],
    families: tuple[str, ...] = FAMILIES,
    seconds: float = PROBE_SECONDS,
) -> dict[str, Json]:
    command: list[Json] = [sys.executable, "-I", "-S", "-B", program]
    return {
        **sandbox(capabilities, system_calls, families),
        "Type": "oneshot",
        "ExecStart": [[sys.executable, command, False]],
        "TimeoutStartUSec": round(seconds * 1e6),
        "TimeoutStopUSec": round(PROBE_STOP_SECONDS * 1e6),
        "MemoryMax": PROBE_MEMORY_MAX,
        "TasksMax": 1,
        "LimitNOFILE": PROBE_NOFILE,
    }


def sandbox(capabilities: int, system_calls: tuple[str, ...], families: tuple[str, ...]) -> dict[str, Json]:
    """Return properties of a unit that has a few rights, and leaves nothing behind.

    Args:
        capabilities: what it needs, by their bits (capabilities(7)).
        system_calls: what it needs beside ``@system-service`` (systemd.exec(5)).
        families: of the sockets that it needs.
    """
    properties: dict[str, Json] = {
        "CollectMode": "inactive-or-failed",
        "StandardError": "journal",
        # The manager's own lines about every start and end of it are of no use to anybody.
        "LogLevelMax": 4,
        "NoNewPrivileges": True,
        "RestrictAddressFamilies": [True, list(families)],
        "SystemCallArchitectures": ["native"],
        "SystemCallFilter": [True, ["@system-service", *system_calls]],
    }
    if os.geteuid() == 0:
        # The manager of an ordinary user has nothing to take away, and fails when it is told to.
        properties["CapabilityBoundingSet"] = capabilities
    return properties
