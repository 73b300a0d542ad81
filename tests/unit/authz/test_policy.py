"""Who may do what, row by row of the policy's table; and docs/authority.md has the same one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.api.machine_instance.handlers import MachineInstance
from moorage.api.metrics.handlers import Metrics
from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.resolve_hook.handlers import ResolveHook
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.systemd_service import GenericService
from moorage.api.user_database.handlers import UserDatabase
from moorage.authz.policy import (
    ADDRESSES,
    AS_ROOT,
    AS_ROOT_ACTION,
    IN_PLACE,
    METADATA,
    OPEN,
    OPEN_HOST,
    OTHER_PROPERTIES,
    TABLE,
    WITH_HELPERS,
    Ask,
    Decision,
    Policy,
    Row,
)
from moorage.wire.method import handlers_of
from moorage.wire.service import Interface, ServiceInterface

ROOT, ALICE, BOB = 0, 1000, 1001
NOBODY, INVALID = 65534, 2**32 - 1
CHECKOUT = Path(__file__).parents[3]

INTERFACES: dict[str, type[Interface]] = {
    "io.moorage.Machine": MoorageMachine,
    "io.systemd.Machine": SystemdMachine,
    "io.systemd.service": GenericService,
    "io.systemd.MachineInstance": MachineInstance,
    "io.systemd.Metrics": Metrics,
    "io.systemd.UserDatabase": UserDatabase,
    "io.systemd.Resolve.Hook": ResolveHook,
    "org.varlink.service": ServiceInterface,
}


def served() -> set[str]:
    return {f"{name}.{method}" for name, one in INTERFACES.items() for method in handlers_of(one)}


def test_every_method_that_is_served_has_a_row() -> None:
    plain = {call for call in TABLE if "(" not in call}
    assert plain == served()
    variants = {call.partition("(") for call in TABLE.keys() - plain}
    assert {call for call, _, _ in variants} <= plain
    assert {"".join(variant) for _, *variant in variants} == {
        IN_PLACE,
        METADATA,
        ADDRESSES,
        AS_ROOT,
        WITH_HELPERS,
        OTHER_PROPERTIES,
        *OPEN.values(),
        *OPEN_HOST.values(),
    }


def test_whatever_deals_with_helpers_takes_the_rights_of_root() -> None:
    names = (
        "AddHelpers",
        "RemoveHelper",
        "Reload",
        f"Register{AS_ROOT}",
        f"Freeze{WITH_HELPERS}",
        f"SetProperties{OTHER_PROPERTIES}",
    )
    for name in names:
        row = TABLE[f"io.moorage.Machine.{name}"]
        assert (row.own, row.others) == (Ask(AS_ROOT_ACTION), Ask(AS_ROOT_ACTION)), name
    assert all(
        row.others != Ask(AS_ROOT_ACTION)
        for call, row in TABLE.items()
        if call.rpartition("Machine.")[2] not in names
    )


def test_who_is_root() -> None:
    assert [Policy(None).is_root(uid) for uid in (ROOT, ALICE, NOBODY, INVALID)] == [
        True,
        False,
        False,
        False,
    ]
    assert [Policy(ALICE).is_root(uid) for uid in (ROOT, ALICE, BOB)] == [True, True, False]


@pytest.mark.parametrize("call", TABLE)
@pytest.mark.parametrize("user", [None, ALICE, ROOT])
def test_root_may_do_everything(call: str, user: int | None) -> None:
    for owner in (None, ROOT, ALICE):
        assert Policy(user).decide(call, ROOT, owner) is True


@pytest.mark.parametrize("call", TABLE)
def test_a_user_in_her_own_instance(call: str) -> None:
    for owner in (None, ROOT, ALICE):
        assert Policy(ALICE).decide(call, ALICE, owner) is True
        for other in (BOB, NOBODY, INVALID):
            assert Policy(ALICE).decide(call, other, owner) is False
            assert Policy(ROOT).decide(call, other, owner) is False


@pytest.mark.parametrize(("call", "row"), TABLE.items())
def test_users_in_the_instance_of_the_system(call: str, row: Row) -> None:
    policy = Policy(None)
    assert policy.decide(call, ALICE, ALICE) == row.own
    for owner in (None, ROOT, BOB, INVALID):
        assert policy.decide(call, ALICE, owner) == row.others
    assert policy.decide(call, INVALID) == row.others


def test_nobody_gets_by_a_name_what_its_variant_costs() -> None:
    # What nobody is asked about changes nothing, and nobody is ever asked about their own machines.
    changing = {
        "Register",
        "Kill",
        "Stop",
        "Forget",
        "Freeze",
        "Thaw",
        "SetProperties",
        "AddHelpers",
        "RemoveHelper",
        "Reload",
        "Unregister",
        "Terminate",
        "Open",
        "OpenRootDirectory",
        "CopyFrom",
        "CopyTo",
        "BindMount",
    }
    for call, row in TABLE.items():
        method = call.rpartition(".")[2].partition("(")[0]
        if method in changing | {"SetLogLevel"} or call.endswith((METADATA, ADDRESSES)):
            assert row.others is not True, call
        assert row.own is not Ask or method == "Register", call


def test_what_is_told() -> None:
    assert Policy(None).tells_all(ROOT, ALICE)
    assert Policy(None).tells_all(ALICE, ALICE)
    assert not Policy(None).tells_all(BOB, ALICE)
    assert not Policy(None).tells_all(BOB, ROOT)
    assert Policy(ALICE).tells_all(ALICE, ROOT)


def test_every_action_of_ours_is_in_the_policy_file() -> None:
    asked = {
        decision.action
        for row in TABLE.values()
        for decision in (row.own, row.others)
        if isinstance(decision, Ask) and decision.action.startswith("io.moorage.")
    }
    text = (CHECKOUT / "units/polkit/io.moorage.policy").read_text()
    assert set(re.findall(r'<action id="([^"]+)">', text)) == asked


# The table in docs/authority.md


def _cell(decision: Decision) -> str:
    if isinstance(decision, Ask):
        return f"asks `{decision.action}`"
    return "yes" if decision else "no"


def _table() -> Iterator[str]:
    yield "| call | who registered the machine | others |"
    yield "| --- | --- | --- |"
    rows: dict[tuple[str, Row], list[str]] = {}
    for call, row in TABLE.items():
        interface, _, method = call.replace("(", " (").rpartition(".")
        rows.setdefault((interface, row), []).append(method)
    for (interface, row), methods in rows.items():
        own = "\N{EN DASH}" if row.own == row.others else _cell(row.own)
        yield f"| `{interface}`: {', '.join(methods)} | {own} | {_cell(row.others)} |"


def test_the_readme_has_the_same_table() -> None:
    table = "\n".join(_table())
    assert table in (CHECKOUT / "docs" / "authority.md").read_text(), f"it should be\n\n{table}"
