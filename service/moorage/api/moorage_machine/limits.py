"""Handler of SetProperties."""

from __future__ import annotations

from moorage import errors
from moorage.api.calls import AsRoot
from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.refusals import translated
from moorage.authz import allowed_properties
from moorage.authz.policy import OTHER_PROPERTIES
from moorage.machines.machine import Machine
from moorage.pid1.errors import InvalidProperty
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method


class Limits(Handlers):
    """Changes properties."""

    @method("SetProperties")
    async def set_properties(self, call: Call, params: wire.SetPropertiesIn) -> wire.DifferencesOut:
        """Set properties of a machine's scope, or of one of its helpers: all of them or none."""
        if not params.properties:
            raise InvalidParameter("properties")
        variant = "" if params.helper is None else OTHER_PROPERTIES
        machine = await self.managed(call, params, params.ifInvocationId, variant=variant)
        if params.helper is None:
            await self._authorize(call, params, machine)
        with translated(REFUSALS):
            found = await self.services.limits.set(
                machine, params.properties, helper=params.helper, dry_run=bool(params.dryRun)
            )
        return wire.DifferencesOut(differences=convert.differences(found))

    async def _authorize(self, call: Call, params: wire.SetPropertiesIn, machine: Machine) -> None:
        """Authorise properties of a scope: those that a user may not set take the rights of root.

        Raises:
            errors.InvalidProperty: this one does, and the caller has not.
            errors.NoSuchMachine: it has ended while polkit was asked.
        """
        try:
            allowed_properties.check(params.properties, None, call.peer.uid)
        except InvalidProperty as excess:
            as_root = AsRoot(
                call,
                self.authority,
                {"name": machine.name, "verb": "setproperties"},
                interactive=params.allowInteractiveAuthentication,
                variant=OTHER_PROPERTIES,
            )
            if not await as_root.ask():
                raise errors.InvalidProperty(excess.property, excess.reason) from None
            if self.registry.get(machine.name) is not machine:
                raise errors.NoSuchMachine(machine.name) from None
