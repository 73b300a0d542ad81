"""Which machines are to be looked at, and when."""

import math

import made
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moorage.machines.agenda import Agenda
from moorage.machines.machine import Machine, Recheck


def test_reasons_add_up_until_they_are_taken() -> None:
    agenda, web, woken = Agenda(), made.machine(), list[bool]()
    agenda.wakes(lambda: woken.append(True))
    agenda.mark(web, ask=True)
    agenda.mark(web, removed=True)
    assert not agenda.is_empty
    assert agenda.take(0) == [(web, Recheck(ask=True, removed=True))]
    assert (agenda.is_empty, len(woken)) == (True, 2)
    agenda.mark(web)
    assert agenda.take(0) == [(web, Recheck())]


def test_the_earlier_time_counts() -> None:
    agenda, web = Agenda(), made.machine()
    agenda.look_later(web, 7.0)
    agenda.look_later(web, 5.0)
    agenda.look_later(web, 6.0)
    assert agenda.next_due == 5.0
    assert agenda.take(4.9) == []
    assert agenda.take(5.0) == [(web, Recheck(ask=True))]
    assert (agenda.next_due, agenda.take(9.0)) == (math.inf, [])


def test_what_is_new_is_looked_at_with_others_or_by_some_time() -> None:
    agenda, web, db, looks = Agenda(), made.machine("web"), made.machine("db"), list[float]()
    agenda.wakes(lambda: looks.append(agenda.next_look))
    agenda.mark_new(web, 5.0)
    agenda.mark_new(db, 6.0)
    assert (looks, agenda.is_empty) == ([5.0], False)
    agenda.mark(web, ask=True)
    assert looks == [5.0, -math.inf]
    assert agenda.take(1.0) == [(web, Recheck(new=True, ask=True)), (db, Recheck(new=True))]
    assert agenda.next_look == math.inf
    agenda.look_later(web, 8.0)
    agenda.mark_new(db, 7.0)
    assert looks[2:] == [8.0, 7.0]


def test_what_is_gone_is_not_due() -> None:
    agenda, web = Agenda(), made.machine()
    agenda.look_later(web, 5.0)
    agenda.drop(web)
    assert (agenda.next_due, agenda.take(9.0)) == (math.inf, [])
    agenda.look_later(web, 6.0)
    assert agenda.next_due == 6.0


class AnyOrder(RuleBasedStateMachine):
    """Marks, times and looks as they come, against plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.agenda = Agenda()
        self.machines = [made.machine(name) for name in "abc"]
        self.marked: dict[Machine, Recheck] = {}
        self.due: dict[Machine, float] = {}
        self.by = math.inf

    @rule(number=st.integers(0, 2), ask=st.booleans(), removed=st.booleans())
    def mark(self, number: int, ask: bool, removed: bool) -> None:
        one = self.machines[number]
        self.agenda.mark(one, ask=ask, removed=removed)
        mark = self.marked.setdefault(one, Recheck())
        mark.ask |= ask
        mark.removed |= removed
        self.by = -math.inf

    @rule(number=st.integers(0, 2), by=st.integers(1, 9))
    def mark_new(self, number: int, by: int) -> None:
        one = self.machines[number]
        self.agenda.mark_new(one, by)
        self.marked.setdefault(one, Recheck()).new = True
        self.by = min(by, self.by)

    @rule(number=st.integers(0, 2), at=st.integers(1, 9))
    def look_later(self, number: int, at: int) -> None:
        one = self.machines[number]
        self.agenda.look_later(one, at)
        self.due[one] = min(at, self.due.get(one, math.inf))

    @rule(number=st.integers(0, 2))
    def drop(self, number: int) -> None:
        self.agenda.drop(self.machines[number])
        self.due.pop(self.machines[number], None)

    @rule(present=st.integers(0, 9))
    def take(self, present: int) -> None:
        for one in [each for each, at in self.due.items() if at <= present]:
            del self.due[one]
            self.marked.setdefault(one, Recheck()).ask = True
        assert dict(self.agenda.take(present)) == self.marked
        self.marked, self.by = {}, math.inf

    @invariant()
    def agree(self) -> None:
        assert self.agenda.is_empty == (not self.marked)
        assert self.agenda.next_due == min(self.due.values(), default=math.inf)
        assert self.agenda.next_look == min(self.by, self.agenda.next_due)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
