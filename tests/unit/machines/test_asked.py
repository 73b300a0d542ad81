"""A repetition of a registration is told from another one."""

from typing import Any

import msgspec
import pytest

from moorage.kernel.process import ProcessId
from moorage.machines.asked import differing, digests
from moorage.machines.model import Defaults, HelperSpec, Identity, MachineClass, Registration

PLAIN = Registration(
    name="web", class_=MachineClass.vm, registrant=1, leader=ProcessId(2, 3, "4" * 32), leader_pidfd=5, leader_uid=6,
    supervisor=None, allocate_unit=True,
)  # fmt: skip

OTHERS: dict[str, tuple[str, Any]] = {
    "class_": ("class", MachineClass.container),
    "allocate_unit": ("allocateUnit", False),
    "id": ("id", "1" * 32),
    "service": ("service", "a"),
    "root_directory": ("rootDirectory", "/a"),
    "if_indices": ("ifIndices", (1,)),
    "vsock_cid": ("vSockCid", 3),
    "ssh_address": ("sshAddress", "a"),
    "ssh_private_key_path": ("sshPrivateKeyPath", "/a"),
    "control_address": ("controlAddress", "a"),
    "slice": ("slice", "a.slice"),
    "description": ("description", "a"),
    "properties": ("properties", {"MemoryMax": 2**30}),
    "slice_properties": ("sliceProperties", {}),
    "helpers": ("helpers", (HelperSpec("fs", ("/bin/true",)),)),
    "exec_stop": ("execStop", ("/bin/true",)),
    "exec_stop_timeout_usec": ("execStopTimeoutUSec", 1),
    "lease": ("lease", True),
}

CALL = {
    "name": "other", "registrant": 7, "leader": ProcessId(8, 9, "a" * 32), "leader_pidfd": 10, "leader_uid": 11,
    "supervisor": ProcessId(12, 13, "b" * 32), "dry_run": True, "privileged": True,
    "defaults": Defaults("other.slice", 5),
}  # fmt: skip
"""What says whose call it is, and how it is to be carried out."""


def test_every_field_is_what_is_asked_for_or_is_not() -> None:
    fields = {*Registration.__struct_fields__, *Identity.__struct_fields__} - {"identity"}
    assert {*OTHERS, *CALL} == fields


@pytest.mark.parametrize("field", OTHERS)
def test_another_value_is_another_registration(field: str) -> None:
    parameter, value = OTHERS[field]
    if field in Identity.__struct_fields__:
        field, value = "identity", Identity(**{field: value})
    other = digests(msgspec.structs.replace(PLAIN, **{field: value}))
    assert differing(digests(PLAIN), other) == [parameter]
    assert differing(other, digests(PLAIN)) == [parameter]
    assert differing(other, other) == []


def test_who_calls_makes_no_difference() -> None:
    assert differing(digests(PLAIN), digests(msgspec.structs.replace(PLAIN, **CALL))) == []


def test_the_order_of_properties_makes_no_difference_and_that_of_helpers_does() -> None:
    one = msgspec.structs.replace(PLAIN, properties={"a": 1, "b": [1, 2]})
    assert (
        differing(digests(one), digests(msgspec.structs.replace(PLAIN, properties={"b": [1, 2], "a": 1})))
        == []
    )
    helpers = HelperSpec("fs", ("/bin/true",)), HelperSpec("gpu", ("/bin/true",))
    one, other = (msgspec.structs.replace(PLAIN, helpers=each) for each in (helpers, helpers[::-1]))
    assert differing(digests(one), digests(other)) == ["helpers"]


def test_of_a_machine_of_a_former_version_nothing_is_known() -> None:
    assert differing({}, digests(PLAIN)) == []
