"""The ledger of jobs: every order in which a reply and the end of its job can be seen."""

from hypothesis import given
from hypothesis import strategies as st

from moorage.pid1.jobs import RECORDS_MAX, JobEnd, JobLedger


class Waiter:
    def __init__(self, ledger: JobLedger) -> None:
        self.woken = 0
        self.ticket = ledger.expect(self._wake)

    def _wake(self) -> None:
        self.woken += 1


def end(job_id: int, result: str = "done") -> JobEnd:
    return JobEnd(job_id, f"{job_id}.scope", result)


def test_the_reply_first() -> None:
    ledger = JobLedger()
    waiter = Waiter(ledger)
    ledger.claim(waiter.ticket, 5)
    assert (waiter.woken, waiter.ticket.end) == (0, None)
    ledger.record(end(4))
    assert waiter.woken == 0
    ledger.record(end(5, "failed"))
    assert (waiter.woken, waiter.ticket.end) == (1, end(5, "failed"))
    assert ledger.idle


def test_the_end_first() -> None:
    ledger = JobLedger()
    waiter = Waiter(ledger)
    ledger.record(end(4))
    ledger.record(end(5))
    ledger.claim(waiter.ticket, 5)
    assert (waiter.woken, waiter.ticket.end) == (1, end(5))
    ledger.forget(waiter.ticket)
    assert ledger.idle
    assert ledger.remembered == 0


def test_an_end_from_before_the_call_is_another_job() -> None:
    # Numbers are not used twice, but a manager that starts again from 1 must not confuse us.
    ledger = JobLedger()
    other = Waiter(ledger)
    ledger.record(end(5, "failed"))
    waiter = Waiter(ledger)
    ledger.claim(waiter.ticket, 5)
    assert waiter.ticket.end is None
    ledger.record(end(5))
    assert waiter.ticket.end == end(5)
    ledger.claim(other.ticket, 5)
    assert other.ticket.end == end(5, "failed")


def test_two_calls_with_the_same_job() -> None:
    for late in (False, True):
        ledger = JobLedger()
        one, two = Waiter(ledger), Waiter(ledger)
        if late:
            ledger.record(end(5))
        ledger.claim(one.ticket, 5)
        if not late:
            ledger.claim(two.ticket, 5)
            ledger.record(end(5))
        else:
            ledger.claim(two.ticket, 5)
        assert one.ticket.end == two.ticket.end == end(5)
        assert (one.woken, two.woken) == (1, 1)
        assert ledger.idle


def test_nothing_is_kept_when_nobody_waits() -> None:
    ledger = JobLedger()
    ledger.record(end(1))
    assert ledger.remembered == 0
    first = Waiter(ledger)
    ledger.record(end(2))
    second = Waiter(ledger)
    ledger.record(end(3))
    assert ledger.remembered == 2
    ledger.forget(first.ticket)
    assert ledger.remembered == 1  # what came since the second was sent
    ledger.claim(second.ticket, 9)
    assert ledger.remembered == 0
    ledger.forget(second.ticket)
    assert ledger.idle


def test_a_lost_connection_wakes_all() -> None:
    ledger = JobLedger()
    asked, told = Waiter(ledger), Waiter(ledger)
    ledger.claim(told.ticket, 5)
    ledger.lose_all()
    assert asked.ticket.lost
    assert told.ticket.lost
    assert (asked.woken, told.woken) == (1, 1)
    assert ledger.idle
    # The reply may have been read before the connection went, and be claimed after.
    ledger.claim(asked.ticket, 6)
    assert asked.ticket.end is None
    for waiter in (asked, told):
        ledger.forget(waiter.ticket)
    assert ledger.idle


def test_the_memory_is_bounded() -> None:
    ledger = JobLedger()
    old = Waiter(ledger)
    for number in range(RECORDS_MAX // 2):
        ledger.record(end(number))
    young = Waiter(ledger)
    for number in range(RECORDS_MAX // 2 + 1):
        ledger.record(end(RECORDS_MAX + number))
    assert old.ticket.lost
    assert old.woken == 1
    assert not young.ticket.lost
    assert ledger.remembered <= RECORDS_MAX
    ledger.claim(young.ticket, RECORDS_MAX)
    assert young.ticket.end == end(RECORDS_MAX)
    assert ledger.idle


@given(
    st.lists(st.tuples(st.sampled_from(["expect", "claim", "record", "forget", "lose"]), st.integers(0, 5)))
)
def test_nobody_is_forgotten(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, whoever claimed is either waiting or was woken exactly once."""
    ledger = JobLedger()
    open_waiters: list[Waiter] = []
    claimed: list[Waiter] = []
    for step, number in steps:
        if step == "expect":
            open_waiters.append(Waiter(ledger))
        elif step == "claim" and open_waiters:
            waiter = open_waiters.pop(number % len(open_waiters))
            ledger.claim(waiter.ticket, number)
            claimed.append(waiter)
        elif step == "record":
            ledger.record(end(number))
        elif step == "forget" and open_waiters:
            ledger.forget(open_waiters.pop(number % len(open_waiters)).ticket)
        elif step == "lose":
            ledger.lose_all()
        for waiter in claimed:
            finished = waiter.ticket.end is not None or waiter.ticket.lost
            assert waiter.woken == finished
    for number in range(6):
        ledger.record(end(number))
    assert all(waiter.woken == 1 for waiter in claimed)
    for waiter in [*open_waiters, *claimed]:
        ledger.forget(waiter.ticket)
    assert ledger.idle
    assert ledger.remembered == 0
