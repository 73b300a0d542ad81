"""What peers can read of us, and what they mean: sd-json on the other end, other PID namespaces."""

import json
import os
import subprocess

import pytest
from moored import OURS, SOCKET, THEIRS, USER, Processes, connect, control_group, process_of, register, until

pytestmark = pytest.mark.system_instance("how a reply is written does not depend on an instance", runs=True)

INVALID = ("org.varlink.service.InvalidParameter", "Invalid argument")
"""What varlinkctl 257 and 262 say of an invalid parameter."""


def varlinkctl(method: str, parameters: object, *before: str) -> subprocess.CompletedProcess[str]:
    """Make a call as systemd's own client does, perhaps in other surroundings."""
    argv = [*before, "varlinkctl", "--json=short", "call", SOCKET, method, json.dumps(parameters)]
    environment = {**os.environ, "SYSTEMD_LOG_TARGET": "console"}  # what it says of a failure
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30.0, env=environment)


def test_what_a_helper_wrote_last_is_readable_for_varlinkctl(spawn: Processes) -> None:
    words = r"del \\177 nul \\000 non \\357\\277\\276 end"
    helper = {
        "name": "bad",
        "type": "oneshot",
        "execStart": ["/bin/sh", "-c", f'printf "{words}\\n" >&2; exit 3'],
    }
    leader = {"pid": spawn().pid}
    done = varlinkctl(
        f"{OURS}Register", {"name": "words", "class": "vm", "leader": leader, "helpers": [helper]}
    )
    assert f"{OURS}HelperFailed" in done.stderr, done.stderr
    # It prints what the error says where it could read it.
    assert "end" in done.stdout + done.stderr, (done.stdout, done.stderr)


UNSHARED = (
    "unshare",
    *(("--user", "--map-current-user") if USER else ()),
    "--pid",
    "--fork",
    "--mount-proc",
)


async def test_a_bare_pid_of_another_pid_namespace_is_refused(spawn: Processes) -> None:
    bystander = spawn()
    group = control_group(bystander)
    named = {"name": "other", "class": "vm", "leader": {"pid": bystander.pid}}
    done = varlinkctl(f"{OURS}Register", named, *UNSHARED)
    assert f"{OURS}NotSupported" in done.stderr, done.stderr
    done = varlinkctl(
        f"{THEIRS}Register", {**named, "leader": bystander.pid, "allocateUnit": True}, *UNSHARED
    )
    assert any(words in done.stderr for words in INVALID), done.stderr
    for method, parameters in (
        (f"{OURS}Find", {"process": {"pid": bystander.pid}}),
        (f"{THEIRS}List", {"pid": {"pid": bystander.pid}}),
    ):
        done = varlinkctl(method, parameters, *UNSHARED)
        assert any(words in done.stderr for words in ("NotSupported", *INVALID)), done.stderr
    assert control_group(bystander) == group


async def test_a_process_that_is_named_for_sure_may_be_named_from_anywhere(spawn: Processes) -> None:
    leader = spawn()
    named = {"name": "sure", "class": "vm", "leader": process_of(leader)}
    done = varlinkctl(f"{OURS}Register", named, *UNSHARED)
    assert done.returncode == 0, done.stderr
    assert control_group(leader).endswith("/machine-sure.scope")
    # And the caller itself needs no number.
    async with await connect() as client:
        await register(client, "self", os.getpid(), dryRun=True)
        await client.call(f"{OURS}Stop", {"name": "sure"})
    await until(lambda: leader.poll() is not None)
