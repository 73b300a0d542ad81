"""Sandboxes come and go."""

import contextlib
import errno
import json
import os
import select
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from sandboxing import layers, nspawn, uml
from sandboxing.host import CHECKOUT, SandboxError, install, runs_systemd, unified_hierarchy
from sandboxing.images import Image, build
from sandboxing.inside import enter, environment
from sandboxing.preparing import BOOT_SECONDS, Boot
from sandboxing.state import STATE, Record, Sandbox, read_record

END_SECONDS = 20.0
"""From killing a sandbox until its last process is gone."""

NOFILE = "1024:524288"
"""Limits for file descriptors as on an ordinary Debian, SOFT:HARD; the host's shell may have others."""


@dataclass(frozen=True)
class Options:
    """Options of a sandbox.

    Attributes:
        kind: "nspawn" or "uml".
        mask: units that shall not start.
        nspawn: further options of systemd-nspawn.
        nofile: limits for file descriptors, SOFT:HARD.
        size: of what may be written to its root (tmpfs(5)).
    """

    kind: str = "nspawn"
    mask: tuple[str, ...] = ()
    nspawn: tuple[str, ...] = ()
    nofile: str = NOFILE
    size: str = "50%"


def up(image: Image, sandbox: Sandbox, options: Options) -> None:
    """Boot a sandbox, and wait until the boot is complete.

    Raises:
        SandboxError: the name is taken, or the sandbox did not come up; the attempt leaves nothing behind.
    """
    install(nspawn.TO_BOOT if options.kind == "nspawn" else uml.TO_BOOT)
    build(image)
    STATE.mkdir(mode=0o700, exist_ok=True)
    try:
        sandbox.directory.mkdir()
    except FileExistsError:
        if read_record(sandbox) is not None:
            raise SandboxError(f"A sandbox {sandbox.name!r} is already up.") from None
        raise SandboxError(
            f"A sandbox {sandbox.name!r} is being started, or its start was interrupted; remove it: "
            f"tools/sandbox down {sandbox.name}"
        ) from None
    try:
        layer = layers.layer_of(image)
        (sandbox.directory / "layer").write_text(str(layer))  # by then it is not removed any more
        layers.install(image, layer)
        leader = _booted(image, layer, sandbox, options)
        record = Record(image.suite, leader, options.nofile, options.kind)
        sandbox.record.write_text(json.dumps(asdict(record)))
    except BaseException:
        down(sandbox)
        raise


def _booted(image: Image, layer: Path, sandbox: Sandbox, options: Options) -> int:
    """Start a sandbox, wait until the boot is complete, and return the PID of its leader."""
    deadline = time.monotonic() + BOOT_SECONDS
    directory = sandbox.directory
    for part in ("root", "rw", "etc/systemd/system"):
        (directory / part).mkdir(parents=True)
    # Without a machine ID, PID 1 would take this for the first boot and apply all presets.
    (directory / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    for unit in options.mask:
        (directory / "etc/systemd/system" / unit).symlink_to("/dev/null")
    if runs_systemd():
        prefix = ["systemd-run", "--scope", "--collect", "--quiet", f"--unit={sandbox.unit}"]
        prefix += [f"--description=Sandbox {sandbox.name} of moorage"]
        prefix += ["--slice=machine.slice", "--property=Delegate=yes", "--"]
    else:
        sandbox.cgroup.mkdir()
        prefix = ["sh", "-euc", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(sandbox.cgroup)]
    prefix += ["unshare", "--mount", "--propagation", "private"]
    arguments = [*map(str, (directory, image.path, layer, unified_hierarchy(), CHECKOUT)), options.size]
    with (directory / "console.log").open("wb") as console:
        boot = Boot(sandbox, prefix, arguments, console, deadline)
        if options.kind == "nspawn":
            leader = nspawn.start(boot, [*options.nspawn, f"--rlimit=NOFILE={options.nofile}"])
        else:
            leader = uml.start(boot)
    state = _state(image.suite, options.kind, leader, deadline)
    if state == "degraded":
        print(f"{sandbox.name} is degraded; see systemctl --failed in it", file=sys.stderr)
    elif state != "running":
        raise SandboxError(
            f"{sandbox.name} is {state} after {BOOT_SECONDS:.0f} s. Its console:\n{sandbox.console()}"
        )
    return leader


def _state(suite: str, kind: str, leader: int, deadline: float) -> str:
    """Wait for the end of the boot, and return what systemctl(1) calls the state of the system."""
    try:
        return subprocess.run(
            [*enter(kind, leader), "systemctl", "is-system-running", "--wait"],
            capture_output=True,
            text=True,
            check=False,
            env=environment(suite),
            timeout=max(0.0, deadline - time.monotonic()),
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        return "still starting"


def down(sandbox: Sandbox) -> None:
    """Remove a sandbox, whatever its state.

    Raises:
        SandboxError: there is no such sandbox, or its processes did not die in time.
    """
    group = sandbox.cgroup
    if not (sandbox.directory.exists() or group.exists()):
        raise SandboxError(f"There is no sandbox {sandbox.name!r}.")
    leader = None
    with contextlib.suppress(ProcessLookupError):
        record = read_record(sandbox)
        leader = None if record is None else os.pidfd_open(record.leader)
    with contextlib.suppress(FileNotFoundError):
        (group / "cgroup.kill").write_text("1")
        _await_empty(group)
    if leader is not None:
        # A PID 1 that has left its group may still be waiting for its last processes.
        if not select.select([leader], [], [], END_SECONDS)[0]:
            raise SandboxError(f"{sandbox.name} outlived SIGKILL by {END_SECONDS:.0f} s.")
        os.close(leader)
    if runs_systemd():
        subprocess.run(["systemctl", "--quiet", "stop", sandbox.unit], check=False, capture_output=True)
    else:
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(FileNotFoundError):  # somebody else takes it down, too
                os.rmdir(directory)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(sandbox.directory)


def _await_empty(group: Path) -> None:
    """Wait until a control group and those below it have no processes (cgroups(7), cgroup.events).

    Raises:
        SandboxError: some outlived the deadline.
    """
    deadline = time.monotonic() + END_SECONDS
    events = os.open(group / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while b"populated 0" not in os.pread(events, 4096, 0):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise SandboxError(f"Processes in {group} outlived SIGKILL by {END_SECONDS:.0f} s.")
            poll.poll(remaining * 1000)
    except OSError as error:
        if error.errno != errno.ENODEV:  # the group itself is gone
            raise
    finally:
        os.close(events)
