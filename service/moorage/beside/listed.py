"""A machine as machined lists it. Whatever machined says is checked like the call of a stranger. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from moorage.addresses import CONTROL
from moorage.kernel.process import PID_MAX, ProcessId
from moorage.machines import texts
from moorage.machines.model import VSOCK_CID_FIRST, VSOCK_CID_LAST, Identity, MachineClass
from moorage.names import UNIT_NAME_MAX, is_host_name

T = TypeVar("T")

UID_MAX = 2**32 - 2
"""The largest uid; the number after it stands for none (``uid_is_valid()``)."""

INODES = 2**63
"""As many inode numbers as a reply can have: JSON is read as sd-json has integers."""

_Pid = Annotated[int, Meta(ge=1, le=PID_MAX)]
_Text = Annotated[str, Meta(min_length=1, max_length=texts.TEXT_MAX)]


class _Process(msgspec.Struct):
    pid: _Pid
    pidfd_id: int = msgspec.field(name="pidfdId")
    boot_id: _Text = msgspec.field(name="bootId")


class _Reply(msgspec.Struct):
    """The reply of io.systemd.Machine.List, as far as it is of use. Without a leader and a unit a machine is none."""

    name: _Text
    class_: MachineClass = msgspec.field(name="class")
    leader: _Process
    unit: Annotated[str, Meta(min_length=1, max_length=UNIT_NAME_MAX)]
    subgroup: str | None = None
    uid: Annotated[int, Meta(ge=0, le=UID_MAX)] | None = msgspec.field(name="UID", default=None)
    supervisor: _Process | None = None
    id: str | None = None
    service: str | None = None
    root_directory: str | None = msgspec.field(name="rootDirectory", default=None)
    vsock_cid: int | None = msgspec.field(name="vSockCid", default=None)
    ssh_address: str | None = msgspec.field(name="sshAddress", default=None)
    ssh_private_key_path: str | None = msgspec.field(name="sshPrivateKeyPath", default=None)
    control_address: str | None = msgspec.field(name="controlAddress", default=None)


class Listed(msgspec.Struct, frozen=True):
    """A machine that machined has.

    Attributes:
        name: of it, a host name.
        class_: what runs in it.
        leader: of it.
        unit: that it is in, or will be in a moment.
        uid: who has registered it; None where this machined does not tell (before 259).
        supervisor: the process that has registered it, where this machined tells (since 259).
        identity: what else is known.
    """

    name: str
    class_: MachineClass
    leader: ProcessId
    unit: str
    uid: int | None
    supervisor: ProcessId | None
    identity: Identity


def listed(reply: Mapping[str, Any]) -> Listed | None:
    """Return the machine of a reply; None if it cannot be one of ours too: the host, or nonsense.

    What is said about a machine for information only is left out where it makes no sense.
    """
    try:
        found = msgspec.convert(reply, _Reply)
    except msgspec.ValidationError:
        return None
    leader = _process(found.leader)
    if found.class_ is MachineClass.host or not is_host_name(found.name) or leader is None:
        return None
    if not found.unit.isprintable():
        return None
    cid = found.vsock_cid
    identity = Identity(
        id=_plain(_if(texts.is_id128, found.id)),
        service=_if(texts.is_text, found.service),
        root_directory=_if(texts.is_path, found.root_directory),
        vsock_cid=cid if cid is not None and VSOCK_CID_FIRST <= cid <= VSOCK_CID_LAST else None,
        ssh_address=_if(texts.is_text, found.ssh_address),
        ssh_private_key_path=_if(texts.is_path, found.ssh_private_key_path),
        control_address=_if(_is_address, found.control_address),
    )
    supervisor = None if found.supervisor is None else _process(found.supervisor)
    return Listed(found.name, found.class_, leader, found.unit, found.uid, supervisor, identity)


def _is_address(text: str) -> bool:
    """Whether that is a control address other than one that this service has told machined."""
    return texts.is_text(text) and not text.startswith(f"/run/{CONTROL}/")


def _process(found: _Process) -> ProcessId | None:
    boot_id = _plain(_if(texts.is_id128, found.boot_id))
    return (
        None
        if boot_id is None or not 0 < found.pidfd_id < INODES
        else ProcessId(found.pid, found.pidfd_id, boot_id)
    )


def _plain(identifier: str | None) -> str | None:
    return None if identifier is None else identifier.replace("-", "").lower()


def _if(fits: Callable[[T], bool], value: T | None) -> T | None:
    return value if value is not None and fits(value) else None
