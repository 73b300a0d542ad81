"""Which machines there are: every index agrees with every other, whatever happens in which order."""

from typing import Any

import made
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from moorage.kernel.process import ProcessId
from moorage.machines.accounting import Accounting
from moorage.machines.errors import Full, LeaderTaken, NameTaken
from moorage.machines.machine import Machine
from moorage.machines.model import Phase, Timestamp, Verdict
from moorage.machines.registry import (
    MACHINES_MAX,
    MACHINES_PER_UID_MAX,
    VERDICT_KEEP_USEC,
    VERDICTS_MAX,
    VERDICTS_PER_UID_MAX,
    Bounds,
    Claim,
    Registry,
)


def leader(number: int) -> ProcessId:
    return ProcessId(number, 1000 + number, "f" * 32)


def machine(
    name: str, number: int = 1, *, subgroup: str | None = None, unit: str | None = None, **values: Any
) -> Machine:
    unit = unit or f"machine-{name}.scope"
    given: dict[str, Any] = {
        "unit": unit, "subgroup": subgroup, "control_group": f"/machine.slice/{unit}{subgroup or ''}",
        "control_group_id": number, "invocation_id": f"{number:032x}", "allocated": subgroup is None,
        "leader": leader(number),
    }  # fmt: skip
    return made.machine(name, **{**given, **values})


def ended(one: Machine, at: int) -> Machine:
    one.retire(Verdict("success", Timestamp(at, at), oom_killed=False, accounting=Accounting()))
    return one


def test_a_user_whose_machines_were_forgotten_has_their_units_still() -> None:
    registry = Registry()
    for number in range(MACHINES_PER_UID_MAX):
        one = machine(f"m{number}", number + 1, registrant=1000)
        registry.commit(registry.begin(one.name, leader(number + 1), 1000), one)
        registry.remove(one)
        assert registry.leave(one)
    with pytest.raises(Full):
        registry.begin("one-more", leader(0), 1000)
    registry.abandon(registry.begin("others", leader(0), 1001))
    gone = registry.vacate("machine-m7.scope")
    assert gone is not None
    assert gone.name == "m7"
    assert registry.vacate("machine-m7.scope") is None
    assert len(registry.left) == MACHINES_PER_UID_MAX - 1
    registry.begin("one-more", leader(0), 1000)


@pytest.mark.parametrize("change", [{"registrant": 0}, {"registrant": 1000, "allocated": False}])
def test_only_units_that_were_made_for_users_are_counted_on(change: dict[str, Any]) -> None:
    registry = Registry()
    assert not registry.leave(machine("web", **change))
    assert registry.left == []


def test_a_machine_is_found_by_everything_that_names_it() -> None:
    registry, web = Registry(), machine("web")
    registry.commit(registry.begin("web", leader(1)), web)
    assert registry.get("web") is web
    assert registry.by_unit("machine-web.scope") is web
    assert registry.by_invocation(web.record.invocation_id) is web
    assert registry.by_leader(leader(1)) is web
    assert registry.by_control_group("/machine.slice/machine-web.scope") is web
    assert registry.by_control_group("/machine.slice/machine-web.scope/payload/system.slice/x") is web
    assert registry.by_control_group("/machine.slice/machine-web.scopes") is None
    assert registry.by_control_group("/machine.slice") is None
    assert registry.by_control_group("/") is None
    assert registry.by_control_group("") is None
    assert list(registry) == [web]
    assert (len(registry), registry.claims) == (1, 0)


def test_a_machine_in_a_part_of_a_unit_is_not_the_unit() -> None:
    registry = Registry()
    one = machine("one", 1, subgroup="/one", unit="launcher.service")
    other = machine("other", 2, subgroup="/one/inner", unit="launcher.service")
    registry.add(one)
    registry.add(other)
    assert registry.by_unit("launcher.service") is None
    assert registry.by_invocation(one.record.invocation_id) is None
    assert registry.by_control_group("/machine.slice/launcher.service") is None
    assert registry.by_control_group("/machine.slice/launcher.service/one/x") is one
    assert registry.by_control_group("/machine.slice/launcher.service/one/inner/x") is other, "the innermost"


def test_a_machine_that_shares_its_control_group_is_found_by_its_leader_only() -> None:
    registry = Registry()
    one = machine("one", 1, unit="session-7.scope", shared=True, allocated=False)
    other = machine("other", 2, unit="session-7.scope", shared=True, allocated=False)
    registry.add(one)
    registry.add(other)
    assert (registry.by_leader(leader(1)), registry.by_leader(leader(2))) == (one, other)
    assert registry.by_unit("session-7.scope") is None
    assert registry.by_control_group("/machine.slice/session-7.scope") is None
    assert registry.by_invocation(one.record.invocation_id) is None
    assert registry.shares("session-7.scope")
    assert not registry.shares("session-8.scope")
    registry.remove(one)
    registry.remove(other)
    assert registry.shared == 0


def test_a_claim_holds_name_and_leader() -> None:
    registry = Registry()
    claim = registry.begin("web", leader(1))
    assert registry.claim("web") is not None
    with pytest.raises(NameTaken) as taken:
        registry.begin("web", leader(2))
    assert (taken.value.name, taken.value.placement) == ("web", None)
    with pytest.raises(LeaderTaken) as led:
        registry.begin("other", leader(1))
    assert (led.value.name, led.value.placement) == ("web", None)
    registry.abandon(claim)
    registry.abandon(claim)
    assert registry.claim("web") is None
    registry.abandon(registry.begin("web", leader(1)))


def test_an_old_claim_does_not_give_back_a_new_one() -> None:
    registry = Registry()
    old = registry.begin("web", leader(1))
    registry.abandon(old)
    registry.begin("web", leader(1))
    registry.abandon(old)
    assert registry.claim("web") is not None


def test_a_living_machine_holds_name_and_leader() -> None:
    registry, web = Registry(), machine("web")
    registry.add(web)
    with pytest.raises(NameTaken) as taken:
        registry.begin("web", leader(2))
    assert taken.value.placement is web.record.placement
    with pytest.raises(LeaderTaken) as led:
        registry.begin("other", leader(1))
    assert (led.value.name, led.value.placement) == ("web", web.record.placement)
    registry.remove(web)
    registry.remove(web)
    registry.begin("web", leader(1))


def test_a_leader_is_more_than_a_number() -> None:
    registry = Registry()
    registry.add(machine("web", 1))
    registry.begin("other", replace(leader(1), pidfd_id=7))


def test_removing_an_old_machine_spares_the_new_one_of_that_name() -> None:
    registry, old, new = Registry(), machine("web", 1), machine("web", 2)
    registry.add(old)
    registry.remove(old)
    registry.add(new)
    registry.remove(old)
    assert registry.get("web") is new
    assert registry.by_unit(new.unit) is new
    assert registry.by_control_group(new.record.control_group) is new


def test_there_is_an_end_to_machines() -> None:
    registry = Registry()
    for number in range(1, MACHINES_MAX):
        registry.add(machine(f"m{number}", number))
    registry.begin("last", leader(MACHINES_MAX))
    with pytest.raises(Full):
        registry.begin("more", leader(MACHINES_MAX + 1))


def test_a_verdict_is_kept_for_a_while_and_up_to_a_number() -> None:
    registry = Registry()
    dropped: list[Machine] = []
    for number in range(VERDICTS_MAX + 2):
        one = ended(machine(f"m{number}", number), at=number)
        registry.add(one)
        dropped += registry.retire(one)
        assert one.phase is Phase.exited
        assert registry.get(one.name) is None
    assert [one.name for one in dropped] == ["m0", "m1"]
    assert registry.verdict("m0") is None
    assert registry.verdict("m2") is not None
    assert [one.name for one in registry.expire(VERDICT_KEEP_USEC + 3)] == ["m2", "m3"]
    assert registry.expire(VERDICT_KEEP_USEC + 3) == []
    assert registry.verdict("m4") is registry.drop_verdict("m4")
    assert registry.drop_verdict("m4") is None


def test_a_user_has_a_part_of_the_machines_and_verdicts() -> None:
    registry = Registry()
    for number in range(1, MACHINES_PER_UID_MAX):
        registry.add(machine(f"m{number}", number, registrant=1000))
    claim = registry.begin("last", leader(MACHINES_PER_UID_MAX), 1000)
    with pytest.raises(Full):
        registry.begin("more", leader(MACHINES_PER_UID_MAX + 1), 1000)
    registry.begin("other", leader(MACHINES_PER_UID_MAX + 1), 1001)
    registry.begin("root", leader(MACHINES_PER_UID_MAX + 2), 0)
    registry.abandon(claim)
    registry.begin("last", leader(MACHINES_PER_UID_MAX), 1000)

    dropped = registry.retire(ended(machine("root", 5000), at=0))
    for number in range(1, VERDICTS_PER_UID_MAX + 3):
        one = registry.get(f"m{number}")
        assert one is not None
        dropped += registry.retire(ended(one, at=number))
    assert [one.name for one in dropped] == ["m1", "m2"]
    assert registry.verdict("root") is not None


def test_other_bounds_hold_from_then_on_and_take_nothing_but_verdicts() -> None:
    registry = Registry()
    for number in range(1, 6):
        registry.add(machine(f"m{number}", number, registrant=1000))
    registry.bounds = Bounds(
        machines=3, machines_per_uid=2, verdicts=2, verdicts_per_uid=1, verdict_keep_usec=7
    )
    assert len(registry) == 5
    with pytest.raises(Full):
        registry.begin("more", leader(10))
    dropped: list[Machine] = []
    for number in range(1, 5):
        one = registry.get(f"m{number}")
        assert one is not None
        dropped += registry.retire(ended(one, at=number))
    assert [one.name for one in dropped] == ["m1", "m2", "m3"]
    registry.abandon(registry.begin("more", leader(10), 1000))
    registry.begin("root", leader(10))
    registry.begin("more", leader(11), 1000)
    with pytest.raises(Full):
        registry.begin("most", leader(12), 0)
    assert registry.expire(4 + 6) == []
    assert [one.name for one in registry.expire(4 + 7)] == ["m4"]


def test_who_is_trusted_has_no_less_than_all() -> None:
    registry = Registry(frozenset({0, 1000}))
    for number in range(1, MACHINES_PER_UID_MAX + 1):
        registry.add(machine(f"m{number}", number, registrant=1000))
    registry.begin("more", leader(MACHINES_PER_UID_MAX + 1), 1000)


def test_a_new_machine_ends_the_verdict_of_its_name() -> None:
    registry, old, new = Registry(), machine("web", 1), machine("web", 2)
    registry.add(old)
    registry.retire(ended(old, at=5))
    assert registry.verdict("web") is old
    registry.commit(registry.begin("web", leader(2)), new)
    assert registry.verdict("web") is None
    assert registry.expire(VERDICT_KEEP_USEC * 2) == []


class AnyOrder(RuleBasedStateMachine):
    """Claims, commits, removes and retires as they come, against a plain list of what should be there."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.claims: list[tuple[Claim, int]] = []
        self.living: dict[str, Machine] = {}

    def held(self, name: str, number: int) -> bool:
        names = {*self.living, *(claim.name for claim, _ in self.claims)}
        numbers = {
            *(one.record.placement.control_group_id for one in self.living.values()),
            *(held for _, held in self.claims),
        }
        return name in names or number in numbers

    @rule(name=st.sampled_from("abc"), number=st.integers(1, 4))
    def begin(self, name: str, number: int) -> None:
        if self.held(name, number):
            with pytest.raises((NameTaken, LeaderTaken)):
                self.registry.begin(name, leader(number))
        else:
            self.claims.append((self.registry.begin(name, leader(number)), number))

    @rule(data=st.data(), subgroup=st.sampled_from([None, "/sub"]))
    def end_claim(self, data: st.DataObject, subgroup: str | None) -> None:
        if not self.claims:
            return
        claim, number = self.claims.pop(data.draw(st.integers(0, len(self.claims) - 1)))
        if data.draw(st.booleans()):
            one = machine(claim.name, number, subgroup=subgroup)
            self.registry.commit(claim, one)
            self.living[claim.name] = one
        else:
            self.registry.abandon(claim)

    @rule(name=st.sampled_from("abc"), retire=st.booleans())
    def end_machine(self, name: str, retire: bool) -> None:
        one = self.living.pop(name, None)
        if one is None:
            return
        if retire:
            assert self.registry.retire(ended(one, at=1)) == []
        else:
            self.registry.remove(one)

    @invariant()
    def agree(self) -> None:
        registry, living = self.registry, self.living
        assert {one.name: one for one in registry} == living
        assert registry.claims == len(self.claims)
        for name in "abc":
            one = living.get(name)
            assert registry.get(name) is one
            owner = one if one is not None and one.record.placement.is_whole else None
            assert registry.by_unit(f"machine-{name}.scope") is owner
            assert (registry.claim(name) is not None) == any(claim.name == name for claim, _ in self.claims)
            if one is not None:
                assert registry.by_control_group(one.record.control_group + "/below") is one
                assert registry.verdict(name) is None
        leaders = {one.record.placement.control_group_id: one for one in living.values()}
        for number in range(1, 5):
            assert registry.by_leader(leader(number)) is leaders.get(number)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
