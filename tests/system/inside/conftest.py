"""What tests of the service stand on. ``moored.py`` has the words they use."""

import os
from collections.abc import Generator
from typing import Any

import pytest
import trio
from moored import (
    ALONE,
    UNIT_FILES,
    USER,
    Processes,
    assert_everything_gone,
    assert_nothing_left,
    connect,
    cursor,
    descriptors,
    logged,
    main_pid,
    run,
    set_grace,
    start_listening,
    state,
    stay_alone,
    stored,
    until,
)
from sandboxes import BECAUSE, SYSTEM_ONLY

SETTLED_SECONDS = 3.0
"""For a service that has just started; one without a message bus has no references."""

GRACE_SECONDS = 3.0

ALL = "MOORAGE_TEST_ALL" in os.environ
"""Leave out what cannot run over the instance of a user, but not what would say no more there."""

LEFT_OUT = pytest.StashKey[dict[str, str]]()
"""Why a test is left out, by its node ID."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what makes sense for the instance of the system only, where the tests are those of another one."""
    reasons: dict[str, str] = {}
    for item in items:
        for marker in item.iter_markers("system_instance"):
            if not marker.args:
                raise pytest.UsageError(f"{item.nodeid}: system_instance without a reason")
            if not (marker.kwargs.get("runs") and ALL):
                reasons.setdefault(item.nodeid, marker.args[0])
    config.stash[LEFT_OUT] = reasons if USER else {}
    if USER:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in reasons])
        items[:] = [item for item in items if item.nodeid not in reasons]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what was left out, and why; ``Sandbox.pytest`` reads it."""
    for test, reason in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(f"{SYSTEM_ONLY}{test}{BECAUSE}{reason}")


@pytest.fixture(scope="session")
def moored() -> Generator[None]:
    """Listen; the first call starts the service. At the end it must not have met a bug of its own.

    It has nothing to do with machined, for tests that count what it does, what it opens and what happens.
    """
    stay_alone()
    start_listening()
    before = cursor()
    yield
    text = "\n".join(logged(before))
    assert "Traceback" not in text
    assert "Failed to start:" not in text  # what it says of any error that ends it


@pytest.fixture(scope="module")
def beside(moored: None) -> Generator[None]:
    """Have a moored as it is installed: what it has is published, and it adopts what machined has."""
    ALONE.unlink(missing_ok=True)
    run("systemctl", "stop", "moored.service")
    yield
    stay_alone()
    run("systemctl", "stop", "moored.service")


@pytest.fixture(scope="module")
def grace(moored: None) -> Generator[float]:
    """Have a moored that gives launchers less time to take their leases again: the seconds.

    The tests that need it wait until it is over; on a loaded machine many launchers take a second.
    """
    set_grace(GRACE_SECONDS)
    yield GRACE_SECONDS
    set_grace(None)


@pytest.fixture(scope="session")
def descriptors_at_first() -> dict[int, int]:
    """How many file descriptors each process of moored had with nothing to do."""
    return {}


@pytest.fixture
def nothing_left(moored: None, descriptors_at_first: dict[int, int]) -> Generator[None]:
    """Nothing of a machine is left by the test, and no file descriptor by the service."""

    async def count() -> int:
        async with await connect() as client:
            await client.call("org.varlink.service.GetInfo")
            if main_pid() not in descriptors_at_first:
                # It answers before it has done all that it does at first.
                await until(lambda: state("moored.service") == "active", "moored is ready")
                with trio.move_on_after(SETTLED_SECONDS):
                    await until(lambda: stored() != "0")
            return descriptors() - 1

    found = trio.run(count)
    pid = main_pid()
    before = descriptors_at_first.setdefault(pid, found)
    yield
    trio.run(assert_nothing_left, before if main_pid() == pid else None)


@pytest.fixture
def spawn(nothing_left: None) -> Generator[Processes]:
    """Start processes; they end with the test, before it is looked what it left."""
    processes = Processes()
    yield processes
    processes.bury()


@pytest.fixture
def everything_gone(nothing_left: None, spawn: Processes) -> Generator[None]:
    """No unit and no directory of any machine is left by the test."""
    yield
    spawn.bury()
    trio.run(assert_everything_gone)


@pytest.fixture
def mortal() -> Generator[None]:
    """A moored that stays dead when it is killed, with its socket."""
    drop_in = UNIT_FILES / "moored.service.d/mortal.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nRestart=no\n")
    run("systemctl", "daemon-reload")
    yield
    drop_in.unlink()
    run("systemctl", "daemon-reload")
    start_listening()
