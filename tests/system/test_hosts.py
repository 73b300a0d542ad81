"""moorctl --host, by a real ssh and a real sshd."""

import json
import signal
from collections.abc import Callable

import pytest
from sandboxes import RUN_SECONDS, SHELLS_AND_SSH, Sandbox

# The hosts a and b are this one, behind its own sshd; nobody listens on c.
SSHD = r"""
mkdir -p /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
install -d -o alice -g alice /home/alice/.ssh
for home in /root /home/alice; do cp /root/.ssh/id_ed25519.pub $home/.ssh/authorized_keys; done
printf '%s\n' 'Host a b c' '    HostName 127.0.0.1' 'Host c' '    Port 1' 'Host *' '    BatchMode yes' \
    '    StrictHostKeyChecking accept-new' >/root/.ssh/config
systemctl start ssh.service moored.socket
"""


@pytest.mark.parametrize("suite", ["forky"])
def test_machines_of_other_hosts(boot: Callable[..., Sandbox]) -> None:
    sandbox = boot("--packages", SHELLS_AND_SSH)
    sandbox.run(["bash", "-euc", SSHD])

    def moorctl(*words: str) -> str:
        return sandbox.run(["moorctl", *words]).stdout

    leader = sandbox.run(["sh", "-c", "sleep infinity >/dev/null 2>&1 & echo $!"]).stdout.strip()
    unit = moorctl("-H", "root@a", "register", "web", "--leader", leader, "-p", "MemoryMax=64M")
    assert unit == "machine-web.scope\n"
    assert "machine-web.scope" in sandbox.run(["cat", f"/proc/{leader}/cgroup"]).stdout
    assert "64.0M" in moorctl("-H", "a", "status", "web")
    assert moorctl("-H", "a", "find", "--pid", leader) == "web\n"

    # A user there is a user here: she may look, and not touch.
    assert "machine-web.scope" in moorctl("-H", "alice@b", "list")
    refused = sandbox.run(["moorctl", "-H", "alice@b", "stop", "web"], check=False)
    assert (refused.returncode, refused.stdout) == (4, ""), refused

    # All hosts at once; the one that is down does not keep the others from answering.
    shown = sandbox.run(["moorctl", "-H", "b", "-H", "a", "-H", "c", "list"], check=False)
    heading, *rows = shown.stdout.splitlines()
    assert (shown.returncode, heading.split()[-1]) == (5, "HOST")
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [("web", "a"), ("web", "b")]
    assert "c: Failed to reach /run/moorage/io.moorage.Machine on c." in shown.stderr

    shown = sandbox.run(["moorctl", "-H", "a", "-H", "alice@b", "-H", "c", "top", "-d", "50ms"], check=False)
    heading, *rows = shown.stdout.splitlines()
    assert (shown.returncode, heading.split()[-1]) == (5, "HOST")
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [("web", "a"), ("web", "alice@b")]
    assert "c: Failed to reach" in shown.stderr

    # Events of both, as they come, over a restart.
    command = ["moorctl", "-H", "a", "-H", "b", "events", "--follow", "--json", "--event", "exited"]
    with sandbox.spawn(command) as follower:
        assert follower.stdout is not None
        seen: set[tuple[str, str]] = set()
        while len(seen) < 2:
            told = json.loads(follower.stdout.readline())
            seen.add((told["host"], told["event"]))
        assert seen == {("a", "snapshotDone"), ("b", "snapshotDone")}
        sandbox.run(["systemctl", "restart", "moored.service"])
        moorctl("-H", "a", "stop", "web")
        while len(seen) < 4:
            told = json.loads(follower.stdout.readline())
            seen.add((told["host"], told["event"]))
        assert {("a", "exited"), ("b", "exited")} <= seen
        follower.send_signal(signal.SIGINT)
        follower.wait(RUN_SECONDS)
    kept = moorctl("-H", "a", "-H", "b", "events", "--event", "exited").splitlines()
    assert [line.split()[2] for line in kept] == ["a", "b"]
    assert sandbox.run(["pgrep", "-a", "ssh"], check=False).stdout.count("-W") == 0
