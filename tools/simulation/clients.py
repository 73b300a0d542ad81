"""What callers, administrators and bad luck do: the steps of a plan."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from fakes.kernel import Process
from fakes.units import Unit

from moorage.authz.ownership import NotOwned, UnitNotOwned
from moorage.errors import NoSuchMachine
from moorage.kernel.process import Exit, NotAProcess, ProcessGone
from moorage.machines.errors import NameTaken, Refused, UnitNameTaken
from moorage.machines.machine import Machine
from moorage.machines.model import (
    HelperFailure,
    HelperSocket,
    HelperSpec,
    KillWhom,
    MachineClass,
    Registration,
)
from moorage.machines.powering import POWER_SECONDS, Power
from moorage.names import UnitNames
from moorage.pid1.errors import ManagerError
from moorage.pid1.manager import Json
from simulation.plan import Step
from simulation.world import SHELL, Instance, World, key_of

ANSWERS: Final = (
    Refused, ManagerError, ProcessGone, NotAProcess, NotOwned, UnitNotOwned, OSError, NoSuchMachine,
)  # fmt: skip
"""What a caller can be told; anything else is a fault of the core."""

SLACK_SECONDS: Final = 125.0
"""For how long an answer may be late: a start that failed is taken back first (UNDO_USEC), with one question more."""

STOP_SECONDS: Final = 200.0

AWAIT_SECONDS: Final = 20.0
"""For how long a launcher waits to be told of a stop, and leaves the machine alone when it is."""

FREEZE_SLACK_SECONDS: Final = 52.0
"""The same for Freeze and Thaw: a registration is waited for first, then the manager is asked which unit it is
(ASK_SECONDS), and a freeze that failed is taken back (UNDO_SECONDS)."""


class Clients:
    """Everybody who does something."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self._world = world
        self._nursery = nursery

    async def do(self, step: Step) -> None:
        """Do one step; what takes time goes on by itself."""
        await getattr(self, f"_{step.kind}")(step)

    # Callers

    def _call(
        self,
        step: Step,
        seconds: float,
        call: Callable[[Instance], Awaitable[None]],
        then: Callable[[], None],
    ) -> None:
        """Make a call from a connection of its own, which may be hung up; *then* follows its end."""

        async def caller() -> None:
            instance = self._world.living()
            if instance is None:
                with trio.move_on_after(30):
                    await self._world.up.wait()
                instance = self._world.living()
            if instance is not None and instance.calls is not None:
                instance.calls.start_soon(self._handle, instance, step, seconds, call, then)
            else:
                then()

        self._nursery.start_soon(caller)

    async def _handle(
        self,
        instance: Instance,
        step: Step,
        seconds: float,
        call: Callable[[Instance], Awaitable[None]],
        then: Callable[[], None],
    ) -> None:
        began = trio.current_time()
        try:
            with trio.CancelScope() as connection:
                if "hang_up" in step.values:
                    connection.deadline = began + step.values["hang_up"]
                await call(instance)
        except ANSWERS as error:
            self._world.note(f"{step.kind} {step.name}: {error!r}")
        finally:
            then()
        late = trio.current_time() - began - seconds
        if late > 0 and not instance.store.killed:
            self._world.wrong("late", f"{step.kind} was answered {late:.1f} s after its deadline")

    async def _register(self, step: Step) -> None:
        world, values = self._world, step.values
        place = values["place"]
        path = "/user.slice/session.scope"
        if place != "scope":
            unit = f"vm-{step.name}.service"
            there = world.pid1.units.get(unit)
            if there is not None and there.active == "deactivating":
                return  # nobody else starts anything there, and what is there does not outlive it for long
            path = self._shared_unit(unit, remains=place == "remains")
            path += "/payload" if place == "part" else ""
        if values.get("again") and step.name in world.leaders and world.leaders[step.name].exit is None:
            process = world.leaders[step.name]
        else:
            process = world.leader(step.name, path, deaf=bool(values.get("deaf")), uid=values.get("uid", 0))
        if "dies" in values:
            world.pid1.later(values["dies"], lambda: world.kernel.end(process, Exit(status=1)))
        lease = trio.Event()

        async def call(instance: Instance) -> None:
            await self._registered(instance, step, process, lease)

        def then() -> None:
            # A launcher whose machine is not there has no use for its leader.
            if "hang_up" in values:
                lease.set()

        self._call(step, values["timeout"] + SLACK_SECONDS, call, then)

    async def _registered(self, instance: Instance, step: Step, process: Process, lease: trio.Event) -> None:
        world, values = self._world, step.values
        if process.reaped:
            raise ProcessGone(process.pid)
        pidfd = instance.processes.hand_over(process)
        try:
            registration = Registration(
                name=step.name,
                class_=MachineClass.container if values.get("container") else MachineClass.vm,
                registrant=process.uid,
                leader=process.id,
                leader_pidfd=pidfd,
                leader_uid=process.uid,
                supervisor=process.parent.id if values["place"] == "part" and process.parent else None,
                allocate_unit=values["place"] == "scope",
                helpers=tuple(_specs(values.get("helpers", ()))),
                exec_stop=(SHELL, f"ask:{values['exec_stop']}") if "exec_stop" in values else (),
                lease=bool(values.get("lease")),
                privileged=True,
            )
            held = lease.wait if registration.lease else None
            began = trio.current_time()
            try:
                machine = await instance.core.register(registration, values["timeout"], held)
            except NameTaken:
                self._check_name(instance, step.name, began)
                raise
            except UnitNameTaken as error:
                self._check_unit(error, began)
                raise
        finally:
            if pidfd in instance.processes:
                instance.processes.close(pidfd)
        world.note(f"register {step.name}: {machine.unit} {machine.record.placement.invocation_id}")
        world.answered.append((machine, instance.number))
        world.leases[step.name] = lease

    def _check_name(self, instance: Instance, name: str, began: float) -> None:
        """Check that a name that was refused is not that of a machine which had ended before."""
        machine = instance.core.get(name)
        if machine is None or instance.core.is_claimed(name):
            return
        if self._world.is_populated(machine):
            return
        if self._world.emptied.get(machine.record.placement.control_group_id, math.inf) < began:
            self._world.wrong(
                "refused", f"the name {name} is refused, whose machine has no process any more"
            )

    def _check_unit(self, error: UnitNameTaken, began: float) -> None:
        """Check that a unit that was in the way is not one of ours which had ended before."""
        unit = self._world.pid1.units.get(error.unit)
        if unit is None or not self._world.is_ours(unit) or unit.kind != "scope":
            return
        group = self._world.kernel.groups.get(unit.group) if unit.group else None
        if group is None or self._world.emptied.get(group.number, math.inf) < began:
            self._world.wrong("refused", f"{error.unit} is in the way, and has no process: {error.holder}")

    def _shared_unit(self, unit: str, *, remains: bool) -> str:
        """Have somebody else's unit to register something in."""
        world = self._world
        found = world.pid1.units.get(unit)
        if found is None or not found.group:
            command = [[SHELL, [SHELL, "serve"], False]]
            values: list[tuple[str, object]] = [("ExecStart", command)]
            if remains:
                values += [("Type", "oneshot"), ("RemainAfterExit", True)]
            if found is None:
                found = world.pid1.load(unit, values, ())
            found.group = world.pid1.group_of(found)
            world.pid1.kernel.make(found.group)
            world.pid1.new_invocation(found)
            found.active, found.sub = "active", "running"
            found.transient = False
            found.remains = remains
        world.strangers[unit] = "shared"
        return found.group

    def _on(
        self,
        step: Step,
        seconds: float,
        call: Callable[[Instance, Machine], Awaitable[None]],
    ) -> None:
        async def made(instance: Instance) -> None:
            machine = instance.core.get(step.name)
            if machine is not None:
                await call(instance, machine)

        self._call(step, seconds, made, lambda: None)

    async def _stop(self, step: Step) -> None:
        wait = step.values["wait"]

        async def stop(instance: Instance, machine: Machine) -> None:
            gone = await instance.core.stop(machine, wait, power_off=step.values.get("power_off", False))
            if gone and instance.core.get(machine.name) is machine:
                self._world.wrong("stop", "a machine is there that was said to be gone")

        self._on(step, wait + STOP_SECONDS + 1, stop)

    async def _kill(self, step: Step) -> None:
        subgroup = step.values.get("subgroup")

        async def kill(instance: Instance, machine: Machine) -> None:
            values = step.values
            await instance.core.kill(machine, KillWhom(values["whom"]), values["signal"], subgroup)

        # With a subgroup it asks more than once.
        self._on(step, 11 if subgroup is None else 31, kill)

    async def _power(self, step: Step) -> None:
        async def ask(instance: Instance, machine: Machine) -> None:
            await instance.core.power(machine, Power[step.values["power"]])

        self._on(step, POWER_SECONDS + FREEZE_SLACK_SECONDS, ask)

    async def _reset(self, step: Step) -> None:
        async def reset(instance: Instance, machine: Machine) -> None:
            await instance.core.reset(machine)

        self._on(step, FREEZE_SLACK_SECONDS, reset)

    async def _measure(self, step: Step) -> None:
        async def measure(instance: Instance, machine: Machine) -> None:
            if instance.core.measure([machine.name]) != [machine.name]:
                self._world.wrong("measure", f"{machine.name} was asked for, and others were told of")

        self._on(step, 0, measure)

    async def _await_stop(self, step: Step) -> None:
        """Wait for a stop, and end the machine then, or do nothing about it."""

        async def wait(instance: Instance, machine: Machine) -> None:
            feed = instance.core.await_stop(machine, step.values["grace"])
            news = trio.Event()

            def woken() -> None:
                news.set()

            feed.follow(woken)
            try:
                feed.take(1)
                while not (messages := feed.take(1)) and not instance.over.is_set():
                    news = trio.Event()
                    with trio.move_on_after(AWAIT_SECONDS) as waited:
                        await news.wait()
                    if waited.cancelled_caught:
                        return
                leader = self._world.leaders.get(machine.name)
                if messages and step.values["obeys"] and leader is not None and leader.exit is None:
                    self._world.kernel.end(leader, Exit(status=0))
                elif messages:
                    await trio.sleep(AWAIT_SECONDS)
            finally:
                feed.close()

        self._on(step, math.inf, wait)

    async def _forget(self, step: Step) -> None:
        async def forget(instance: Instance, machine: Machine) -> None:
            self._world.forgotten.add(key_of(machine))
            if machine.record.registrant == 0:
                self._world.forgotten_by_root.add(key_of(machine))
            instance.core.forget(machine)

        self._on(step, 0, forget)

    async def _add_helper(self, step: Step) -> None:
        (spec,) = _specs([step.values["helper"]])

        async def add(instance: Instance, machine: Machine) -> None:
            await instance.core.add_helper(machine, spec, 30)

        self._on(step, 30 + 2 * SLACK_SECONDS + STOP_SECONDS, add)

    async def _remove_helper(self, step: Step) -> None:
        async def remove(instance: Instance, machine: Machine) -> None:
            await instance.core.remove_helper(machine, step.values["helper"])

        self._on(step, 2 * STOP_SECONDS, remove)

    async def _hang_up(self, step: Step) -> None:
        if (lease := self._world.leases.pop(step.name, None)) is not None:
            lease.set()

    async def _subscribe(self, _step: Step) -> None:
        self._world.read(self._nursery)

    async def _find(self, step: Step) -> None:
        pass

    # The guest, and people with rights

    async def _die(self, step: Step) -> None:
        process = self._world.leaders.get(step.name)
        if process is not None and process.exit is None:
            number = step.values["signal"]
            if number:
                self._world.kernel.signal(process, number)
            else:
                self._world.kernel.end(process, Exit(status=0))

    async def _helper_dies(self, step: Step) -> None:
        unit = self._world.pid1.units.get(UnitNames(step.name).helper(step.values["helper"]))
        if unit is not None and unit.main is not None:
            self._world.kernel.end(unit.main, Exit(status=1))

    def _freezes(self, step: Step, *, frozen: bool) -> None:
        unit = self._world.pid1.units.get(UnitNames(step.name).scope)
        if unit is not None and unit.group and unit.active == "active":
            self._world.kernel.freeze(unit.group, frozen=frozen)

    async def _set(self, step: Step) -> None:
        value = step.values["value"]
        properties: dict[str, Json] = {"MemoryMax": value, "TasksMax": value}
        if step.values["bad"]:
            properties["DevicePolicy"] = "open"

        async def change(instance: Instance, machine: Machine) -> None:
            if machine.record.allocated:
                self._world.changed.add(machine.unit)
            await instance.core.set(machine, properties, dry_run=step.values["dry_run"])

        self._on(step, 25 + FREEZE_SLACK_SECONDS, change)

    async def _freeze(self, step: Step) -> None:
        if step.values.get("by") != "caller":
            self._freezes(step, frozen=True)
            return
        wait = step.values["wait"]

        async def freeze(instance: Instance, machine: Machine) -> None:
            await instance.core.freeze(machine, wait, helpers=step.values["helpers"])
            self._check_freezer(machine, frozen=True)
            self._world.note(f"freeze {machine.name}: done")

        self._on(step, wait + FREEZE_SLACK_SECONDS, freeze)

    async def _thaw(self, step: Step) -> None:
        if step.values.get("by") != "caller":
            self._freezes(step, frozen=False)
            return
        wait = step.values["wait"]

        async def thaw(instance: Instance, machine: Machine) -> None:
            await instance.core.thaw(machine, wait)
            self._check_freezer(machine, frozen=False)

        self._on(step, wait + FREEZE_SLACK_SECONDS, thaw)

    def _check_freezer(self, machine: Machine, *, frozen: bool) -> None:
        """Check that what was answered is so, at that moment."""
        path = machine.record.control_group
        if self._world.is_populated(machine) and self._world.kernel.is_frozen(path) != frozen:
            self._world.wrong("freezer", f"{machine.name} was said to be {'frozen' if frozen else 'thawed'}")

    async def _stop_unit(self, step: Step) -> None:
        unit = self._world.pid1.units.get(UnitNames(step.name).scope)
        if unit is not None and not (unit.job is not None and unit.job.kind == "start"):
            self._world.pid1.begin(unit, "stop", "replace")

    async def _stranger(self, step: Step) -> None:
        world = self._world
        scope = step.values["unit"] == "scope"
        unit = UnitNames(step.name).scope if scope else UnitNames(step.name).helper("f")
        if world.pid1.units.get(unit) is None:
            world.stranger(unit, "scope" if scope else "service")
            world.pid1.later(step.values["seconds"], lambda: world.end_stranger(unit))

    # Bad luck

    async def _reload(self, step: Step) -> None:
        self._world.pid1.reload(step.values["seconds"])

    async def _reexec(self, step: Step) -> None:
        world = self._world
        world.pid1.reload(step.values["seconds"])
        if world.instance is not None:
            world.instance.manager.lose()

    async def _stall(self, step: Step) -> None:
        self._world.pid1.busy_until = trio.current_time() + step.values["seconds"]

    async def _lose_link(self, step: Step) -> None:
        if self._world.instance is not None:
            self._world.instance.manager.lose(unread=step.values["unread"])

    # Lack of memory

    async def _oom(self, step: Step) -> None:
        """Have the kernel kill processes of a machine, the leader last if that ends, too."""

        def kill(group: str, victim: Process) -> None:
            limits = {"own": group, "below": f"{group}/payload", "above": "/machine.slice", "host": ""}
            self._world.run_out_of_memory(group, limits[step.values["whose"]], victim)

        def last(unit: Unit) -> None:
            unit.oom = True

        self._nursery.start_soon(self._kill_for_memory, step, kill, last)

    async def _oomd(self, step: Step) -> None:
        """Have systemd-oomd kill processes of a machine, and note that unless the group is gone by then."""

        def kill(group: str, victim: Process) -> None:
            self._world.kill_by_oomd(group, victim, noted=step.values["noted"])

        def last(unit: Unit) -> None:
            unit.oom = True

        self._nursery.start_soon(self._kill_for_memory, step, kill, last)

    async def _kill_for_memory(
        self, step: Step, kill: Callable[[str, Process], None], last: Callable[[Unit], None]
    ) -> None:
        world = self._world
        for number in range(step.values["times"]):
            unit = world.pid1.units.get(UnitNames(step.name).scope)
            if unit is None or not unit.group or not world.kernel.groups[unit.group].count:
                return
            leader = world.leaders.get(step.name)
            if (
                step.values["ends"]
                and number == step.values["times"] - 1
                and leader in world.kernel.members(unit.group)
            ):
                last(unit)
                assert leader is not None
                kill(unit.group, leader)
            else:
                kill(unit.group, world.kernel.spawn(f"{unit.group}/payload"))
            await trio.sleep(step.values["pause"])

    async def _limit(self, step: Step) -> None:
        async def reach() -> None:
            for _ in range(step.values["times"]):
                unit = self._world.pid1.units.get(UnitNames(step.name).scope)
                if unit is None or not unit.group:
                    return
                self._world.kernel.reach(unit.group, step.values["resource"])
                await trio.sleep(step.values["pause"])

        self._nursery.start_soon(reach)

    async def _without(self, step: Step) -> None:
        without, what = self._world.faults.without, step.values["what"]
        without[what] += 1

        async def recover() -> None:
            await trio.sleep(step.values["seconds"])
            without[what] -= 1

        self._nursery.start_soon(recover)

    async def _overflow(self, _step: Step) -> None:
        for watch in self._world.kernel.watches:
            watch.lose()

    async def _fail_start(self, _step: Step) -> None:
        self._world.failing += 1

    async def _deaf_journal(self, _step: Step) -> None:
        self._world.pid1.journal.deaf = True

    async def _restart(self, step: Step) -> None:
        if (instance := self._world.living()) is not None:
            self._world.down = step.values["down"]
            instance.end()

    async def _killed(self, step: Step) -> None:
        instance = self._world.instance
        if instance is not None and instance.nursery is not None:
            self._world.down = step.values["down"]
            instance.kill()

    async def _damage(self, step: Step) -> None:
        await self._killed(step)
        self._world.damage(step.name, step.values["what"])


def _specs(values: Any) -> list[HelperSpec]:
    names: set[str] = set()
    specs: list[HelperSpec] = []
    for each in values:
        if each["name"] not in names:
            names.add(each["name"])
            specs.append(
                HelperSpec(
                    name=each["name"],
                    exec_start=(SHELL, each["does"]),
                    type=each["type"],
                    sockets=(HelperSocket("s"),) if each["socket"] else (),
                    on_failure=HelperFailure.stop_machine if each["vital"] else HelperFailure.ignore,
                    restart=None if each["type"] == "oneshot" else each["restart"],
                )
            )
    return specs
