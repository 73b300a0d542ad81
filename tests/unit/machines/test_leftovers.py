"""Units in the way of a name, with a service manager that the test plays."""

from collections.abc import Generator

import pytest
import trio
import trio.testing
from fakes.played import PlayedManager

from moorage.kernel.poller import Readiness
from moorage.kernel.system import system
from moorage.machines.errors import UnitNameTaken
from moorage.machines.leftovers import Leftovers, stop_thawed
from moorage.pid1.errors import UnitBusy
from moorage.pid1.hints import Hints
from moorage.pid1.manager import Job, UnitStatus

SCOPE = "machine-web.scope"
MARKS = "moorage:"


class Going(PlayedManager):
    """Forgets its unit after some questions."""

    async def status(self, unit: str, *, deadline: float) -> UnitStatus | None:
        """See `Manager`."""
        if len(self.asked) > 3:
            self.unload(unit)
        return await super().status(unit, deadline=deadline)


@pytest.fixture
def readiness() -> Generator[Readiness]:
    made = Readiness()
    yield made
    made.close()


def leftovers(manager: PlayedManager, readiness: Readiness) -> Leftovers:
    return Leftovers(manager, Hints(manager), system(readiness).hierarchy, MARKS)


async def test_an_empty_scope_that_waits_for_its_stop_is_going(readiness: Readiness) -> None:
    """What is bound to it is stopped first, so that its job is in the queue for a while."""
    manager = Going()
    manager.set(SCOPE, control_group="/none/machine-web.scope", job=16)
    await leftovers(manager, readiness).clear(SCOPE, deadline=trio.current_time() + 10)
    assert manager.ordered == []


async def test_a_service_with_a_job_is_not_going(readiness: Readiness) -> None:
    manager = Going()
    manager.set("machine-web-fs.service", control_group="/none/machine-web-fs.service", job=16)
    with pytest.raises(UnitNameTaken):
        await leftovers(manager, readiness).clear(
            "machine-web-fs.service", deadline=trio.current_time() + 10
        )


class Machined:
    """Has something of a unit, and takes note of which it is asked to drop."""

    def __init__(self) -> None:
        self.seen_off: list[str] = []

    def are_there(self, unit: str) -> bool:
        """See `Elsewhere`."""
        return unit == SCOPE

    async def see_off(self, unit: str) -> None:
        """See `Elsewhere`."""
        self.seen_off.append(unit)


def populated(_: UnitStatus) -> bool:
    """See `Leftovers`."""
    return True


async def test_others_know_that_a_unit_has_ended_before_the_next_one_of_its_name_starts(
    readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, machined = PlayedManager(), Machined()
    found = leftovers(manager, readiness)
    deadline = trio.current_time() + 10
    await found.see_off(SCOPE, deadline=deadline)  # there are no others
    found.elsewhere = machined
    await found.see_off("machine-other.scope", deadline=deadline)
    assert manager.asked == [], "which costs nothing where there is nothing"
    manager.set(SCOPE)
    monkeypatch.setattr(found, "is_populated", populated)
    await found.see_off(SCOPE, deadline=deadline)
    assert machined.seen_off == [], "it is there, and has processes"
    manager.unload(SCOPE)
    await found.see_off(SCOPE, deadline=deadline)
    assert machined.seen_off == [SCOPE]


class Frozen(PlayedManager):
    """Has a frozen unit, which has jobs for a while: it drops them."""

    def __init__(self, jobs: int) -> None:
        super().__init__()
        self.jobs = jobs
        self.frozen = True

    async def stop(self, unit: str, *, alone: bool = False, deadline: float) -> Job:
        """See `Manager`."""
        await super().stop(unit, alone=alone, deadline=deadline)
        return Job("frozen" if self.frozen else "done", unit, 1)

    async def thaw(self, unit: str, *, deadline: float) -> None:
        """See `Manager`."""
        await trio.lowlevel.checkpoint()
        self.jobs -= 1
        if self.jobs >= 0:
            raise UnitBusy(unit, "it has a job")
        self.frozen = False


def test_a_frozen_unit_is_stopped_though_it_has_job_after_job() -> None:
    async def stop(manager: Frozen) -> None:
        manager.set(SCOPE)
        await stop_thawed(manager, SCOPE, deadline=trio.current_time() + 10)

    manager = Frozen(jobs=20)
    trio.run(stop, manager, clock=trio.testing.MockClock(autojump_threshold=0))
    assert (manager.jobs, manager.frozen) == (-1, False)
    with pytest.raises(UnitBusy):  # such as one whose slice is frozen
        trio.run(stop, Frozen(jobs=1000), clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_unit_that_takes_long_to_go_is_asked_about_less_and_less(readiness: Readiness) -> None:
    """The manager runs jobs only while nobody asks it anything: many that wait would keep it from that."""

    async def wait(manager: PlayedManager) -> bool:
        found = leftovers(manager, readiness)
        return await found.wait_gone(SCOPE, deadline=trio.current_time() + 60)

    manager = PlayedManager()
    manager.set(SCOPE, active_state="deactivating")
    assert not trio.run(wait, manager, clock=trio.testing.MockClock(autojump_threshold=0))
    assert 50 < len(manager.asked) < 80
