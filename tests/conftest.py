"""Rules for all tests: async ones run under trio with a deadline, and a skipped test is a failed run."""

import gc
import inspect
import os
from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies
import pytest
import trio
import trio.testing

pytest_plugins = ["sandboxes", "debian_packages"]

# Tests that run over several implementations: a failure of theirs says as much as that of any other.
pytest.register_assert_rewrite("manager_battery", "hierarchy_battery", "cli_battery", "pty_battery")

# Modules in an `inside` directory run in a sandbox, started by a test of the host's side (sandboxes.Sandbox.pytest).
collect_ignore_glob = [] if "MOORAGE_SANDBOX" in os.environ else ["*/inside/*"]

# A machine may be loaded, and the first text drawn in a checkout has a table of all characters made. What fails is
# printed, and not kept: in a sandbox the checkout cannot be written to.
hypothesis.settings.register_profile(
    "moorage", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("moorage")

TEST_DEADLINE_SECONDS = float(os.environ.get("MOORAGE_TEST_SECONDS", "55"))
"""No single async test waits longer for anything; pytest's faulthandler_timeout (60 s) comes after it, with stacks. By
hand both can be set, for what takes longer."""

JUMPED_SECONDS = 1e6
"""The same on a clock that jumps: a million seconds take no time, and what waits for ever is told so."""


def pytest_collection_finish() -> None:
    """Keep the collector away from what lives as long as the run: tests that look for leaks collect twice each."""
    draw_nothing()  # Hypothesis makes its generator at the first example, and asks the collector who holds it
    gc.collect()
    gc.freeze()


@hypothesis.settings(max_examples=1)
@hypothesis.given(hypothesis.strategies.none())
def draw_nothing(_: None) -> None:
    """Try one example."""


@pytest.fixture
def jumping_clock() -> trio.testing.MockClock:
    """Have an async test run on a clock that jumps to whatever is waited for: nothing in it waits outside of trio."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test under trio; leave every other test to pytest."""
    if not inspect.iscoroutinefunction(inspect.unwrap(pyfuncitem.obj)):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    clock: Any = pyfuncitem.funcargs.get("jumping_clock")

    async def bounded() -> None:
        with trio.fail_after(TEST_DEADLINE_SECONDS if clock is None else JUMPED_SECONDS):
            await partial(pyfuncitem.obj, **arguments)()

    trio.run(bounded, clock=clock)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """Turn a skip into a failure: a test that is not run says nothing."""
    report = yield
    assert isinstance(report, pytest.TestReport)
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and no test may be: {report.longrepr}"
    return report
