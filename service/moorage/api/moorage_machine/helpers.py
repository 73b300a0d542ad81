"""Handlers of what changes the helpers of a machine: AddHelpers, RemoveHelper, Reload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.refusals import translated
from moorage.machines import model
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method
from moorage.wire.types import Last


class Helpers(Handlers):
    """Changes helpers."""

    @method("AddHelpers")
    async def add_helpers(
        self, call: Call, params: wire.AddHelpersIn
    ) -> AsyncIterator[wire.HelpersOut | Last[wire.HelpersOut]]:
        """Start helpers for a machine that runs; with ``more``, reply at each change of their states."""
        machine = await self.managed(call, params)
        specs = convert.specs(params.helpers)
        if not specs:
            raise InvalidParameter("helpers")
        statuses: Sequence[model.HelperStatus] = ()
        with translated(REFUSALS):
            timeout = self.configuration.settings.helpers_timeout_usec / 1e6
            async with aclosing(self.services.changing.add(machine, specs, timeout=timeout)) as changes:
                async for statuses in changes:
                    if call.more:
                        yield wire.HelpersOut(helpers=[convert.helper_status(each) for each in statuses])
        found = await self.services.changing.differences(machine, specs, statuses)
        yield Last(
            wire.HelpersOut(
                helpers=[convert.helper_status(each) for each in statuses],
                differences=convert.differences(found),
            )
        )

    @method("RemoveHelper")
    async def remove_helper(self, call: Call, params: wire.RemoveHelperIn) -> None:
        """Stop a helper and forget it."""
        machine = await self.managed(call, params)
        with translated(REFUSALS):
            await self.services.changing.remove(machine, params.helper)

    @method("Reload")
    async def reload(self, call: Call, params: wire.ManageIn) -> wire.ReloadOut:
        """Reload the helpers that can be reloaded."""
        machine = await self.managed(call, params)
        with translated(REFUSALS):
            timeout = self.configuration.settings.helpers_timeout_usec / 1e6
            reloaded, skipped = await self.services.changing.reload(machine, timeout=timeout)
        return wire.ReloadOut(reloaded=reloaded, skipped=skipped)
