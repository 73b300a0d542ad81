"""Helpers that a machine does not run without: those whose policy is ``stopMachine``.

The rule: such a helper has ended when its service is inactive or failed and the machine still wants it, whatever its
status was and whoever ended it. One that ``restart`` starts again has not ended before the manager gives it up
(StartLimitBurst=); one of the type oneshot has not ended when it has done its work; one that is removed is not wanted.

The service manager keeps the rule itself (the bonds of :mod:`moorage.machines.helpers`), except in two cases. It does
not stop what is frozen (unit_stop() of systemd). And while another helper is being started, a job that would stop the
machine, and so that helper, is refused (JOB_FAIL in manager_dispatch_stop_when_unneeded_queue()). It comes back to
neither. So a helper that is found ended calls for a look whether the machine still runs: by this service at once, or
by its next instance when it starts.
"""

from __future__ import annotations

from collections.abc import Iterable

from moorage.machines.helpers.status import GONE, HelperStates
from moorage.machines.model import Helper, HelperFailure
from moorage.names import UnitNames
from moorage.pid1.manager import Manager

BOND_SECONDS = 0.1
"""Pause between two looks at a helper that has ended and of which the manager has still something to do."""


def lost(helpers: Iterable[Helper], states: HelperStates) -> Helper | None:
    """Return a helper that seems to have ended and without which its machine does not run; None if there is none."""
    for helper in helpers:
        if helper.on_failure is HelperFailure.stop_machine and states.has_ended(helper):
            return helper
    return None


async def is_left_to_us(machine: str, helper: Helper, manager: Manager, *, deadline: float) -> bool:
    """Whether a helper has ended for good, and the manager has done with it all that it is going to do.

    One that is restarted by hand is inactive in between, but has a job; and the bond has one while it is started or
    stopped. To step in before would hide whose end came first.

    Args:
        machine: name of its machine.
        helper: that seems to have ended.
        manager: is asked.
        deadline: on trio's clock.

    Raises:
        ManagerError: as the manager says.
    """
    status = await manager.status(helper.unit, deadline=deadline)
    if status is not None and (status.active_state not in GONE or status.job_id):
        return False
    bond = await manager.status(UnitNames(machine).bond(helper.name), deadline=deadline)
    # It may be there for ever: the manager gives up on what it has to stop too often (unit_stop_when_unneeded()).
    return bond is None or not bond.job_id
