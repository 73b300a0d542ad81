"""What a machine would get, told before it gets it."""

from typing import Any

import msgspec
import pytest

from moorage.kernel.process import ProcessId
from moorage.machines.model import Defaults, HelperSpec, MachineClass, Registration
from moorage.machines.planned import PlannedUnit, planned
from moorage.machines.properties import sandbox

ROOT, DIRECTORY = "/run", "/run/moorage/m/web"


def registration(**values: Any) -> Registration:
    """What a caller asks for."""
    found = Registration(
        name="web", class_=MachineClass.vm, registrant=0, leader=ProcessId(1, None, None), leader_pidfd=-1,
        leader_uid=0, supervisor=None, allocate_unit=True,
    )  # fmt: skip
    return msgspec.structs.replace(found, **values)


def plan(**values: Any) -> list[PlannedUnit]:
    """What is planned for a machine of the system's manager."""
    return planned(registration(**values), ROOT, DIRECTORY, user=False)


def test_a_scope_has_the_defaults_of_its_class_and_what_was_asked_for() -> None:
    scope = "machine-web.scope"
    assert plan() == [PlannedUnit(scope, None, {"TasksMax": 16384}, {})]
    assert plan(class_=MachineClass.container, properties={"TasksMax": 5}) == [
        PlannedUnit(scope, None, {"Delegate": True}, {"TasksMax": 5})
    ]


def test_the_defaults_are_those_of_the_registration() -> None:
    defaults = Defaults("vms.slice", 7)
    assert plan(defaults=defaults)[0].defaults == {"TasksMax": 7}
    assert plan(defaults=defaults, slice_properties={})[1].unit == "vms-web.slice"
    assert plan(defaults=defaults, slice="a.slice", slice_properties={})[1].unit == "a-web.slice"


def test_a_machine_in_place_gets_no_units() -> None:
    assert plan(allocate_unit=False) == []


def test_a_slice_of_its_own_is_planned() -> None:
    _, own = plan(slice_properties={"MemoryMax": 1 << 30})
    assert own == PlannedUnit("machine-web.slice", None, {}, {"MemoryMax": 1 << 30})


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({}, set[str]()),
        ({"Nice": 5}, set[str]()),
        ({"ProtectHome": "no", "PrivateNetwork": False}, {"ProtectHome", "PrivateNetwork"}),
        ({"BindPaths": [["/srv", "/srv", False, 0]]}, set[str]()),
        ({"BindPaths": []}, {"BindPaths"}),
        ({"RestrictAddressFamilies": [True, ["AF_INET"]]}, set[str]()),
        ({"RestrictAddressFamilies": [False, []]}, {"RestrictAddressFamilies"}),
    ],
)
def test_a_helper_has_its_sandbox_but_for_what_takes_its_place(
    asked: dict[str, Any], missing: set[str]
) -> None:
    _, helper = plan(helpers=(HelperSpec("fs", ("/bin/sh",), properties=asked),))
    assert (helper.unit, helper.helper, helper.properties) == ("machine-web-fs.service", "fs", asked)
    assert sandbox(ROOT, DIRECTORY, user=False).keys() - helper.defaults.keys() == missing
