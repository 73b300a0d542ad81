"""Handler of Register."""

from __future__ import annotations

from msgspec.structs import asdict, replace

from moorage.api.calls import AsRoot
from moorage.api.identity import identity
from moorage.api.leader import open_leader
from moorage.api.moorage_machine import convert
from moorage.api.moorage_machine import types as wire
from moorage.api.moorage_machine.base import Handlers
from moorage.api.moorage_machine.checks import authorize_registration, check_registration
from moorage.api.moorage_machine.errors import REFUSALS
from moorage.api.refusals import translated
from moorage.authz.ownership import UnitNotOwned
from moorage.machines import model
from moorage.machines.helpers.programs import is_program
from moorage.machines.machine import Machine
from moorage.machines.registration import Registered
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.method import method


class Registering(Handlers):
    """Registers machines."""

    @method("Register")
    async def register(self, call: Call, params: wire.RegisterIn) -> wire.RegisterOut:
        """Register a machine, in a scope of its own or where its leader is."""
        settings = self.configuration.settings
        timeout = self.seconds(params.timeoutUSec, settings.register_timeout_usec)
        check_registration(params, settings)
        about = identity(params)
        details = {"name": params.name, "class": params.class_, "verb": "register"}
        as_root = AsRoot(call, self.authority, details, interactive=params.allowInteractiveAuthentication)
        await authorize_registration(call, self.authority, params, details, as_root, settings.defaults)
        pidfd, blamed = None, "leader"
        if params.leaderFileDescriptor is not None:
            blamed = "leaderFileDescriptor"
            pidfd = call.take_fd(params.leaderFileDescriptor, blamed)
        with translated(REFUSALS):
            leader = await open_leader(call, self.services.registrar, params.leader, pidfd, blamed, as_root)
            try:
                wanted = convert.registration(
                    params, call.peer.uid, about, leader, settings.defaults, privileged=as_root.granted
                )
                await self.services.changing.check(wanted.helpers, wanted.name)
                if wanted.exec_stop and not await is_program(wanted.exec_stop[0]):
                    raise InvalidParameter("execStop[0]")
                done = await self._registered(call, wanted, timeout, as_root)
            finally:
                leader.close()
        return wire.RegisterOut(
            machine=self.shown(
                call, done.machine, done.helpers, phase=done.phase, freezer=self._freezer(done.machine)
            ),
            differences=convert.differences(done.differences),
            units=[wire.PlannedUnit(**asdict(each)) for each in done.units] or None,
        )

    async def _registered(
        self, call: Call, wanted: model.Registration, timeout: float, as_root: AsRoot
    ) -> Registered:
        """Register; ask for the rights of root if that fails because the unit belongs to another user."""
        registrar = self.services.registrar
        lease = call.wait_gone if wanted.lease else None
        try:
            return await registrar.find_or_register(wanted, timeout=timeout, lease=lease)
        except UnitNotOwned:
            if wanted.privileged or not await as_root.ask_for_others():
                raise
            return await registrar.find_or_register(
                replace(wanted, privileged=True), timeout=timeout, lease=lease
            )

    def _freezer(self, machine: Machine) -> model.FreezerState:
        """Return whether a machine that has just been registered is frozen; if that cannot be read, it is not yet."""
        try:
            return self.services.looking.freezer(machine)
        except OSError:
            return model.FreezerState.running
