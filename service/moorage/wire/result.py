"""The result of a call: its reply, decoded, or the error that it is, raised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from moorage.wire.errors import ProtocolError, VarlinkError, error_from_reply
from moorage.wire.message import ReplyMessage, decode_parameters

T = TypeVar("T")
_ANY_OBJECT = msgspec.json.Decoder(dict[str, Any])


def result_of(
    message: ReplyMessage, decoder: msgspec.json.Decoder[T], errors: Mapping[str, type[VarlinkError]]
) -> T:
    """Decode a reply.

    Args:
        message: the reply.
        decoder: for its parameters.
        errors: see :func:`~moorage.wire.errors.error_table`.

    Raises:
        VarlinkError: the reply is an error.
        ProtocolError: the parameters do not fit.
    """
    if message.error is not UNSET:
        try:
            parameters = decode_parameters(message.parameters, _ANY_OBJECT)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"the parameters of the error are not an object: {error}") from None
        raise error_from_reply(message.error, parameters, errors)
    try:
        return decode_parameters(message.parameters, decoder)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the reply does not fit its type: {error}") from None
