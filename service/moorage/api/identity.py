"""The identity of a machine in both interfaces: checked and converted once."""

from __future__ import annotations

from moorage.machines import model, texts
from moorage.wire.errors import InvalidParameter
from moorage.wire.types import Int, Parameters

IF_INDEX_MAX = 2**31 - 1
"""Largest index that the kernel gives to a network interface (``int`` in netdevice(7))."""


class IdentityIn(Parameters, kw_only=True):
    """The parameters of Register that describe a machine, for information only."""

    id: str | None = None
    service: str | None = None
    rootDirectory: str | None = None  # noqa: N815  # names on the wire
    ifIndices: list[Int] | None = None  # noqa: N815
    vSockCid: Int | None = None  # noqa: N815
    sshAddress: str | None = None  # noqa: N815
    sshPrivateKeyPath: str | None = None  # noqa: N815
    controlAddress: str | None = None  # noqa: N815


def identity(params: IdentityIn) -> model.Identity:
    """Check and convert the identity of a machine.

    Raises:
        InvalidParameter: a field is malformed.
    """
    if params.id is not None and not texts.is_id128(params.id):
        raise InvalidParameter("id")
    for field in ("service", "sshAddress", "controlAddress"):
        text: str | None = getattr(params, field)
        if text is not None and not texts.is_text(text):
            raise InvalidParameter(field)
    for field in ("rootDirectory", "sshPrivateKeyPath"):
        path: str | None = getattr(params, field)
        if path is not None and not texts.is_path(path):
            raise InvalidParameter(field)
    indices = tuple(params.ifIndices or ())
    if len(indices) > model.IF_INDICES_MAX or not all(0 < index <= IF_INDEX_MAX for index in indices):
        raise InvalidParameter("ifIndices")
    if params.vSockCid is not None and not model.VSOCK_CID_FIRST <= params.vSockCid <= model.VSOCK_CID_LAST:
        raise InvalidParameter("vSockCid")
    return model.Identity(
        id=None if params.id is None else params.id.replace("-", "").lower(),
        service=params.service,
        root_directory=params.rootDirectory,
        if_indices=indices,
        vsock_cid=params.vSockCid,
        ssh_address=params.sshAddress,
        ssh_private_key_path=params.sshPrivateKeyPath,
        control_address=params.controlAddress,
    )
