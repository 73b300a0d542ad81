"""Records and machines that a test makes up."""

from typing import Any

from moorage.machines.machine import Machine
from moorage.machines.model import Identity, MachineClass, Placement, Record, Timestamp


def record(name: str = "web", **values: Any) -> Record:
    """A record of a machine in a scope that the kernel knows nothing of; the fields may be those of its parts."""
    placement: dict[str, Any] = {
        "unit": f"machine-{name}.scope", "slice": "machine.slice", "control_group": f"/none/machine-{name}.scope",
        "control_group_id": 1, "invocation_id": "0" * 32,
    }  # fmt: skip
    identity: dict[str, Any] = {}
    whole: dict[str, Any] = {
        "name": name, "class_": MachineClass.vm, "registrant": 0, "allocated": True, "leader": None,
        "supervisor": None, "timestamp": Timestamp(1, 1),
    }  # fmt: skip
    for field, value in values.items():
        parts = {Placement: placement, Identity: identity}
        part = next((made for kind, made in parts.items() if field in kind.__struct_fields__), whole)
        part[field] = value
    return Record(**whole, placement=Placement(**placement), identity=Identity(**identity))


def machine(name: str = "web", **values: Any) -> Machine:
    """A machine with such a record."""
    return Machine(record(name, **values))
