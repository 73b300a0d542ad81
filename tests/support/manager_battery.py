"""What a service manager does, as far as the core of moored relies on it: of the real one, and of that in memory.

A module that takes these tests in has a fixture `bench`, of type `Bench`.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

import pytest
import trio

from moorage.pid1.errors import InvalidProperty, NoSuchUnit, UnitBusy, UnitExists
from moorage.pid1.manager import AuxiliaryUnit, Json, Manager, ScopeSpec, ServiceSpec, UnitHint
from moorage.pid1.references import References

SLEEP: list[Json] = [["/usr/bin/sleep", ["sleep", "infinity"], False]]
FALSE: list[Json] = [["/usr/bin/false", ["false"], False]]
TRUE: list[Json] = [["/usr/bin/true", ["true"], False]]
SCOPE = "t-battery.scope"
GONE: dict[str, Json] = {"CollectMode": "inactive-or-failed", "DefaultDependencies": False}


def soon(seconds: float = 30.0) -> float:
    return trio.current_time() + seconds


class Hints:
    """Hints as they come, and a way to wait for one."""

    def __init__(self) -> None:
        self.seen: list[UnitHint] = []
        self._more = trio.Event()

    def __call__(self, hint: UnitHint) -> None:
        self.seen.append(hint)
        self._more.set()
        self._more = trio.Event()

    async def until(
        self, kind: str, unit: str = "", *, state: str | None = None, sub_state: str | None = None
    ) -> UnitHint:
        while True:
            for hint in self.seen:
                if (
                    (hint.kind, hint.unit) == (kind, unit)
                    and state in (None, hint.active_state)
                    and sub_state in (None, hint.sub_state)
                ):
                    return hint
            await self._more.wait()

    def states(self, unit: str) -> list[str]:
        """Which states a unit was said to be in, one after the other; "removed" for unloaded."""
        states: list[str] = []
        for hint in self.seen:
            state = "removed" if hint.kind == "removed" else hint.active_state
            if hint.unit == unit and state and states[-1:] != [state]:
                states.append(state)
        return states


class Bench(Protocol):
    """Where the battery runs."""

    def connected(self, hints: Hints) -> AbstractAsyncContextManager[Manager]:
        """A manager that is up, of which hints about units are followed whose names begin with "t-"."""
        ...

    def references(self) -> AbstractAsyncContextManager[References]:
        """References that work."""
        ...

    def process(self, *, deaf: bool = False) -> AbstractContextManager[int]:
        """A pidfd of a process that sleeps, and that only SIGKILL ends if it is deaf; gone afterwards."""
        ...

    def control_group(self, pidfd: int) -> str:
        """Path of the control group that a process is in."""
        ...

    def kill(self, pidfd: int) -> None:
        """Send SIGKILL to a process."""
        ...

    async def freeze(self, unit: str) -> None:
        """Freeze a unit, which may be machine.slice, without the manager that is tried."""
        ...

    async def thaw(self, unit: str) -> None:
        """Thaw a unit in the same way."""
        ...

    def is_frozen(self, control_group: str) -> bool:
        """Whether the kernel says that a control group is frozen, by itself or with one above."""
        ...

    async def reload(self) -> None:
        """Have the manager read its configuration anew."""
        ...


async def started(manager: Manager, pidfd: int, **properties: Json) -> None:
    types = await manager.property_types("scope", deadline=soon())
    spec = ScopeSpec(SCOPE, (pidfd,), "machine.slice", "battery", types.convert(properties))
    assert (await manager.start_scope(spec, deadline=soon())).result == "done"


@asynccontextmanager
async def on(bench: Bench) -> AsyncGenerator[tuple[Manager, Hints]]:
    hints = Hints()
    async with bench.connected(hints) as manager:
        yield manager, hints


async def active_state(manager: Manager, unit: str) -> str | None:
    status = await manager.status(unit, deadline=soon())
    return None if status is None else status.active_state


async def service(manager: Manager, unit: str, **properties: Json) -> AuxiliaryUnit:
    types = await manager.property_types("service", deadline=soon())
    return AuxiliaryUnit(unit, types.convert({**GONE, **properties}))


async def test_a_scope_from_start_to_stop(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        with bench.process() as pidfd:
            await started(manager, pidfd, Documentation=["man:battery(1)"])
            status = await manager.status(SCOPE, deadline=soon())
            assert status is not None
            assert (status.active_state, status.sub_state, status.result) == ("active", "running", "success")
            assert (status.load_state, status.transient, status.job_id) == ("loaded", True, 0)
            assert (status.slice, status.control_group) == ("machine.slice", f"/machine.slice/{SCOPE}")
            assert (status.documentation, status.dependants) == (("man:battery(1)",), ())
            assert bench.control_group(pidfd) == status.control_group
            assert await manager.unit_of_process(pidfd, deadline=soon()) == (SCOPE, status.invocation_id)
            assert SCOPE in await manager.units("t-*.scope", deadline=soon())
            assert (await manager.stop(SCOPE, deadline=soon())).result == "done"
            await hints.until("removed", SCOPE)
        assert hints.states(SCOPE) in (
            ["active", "deactivating", "inactive", "removed"],
            ["inactive", "active", "deactivating", "inactive", "removed"],
            ["active", "inactive", "removed"],
            ["inactive", "active", "inactive", "removed"],
        )
        said = await hints.until("changed", SCOPE, state="active")
        assert said.invocation_id == status.invocation_id
        assert await manager.status(SCOPE, deadline=soon()) is None
        with pytest.raises(NoSuchUnit):
            await manager.stop(SCOPE, deadline=soon())


async def test_a_scope_goes_with_its_last_process(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        with bench.process() as pidfd:
            await started(manager, pidfd)
            bench.kill(pidfd)
            await hints.until("removed", SCOPE)
            assert hints.states(SCOPE)[-2:] == ["inactive", "removed"]


async def test_two_stops_share_a_job(bench: Bench) -> None:
    async with on(bench) as (manager, _), trio.open_nursery() as nursery:
        with bench.process(deaf=True) as pidfd:
            await started(manager, pidfd, TimeoutStopUSec=500_000)
            ids: list[int] = []

            async def stop() -> None:
                ids.append((await manager.stop(SCOPE, deadline=soon())).id)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop)
                nursery.start_soon(stop)
            assert len(ids) == 2
            assert len(set(ids)) == 1
            await manager.reset_failed(SCOPE, deadline=soon())


async def test_what_does_not_end_is_killed_and_has_failed(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        with bench.process(deaf=True) as pidfd:
            await started(manager, pidfd, TimeoutStopUSec=200_000)
            assert (await manager.stop(SCOPE, deadline=soon())).result == "done"
            status = await manager.status(SCOPE, deadline=soon())
            assert status is not None
            assert (status.active_state, status.result, status.control_group) == ("failed", "timeout", "")
            said = await hints.until("changed", SCOPE, state="failed")
            assert (said.result, said.invocation_id) == ("timeout", status.invocation_id)
        with (
            bench.process() as pidfd,
            pytest.raises(UnitExists, match=SCOPE),
        ):  # a failed unit keeps its name
            await started(manager, pidfd)
        await manager.reset_failed(SCOPE, deadline=soon())
        await hints.until("removed", SCOPE)
        assert await manager.status(SCOPE, deadline=soon()) is None


async def test_a_taken_name(bench: Bench) -> None:
    async with on(bench) as (manager, _):
        with bench.process() as first, bench.process() as second:
            await started(manager, first)
            with pytest.raises(UnitExists, match=SCOPE):
                await started(manager, second)
            assert bench.control_group(first) == f"/machine.slice/{SCOPE}"
            assert bench.control_group(second) != f"/machine.slice/{SCOPE}"
            await manager.stop(SCOPE, deadline=soon())


async def test_what_is_frozen_is_not_stopped(bench: Bench) -> None:
    async with on(bench) as (manager, _):
        with bench.process() as pidfd:
            await started(manager, pidfd)
            await bench.freeze(SCOPE)
            assert (await manager.stop(SCOPE, deadline=soon())).result == "frozen"
            assert await active_state(manager, SCOPE) == "active"
            await manager.thaw(SCOPE, deadline=soon())
            assert (await manager.stop(SCOPE, deadline=soon())).result == "done"


async def changed(manager: Manager, *, check: bool = False, **properties: Json) -> None:
    types = await manager.property_types("scope", deadline=soon())
    await manager.set_properties(SCOPE, types.convert(properties), check=check, deadline=soon())


async def in_force(manager: Manager) -> tuple[Json, Json]:
    found = await manager.properties(SCOPE, ["TasksMax", "DevicePolicy"], deadline=soon())
    return found["TasksMax"], found["DevicePolicy"]


async def test_properties_are_set_all_or_none(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        with bench.process() as pidfd:
            await started(manager, pidfd, TasksMax=100, DevicePolicy="auto")
            await changed(manager, check=True, TasksMax=77, DevicePolicy="closed")
            assert await in_force(manager) == (100, "auto")
            await changed(manager, TasksMax=77, DevicePolicy="closed")
            assert await in_force(manager) == (77, "closed")
            for check in (False, True):
                with pytest.raises(InvalidProperty) as caught:
                    await changed(manager, check=check, TasksMax=5, DevicePolicy="open")
                assert "DevicePolicy" in caught.value.property
                with pytest.raises(InvalidProperty) as caught:
                    await changed(manager, check=check, TasksMax=5, TimeoutStopUSec=5_000_000)
                assert caught.value.property == "TimeoutStopUSec"
            await bench.reload()
            await hints.until("reloaded")
            assert await in_force(manager) == (77, "closed")
            await manager.stop(SCOPE, deadline=soon())
            await hints.until("removed", SCOPE)
        for check in (False, True):
            with pytest.raises(NoSuchUnit):
                await changed(manager, check=check, TasksMax=5)


async def test_what_is_frozen_and_thawed(bench: Bench) -> None:
    group = f"/machine.slice/{SCOPE}"
    async with on(bench) as (manager, _):
        with bench.process() as pidfd:
            await started(manager, pidfd)
            for _ in range(2):
                await frozen(manager)
                assert bench.is_frozen(group)
            for _ in range(2):
                await manager.thaw(SCOPE, deadline=soon())
                assert not bench.is_frozen(group)
            assert (await manager.stop(SCOPE, deadline=soon())).result == "done"
        for order in (manager.freeze, manager.thaw):
            with pytest.raises(NoSuchUnit):
                await order(SCOPE, deadline=soon())


async def test_what_is_being_stopped_is_not_frozen(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        with bench.process(deaf=True) as pidfd:
            await started(manager, pidfd, TimeoutStopUSec=500_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(manager.stop, SCOPE, deadline=soon()))
                await hints.until("changed", SCOPE, state="deactivating")
                with pytest.raises(UnitBusy):
                    await manager.freeze(SCOPE, deadline=soon())
        await manager.reset_failed(SCOPE, deadline=soon())


async def frozen(manager: Manager) -> None:
    """Freeze the scope, as soon as the manager has taken note of what became of it before."""
    with trio.fail_at(soon()):
        while True:
            try:
                return await manager.freeze(SCOPE, deadline=soon())
            except UnitBusy:
                await trio.sleep(0.01)


async def test_what_is_frozen_by_its_slice(bench: Bench) -> None:
    """A unit can be frozen by itself as well, which is lifted by itself; it runs when neither is."""
    group = f"/machine.slice/{SCOPE}"
    async with on(bench) as (manager, _):
        with bench.process() as pidfd:
            await started(manager, pidfd)
            await bench.freeze("machine.slice")
            try:
                assert bench.is_frozen(group)
                with pytest.raises(UnitBusy):
                    await manager.thaw(SCOPE, deadline=soon())
                await frozen(manager)
                await bench.thaw("machine.slice")
                assert bench.is_frozen(group)
                await bench.freeze("machine.slice")
                await manager.thaw(SCOPE, deadline=soon())
                assert bench.is_frozen(group)
            finally:
                await bench.thaw("machine.slice")
            assert not bench.is_frozen(group)
            await manager.stop(SCOPE, deadline=soon())


async def test_a_scope_is_held_from_the_moment_it_is_made(bench: Bench) -> None:
    async with on(bench) as (manager, hints), bench.references() as references:
        with bench.process() as pidfd:
            types = await manager.property_types("scope", deadline=soon())
            spec = ScopeSpec(SCOPE, (pidfd,), "machine.slice", "battery", types.convert({}))
            made: list[list[str]] = []

            def hold() -> None:
                made.append(hints.states(SCOPE))
                references.hold([SCOPE])

            assert (await manager.start_scope(spec, deadline=soon(), made=hold)).result == "done"
            await references.settled(SCOPE)
            assert references.holds(SCOPE)
            assert len(made) == 1
            hints.seen.clear()
            bench.kill(pidfd)
            await hints.until("changed", SCOPE, state="inactive")
        await references.freed(SCOPE)  # it is not released
        assert await active_state(manager, SCOPE) == "inactive"
        references.release(SCOPE)
        await references.freed(SCOPE)
        await hints.until("removed", SCOPE)


async def test_a_reference_keeps_what_has_ended(bench: Bench) -> None:
    async with on(bench) as (manager, hints), bench.references() as references:
        with bench.process() as pidfd:
            await started(manager, pidfd)
            references.hold([SCOPE])
            await references.settled(SCOPE)
            assert references.holds(SCOPE)
            hints.seen.clear()
            bench.kill(pidfd)
            assert (await hints.until("changed", SCOPE, state="inactive")).result == "success"
            assert await active_state(manager, SCOPE) == "inactive"
            assert (await manager.stop(SCOPE, deadline=soon())).result == "done"
        # Nobody starts it again, not even a unit that is bound to it.
        bound = await service(manager, "t-bound.service", ExecStart=SLEEP, BindsTo=[SCOPE], After=[SCOPE])
        job = await manager.start_service(
            ServiceSpec(bound.unit, "bound", bound.properties), deadline=soon()
        )
        assert job.result == "dependency"
        assert await active_state(manager, SCOPE) == "inactive"
        with bench.process() as pidfd, pytest.raises(UnitExists, match=SCOPE):  # what is kept keeps its name
            await started(manager, pidfd)
        references.release(SCOPE)
        await hints.until("removed", SCOPE)


async def with_units(manager: Manager, pidfd: int, wants: list[Json], *units: AuxiliaryUnit) -> str:
    types = await manager.property_types("scope", deadline=soon())
    spec = ScopeSpec(SCOPE, (pidfd,), "machine.slice", "battery", types.convert({"Wants": wants}), units)
    return (await manager.start_scope(spec, deadline=soon())).result


async def test_a_helper_comes_before_its_scope_and_goes_after_it(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        helper = await service(manager, "t-helper.service", ExecStart=SLEEP, BindsTo=[SCOPE], Before=[SCOPE])
        with bench.process() as pidfd:
            assert await with_units(manager, pidfd, [helper.unit], helper) == "done"
            assert await active_state(manager, helper.unit) == "active"
            status = await manager.status(helper.unit, deadline=soon())
            assert status is not None
            assert status.main_pid > 0
            assert SCOPE in status.dependants
            states = [(hint.unit, hint.active_state) for hint in hints.seen if hint.active_state == "active"]
            assert states.index((helper.unit, "active")) < states.index((SCOPE, "active"))
            await manager.stop(SCOPE, deadline=soon())
        await hints.until("removed", helper.unit)
        await hints.until("removed", SCOPE)
        ends = [
            hint.unit for hint in hints.seen if hint.active_state == "inactive" and hint.kind == "changed"
        ]
        assert ends.index(SCOPE) < len(ends) - 1 - ends[::-1].index(helper.unit)


async def test_a_helper_goes_with_what_it_is_bound_to(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        helper = await service(manager, "t-helper.service", ExecStart=SLEEP, BindsTo=[SCOPE], Before=[SCOPE])
        with bench.process() as pidfd:
            assert await with_units(manager, pidfd, [helper.unit], helper) == "done"
            bench.kill(pidfd)
            await hints.until("removed", helper.unit)
            await hints.until("removed", SCOPE)


async def test_a_scope_is_not_started_without_its_helpers(bench: Bench) -> None:
    """A helper fails, so that the barrier is not started, and its OnFailure= takes the scope out of the queue."""
    async with on(bench) as (manager, hints):
        stopper = await service(
            manager, "t-stopper.service", Type="oneshot", ExecStart=TRUE, Conflicts=[SCOPE],
            Conditions=[["ConditionPathExists", False, True, "/"]],
        )  # fmt: skip
        helper = await service(
            manager, "t-helper.service", Type="oneshot", ExecStart=FALSE, BindsTo=[SCOPE], Before=[SCOPE]
        )
        barrier = await service(
            manager, "t-barrier.service", Type="oneshot", ExecStart=TRUE, Requires=[helper.unit],
            After=[helper.unit], Before=[SCOPE], OnFailure=[stopper.unit],
            Conditions=[["ConditionPathExists", False, True, "/"]],
        )  # fmt: skip
        with bench.process() as pidfd:
            before = bench.control_group(pidfd)
            result = await with_units(manager, pidfd, [helper.unit, barrier.unit], helper, barrier, stopper)
            assert result in {"canceled", "dependency"}
            assert bench.control_group(pidfd) == before
            for unit in (SCOPE, helper.unit, barrier.unit, stopper.unit):
                await hints.until("removed", unit)
            assert "failed" in hints.states(helper.unit)
            assert "active" not in hints.states(SCOPE)


async def test_a_bond_stops_the_scope_with_its_helper_not_with_its_own_process(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        helper = await service(
            manager, "t-helper.service", ExecStart=SLEEP, BindsTo=[SCOPE], Before=[SCOPE],
            Wants=["t-bond.service"],
        )  # fmt: skip
        bond = await service(
            manager, "t-bond.service", Type="simple", RemainAfterExit=True, ExecStart=TRUE, BindsTo=[SCOPE],
            After=[SCOPE, helper.unit], StopWhenUnneeded=True, PropagatesStopTo=[SCOPE],
        )  # fmt: skip
        with bench.process() as pidfd:
            assert await with_units(manager, pidfd, [helper.unit], helper, bond) == "done"
            await hints.until("changed", bond.unit, sub_state="exited")
            found = await manager.status(SCOPE, deadline=soon())
            assert found is not None
            assert (found.active_state, found.job_id) == ("active", 0)
            await manager.kill(helper.unit, "all", 9, deadline=soon())
            await hints.until("removed", SCOPE)
            await hints.until("removed", bond.unit)


async def test_a_condition_that_is_not_met(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        nothing = await service(
            manager, "t-nothing.service", Type="oneshot", ExecStart=TRUE,
            Conditions=[["ConditionPathExists", False, True, "/"]],
        )  # fmt: skip
        spec = ServiceSpec(nothing.unit, "nothing", nothing.properties)
        assert (await manager.start_service(spec, deadline=soon())).result == "done"
        await hints.until("removed", nothing.unit)
        assert "active" not in hints.states(nothing.unit)


async def test_a_service_that_fails(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        failing = await service(manager, "t-failing.service", Type="oneshot", ExecStart=FALSE)
        spec = ServiceSpec(failing.unit, "failing", failing.properties)
        made: list[bool] = []

        def note() -> None:
            made.append("failed" in hints.states(failing.unit))

        assert (await manager.start_service(spec, deadline=soon(), made=note)).result == "failed"
        assert made == [False], "what fails later is what was made"
        await hints.until("removed", failing.unit)
        assert hints.states(failing.unit)[-2:] == ["failed", "removed"]
        results = [
            hint.result for hint in hints.seen if hint.main_pid is not None and hint.unit == failing.unit
        ]
        assert results[-1] == "exit-code"


async def test_a_service_is_restarted_until_it_is_given_up(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        failing = await service(
            manager, "t-again.service", ExecStart=FALSE, Restart="on-failure", RestartMode="direct",
        )  # fmt: skip
        spec = ServiceSpec(failing.unit, "again", failing.properties)
        assert (await manager.start_service(spec, deadline=soon())).result == "done"
        await hints.until("removed", failing.unit)
        states = hints.states(failing.unit)
        assert states[-2:] == ["failed", "removed"]
        assert states.count("failed") == 1, "restarted directly it has not failed in between"
        assert "activating" in states
        counts = [
            hint.restarts for hint in hints.seen if hint.main_pid is not None and hint.unit == failing.unit
        ]
        assert counts == sorted(counts)
        assert counts[0] == 0 < counts[-1]


async def test_a_reload_forgets_why_a_unit_has_failed(bench: Bench) -> None:
    async with on(bench) as (manager, hints):
        with bench.process(deaf=True) as pidfd:
            await started(manager, pidfd, TimeoutStopUSec=200_000)
            await manager.stop(SCOPE, deadline=soon())
        await bench.reload()
        await hints.until("reloaded")
        status = await manager.status(SCOPE, deadline=soon())
        assert status is not None
        assert (status.active_state, status.result) == ("failed", "success")
        await manager.reset_failed(SCOPE, deadline=soon())
        await hints.until("removed", SCOPE)
