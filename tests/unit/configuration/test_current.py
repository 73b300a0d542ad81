"""What is in force, now and after a restart."""

from collections.abc import Mapping

from moorage.configuration.current import Configuration, Entry
from moorage.configuration.settings import INFO, Loaded, Problem, Settings


def loaded(settings: Settings, sources: Mapping[str, str] | None = None, *problems: Problem) -> Loaded:
    return Loaded(settings, sources or {}, problems)


def entry(configuration: Configuration, name: str) -> Entry:
    return next(each for each in configuration.entries() if each.name == name)


def test_at_the_start_all_is_in_force() -> None:
    read = loaded(
        Settings(machines_max=5, lease_grace_usec=7_000_000),
        {"machines_max": "a:1", "lease_grace_usec": "a:2"},
    )
    configuration = Configuration(lambda: read)
    assert configuration.settings == read.settings
    assert entry(configuration, "machinesMax") == Entry("machinesMax", "5", "16384", "a:1")
    assert entry(configuration, "leaseGrace") == Entry("leaseGrace", "7s", "5s", "a:2")
    assert entry(configuration, "idleTimeout") == Entry("idleTimeout", "30s", "30s", "default")
    assert [each.after for each in configuration.entries()] == [None] * len(Settings.__struct_fields__)


def test_what_needs_a_restart_waits_for_it() -> None:
    configuration = Configuration(lambda: loaded(Settings(tasks_max=9), {"tasks_max": "a:1"}))
    later = loaded(
        Settings(machines_max=5, lease_grace_usec=7_000_000),
        {"machines_max": "b:1", "lease_grace_usec": "b:2"},
    )
    assert configuration.take(later) == ["leaseGrace"]
    assert configuration.settings == Settings(machines_max=5)
    assert entry(configuration, "machinesMax").source == "b:1"
    assert entry(configuration, "tasksMax") == Entry("tasksMax", "16384", "16384", "default")
    assert entry(configuration, "leaseGrace") == Entry("leaseGrace", "5s", "5s", "default", ("7s", "b:2"))
    # It moves to another line, and back to what is in force.
    assert configuration.take(loaded(Settings(), {"lease_grace_usec": "b:3"})) == []
    assert entry(configuration, "leaseGrace") == Entry("leaseGrace", "5s", "5s", "b:3")


def test_followers_are_told_now_and_of_changes() -> None:
    configuration = Configuration(lambda: loaded(Settings()))
    told: list[Settings] = []
    configuration.follow(told.append)
    configuration.take(loaded(Settings()))
    configuration.take(loaded(Settings(machines_max=5)))
    configuration.take(loaded(Settings(machines_max=5, lease_grace_usec=7_000_000)))
    assert told == [Settings(), Settings(machines_max=5)]


def test_what_a_call_sets_stays_until_the_end() -> None:
    configuration = Configuration(lambda: loaded(Settings()))
    configuration.override("log_level", INFO + 1, "SetLogLevel")
    assert entry(configuration, "logLevel") == Entry(
        "logLevel", "debug", "info", "SetLogLevel", ("info", "default")
    )
    assert configuration.take(loaded(Settings(log_level=INFO - 3), {"log_level": "a:1"})) == ["logLevel"]
    assert entry(configuration, "logLevel") == Entry(
        "logLevel", "debug", "info", "SetLogLevel", ("err", "a:1")
    )
    assert configuration.take(loaded(Settings(log_level=INFO + 1), {"log_level": "a:1"})) == []
    assert entry(configuration, "logLevel") == Entry("logLevel", "debug", "info", "SetLogLevel")


def test_problems_are_those_of_the_last_look() -> None:
    configuration = Configuration(lambda: loaded(Settings(), None, Problem("a:1", "wrong", severe=True)))
    assert configuration.problems == ["a:1: wrong"]
    configuration.take(loaded(Settings()))
    assert configuration.problems == []
