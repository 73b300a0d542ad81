"""The order of the system tests."""

from collections import defaultdict
from collections.abc import Generator
from typing import Any

import pytest
from sandboxes import BECAUSE, SYSTEM_ONLY

LONGEST = (
    "test_attack[",
    "test_inside[trixie-test_scarcity]",
    "test_launchers_that_are_compiled[",
    "test_nothing_grows",
    "test_nothing_is_lost_and_nobody_else_is_harmed",
    "test_nothing_goes_wrong_in_memory",
    "test_inside[trixie-test_start_refusals]",
    "test_inside[",
    "test_packages_from_installation_to_purge[",
    "test_damaged_input",
    "test_foreign[",
    "test_libvirt",
    "test_user[",
    "test_users_at_the_boundary[",
    "test_exporter",
)
"""How the names of tests begin that take half a minute or more."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Run the longest first: otherwise one worker has minutes left when the others are through.

    Tests that share a sandbox are given to one worker. Each of the others would boot one of its own, which takes eight
    of root's inotify instances (128 in all sandboxes together, by default) until the worker is through.
    """

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONGEST) if item.name.startswith(name)), len(LONGEST))

    for item in items:
        if isinstance(item, pytest.Function) and "sandbox" in item.fixturenames:
            parameters = item.callspec.params
            which = parameters.get("system", parameters.get("suite"))
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{which}"))
    yield
    items.sort(key=place)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a run that would not keep the tests of a group together, as that of pytest-xdist 3.8 under pytest 9.2.

    Raises:
        pytest.UsageError: the ID of a test does not name its group. Nothing else is known where work is handed out.
    """
    if session.config.getoption("loadgroup", default=False):
        for item in session.items:
            group = item.get_closest_marker("xdist_group")
            if group and not item.nodeid.endswith(f"@{group.args[0]}"):
                raise pytest.UsageError(f"{item.nodeid} is not kept together with {group.args[0]}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was not tested over the instance of a user, and why: the reasons, each with its tests' modules."""
    left_out: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == SYSTEM_ONLY:
                test, _, reason = str(value).partition(BECAUSE)
                left_out[reason][test.partition("::")[0].rpartition("/")[2]] += 1
    if left_out:
        terminalreporter.section("not over the instance of a user")
    for reason, modules in sorted(left_out.items()):
        counted = ", ".join(f"{module} ({count})" for module, count in sorted(modules.items()))
        terminalreporter.write_line(f"{reason}: {counted}")
