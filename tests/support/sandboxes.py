"""Sandboxes for tests: `sandbox` (one per suite, shared), `boot` (as many of one's own as a test wants).

Everything goes through `tools/sandbox`, as it would by hand. A test must leave nothing in a shared sandbox.
"""

import os
import re
import secrets
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TOOL = CHECKOUT / "tools" / "sandbox"
VERSIONS = {"trixie": 257, "forky": 262}
"""Suites that system tests run on, with their versions of systemd."""

RUN_SECONDS = 50.0
"""No single command in a sandbox takes longer unless its test says so: just under pytest's faulthandler_timeout."""
UP_SECONDS = 1200.0
"""A boot takes two seconds, but the image may have to be built first."""
DOWN_SECONDS = 60.0
PYTEST_SECONDS = 900.0
"""For the modules of tests that run inside a sandbox together."""

SHELLS_AND_SSH = "openssh-server,openssh-client,zsh,fish,bash-completion"
"""Packages of the tests of what people type, so that all of these have one image."""

SYSTEM_ONLY = "of the system's instance only: "
"""How the lines begin in which a run over the instance of a user prints what it left out, and why."""
BECAUSE = " because: "
"""Stands between a test and the reason there."""

DESCRIPTORS = "descriptors"
"""Group of tests of which no two may run at a time, in whatever sandboxes: the kernel counts file descriptors that are
on their way (ETOOMANYREFS, unix(7)) by user, and root is one user in all sandboxes."""


@dataclass(frozen=True)
class Sandbox:
    """A sandbox that is up."""

    name: str
    suite: str

    @property
    def systemd(self) -> int:
        """The version of systemd in it."""
        return VERSIONS[self.suite]

    def command(
        self, argv: Sequence[str], *, user: int = 0, env: Mapping[str, str] | None = None
    ) -> list[str]:
        """The command of the host that runs a command inside."""
        options = [
            *(["--user", str(user)] if user else []),
            *(f"--env={k}={v}" for k, v in (env or {}).items()),
        ]
        return [str(TOOL), "exec", *options, self.name, "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str = "",  # noqa: A002 - the name that subprocess.run uses
        user: int = 0,
        env: Mapping[str, str] | None = None,
        timeout: float = RUN_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end.

        Raises:
            AssertionError: `check` was asked for and the status is not 0; says what it printed.
            subprocess.TimeoutExpired: it did not end in time (seconds); it was killed.
        """
        done = subprocess.run(
            self.command(argv, user=user, env=env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            input=input,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def spawn(
        self,
        argv: Sequence[str],
        *,
        user: int = 0,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[str] | None = subprocess.PIPE,
        stdout: int | IO[str] | None = subprocess.PIPE,
        stderr: int | IO[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command inside; it dies with the process returned."""
        return subprocess.Popen(
            self.command(argv, user=user, env=env), text=True, stdin=stdin, stdout=stdout, stderr=stderr
        )

    def pytest(
        self, *modules: Path, options: Sequence[str] = (), user: int = 0, timeout: float = PYTEST_SECONDS
    ) -> str:
        """Run tests inside: as root against the sandbox's own PID 1, or as a user against that user's.

        Args:
            modules: of tests, or directories of them.
            options: for the pytest inside.
            user: uid; below a service manager that is there.
            timeout: s.

        Returns:
            What the inner pytest printed.

        Raises:
            pytest.fail.Exception: not every test in it passed; says what the inner pytest printed.
        """
        inside = [str(Path("/moorage") / module.resolve().relative_to(CHECKOUT)) for module in modules]
        argv = [
            *(["systemd-run", "--user", "--scope", "--quiet", "--collect"] if user else []),
            "env",
            "-C",
            "/moorage",
            "python3",
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--color=no",
            "--tb=short",
        ]
        done = self.run([*argv, *options, *inside], check=False, user=user, timeout=timeout)
        if done.returncode != 0 or not re.search(r"\b\d+ passed", done.stdout):
            journal = self.run(
                ["journalctl", "--boot", "--no-pager", "--lines=60", "--output=short-monotonic"], check=False
            )
            names = ", ".join(module.name for module in modules)
            pytest.fail(
                f"{names} inside {self.suite} (systemd {self.systemd}):\n{done.stdout}{done.stderr}\n"
                f"The end of the journal:\n{journal.stdout}",
                pytrace=False,
            )
        return done.stdout


def start(suite: str, options: Sequence[str] = ()) -> Sandbox:
    """Boot a sandbox; an image that is missing is built first."""
    name = f"test-{suite}-{secrets.token_hex(3)}"
    _tool(["up", suite, "--name", name, *options], UP_SECONDS)
    return Sandbox(name, suite)


def stop(sandbox: Sandbox) -> None:
    """Remove a sandbox."""
    _tool(["down", sandbox.name], DOWN_SECONDS)


def _tool(argv: Sequence[str], timeout: float) -> None:
    done = subprocess.run(
        [TOOL, *argv], capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        pytest.fail(
            f"tools/sandbox {' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}",
            pytrace=False,
        )


@pytest.fixture(scope="session", params=VERSIONS)
def suite(request: pytest.FixtureRequest) -> str:
    """The suite; a test that uses it, or one of the fixtures below, runs once for each."""
    return request.param


@pytest.fixture(scope="session")
def sandbox(suite: str) -> Generator[Sandbox]:
    """A sandbox shared by all tests of a session."""
    if "MOORAGE_SANDBOX" in os.environ:
        pytest.fail(
            "This is a test of the host's side; tests that run inside have the real thing around them."
        )
    one = start(suite)
    yield one
    stop(one)


@pytest.fixture
def boot(suite: str) -> Generator[Callable[..., Sandbox]]:
    """Boot a sandbox of one's own: `boot("--no-broker")`; it goes with the test."""
    booted: list[Sandbox] = []

    def one(*options: str) -> Sandbox:
        booted.append(start(suite, options))
        return booted[-1]

    yield one
    for sandbox in booted:
        if Path(f"/run/moorage-sandbox/{sandbox.name}").exists():
            stop(sandbox)
