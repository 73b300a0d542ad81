"""Which properties the units of a machine may be given, and which they have by default."""

from typing import Any

import pytest

from moorage.machines.model import TASKS_MAX, MachineClass
from moorage.machines.properties import (
    COMMANDS,
    REFUSED_ON_HELPERS,
    REFUSED_ON_SCOPES,
    REFUSED_ON_SLICES,
    check_helper,
    check_slice,
    for_scope,
    sandbox,
)
from moorage.pid1.errors import InvalidProperty
from moorage.pid1.manager import Json


@pytest.mark.parametrize(
    ("class_", "asked", "expected"),
    [
        (MachineClass.vm, {}, {"TasksMax": 16384}),
        (MachineClass.container, {}, {"TasksMax": 16384, "Delegate": True}),
        (MachineClass.container, {"Delegate": False}, {"TasksMax": 16384, "Delegate": False}),
        (
            MachineClass.container,
            {"DelegateControllers": ["memory"]},
            {"TasksMax": 16384, "DelegateControllers": ["memory"]},
        ),
        (MachineClass.vm, {"TasksMax": 5}, {"TasksMax": 5}),
        (MachineClass.vm, {"TasksMaxScale": 5}, {"TasksMaxScale": 5}),
        # What is limited is counted, so that it is in the verdict however fast the group goes.
        (MachineClass.vm, {"IOWeight": 5}, {"TasksMax": 16384, "IOWeight": 5, "IOAccounting": True}),
        (
            MachineClass.vm,
            {"IOReadBandwidthMax": [], "IOAccounting": False},
            {"TasksMax": 16384, "IOReadBandwidthMax": [], "IOAccounting": False},
        ),
    ],
)
def test_defaults_of_scopes(class_: MachineClass, asked: dict[str, Json], expected: dict[str, Json]) -> None:
    assert for_scope(class_, asked, TASKS_MAX, stopped_by_helper=False) == expected


@pytest.mark.parametrize("name", sorted(REFUSED_ON_SCOPES))
def test_refused_on_scopes_by_name(name: str) -> None:
    with pytest.raises(InvalidProperty) as failure:
        for_scope(MachineClass.vm, {name: True}, TASKS_MAX, stopped_by_helper=False)
    assert (failure.value.property, failure.value.owner) == (name, None)


def test_a_scope_of_a_user_is_not_stopped_by_a_helper() -> None:
    for_scope(MachineClass.vm, {"User": "alice"}, TASKS_MAX, stopped_by_helper=False)
    with pytest.raises(InvalidProperty, match="User"):
        for_scope(MachineClass.vm, {"User": "alice"}, TASKS_MAX, stopped_by_helper=True)


@pytest.mark.parametrize("name", sorted(REFUSED_ON_SLICES))
def test_refused_on_slices_by_name(name: str) -> None:
    check_slice({"MemoryMax": 1 << 30})
    with pytest.raises(InvalidProperty, match=name):
        check_slice({name: True})


@pytest.mark.parametrize("name", sorted(REFUSED_ON_HELPERS))
def test_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidProperty) as failure:
        check_helper("fs", {name: True})
    assert (failure.value.property, failure.value.owner) == (name, "fs")


def test_the_lists_do_not_contradict_each_other() -> None:
    assert not REFUSED_ON_HELPERS.keys() & COMMANDS


def test_everything_else_may_be_set_by_whoever_may_have_helpers() -> None:
    check_helper("fs", {"User": "root", "DynamicUser": False, "BindPaths": [], "PAMName": "login"})


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_have_no_rights_of_others(name: str) -> None:
    for flags in (
        ["privileged"],
        ["no-setuid"],
        ["ambient"],
        ["via-shell"],
        ["no-env-expand", "privileged"],
        [""],
    ):
        commands: Any = [["/bin/true", ["true"], []], ["/bin/true", ["true"], flags]]
        with pytest.raises(InvalidProperty, match=f"{name}Ex"):
            check_helper("fs", {f"{name}Ex": commands})
    allowed: Any = (
        {name: [["/bin/true", ["true"], False]]},
        {
            f"{name}Ex": [
                ["/bin/true", ["true"], ["no-env-expand", "ignore-failure"]],
                ["/bin/true", ["true"], []],
            ]
        },
    )
    for properties in allowed:
        check_helper("fs", properties)


def test_the_sandbox_of_a_user_s_helper_is_one_that_the_manager_may_leave_out() -> None:
    hers = sandbox("/run/user/7", "/run/user/7/moorage/m/web", user=True)
    ours = sandbox("/run", "/run/moorage/m/web", user=False)
    assert ours.keys() - hers.keys() == {"DynamicUser", "PrivateDevices", "TemporaryFileSystem"}
    assert (ours["ProtectHome"], hers["ProtectHome"]) == ("yes", "tmpfs")
    # With another source it would have to be there (insist_on_sandboxing()).
    for name in ("BindPaths", "BindReadOnlyPaths"):
        binds = hers[name]
        assert isinstance(binds, list)
        assert all(isinstance(bind, list) and bind[0] == bind[1] for bind in binds)
