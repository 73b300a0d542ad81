"""Facts that must hold once everything is quiet."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import trio

from faults.calling import Refused, identity, sleeper
from faults.clients import Clients
from faults.helpers import FOREIGN_HELPERS
from faults.subscribers import Subscribers
from faults.world import (
    DIRECTORIES,
    OURS,
    RECORDS,
    ROOT,
    SOCKET,
    Process,
    Violation,
    Wanted,
    World,
    control_group,
    main_pid,
    records,
    run,
    scope_groups,
    show,
    units,
)
from moorage.machines.leases import LEASE_GRACE_SECONDS
from moorage.names import UnitNames, directory_name
from moorage.wire.client import Client
from moorage.wire.errors import RemoteError

QUIET_SECONDS = 40.0
"""Deadline for everything to be quiet: moored may first have to wait for a manager that did not reply for 30 s."""

LOOK_SECONDS = 0.1

LEASES_SECONDS = LEASE_GRACE_SECONDS + 1
"""Wait after the last step: by then a machine whose lease was lost would have been stopped."""

TASKS_MAX = 8
"""Threads of moored: one for the loop, and those for files that may hang, which are kept for 10 s."""

FOREIGN = ("machine-foreign.scope", "machine-vm\\x2dforeign.scope", "foreign.scope")
"""Scopes of somebody else, two of them with names that machines could have."""
FOREIGN_SERVICES = ("machine-foreign-fs.service", "foreign.service", *FOREIGN_HELPERS.values())


class Foreign:
    """Units that are not moored's, and must stay as they were whatever happens."""

    def __init__(self) -> None:
        self._scopes: dict[str, Process] = {}
        for unit in FOREIGN:
            argv = ("systemd-run", "--scope", "--quiet", f"--unit={unit}", "--", "sleep", "infinity")
            self._scopes[unit] = sleeper(argv)
        for unit in FOREIGN_SERVICES:
            run("systemd-run", "--quiet", f"--unit={unit}", "--", "sleep", "infinity")
        self._before: dict[str, dict[str, str]] = {}

    def state(self) -> dict[str, dict[str, str]]:
        """Return their state according to the manager."""
        return {
            unit: show(unit, "ActiveState", "InvocationID", "MainPID", "Job")
            for unit in (*FOREIGN, *FOREIGN_SERVICES)
        }

    def problems(self) -> Iterator[str]:
        """Return what became of them."""
        now = self.state()
        if not self._before and all(state["ActiveState"] == "active" for state in now.values()):
            self._before = now
        if now != self._before:
            yield f"units that are not ours are {now}, were {self._before}"
        for unit, process in self._scopes.items():
            if process.poll() is not None or not control_group(process.pid).endswith(f"/{unit}"):
                yield f"the process of {unit}, which is not ours, is gone"


async def listed() -> dict[str, dict[str, Any]]:
    """Return the machines that moored lists."""
    try:
        async with await Client.connect(SOCKET) as client, client.call_more(f"{OURS}List") as replies:
            machines = [reply["machine"] async for reply in replies]
    except RemoteError as error:
        if error.error != f"{OURS}NoSuchMachine":
            raise
        machines = []
    found = {machine["name"]: machine for machine in machines}
    if len(found) != len(machines):
        raise Violation(f"listed twice: {sorted(machine['name'] for machine in machines)}")
    return found


class Checks:
    """Compares the views of moored, the manager, the kernel and the files.

    Attributes:
        descriptors: as many as moored had before there was any machine.
    """

    def __init__(self, world: World, clients: Clients, foreign: Foreign, subscribers: Subscribers) -> None:
        self._world = world
        self._clients = clients
        self._foreign = foreign
        self._subscribers = subscribers
        self.descriptors = 0

    async def settle(self) -> None:
        """Wait until everything is as it must be.

        Raises:
            Violation: it is not in time; says in which way not.
        """
        for wanted in [each for each in self._clients.calls.leases if each.ended]:
            self._clients.calls.drop(wanted)
        problems: list[str] = ["nothing was looked at"]
        with trio.move_on_after(QUIET_SECONDS):
            while problems:
                await trio.sleep(LOOK_SECONDS)
                try:
                    problems = [each async for each in self._problems()]
                except (OSError, RemoteError) as error:
                    problems = [f"moored does not answer: {error}"]
        if problems:
            raise Violation("; ".join(problems))
        await self._decide()
        self._subscribers.forget()
        await self._verdicts()

    async def settle_leases(self) -> None:
        """Wait until machines whose lease nobody holds have ended, and everything is as it must be again.

        Raises:
            Violation: as :meth:`settle` says.
        """
        await trio.sleep(LEASES_SECONDS)
        await self.settle()

    async def _problems(self) -> AsyncIterator[str]:
        living = {wanted.name: wanted for wanted in self._world.living()}
        for wanted in living.values():
            if wanted.process.poll() is not None:
                lease = self._clients.calls.leases.get(wanted)
                held = f"; its lease: {lease.trouble or 'held'}" if lease is not None else ""
                raise Violation(f"the leader of {wanted.name} is gone, and nobody asked for that{held}")
        for wanted, lease in self._clients.calls.leases.items():
            if lease.trouble:
                yield f"the lease of {wanted.name} was not taken again: {lease.trouble}"
        machines = await listed()
        if machines.keys() != living.keys():
            yield f"listed are {sorted(machines)}, and not {sorted(living)}"
        for name in machines.keys() & living.keys():
            for problem in self._of_machine(machines[name], living[name]):
                yield problem
        for problem in (*self._of_system(machines), *self._of_unrecorded(), *self._foreign.problems()):
            yield problem
        for problem in self._subscribers.problems():
            yield problem
        for problem in self._of_service(len(machines)):
            yield problem

    def _of_machine(self, machine: dict[str, Any], wanted: Wanted) -> Iterator[str]:
        assert wanted.machine is not None
        if identity(machine) != identity(wanted.machine):
            yield f"{wanted.name} is {identity(machine)}, was {identity(wanted.machine)}"
        if machine["phase"] != "running":
            yield f"{wanted.name} is {machine['phase']}"
        if machine["leader"]["pid"] != wanted.process.pid:
            yield f"{wanted.name} has another leader"
        if control_group(wanted.process.pid) != machine["controlGroup"]:
            yield f"the leader of {wanted.name} is in {control_group(wanted.process.pid)}"
        there = show(machine["unit"], "InvocationID", "ControlGroup", "ActiveState")
        said = {
            "InvocationID": machine["invocationId"],
            "ControlGroup": machine["controlGroup"],
            "ActiveState": "active",
        }
        if there != said:
            yield f"{machine['unit']} is {there}, and not {said}"
        if machine["uid"] != wanted.owner:
            yield f"{wanted.name} is of user {machine['uid']}, and not of {wanted.owner}"
        names = {helper["name"] for helper in machine["helpers"]}
        if names - wanted.helpers.keys() or wanted.helpers.keys() - names - wanted.undecided:
            undecided = sorted(wanted.undecided)
            yield f"{wanted.name} has helpers {sorted(names)}, and not {sorted(wanted.helpers)} (perhaps {undecided})"
        for helper in machine["helpers"]:
            if helper["activeState"] != "active" and not wanted.limping:
                yield f"{helper['unit']} is {helper['activeState']}"

    def _of_system(self, machines: dict[str, dict[str, Any]]) -> Iterator[str]:
        known = {machine["unit"] for machine in machines.values()}
        known |= {wanted.machine["unit"] for wanted in self._world.unrecorded.values() if wanted.machine}
        known |= set(FOREIGN[:2])
        if (loaded := units("machine-*.scope").keys()) != known:
            yield f"loaded are {sorted(loaded)}, and not {sorted(known)}"
        if (groups := scope_groups().keys()) != known:
            yield f"control groups are {sorted(groups)}, and not {sorted(known)}"
        helpers = {helper["unit"] for machine in machines.values() for helper in machine["helpers"]}
        theirs = helpers | {unit.removesuffix("service") + "socket" for unit in helpers}
        theirs |= {
            UnitNames(name).bond(helper["name"])
            for name, machine in machines.items()
            for helper in machine["helpers"]
        }
        loaded = units("machine-*-*.service", "machine-*-*.socket")
        others = loaded.keys() - theirs - set(FOREIGN_SERVICES)
        # The manager keeps a removed helper in memory while other units of the machine name it.
        running = {unit for unit in others if "--" not in unit and loaded[unit] != "inactive"}
        if running:
            yield f"helpers on no record: {sorted(running)}"
        scopes = {f"machine-{unit.split('-')[1]}.scope" for unit in others}
        if scopes - known:
            yield f"units of helpers without a machine: {sorted(scopes - known)}"
        homes = {directory_name(name) for name, machine in machines.items() if machine["helpers"]}
        directories = set(os.listdir(DIRECTORIES)) if DIRECTORIES.exists() else set[str]()
        if not homes <= directories:
            yield f"runtime directories are {sorted(directories)}, and not {sorted(homes)}"
        names = {directory_name(name) for name in (*machines, *self._world.unrecorded)}
        if directories - names:
            yield f"runtime directories without a machine: {sorted(directories - names)}"
        kept = {
            name for name, record in records().items() if record is None or record.get("phase") != "exited"
        }
        if kept - self._world.unrecorded.keys() != machines.keys():
            yield f"records are {sorted(kept)}, and not {sorted(machines)}"

    def _of_unrecorded(self) -> Iterator[str]:
        for wanted in self._world.unrecorded.values():
            assert wanted.machine is not None
            unit = wanted.machine["unit"]
            if (now := show(unit, "InvocationID")["InvocationID"]) != wanted.machine["invocationId"]:
                yield f"{unit}, which is on no record any more, is {now}, was {wanted.machine['invocationId']}"

    def _of_service(self, machines: int) -> Iterator[str]:
        pid = main_pid()
        try:
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            tasks = len(os.listdir(f"/proc/{pid}/task"))
        except FileNotFoundError:
            yield "moored does not run"
            return
        if not self.descriptors:
            # Subscribers may not be connected yet, or not be known to be gone.
            self.descriptors = descriptors + len(self._subscribers)
        # Of each machine its leader and its control socket.
        wanted = self.descriptors + 2 * machines + len(self._clients.calls.leases)
        if descriptors > wanted:
            yield f"moored has {descriptors} file descriptors, and not {wanted}"
        if tasks > TASKS_MAX:
            yield f"moored has {tasks} threads"

    async def _decide(self) -> None:
        """Note what became of changes that were cut off: from here on that is final."""
        machines = await listed()
        for wanted in self._world.living():
            names = {helper["name"] for helper in machines[wanted.name]["helpers"]}
            for name in wanted.undecided - names:
                del wanted.helpers[name]
            wanted.undecided.clear()

    async def _verdicts(self) -> None:
        """Check the verdicts of machines that ended, and forget them; find those whose record was damaged."""
        for wanted in [each for each in self._world.machines.values() if each.ended]:
            if wanted.machine is not None and wanted.verdict:
                try:
                    reply = await self._clients.calls.insist(f"{OURS}Describe", {"name": wanted.name})
                except Refused as refused:
                    raise Violation(f"{wanted.name} ended ({wanted.ended}), no verdict: {refused}") from None
                if "verdict" not in reply["machine"]:
                    raise Violation(f"{wanted.name} ended ({wanted.ended}), and is {reply['machine']}")
            await trio.to_thread.run_sync(self._bury, wanted)
            del self._world.machines[wanted.name]
        for name, wanted in list(self._world.unrecorded.items()):
            await self._take_in(name, wanted)

    def _bury(self, wanted: Wanted) -> None:
        if wanted.machine is None:
            wanted.process.kill()
        wanted.process.wait(QUIET_SECONDS)

    async def _take_in(self, name: str, wanted: Wanted) -> None:
        """Do what an administrator would: the record is useless, so register the machine where it is."""
        path = RECORDS / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        wanted.parameters = {
            **{key: wanted.parameters[key] for key in ("name", "class", "leader")},
            "allocateUnit": False,
        }
        wanted.owner = ROOT
        before = wanted.machine
        del self._world.unrecorded[name]
        self._world.machines[name] = wanted
        await self._clients.register(wanted)
        assert wanted.machine is not None
        assert before is not None
        if identity(wanted.machine) != identity(before):
            raise Violation(f"{name} was taken in as {wanted.machine}, was {before}")
