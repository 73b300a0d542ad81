"""Units in the way of a name, with a service manager that the test plays."""

from collections.abc import Generator

import pytest
import trio
from fakes.played import PlayedManager

from moorage.kernel.poller import Readiness
from moorage.kernel.system import system
from moorage.machines.errors import UnitNameTaken
from moorage.machines.leftovers import Leftovers
from moorage.pid1.hints import Hints
from moorage.pid1.manager import UnitStatus

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
