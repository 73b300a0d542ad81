"""systemd-vmspawn of 262: QEMU under TCG with a guest that is up, beside machined and with moored in its place."""

from pathlib import Path
from typing import Any

import pytest
import trio
from guests import UP_SECONDS, console, kernel, make_initrd, up
from moored import OURS, connect, describe, listed, run, show, until, verdict

from moorage.wire.client import Client


@pytest.fixture
def vmspawn(tmp_path: Path) -> tuple[str, ...]:
    """The command of a guest, whose root directory is served by vmspawn itself."""
    (tmp_path / "root/usr").mkdir(parents=True)
    (tmp_path / "root/question").write_text("vmspawn?\n")
    return (
        "systemd-vmspawn", "--machine=spawned", "--kvm=no", "--vsock=no", "--tpm=no", "--firmware=none", "--ram=256M",
        "--console=read-only", f"--directory={tmp_path}/root", f"--linux={kernel()}",
        f"--initrd={make_initrd(tmp_path)}", "console=hvc0 quiet guest.share=root",
    )  # fmt: skip


async def machine_of(client: Client) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        return (await listed(client)).get("spawned")

    machine = await until(found, "it is listed")
    assert machine is not None
    assert (machine["class"], machine["service"]) == ("vm", "systemd-vmspawn")
    return machine


async def is_managed(client: Client, machine: dict[str, Any]) -> None:
    """What can be done with any machine is done with one of others."""
    name = machine["name"]
    await client.call(f"{OURS}SetProperties", {"name": name, "properties": {"CPUWeight": 50}})
    assert show(machine["unit"], "CPUWeight") == {"CPUWeight": "50"}
    await client.call(f"{OURS}Freeze", {"name": name})
    assert (await describe(client, name))["freezer"] == "frozen"
    await client.call(f"{OURS}Thaw", {"name": name})


async def test_beside_machined(vmspawn: tuple[str, ...]) -> None:
    with console(*vmspawn) as guest:
        async with await connect() as client:
            machine = await machine_of(client)
            assert machine["origin"] == "adopted"
            assert machine["supervisor"]["pid"] == guest.process.pid
            await is_managed(client, machine)
            helper = {"name": "fs", "execStart": ["/bin/sleep", "infinity"]}
            await client.call(f"{OURS}AddHelpers", {"name": "spawned", "helpers": [helper]})
            await up(guest, "guest: wrote")
            assert guest.has("guest: read vmspawn?")
            run("machinectl", "terminate", "spawned")
            await trio.to_thread.run_sync(guest.process.wait, UP_SECONDS)
            ended = await verdict(client, "spawned")
            assert ended["accounting"]["cpuUsageNSec"] > 10**9
            await until(
                lambda: show("machine-spawned-fs.service", "ActiveState") == {"ActiveState": "inactive"}
            )


async def test_in_machineds_place(in_place: None, vmspawn: tuple[str, ...]) -> None:
    with console(*vmspawn) as guest:
        async with await connect() as client:
            machine = await machine_of(client)
            assert machine["origin"] == "registered"
            assert machine["supervisor"]["pid"] == guest.process.pid
            assert "spawned" in run("machinectl", "list")
            await client.call(f"{OURS}Freeze", {"name": "spawned"})
            await client.call(f"{OURS}Thaw", {"name": "spawned"})
            await up(guest, "guest: wrote")
            run("machinectl", "terminate", "spawned")
            await trio.to_thread.run_sync(guest.process.wait, UP_SECONDS)

            # By then vmspawn has taken its machine back.
            async def gone() -> bool:
                return "spawned" not in await listed(client)

            await until(gone, "it is not listed")
            await until(lambda: show(machine["unit"], "ActiveState") == {"ActiveState": "inactive"})
    assert show("systemd-machined.service", "ActiveState") == {"ActiveState": "inactive"}
