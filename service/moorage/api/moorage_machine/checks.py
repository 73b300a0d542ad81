"""Checks of a registration: its parameters, and the rights that it takes."""

from __future__ import annotations

from collections.abc import Mapping

from moorage import errors, names
from moorage.api.calls import AsRoot, Authority, authorize
from moorage.api.moorage_machine import types as wire
from moorage.authz import allowed_properties
from moorage.authz.policy import IN_PLACE
from moorage.configuration.settings import Settings
from moorage.machines import model, texts
from moorage.machines.helpers.spec import bad_argument
from moorage.names import UnitNames
from moorage.pid1 import unit_files
from moorage.pid1.errors import InvalidProperty
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter


def check_registration(params: wire.RegisterIn, settings: Settings) -> None:
    """Check the parameters of a registration, except its identity and its helpers.

    Raises:
        InvalidParameter: one of them is malformed, or does not go with another one.
    """
    if params.execStopTimeoutUSec is not None and params.execStopTimeoutUSec > settings.timeout_max_usec:
        raise InvalidParameter("execStopTimeoutUSec")
    if not names.is_machine_name(params.name):
        raise InvalidParameter("name")
    if params.execStop and (place := bad_argument(params.execStop)) is not None:
        raise InvalidParameter(f"execStop{place}")
    if params.slice is not None and not names.is_slice_name(params.slice):
        raise InvalidParameter("slice")
    if params.sliceProperties is not None and not names.is_slice_name(
        UnitNames(params.name).slice(params.slice or settings.slice)
    ):
        raise InvalidParameter("sliceProperties")  # the name of the slice would be too long
    if params.description is not None and not (
        texts.is_text(params.description) and unit_files.LINE.broken_by(params.description) is None
    ):
        raise InvalidParameter("description")
    if params.allocateUnit is False:
        for name, value in (
            ("slice", params.slice),
            ("description", params.description),
            ("properties", params.properties),
            ("sliceProperties", params.sliceProperties is not None),
            ("helpers", params.helpers),
            ("execStop", params.execStop),
        ):
            if value:
                raise InvalidParameter(name)  # the unit is not ours


async def authorize_registration(
    call: Call,
    authority: Authority,
    params: wire.RegisterIn,
    details: Mapping[str, str],
    as_root: AsRoot,
    defaults: model.Defaults,
) -> None:
    """Authorise a registration.

    Raises:
        PermissionDenied, InteractiveAuthenticationRequired, System: as polkit says.
        errors.InvalidProperty: this property takes the rights of root.
    """
    if params.helpers or params.execStop:
        await as_root.require()
    excess: InvalidProperty | None = None
    try:
        allowed_properties.check(
            params.properties or {},
            params.slice,
            call.peer.uid,
            slice_properties=params.sliceProperties,
            defaults=defaults,
        )
    except InvalidProperty as error:
        excess = error
        await as_root.ask()
    if as_root.granted:
        return
    await authorize(
        call,
        authority,
        details,
        variant=IN_PLACE if params.allocateUnit is False else "",
        # A person who has just been asked for more is not asked again.
        interactive=params.allowInteractiveAuthentication if excess is None else False,
    )
    if excess is not None:
        raise errors.InvalidProperty(excess.property, excess.reason)
