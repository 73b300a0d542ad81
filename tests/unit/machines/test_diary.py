"""What is written to the journal of what happens to machines."""

from collections.abc import Mapping, Sequence

import made
import pytest

from moorage.kernel.process import ProcessId
from moorage.machines.accounting import Accounting
from moorage.machines.chronicle import Happened
from moorage.machines.diary import MACHINE_START, MACHINE_STOP, Diary
from moorage.machines.events import Kind
from moorage.machines.machine import Machine
from moorage.machines.model import Cause, Timestamp, Verdict

AT = Timestamp(1, 1)
INVOCATION = "1" * 32


class Entries:
    def __init__(self) -> None:
        self.written: list[Mapping[str, str | Sequence[str]]] = []

    def write(self, fields: Mapping[str, str | Sequence[str]]) -> None:
        self.written.append(fields)


def entry(
    kind: Kind, machine: Machine | None, data: Mapping[str, object] | None = None, *, user: bool = False
) -> Mapping[str, object]:
    entries = Entries()
    Diary(entries, user=user).record(Happened("", AT, kind, "web", INVOCATION, data or {}, machine))
    (written,) = entries.written
    return written


@pytest.fixture
def web() -> Machine:
    return made.machine("web", invocation_id=INVOCATION, leader=ProcessId(77, 1, "b"))


def test_a_start_is_as_machined_writes_it_and_more(web: Machine) -> None:
    written = entry(Kind.machine_new, web)
    assert written == {
        "MESSAGE": "New machine web in machine-web.scope.", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "moored",
        "MESSAGE_ID": MACHINE_START, "NAME": "web", "LEADER": "77", "MACHINE": "web", "MOORAGE_EVENT": "machineNew",
        "UNIT": "machine-web.scope", "INVOCATION_ID": INVOCATION, "CLASS": "vm", "REGISTRANT_UID": "0",
    }  # fmt: skip


def test_an_end_has_the_verdict_and_the_account(web: Machine) -> None:
    account = Accounting(cpu_usage_nsec=5, memory_peak=4096, oom_kills=2)
    web.retire(
        Verdict(
            "oom-kill", AT, oom_killed=True, cause=Cause.oom_killed, oom_group="/a.slice", accounting=account
        )
    )
    written = entry(Kind.exited, web)
    assert written["MESSAGE_ID"] == MACHINE_STOP
    assert written["MESSAGE"] == "Machine web exited: oom-kill, cause oomKilled."
    facts = {
        "RESULT": "oom-kill", "CAUSE": "oomKilled", "OOM_KILLED": "True", "OOM_CONTROL_GROUP": "/a.slice",
        "CPU_USAGE_NSEC": "5", "MEMORY_PEAK": "4096", "OOM_KILLS": "2",
    }  # fmt: skip
    assert facts.items() <= written.items()
    assert "LEADER_STATUS" not in written
    assert "MANAGED_OOM_KILLS" not in written


def test_a_machine_without_a_record_has_a_name() -> None:
    written = entry(Kind.forgotten, None)
    assert (written["MESSAGE"], written["MACHINE"]) == ("Machine web forgotten.", "web")


def test_fields_of_a_users_instance_are_those_of_units_of_a_user(web: Machine) -> None:
    written = entry(Kind.machine_new, web, user=True)
    assert (written["USER_UNIT"], written["USER_INVOCATION_ID"]) == ("machine-web.scope", INVOCATION)
    assert not written.keys() & {"UNIT", "INVOCATION_ID"}


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (Kind.oom_kill, {"by": "kernel", "count": 1},
         "1 process of machine web killed by the kernel for lack of memory."),
        (Kind.oom_kill, {"by": "oomd"}, "Processes of machine web killed by systemd-oomd for lack of memory."),
        (Kind.helper_failed, {"helper": "fs", "result": "exit-code"}, "Helper fs of machine web failed: exit-code."),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_a_warning(web: Machine, kind: Kind, data: dict[str, object], words: str) -> None:
    written = entry(kind, web, data)
    assert (written["MESSAGE"], written["PRIORITY"]) == (words, "4")
    assert {f"MOORAGE_{name.upper()}": str(value) for name, value in data.items()}.items() <= written.items()


def test_what_may_happen_without_end_is_left_out(web: Machine) -> None:
    entries = Entries()
    for kind in (
        Kind.frozen,
        Kind.limit_reached,
        Kind.registration_failed,
        Kind.empty,
        Kind.properties_changed,
    ):
        Diary(entries, user=False).record(Happened("", AT, kind, "web", INVOCATION, {}, web))
    assert entries.written == []
