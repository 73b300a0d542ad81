"""A domain of libvirt, which knows nothing of moored: QEMU under TCG, where there are all controllers.

libvirt registers domains only where control groups have controllers, so a kernel of its own is needed for that.
"""

import json
import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from guests import kernel, make_initrd
from moored import OURS, connect, give_place_back, listed, main_pid, run, show, take_place, until, verdict

from moorage.wire.client import Client

DOMAIN = """
<domain type='qemu'>
  <name>web</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>console=ttyS0 quiet</cmdline>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
  </devices>
</domain>
"""


@pytest.fixture(scope="module", autouse=True)
def domain(beside: None, tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    directory = tmp_path_factory.mktemp("guest")
    initrd = make_initrd(directory)
    for path in (directory, *directory.parents[:3]):
        path.chmod(0o755)  # QEMU runs as a user of its own
    (directory / "web.xml").write_text(DOMAIN.format(kernel=kernel(), initrd=initrd))
    run("virsh", "--quiet", "define", str(directory / "web.xml"))
    yield
    subprocess.run(["virsh", "--quiet", "destroy", "web"], check=False, capture_output=True)
    run("virsh", "--quiet", "undefine", "web")


async def machine_of(client: Client) -> dict[str, Any]:
    """Wait until the domain is listed, whose machine has another number at each start."""

    async def found() -> dict[str, Any] | None:
        return next((each for name, each in (await listed(client)).items() if name.endswith("-web")), None)

    machine = await until(found, "the domain is listed")
    assert machine is not None
    return machine


def start() -> None:
    run("virsh", "--quiet", "start", "web")


def state() -> str:
    return run("virsh", "domstate", "--reason", "web").strip()


def kernel_says(machine: dict[str, Any], file: str) -> str:
    """Read a file of the control group of the machine's scope."""
    return Path(f"/sys/fs/cgroup{show(machine['unit'], 'ControlGroup')['ControlGroup']}", file).read_text()


async def is_managed(client: Client, machine: dict[str, Any]) -> None:
    """Change limits of a domain, freeze it, and serve it a directory."""
    name = machine["name"]
    run("moorctl", "set-property", name, "MemoryMax=400M", "CPUQuota=90%")
    assert kernel_says(machine, "memory.max") == f"{400 << 20}\n"
    assert kernel_says(machine, "cpu.max").split()[0] == "90000"
    run("moorctl", "freeze", name)
    assert "frozen 1" in kernel_says(machine, "cgroup.events")
    assert state() == "running (booted)"  # libvirt notices nothing
    run("moorctl", "thaw", name)
    assert "frozen 0" in kernel_says(machine, "cgroup.events")
    server = ["/usr/libexec/virtiofsd", "--fd=3", "--shared-dir=/srv", "--sandbox=none", "--rlimit-nofile=0"]
    helper = {"name": "fs", "execStart": server, "sockets": [{"name": "fs.sock"}]}
    reply = await client.call(f"{OURS}AddHelpers", {"name": name, "helpers": [helper]})
    assert reply["helpers"][0]["activeState"] == "active"


async def helper_is_gone(machine: dict[str, Any]) -> None:
    unit = machine["unit"].replace(".scope", "-fs.service")
    await until(
        lambda: show(unit, "ActiveState") == {"ActiveState": "inactive"}, "the helper has gone with it"
    )


async def test_a_domain_beside_machined(beside: None) -> None:
    run("systemctl", "start", "systemd-machined.service")
    async with await connect() as client:
        assert await listed(client) == {}
        start()
        machine = await machine_of(client)
        assert (machine["origin"], machine["class"], machine["service"]) == ("adopted", "vm", "libvirt-qemu")
        came = os.stat(f"/run/systemd/machines/{machine['name']}").st_ctime_ns // 1000
        (new,) = [
            event
            for event in map(json.loads, run("moorctl", "events", "--json").splitlines())
            if (event["event"], event["name"]) == ("machineNew", machine["name"])
        ]
        print(f"adopted {(new['timestamp']['realtime'] - came) / 1000:.0f} ms after machined wrote its file")
        assert machine["leader"]["pid"] == int(run("machinectl", "show", machine["name"], "-P", "Leader"))
        await is_managed(client, machine)
        run("virsh", "--quiet", "destroy", "web")
        ended = await verdict(client, machine["name"])
        assert ended["accounting"]["cpuUsageNSec"] > 0
        assert ended["accounting"]["memoryPeak"] > 10 << 20
        assert ended["result"] == "success"
        await helper_is_gone(machine)


async def test_a_domain_is_killed_for_lack_of_memory(beside: None) -> None:
    run("systemctl", "start", "systemd-machined.service")
    async with await connect() as client:
        start()
        machine = await machine_of(client)
        run("moorctl", "set-property", machine["name"], "MemoryMax=24M", "MemorySwapMax=0")
        ended = await verdict(client, machine["name"])
        assert (ended["cause"], ended["oomKilled"]) == ("oomKilled", True), ended
        await until(lambda: state() == "shut off (crashed)", "libvirt has noticed")


@pytest.fixture
def in_place(beside: None) -> Generator[None]:
    take_place()
    yield
    give_place_back()


async def test_a_domain_in_machineds_place(in_place: None) -> None:
    start()
    async with await connect() as client:
        machine = await machine_of(client)
        assert (machine["origin"], machine["class"], machine["service"]) == (
            "registered",
            "vm",
            "libvirt-qemu",
        )
        assert machine["unit"].endswith(".scope")
        await is_managed(client, machine)
        assert state().startswith("running")
        assert "No machines" not in run("machinectl", "list")
        pid = main_pid()
        run("virsh", "--quiet", "destroy", "web")
        ended = await verdict(client, machine["name"])
        assert ended["result"] == "success", ended
        await helper_is_gone(machine)
        assert main_pid() == pid
        start()
        again = await machine_of(client)
        assert again["name"] != machine["name"]
        run("virsh", "--quiet", "destroy", "web")
        await verdict(client, again["name"])
    assert show("systemd-machined.service", "ActiveState") == {"ActiveState": "inactive"}
