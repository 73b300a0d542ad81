"""Whatever machined says, it becomes a machine that could be one of ours, or none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.beside.listed import Listed, listed
from moorage.kernel.process import ProcessId
from moorage.machines.model import Identity, MachineClass
from moorage.names import is_machine_name

BOOT = "0123456789abcdef0123456789abcdef"
LEADER = {"pid": 7, "pidfdId": 8, "bootId": BOOT}
LEAST: dict[str, Any] = {"name": "web", "class": "vm", "leader": LEADER, "unit": "machine-web.scope"}
FULL: dict[str, Any] = {
    **LEAST, "UID": 1000, "supervisor": {"pid": 9, "pidfdId": 10, "bootId": BOOT}, "id": BOOT, "service": "x",
    "rootDirectory": "/r", "vSockCid": 5, "sshAddress": "vsock/5", "sshPrivateKeyPath": "/k",
    "controlAddress": "/c", "timestamp": {"realtime": 1}, "subgroup": "a",
}  # fmt: skip


def test_all_that_is_of_use_is_kept() -> None:
    leader, supervisor = ProcessId(7, 8, BOOT), ProcessId(9, 10, BOOT)
    identity = Identity(BOOT, "x", "/r", (), 5, "vsock/5", "/k", "/c")
    unit = "machine-web.scope"
    assert listed(FULL) == Listed("web", MachineClass.vm, leader, unit, 1000, supervisor, identity)
    assert listed(LEAST) == Listed("web", MachineClass.vm, leader, unit, None, None, Identity())


@pytest.mark.parametrize(
    "wrong",
    [
        {"class": "host"}, {"class": "planet"}, {"name": "../x"}, {"name": ".host"}, {"name": ""}, {"name": "a" * 65},
        {"name": "a\n"}, {"name": 5}, {"leader": None}, {"leader": 5}, {"leader": {"pid": 7}}, {"unit": None},
        {"leader": {**LEADER, "pid": 0}}, {"leader": {**LEADER, "pid": 2**40}}, {"leader": {**LEADER, "bootId": "x"}},
        {"leader": {**LEADER, "pidfdId": 0}}, {"leader": {**LEADER, "pidfdId": 2**80}}, {"unit": "a\nb"},
        {"unit": "a" * 256}, {"UID": -1}, {"UID": 2**32 - 1}, {"UID": "root"}, {"UID": 2**70},
    ],
)  # fmt: skip
def test_what_could_be_no_machine_of_ours_is_none(wrong: dict[str, Any]) -> None:
    assert listed({**FULL, **wrong}) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "x"), ("service", "\x1b[2J"), ("service", "a" * 5000), ("root_directory", "etc"), ("vsock_cid", 1),
        ("root_directory", "/a/../b"), ("ssh_private_key_path", "\n"), ("control_address", ""), ("ssh_address", ""),
        ("control_address", "/run/moorage/control/web"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_about_a_machine_is_left_out(field: str, value: object) -> None:
    names = {"root_directory": "rootDirectory", "vsock_cid": "vSockCid", "ssh_address": "sshAddress",
             "ssh_private_key_path": "sshPrivateKeyPath", "control_address": "controlAddress"}  # fmt: skip
    found = listed({**FULL, names.get(field, field): value})
    assert found is not None
    assert getattr(found.identity, field) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(FULL)), VALUES))
def test_nonsense_never_does_harm(wrong: dict[str, Any]) -> None:
    found = listed({**FULL, **wrong})
    assert found is None or is_machine_name(found.name)
