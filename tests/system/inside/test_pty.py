"""moorctl run --pty against the real moored."""

import os
import signal

import pytest
from cli_battery import RUN_SECONDS, Moorctl, a_name
from moored import MOORCTL, run
from pty_battery import WAIT, Piped, PtyBattery, Sit, wait_for


@pytest.fixture(autouse=True)
def _clean(nothing_left: None) -> None:
    """Every test here leaves nothing."""


@pytest.fixture
def moorctl() -> Moorctl:
    return Moorctl(MOORCTL)


def units(name: str) -> list[str]:
    text = run("systemctl", "list-units", "--all", "--plain", "--no-legend", f"machine-{name}*")
    return [line.split()[0] for line in text.splitlines()]


class TestOverTheRealOne(PtyBattery):
    """The battery, and what needs a service manager, or to be root."""

    def test_moorctl_that_is_killed_leaves_nothing(self, sit: Sit) -> None:
        name = a_name()
        person = sit("sh", "-c", f"trap '' HUP; {WAIT}", name=name, options=["--helper", "a=sleep 100"])
        person.read("ready\r\n")
        ptys = os.listdir("/dev/pts")
        assert f"machine-{name}-a.service" in units(name)
        person.process.send_signal(signal.SIGKILL)
        assert person.process.wait(RUN_SECONDS) == -signal.SIGKILL
        wait_for(lambda: not units(name))
        wait_for(lambda: len(os.listdir("/dev/pts")) == len(ptys) - 1)

    @pytest.mark.system_instance("only root may become another user")
    def test_a_terminal_of_another_user(self, sit: Sit) -> None:
        script = "id -un; echo by name >$(tty); stat -c %U $(tty); cat <$(tty) >/dev/tty"
        person = sit("bash", "-c", script, options=["--uid", "bob", "-E", "PATH=/usr/bin:/bin"])
        person.read("bob\r\nby name\r\nbob\r\n")
        person.type("word\r\x04")
        assert person.end() == (0, "word\r\nword\r\n")

    @pytest.mark.system_instance("only root may become another user")
    def test_a_login(self, sit: Sit) -> None:
        """login(1) hangs up its terminal, and opens it again."""
        person = sit("login", "-f", "bob", options=["-E", "TERM=dumb"])
        person.read("bob@")
        person.type("tty; id -un\r")
        person.read("\r\n/dev/pts/")
        person.read("\r\nbob\r\n")
        person.resize(40, 100)
        # What is typed may arrive before the signal that tells of the other size.
        person.type('until [ "$(stty size)" = "40 100" ]; do sleep 0.1; done; echo as large\r')
        person.read("\r\nas large\r\n")
        person.type("exit 6\r")
        person.end()
        assert person.modes() == person.modes_before

    def test_what_is_left_without_a_lease_loses_the_terminal(self, piped: Piped) -> None:
        """It writes until it cannot; moorctl does not wait for that."""
        name = a_name()
        script = "trap '' HUP; while echo more; do :; done & echo said; exit 8"
        process = piped("sh", "-c", script, name=name, options=["--no-lease"])
        output, _ = process.communicate(timeout=RUN_SECONDS)
        assert process.returncode == 8
        assert b"said\r\n" in output
        wait_for(lambda: not units(name))
