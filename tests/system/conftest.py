"""The order of the system tests."""

import pytest

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
    "test_user[",
    "test_users_at_the_boundary[",
    "test_exporter",
)
"""How the names of tests begin that take half a minute or more."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest first: otherwise one worker has minutes left when the others are through."""

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONGEST) if item.name.startswith(name)), len(LONGEST))

    items.sort(key=place)
