"""What is seen of helpers while they start."""

from moorage.machines.helpers.watch import StartWatch
from moorage.pid1.hints import News
from moorage.pid1.manager import UnitHint

UNIT = "machine-web-fs.service"


def test_what_failed_before_the_units_were_made_is_another_of_that_name() -> None:
    """The helpers of a machine that has ended may fail after its name was given to the next."""
    watch = StartWatch({UNIT: "fs"}, (), News(), since_usec=0)
    watch.hint(UnitHint("changed", UNIT, active_state="failed"))
    watch.made()
    assert watch.failed == []
    watch.hint(UnitHint("changed", UNIT, active_state="failed"))
    assert watch.failed == [UNIT]
