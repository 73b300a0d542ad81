"""The parameters of a registration, kept so that its repetition can be distinguished from another one.

A launcher that lost its connection cannot know whether its call was carried out, and simply repeats it. The answer is
the same only if the call is: whoever asks for something else learns what differs, instead of believing that it is in
force. Digests are kept, since properties and helpers may be as large as a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from moorage.machines.model import Identity, Registration

DIGEST_BYTES = 8
"""Of each parameter: it tells two values of one caller's apart, of which neither is made to look like the other."""

_PARAMETERS = {
    "class_": "class",
    "allocate_unit": "allocateUnit",
    "id": "id",
    "service": "service",
    "root_directory": "rootDirectory",
    "if_indices": "ifIndices",
    "vsock_cid": "vSockCid",
    "ssh_address": "sshAddress",
    "ssh_private_key_path": "sshPrivateKeyPath",
    "control_address": "controlAddress",
    "slice": "slice",
    "description": "description",
    "properties": "properties",
    "slice_properties": "sliceProperties",
    "helpers": "helpers",
    "exec_stop": "execStop",
    "exec_stop_timeout_usec": "execStopTimeoutUSec",
    "lease": "lease",
}
"""Fields of a registration, and the parameters of Register that they come from. The others say whose call it is, and
how it is to be carried out."""


def digests(registration: Registration) -> dict[str, str]:
    """Return a digest of each parameter that has been given, by its name."""
    values: dict[str, Any] = {
        name: getattr(registration.identity if field in Identity.__struct_fields__ else registration, field)
        for field, name in _PARAMETERS.items()
    }
    given = {name: value for name, value in values.items() if value not in (None, False, (), {})}
    if registration.slice_properties is not None:  # a slice without properties is one all the same
        given["sliceProperties"] = registration.slice_properties
    return {name: _digest(value) for name, value in given.items()}


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names of the parameters in which two registrations differ.

    None do where nothing is known of the first, as of a machine that a former version has registered.
    """
    if not one:
        return []
    return [name for name in _PARAMETERS.values() if one.get(name) != other.get(name)]


def _digest(value: Any) -> str:
    return blake2b(msgspec.json.encode(value, order="deterministic"), digest_size=DIGEST_BYTES).hexdigest()
