"""Files of helpers, as moorctl and then the service take them."""

from collections.abc import Iterator

import msgspec

from fuzzing.mutation import damaged
from fuzzing.target import Target, corpus
from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine.types import AddHelpersIn
from moorage.cli import helper_files
from moorage.machines.errors import InvalidHelper
from moorage.machines.helpers.spec import check
from moorage.machines.helpers.units import RuntimeDirectories
from moorage.machines.properties import check_helper
from moorage.pid1.errors import InvalidProperty

MACHINE = "web"
DIRECTORY = "/run/moorage/m/web"
HOME = RuntimeDirectories(user=False, root="/run")

KNOWN = {
    "MemoryMax": "t", "MemoryMaxScale": "u", "TasksMax": "t", "TasksMaxScale": "u", "CPUQuotaPerSecUSec": "t",
    "TimeoutStopUSec": "t", "RestartUSec": "t", "NoNewPrivileges": "b", "PrivateTmp": "b", "PrivateTmpEx": "s",
    "ReadWritePaths": "as", "Environment": "as", "BindPaths": "a(ssbt)", "DeviceAllow": "a(ss)", "UMask": "u",
    "IPAddressDeny": "a(iayu)", "SystemCallFilter": "(bas)", "ExecReload": "a(sasb)", "ExecReloadEx": "a(sasas)",
    "SetCredential": "a(say)", "LogExtraFields": "aay", "SuccessExitStatus": "(aiai)", "Conditions": "a(sbbs)",
    "LimitNOFILE": "t", "LimitNOFILESoft": "t", "AllowedCPUs": "ay", "KillSignal": "i", "ProtectSystem": "s",
}  # fmt: skip
"""Properties of each kind of type, as a service manager has them."""

_parameters = msgspec.json.Decoder(AddHelpersIn)


def _of_file(data: bytes) -> Iterator[bytes]:
    yield data


def _examine(content: bytes) -> str:
    try:
        given = helper_files.parse(content.decode())
        given = helper_files.expand(given, {"n": MACHINE, "t": DIRECTORY, "u": "0"}, KNOWN)
        for line in helper_files.explain(given, MACHINE, DIRECTORY):
            line.encode()
    except ValueError:
        return "refused by moorctl"
    text = msgspec.json.encode({"name": MACHINE, "helpers": given.helpers})
    specs = convert.specs(_parameters.decode(text).helpers)
    try:
        check(specs, MACHINE, (), HOME)
        for spec in specs:
            check_helper(spec.name, spec.properties)
    except (InvalidHelper, InvalidProperty):
        return "refused by the service"
    return "taken"


TARGET: Target[bytes] = Target("helpers", damaged(corpus("helpers")), _examine, _of_file)
"""Damages bytes instead of values, because most faults of a file are faults of its TOML."""
