"""An examination of the host: what of moored will work here, and how to mend what will not.

Each finding comes from one look at the running system. Nothing is changed, but a call may start the service. What
could not be found out is reported as such.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from moorage.addresses import VARIABLE
from moorage.cli.address import Address
from moorage.cli.failures import Failure

SYSTEMD_MIN: Final = 257
KERNEL_MIN: Final = (6, 9)
"""Unique inode numbers of pidfds."""
KERNEL_EXIT_STATUS: Final = (6, 15)
"""The first to report how a process ended through its pidfd: the leader's status in a verdict."""
KERNEL_PASSRIGHTS: Final = (6, 16)
"""The first by which a socket can refuse file descriptors."""

CONTROLLERS: Final = ("cpu", "cpuset", "io", "memory", "pids")
"""What limits of scopes and services need."""

ANSWER_SECONDS: Final = 10.0
"""For systemctl and for the service, which may have to be started."""


class State(Enum):
    """How bad a finding is."""

    good = "ok"
    limited = "limited"
    bad = "bad"
    unknown = "unknown"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one look has found.

    Attributes:
        subject: what was looked at.
        state: whether moored can work with it; `limited` if some of it cannot.
        words: what was found.
        remedy: what to do about it, where something can be done.
    """

    subject: str
    state: State
    words: str
    remedy: str | None = None


def examine(address: Address, *, root: Path = Path("/")) -> Iterator[Finding]:
    """Examine the host and the service.

    Args:
        address: where the service listens.
        root: of the file system that is looked at; tests have one of their own.
    """
    user = address.manager == "systemctl --user"
    yield _systemd(root, user=user)
    yield _kernel(os.uname().release)
    yield _hierarchy(root)
    yield _controllers(root, user=user)
    yield _bpf(root)
    yield _bus(root)
    yield _polkit(root, user=user)
    yield _machined(root)
    listening = _socket(address)
    yield listening
    if listening.state is State.good:
        serving = _service(address)
        yield serving
        if serving.state is State.good:
            yield _configuration(address)


def failed(findings: Sequence[Finding]) -> bool:
    """Return whether moored cannot work here."""
    return any(finding.state is State.bad for finding in findings)


def _systemd(root: Path, *, user: bool) -> Finding:
    subject = "service manager"
    if not (root / "run/systemd/system").is_dir():
        return Finding(
            subject,
            State.bad,
            "systemd is not the init system of this host",
            "moored needs systemd as PID 1; in a container: systemd-nspawn --boot, podman run --systemd=always",
        )
    command = ["systemctl", *(["--user"] if user else []), "show", "--value", "--property=Version"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(subject, State.unknown, f"systemctl did not answer: {error}")
    found = re.match(r"\d+", done.stdout)
    if done.returncode != 0 or found is None:
        reason = done.stderr.strip().splitlines()[-1:] or ["no version in its answer"]
        remedy = "Log in as this user, or: loginctl enable-linger" if user else None
        return Finding(subject, State.unknown, f"systemctl: {reason[0]}", remedy)
    version = int(found[0])
    if version < SYSTEMD_MIN:
        return Finding(
            subject, State.bad, f"systemd {version}", f"Upgrade systemd: moored needs {SYSTEMD_MIN} or later"
        )
    return Finding(subject, State.good, f"systemd {done.stdout.strip()}")


def _kernel(release: str) -> Finding:
    subject = "kernel"
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return Finding(subject, State.unknown, f"Linux {release}")
    version = (int(found[1]), int(found[2]))
    if version < KERNEL_MIN:
        return Finding(
            subject,
            State.bad,
            f"Linux {release}",
            "Upgrade to Linux 6.9 or later: older ones cannot tell a process from a later one with its number",
        )
    missing = [
        words
        for since, words in (
            (KERNEL_EXIT_STATUS, "verdicts without the leader's exit status (Linux 6.15 has it)"),
            (KERNEL_PASSRIGHTS, "descriptors of users are closed, not refused (Linux 6.16)"),
        )
        if version < since
    ]
    if missing:
        return Finding(subject, State.limited, f"Linux {release}: {'; '.join(missing)}")
    return Finding(subject, State.good, f"Linux {release}")


def _hierarchy(root: Path) -> Finding:
    subject = "control groups"
    if (root / "sys/fs/cgroup/cgroup.controllers").is_file():
        return Finding(subject, State.good, "unified hierarchy at /sys/fs/cgroup")
    return Finding(
        subject,
        State.bad,
        "no unified hierarchy at /sys/fs/cgroup",
        "Boot without systemd.unified_cgroup_hierarchy=0 and cgroup_no_v1= on the kernel's command line",
    )


def _controllers(root: Path, *, user: bool) -> Finding:
    subject = "controllers"
    below = "sys/fs/cgroup"
    if user:
        uid = os.getuid()
        below += f"/user.slice/user-{uid}.slice/user@{uid}.service"
    try:
        there = (root / below / "cgroup.controllers").read_text().split()
    except OSError as error:
        return Finding(subject, State.unknown, f"{error.filename}: {error.strerror}")
    missing = [name for name in CONTROLLERS if name not in there]
    if not missing:
        return Finding(subject, State.good, " ".join(CONTROLLERS))
    if user:
        remedy = (
            "As root: systemctl edit user@.service, with Delegate=cpu cpuset io memory pids below [Service]; "
            "then log in again"
        )
    elif (root / "run/systemd/container").exists():
        remedy = (
            "In a container: its host has to have them in the unified hierarchy, and to delegate them to the "
            "container's unit (Delegate=)"
        )
    else:
        remedy = "They are of version 1 or switched off: see cgroup_disable= and cgroup_no_v1= of the kernel"
    return Finding(
        subject, State.limited, f"missing: {' '.join(missing)}; their limits have no effect", remedy
    )


def _bpf(root: Path) -> Finding:
    subject = "BPF"
    missing = [path for path in ("/sys/fs/bpf", "/sys/kernel/btf/vmlinux") if not (root / path[1:]).exists()]
    if not missing:
        return Finding(subject, State.good, "BPF file system and type information are there")
    # A container may not see what its kernel has.
    return Finding(
        subject,
        State.limited,
        f"not seen here: {', '.join(missing)}",
        "DeviceAllow=, IPAddressDeny= and the like may have no effect: a kernel with CONFIG_BPF_SYSCALL, "
        "CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF has them",
    )


def _bus(root: Path) -> Finding:
    subject = "system bus"
    if (root / "run/dbus/system_bus_socket").exists():
        if (root / "usr/share/dbus-1/system.d/io.moorage.conf").exists():
            return Finding(subject, State.good, "there, with room for references to all machines")
        return Finding(
            subject,
            State.limited,
            "there; if it is dbus-daemon, the counters of more than 500 machines may be incomplete at their end",
            "Copy units/dbus/io.moorage.conf to /usr/share/dbus-1/system.d",
        )
    return Finding(
        subject,
        State.limited,
        "not there: polkit cannot be queried, and the counters of a machine that ended quickly may be incomplete",
        "Install dbus-broker or dbus, or leave it so: moored talks to the service manager without it",
    )


def _polkit(root: Path, *, user: bool) -> Finding:
    subject = "polkit"
    if user:
        return Finding(subject, State.good, "not needed by the user's instance")
    if not (root / "usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service").exists():
        return Finding(
            subject, State.limited, "not installed: only root can register machines", "Install polkitd"
        )
    if not (root / "usr/share/polkit-1/actions/io.moorage.policy").exists():
        return Finding(
            subject,
            State.limited,
            "knows no action of moored's: only root can register machines",
            "Copy units/polkit/io.moorage.policy to /usr/share/polkit-1/actions",
        )
    return Finding(subject, State.good, "there, with moored's actions")


def _machined(root: Path) -> Finding:
    subject = "systemd-machined"
    path = root / "run/systemd/machine/io.systemd.Machine"
    if path.exists():
        return Finding(subject, State.good, "its socket is there: moored runs beside it, or serves it")
    return Finding(subject, State.good, "not there")


def _start(address: Address) -> str:
    if address.manager is None:
        return f"Check the path, which comes from --address or ${VARIABLE}"
    return f"{address.manager} enable --now moored.socket"


def _socket(address: Address) -> Finding:
    subject = "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_SECONDS)
        try:
            sock.connect(address.path)
        except OSError as error:
            match error.errno:
                case errno.ENOENT | errno.ECONNREFUSED:
                    words, remedy = "nobody listens", _start(address)
                case errno.EACCES:
                    words, remedy = "permission denied", f"See: ls -ld {os.path.dirname(address.path)}"
                case _:
                    words, remedy = str(error.strerror or error), _start(address)
            return Finding(subject, State.bad, f"{address.path}: {words}", remedy)
    return Finding(subject, State.good, address.path)


def _service(address: Address) -> Finding:
    subject = "service"
    # What a call needs takes most of the time that moorctl needs to start: see commands.options.
    from moorage.cli.service import information

    try:
        info = information(address, timeout=ANSWER_SECONDS)
    except Failure as failure:
        journal = (
            "journalctl --user --unit=moored"
            if address.manager == "systemctl --user"
            else "journalctl --unit=moored"
        )
        return Finding(subject, State.bad, str(failure).splitlines()[0], f"See: {journal}")
    return Finding(
        subject, State.good, f"{info.product} {info.version}, serves {', '.join(info.interfaces)}"
    )


def _configuration(address: Address) -> Finding:
    subject = "configuration"
    from moorage.cli.service import call
    from moorage.client.methods import ConfigurationDescribed

    try:
        reply = call(address, "DescribeConfiguration", {}, timeout=ANSWER_SECONDS)
        found = msgspec.json.decode(reply, type=ConfigurationDescribed)
    except (Failure, msgspec.DecodeError) as error:
        return Finding(subject, State.unknown, str(error).splitlines()[0])
    if found.problems:
        count = f"{len(found.problems)} problem{'' if len(found.problems) == 1 else 's'}"
        remedy = f"See: {address.moorctl} config"
        return Finding(
            subject, State.limited, f"{count} in its files, the first is {found.problems[0]}", remedy
        )
    changed = sum(option.value != option.default for option in found.options)
    words = f"{len(found.options) - changed} of {len(found.options)} options have their defaults"
    waiting = [option.name for option in found.options if option.after_restart is not None]
    if waiting:
        words += f"; a restart will change {', '.join(waiting)}"
    return Finding(subject, State.good, words)
