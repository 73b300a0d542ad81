"""For how long the scopes of machines are kept."""

import made

from moorage.machines.followers import HeldUnits
from moorage.machines.model import Origin, Timestamp, Verdict
from moorage.pid1.references import BusReferences

VERDICT = Verdict(result="success", exited_at=Timestamp(1, 1))


class Noted(BusReferences):
    """Keeps note of what is held."""

    def __init__(self) -> None:
        super().__init__(None)
        self.held: set[str] = set()

    def hold(self, units: object) -> None:
        assert isinstance(units, list)
        self.held |= set(units)

    def release(self, unit: str, *, at_once: bool = False) -> None:
        self.held.discard(unit)


def test_a_scope_is_kept_until_the_verdict_is_complete() -> None:
    references = Noted()
    units = HeldUnits(references)
    web = made.machine("web")
    units.added(web)
    web.retire(VERDICT)
    units.ended(web)
    assert references.held == {web.unit}
    units.changed(web)
    assert references.held == set()


def test_that_of_a_machine_that_is_forgotten_is_not() -> None:
    references = Noted()
    units = HeldUnits(references)
    web = made.machine("web")
    units.added(web)
    units.changed(web)
    assert references.held == {web.unit}
    units.ended(web)
    assert references.held == set()


def test_that_of_others_is_theirs_the_moment_it_has_ended() -> None:
    references = Noted()
    units = HeldUnits(references)
    web = made.machine("web", allocated=False, origin=Origin.adopted)
    units.added(web)
    web.retire(VERDICT)
    units.ended(web)
    assert references.held == set()


def test_a_successor_keeps_the_name() -> None:
    references = Noted()
    units = HeldUnits(references)
    first, second = made.machine("web"), made.machine("web")
    units.added(first)
    first.retire(VERDICT)
    units.ended(first)
    units.added(second)
    units.changed(first)
    assert references.held == {second.unit}
