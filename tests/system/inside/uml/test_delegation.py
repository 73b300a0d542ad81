"""What a container may do with the control group that it was given, and what a user's own manager was given."""

import os
import pwd
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from moored import (
    OURS,
    Processes,
    connect,
    control_group,
    listed,
    register,
    run,
    show,
    until,
    verdict,
)

from moorage.launch.trio import hold

HIERARCHY = "/sys/fs/cgroup"
MIB = 1024 * 1024
BOB = pwd.getpwnam("bob")
ALICE = 1000
HERS = f"/run/user/{ALICE}/moorage/io.moorage.Machine"
HER_MANAGER = f"/user.slice/user-{ALICE}.slice/user@{ALICE}.service"


def path_of(group: str, *below: str) -> Path:
    return Path(f"{HIERARCHY}{group}", *below)


def text_of(group: str, *below: str) -> str:
    return path_of(group, *below).read_text().strip()


def xattr(group: str, name: str) -> str | None:
    """What the service manager has written on a control group (CGROUP_DELEGATION of systemd)."""
    try:
        return os.getxattr(path_of(group), name).decode()
    except OSError:
        return None


DIVIDE = """
set -e
scope=/sys/fs/cgroup$(sed -n 's,^0::\\(.*\\)/payload$,\\1,p' /proc/self/cgroup)
echo '+memory +pids' >"$scope/cgroup.subtree_control"
mkdir "$scope/payload/one" "$scope/other"
echo 7340032 >"$scope/other/memory.max"
echo $$ >"$scope/payload/one/cgroup.procs"
echo '+memory' >"$scope/payload/cgroup.subtree_control"
echo 8388608 >"$scope/payload/one/memory.max"
exec sleep infinity
"""
"""A payload that gives controllers to groups of its own."""

THREADS = """
import os, threading
own = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().rpartition("0::")[2].strip()
os.makedirs(f"{own}/vcpus/1")
with open(f"{own}/vcpus/1/cgroup.type", "w") as file:
    file.write("threaded")
with open(f"{own}/vcpus/cgroup.procs", "w") as file:
    file.write("0")
def vcpu():
    with open(f"{own}/vcpus/1/cgroup.threads", "w") as file:
        file.write(str(threading.get_native_id()))
    threading.Event().wait()
threading.Thread(target=vcpu).start()
"""
"""A payload that has a thread in a group of its own, as virtual machine monitors do with those of their CPUs."""


class TestContainer:
    @pytest.fixture(autouse=True)
    def _clean(self, nothing_left: None) -> None:
        """Every test here leaves nothing."""

    @pytest.mark.parametrize("user", [None, BOB], ids=["root", "bob"])
    async def test_its_payload_may_divide_it(self, user: pwd.struct_passwd | None) -> None:
        ids: dict[str, Any] = {} if user is None else {"uid": user.pw_uid, "gid": user.pw_gid}
        properties: dict[str, Any] = {"MemoryMax": 64 * MIB} | ({"User": user.pw_name} if user else {})
        async with await hold(**ids) as payload, await connect() as client:
            parameters = {
                "name": "box",
                "class": "container",
                "leaderFileDescriptor": 0,
                "properties": properties,
            }
            machine = (await client.call(f"{OURS}Register", parameters, fds=[payload.pidfd]))["machine"]
            scope = machine["controlGroup"]
            await payload.run(["bash", "-c", DIVIDE], subgroup="payload")
            await until(lambda: Path(f"/proc/{payload.pid}/comm").read_text() == "sleep\n")
            assert control_group(payload.pid) == f"{scope}/payload/one"
            for _ in range(2):
                # What it made survives a reload of the manager.
                assert set(text_of(scope, "cgroup.subtree_control").split()) == {"memory", "pids"}
                assert text_of(scope, "other", "memory.max") == str(7 * MIB)
                assert text_of(scope, "payload", "one", "memory.max") == str(8 * MIB)
                assert text_of(scope, "memory.max") == str(64 * MIB)
                assert "box" in await listed(client)
                run("systemctl", "daemon-reload")
            # What the payload has below it is counted.
            told = await client.call(f"{OURS}Describe", {"name": "box"})
            assert told["accounting"]["tasksCurrent"] == 1
            assert told["accounting"]["memoryCurrent"] > 0
            await client.call(f"{OURS}Stop", {"name": "box"})
            await payload.wait()
            await until(lambda: not path_of(scope).exists())

    async def test_it_belongs_to_its_user(self, spawn: Processes) -> None:
        async with await connect() as client:
            reply = await register(
                client, "box", spawn(user=BOB.pw_uid), **{"class": "container"}, properties={"User": "bob"}
            )
            group = reply["machine"]["controlGroup"]
            for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
                assert path_of(group, name).stat().st_uid == BOB.pw_uid
            assert path_of(group, "memory.max").stat().st_uid == 0

    async def test_what_the_manager_says_on_it(self, spawn: Processes) -> None:
        async with await connect() as client:
            box = (await register(client, "box", spawn(), **{"class": "container"}))["machine"]
            web = (await register(client, "web", spawn()))["machine"]
            assert xattr(box["controlGroup"], "user.delegate") == "1"
            assert xattr(web["controlGroup"], "user.delegate") is None
            for machine in (box, web):
                group, invocation_id = machine["controlGroup"], machine["invocationId"]
                # The manager makes a scope's group before the scope has an ID (scope_enter_running() of 262), and
                # writes it there when it next touches the group: too late for a second look.
                assert xattr(group, "trusted.invocation_id") in {None, invocation_id}
                run("systemctl", "set-property", "--runtime", machine["unit"], "CPUWeight=50")
                assert xattr(group, "user.invocation_id") == invocation_id
                assert xattr(group, "trusted.invocation_id") == invocation_id

    async def test_all_controllers_are_delegated_or_those_named(self, spawn: Processes) -> None:
        async with await connect() as client:
            everything = (await register(client, "box", spawn(), **{"class": "container"}))["machine"]
            assert set(text_of(everything["controlGroup"], "cgroup.controllers").split()) >= {
                "cpu", "io", "memory", "pids",
            }  # fmt: skip
            asked = {"DelegateControllers": ["pids"]}
            few = (await register(client, "few", spawn(), properties=asked))["machine"]
            assert "pids" in text_of(few["controlGroup"], "cgroup.controllers").split()
            assert xattr(few["controlGroup"], "user.delegate") == "1"
            assert show(few["unit"], "DelegateControllers")["DelegateControllers"] == "pids"

    async def test_controllers_that_are_not_there_are_told(self, spawn: Processes) -> None:
        async with await connect() as client:
            asked = {"DelegateControllers": ["pids", "cpuset", "memory"]}
            for dry_run in (True, False):
                reply = await register(client, "box", spawn(), properties=asked, dryRun=dry_run)
                [told] = reply["differences"]
                assert (told["property"], told["wanted"]) == ("DelegateControllers", "cpuset")
            there = text_of(reply["machine"]["controlGroup"], "cgroup.controllers").split()
            assert {"pids", "memory"} <= set(there)

    async def test_nothing_is_delegated_where_that_was_asked_for(self, spawn: Processes) -> None:
        async with await connect() as client:
            reply = await register(
                client, "box", spawn(), **{"class": "container"}, properties={"Delegate": False}
            )
            group = reply["machine"]["controlGroup"]
            assert reply["differences"] == []
            assert xattr(group, "user.delegate") is None
            assert show(reply["machine"]["unit"], "Delegate")["Delegate"] == "no"
            limits = (await client.call(f"{OURS}Describe", {"name": "box"}))["limits"]
            assert limits["Delegate"] is False

    async def test_threads_in_groups_of_their_own(self, spawn: Processes) -> None:
        """Two levels down: what is above stays a domain, as systemd wants it (CGROUP_DELEGATION)."""
        async with await hold() as payload, await connect() as client:
            parameters = {"name": "box", "class": "container", "leaderFileDescriptor": 0}
            machine = (await client.call(f"{OURS}Register", parameters, fds=[payload.pidfd]))["machine"]
            scope = machine["controlGroup"]
            await payload.run([sys.executable, "-c", THREADS], subgroup="payload")
            threads = path_of(scope, "payload", "vcpus", "1", "cgroup.threads")
            await until(lambda: threads.exists() and threads.read_text().strip())
            assert [text_of(scope, *below, "cgroup.type") for below in (
                (), ("payload",), ("payload", "vcpus"), ("payload", "vcpus", "1"),
            )] == ["domain", "domain", "domain threaded", "threaded"]  # fmt: skip
            run("systemctl", "daemon-reload")
            await client.call(f"{OURS}SetProperties", {"name": "box", "properties": {"TasksMax": 50}})
            assert text_of(scope, "payload", "vcpus", "1", "cgroup.type") == "threaded"
            found = await client.call(f"{OURS}Describe", {"name": "box"})
            assert (found["machine"]["phase"], found["accounting"]["tasksCurrent"]) == ("running", 2)
            for asked in ({"process": {"pid": payload.pid}}, {"controlGroup": f"{scope}/payload/vcpus/1"}):
                assert (await client.call(f"{OURS}Find", asked))["machine"]["name"] == "box"
            for method in ("Freeze", "Thaw"):
                await client.call(f"{OURS}{method}", {"name": "box"})
            await client.call(f"{OURS}Stop", {"name": "box"})
            await payload.wait()

    async def test_a_systemd_boots_in_it_and_limits_units_of_its_own(
        self, spawn: Processes, tmp_path: Path
    ) -> None:
        """As a container manager runs it that asks moored for its scope, and divides that as it likes."""
        root, unit = tmp_path / "root", tmp_path / "limited.service"
        root.mkdir()
        unit.write_text(
            "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=sleep infinity\nMemoryMax=24M\nTasksMax=7\n"
        )
        run("mount", "--bind", "/", str(root))
        nspawn = (
            "systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--machine=box", f"--directory={root}",
            "--volatile=overlay", f"--bind-ro={unit}:/etc/systemd/system/limited.service", "--boot", "--",
            "systemd.unit=limited.service",
        )  # fmt: skip
        options = ("--class", "container", "--name", "box", "--property", "MemoryMax=400M")
        spawn(
            ("moorctl", "run", *options, "--", *nspawn), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        scope = "/machine.slice/machine-box.scope"
        limited = "/payload/system.slice/limited.service"
        try:
            await until(lambda: path_of(scope + limited).exists(), "the container's systemd starts a unit")
            await until(lambda: text_of(scope + limited, "pids.max") == "7")
            for _ in range(2):
                assert text_of(scope + limited, "memory.max") == str(24 * MIB)
                assert {"memory", "pids"} <= set(
                    text_of(f"{scope}/payload", "cgroup.subtree_control").split()
                )
                assert text_of(scope, "memory.max") == str(400 * MIB)
                assert text_of(scope, "cgroup.procs") == ""  # there are none in what is inside of the tree
                run("systemctl", "daemon-reload")
            async with await connect() as client:
                found = await client.call(f"{OURS}Describe", {"name": "box"})
                assert found["machine"]["phase"] == "running"
                assert found["accounting"]["tasksCurrent"] == int(text_of(scope, "pids.current")) > 2
                asked = {"controlGroup": f"{scope}{limited}"}
                assert (await client.call(f"{OURS}Find", asked))["machine"]["name"] == "box"
                await client.call(f"{OURS}Stop", {"name": "box"})
                assert (await verdict(client, "box"))["cause"] == "stopped"
            await until(lambda: not path_of(scope).exists())
        finally:
            run("umount", "--lazy", str(root))


# A user's own manager


@pytest.fixture
def hers(spawn: Processes) -> Generator[Processes]:
    """Start processes, while her manager runs with her own moored."""
    run("systemctl", "start", f"user@{ALICE}.service")
    run("systemctl", "--user", "--machine=alice@.host", "start", "moored.socket")
    yield spawn
    spawn.bury()
    run("systemctl", "stop", f"user@{ALICE}.service")


async def test_her_limits_are_in_force_where_she_was_given_the_controller(hers: Processes) -> None:
    given = text_of(HER_MANAGER, "cgroup.controllers").split()
    assert {"memory", "pids"} <= set(given)
    asked: dict[str, Any] = {
        "MemoryMax": 16 * MIB, "MemorySwapMax": 0, "TasksMax": 33, "CPUWeight": 50, "IOWeight": 50, "AllowedCPUs": [1],
    }  # fmt: skip
    of = {"CPUWeight": "cpu", "IOWeight": "io", "AllowedCPUs": "cpuset"}
    async with await connect(HERS) as client:
        reply = await register(client, "web", hers(user=ALICE), properties=asked)
        group = reply["machine"]["controlGroup"]
        assert group.startswith(HER_MANAGER)
        assert text_of(group, "memory.max") == str(16 * MIB)
        assert text_of(group, "pids.max") == "33"
        without = {name for name, controller in of.items() if controller not in given}
        assert without >= {"IOWeight", "AllowedCPUs"}
        assert {each["property"] for each in reply["differences"]} == without
        for each in reply["differences"]:
            assert "effective" not in each
            assert f"“{of[each['property']]}”" in each["reason"]
        await client.call(f"{OURS}Stop", {"name": "web"})


async def test_her_machine_is_killed_for_lack_of_memory(hers: Processes) -> None:
    leader = hers(
        (sys.executable, "-c", "input(); kept = bytearray(64 << 20)"), stdin=subprocess.PIPE, user=ALICE
    )
    async with await connect(HERS) as client:
        await register(client, "web", leader, properties={"MemoryMax": 16 * MIB, "MemorySwapMax": 0})
        assert leader.stdin is not None
        leader.stdin.write(b"\n")
        leader.stdin.flush()
        found = await verdict(client, "web")
        assert (found["result"], found["oomKilled"]) == ("oom-kill", True)
