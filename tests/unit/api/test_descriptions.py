"""The Structs and errors of the interfaces say what the served descriptions say, both ways."""

import pytest

from moorage import errors as machine_errors
from moorage.api import systemd_service
from moorage.api.descriptions import load_description
from moorage.api.machine_instance import errors as instance_errors
from moorage.api.machine_instance.handlers import MachineInstance
from moorage.api.metrics import types as metrics_types
from moorage.api.metrics.handlers import Metrics
from moorage.api.moorage_machine.handlers import MoorageMachine
from moorage.api.resolve_hook import types as hook_types
from moorage.api.resolve_hook.handlers import ResolveHook
from moorage.api.systemd_machine import errors as systemd_errors
from moorage.api.systemd_machine.handlers import SystemdMachine
from moorage.api.user_database import errors as user_errors
from moorage.api.user_database.handlers import UserDatabase
from moorage.wire.conformance import check
from moorage.wire.errors import VarlinkError
from moorage.wire.service import Interface

# What comes later; it is described already, and answered with MethodNotImplemented.
LATER = {
    "io.moorage.Machine": set[str](),
    "io.systemd.Machine": set[str](),
    "io.systemd.service": {"Reload"},
    "io.systemd.MachineInstance": set[str](),
    "io.systemd.Metrics": set[str](),
    "io.systemd.UserDatabase": set[str](),
    "io.systemd.Resolve.Hook": set[str](),
}

# Errors of what comes later.
LATER_ERRORS = {
    "io.moorage.Machine": set[str](),
    "io.systemd.Machine": set[str](),
    "io.systemd.service": set[str](),
    # No storage is ever attached.
    "io.systemd.MachineInstance": {
        "NoSuchStorage",
        "StorageExists",
        "StorageImmutable",
        "BadConfig",
        "ConfigNotSupported",
    },
    "io.systemd.Metrics": {"NoSuchMetric"},  # there is always something
    "io.systemd.UserDatabase": {"ServiceNotAvailable"},
    "io.systemd.Resolve.Hook": set[str](),
}

INTERFACES: list[tuple[type[Interface], object]] = [
    (MoorageMachine, machine_errors),
    (SystemdMachine, systemd_errors),
    (systemd_service.GenericService, systemd_service),
    (MachineInstance, instance_errors),
    (Metrics, metrics_types),
    (UserDatabase, user_errors),
    (ResolveHook, hook_types),
]


def errors_of(module: object) -> list[type[VarlinkError]]:
    found = (value for value in vars(module).values() if isinstance(value, type))
    return [value for value in found if issubclass(value, VarlinkError) and hasattr(value, "error")]


@pytest.mark.parametrize(
    ("interface", "module"), INTERFACES, ids=lambda value: getattr(value, "__name__", "")
)
def test_interface_and_description_agree(interface: type[Interface], module: object) -> None:
    name = {
        "MoorageMachine": "io.moorage.Machine",
        "SystemdMachine": "io.systemd.Machine",
        "GenericService": "io.systemd.service",
        "MachineInstance": "io.systemd.MachineInstance",
        "Metrics": "io.systemd.Metrics",
        "UserDatabase": "io.systemd.UserDatabase",
        "ResolveHook": "io.systemd.Resolve.Hook",
    }[interface.__name__]
    differences = check(
        interface, load_description(name), errors=errors_of(module), unimplemented=LATER[name]
    )
    assert set(differences) == {f"error {error} has no class" for error in LATER_ERRORS[name]}
