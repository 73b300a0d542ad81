"""What tests of the service stand on. ``moored.py`` has the words they use."""

from collections.abc import Generator

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
    start_listening,
    stay_alone,
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what makes sense for the instance of the system only, where the tests are those of another one."""
    if USER:
        out = [item for item in items if item.get_closest_marker("system_instance")]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


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
