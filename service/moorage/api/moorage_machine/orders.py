"""Handlers of the orders to a machine: Kill, Stop, Freeze, Thaw, PowerOff, Reboot, ResetAccounting, Forget."""

from __future__ import annotations

from collections.abc import AsyncIterator

from moorage import errors
from moorage.api.calls import managed
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.refusals import translated
from moorage.authz.policy import WITH_HELPERS
from moorage.machines import model, texts
from moorage.machines.freezing import FREEZE_SECONDS
from moorage.machines.powering import Power
from moorage.pid1.errors import NoSuchUnit
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method
from moorage.wire.types import Last


class Orders(Handlers):
    """Passes orders on."""

    @method("Kill")
    async def kill(self, call: Call, params: wire.KillIn) -> None:
        """Send a signal to processes of a machine."""
        if params.subgroup is not None and not _is_below(params.subgroup):
            raise InvalidParameter("subgroup")
        whom = params.whom or model.KillWhom.all
        if params.subgroup is not None and whom is not model.KillWhom.all:
            raise InvalidParameter("subgroup")
        machine = await self.managed(call, params, params.ifInvocationId)
        with translated(REFUSALS):
            try:
                await self.services.control.kill(machine, whom, params.signal, subgroup=params.subgroup)
            except NoSuchUnit:
                raise errors.ProcessGone from None

    @method("Stop")
    async def stop(
        self, call: Call, params: wire.StopIn
    ) -> AsyncIterator[wire.MachineOut | Last[wire.MachineOut]]:
        """Stop a machine; reply when it is gone, with ``more`` also when it begins to stop."""
        control, grace, settings = self.services.control, self.services.grace, self.configuration.settings
        timeout = self.seconds(params.timeoutUSec, settings.stop_timeout_usec)
        if params.insistAfterUSec is not None and params.insistAfterUSec > settings.timeout_max_usec:
            raise InvalidParameter("insistAfterUSec")
        insist_after = None if params.insistAfterUSec is None else params.insistAfterUSec / 1e6
        power_off = bool(params.powerOff)
        machine = await self.managed(call, params, params.ifInvocationId)
        if params.timeoutUSec is None:  # the stop has its time after the machine had its own
            timeout += grace.seconds(machine, power_off=power_off, insist_after=insist_after)
        with translated(REFUSALS):
            given = grace.begin(machine, power_off=power_off, insist_after=insist_after)
            if call.more:
                if given is None:
                    await control.begin_stop(machine, wait=0)
                yield wire.MachineOut(machine=self.shown(call, machine))
            if given is None:
                await control.stop(machine, timeout=timeout)
            else:
                await grace.wait(machine, given, timeout=timeout)
        yield Last(wire.MachineOut(machine=self.shown(call, machine)))

    @method("Freeze")
    async def freeze(self, call: Call, params: wire.FreezeIn) -> None:
        """Freeze a machine, and its helpers if that is wanted; reply when the kernel says that they are."""
        timeout = self.seconds(params.timeoutUSec, FREEZE_SECONDS * 1e6)
        variant = WITH_HELPERS if params.helpers else ""
        machine = await self.managed(call, params, params.ifInvocationId, variant=variant)
        with translated(REFUSALS):
            await self.services.freezing.freeze(machine, helpers=bool(params.helpers), timeout=timeout)

    @method("Thaw")
    async def thaw(self, call: Call, params: wire.ThawIn) -> None:
        """Let a machine and its helpers run again; reply when they do."""
        timeout = self.seconds(params.timeoutUSec, FREEZE_SECONDS * 1e6)
        machine = await self.managed(call, params, params.ifInvocationId)
        with translated(REFUSALS):
            await self.services.freezing.thaw(machine, timeout=timeout)

    @method("PowerOff")
    async def power_off(self, call: Call, params: wire.OrderIn) -> None:
        """Ask a guest to power off; reply when it was asked."""
        await self._ask(call, params, Power.off)

    @method("Reboot")
    async def reboot(self, call: Call, params: wire.OrderIn) -> None:
        """Ask a guest to boot again; reply when it was asked."""
        await self._ask(call, params, Power.reboot)

    async def _ask(self, call: Call, params: wire.OrderIn, power: Power) -> None:
        machine = await self.managed(call, params, params.ifInvocationId)
        with translated(REFUSALS):
            await self.services.powering.ask(machine, power)

    @method("ResetAccounting")
    async def reset_accounting(self, call: Call, params: wire.OrderIn) -> None:
        """Have the counters of a machine begin at zero again."""
        machine = await self.managed(call, params, params.ifInvocationId)
        with translated(REFUSALS):
            await self.services.resetting.reset(machine)

    @method("Forget")
    async def forget(self, call: Call, params: wire.ManageIn) -> None:
        """Forget a machine, living or gone; its unit goes on."""
        machine = await managed(
            call,
            self.authority,
            lambda: self.known(params.name),
            errors.NoSuchMachine(params.name),
            interactive=params.allowInteractiveAuthentication,
        )
        self.services.retirement.forget(machine)


def _is_below(subgroup: str) -> bool:
    """Whether this is a path below something; an empty one would be all of a machine, which is another order."""
    path = subgroup.strip("/")
    return path not in {"", "."} and texts.is_path(f"/{path}")
