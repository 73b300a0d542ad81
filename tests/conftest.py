"""Async tests: a coroutine function named test_* is run by trio, under one overall deadline."""

import inspect
from functools import partial

import pytest
import trio

# No single test waits longer for anything; pytest's faulthandler_timeout (60 s) comes after it, with stacks.
TEST_DEADLINE_SECONDS = 55.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test under trio; leave every other test to pytest."""
    if not inspect.iscoroutinefunction(inspect.unwrap(pyfuncitem.obj)):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def bounded() -> None:
        with trio.fail_after(TEST_DEADLINE_SECONDS):
            await partial(pyfuncitem.obj, **arguments)()

    trio.run(bounded, strict_exception_groups=True)
    return True
