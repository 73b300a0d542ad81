"""The final account of a machine: what was read of it last."""

import made
from fakes.journal import FakeJournal
from fakes.kernel import FakeClock, FakeHierarchy, FakeProcesses, Faults, Kernel

from moorage.configuration.settings import Settings
from moorage.kernel.process import Exit
from moorage.kernel.system import System
from moorage.machines.final_account import FinalAccounts
from moorage.machines.followers import Followers
from moorage.machines.limit_watch import LimitWatch
from moorage.machines.registry import Registry

GROUP = "/machine.slice/machine-web.scope"


async def test_the_counters_are_those_of_the_end_not_of_the_last_look_before() -> None:
    kernel, faults, followers = Kernel(), Faults(), Followers()
    system = System(FakeHierarchy(kernel, faults), FakeProcesses(kernel, faults), FakeClock())
    registry = Registry(frozenset({0}), Settings().bounds)
    limits = LimitWatch(registry, followers, system)
    accounts = FinalAccounts(system, FakeJournal(), limits, followers, user=False)
    leader = kernel.spawn(GROUP)
    machine = made.machine("web", control_group=GROUP, control_group_id=kernel.groups[GROUP].number)
    accounts.sample(machine)
    kernel.reach(GROUP, "oomd_kills", 2)
    kernel.end(leader, Exit(signal=9))
    accounts.emptied(machine)
    assert (machine.counters.managed_oom_kills, machine.final) == (2, True)
