"""Containers of podman, registered by the hook in examples/oci-hook: podman knows nothing of it."""

import json
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from moored import (
    OURS,
    Processes,
    connect,
    describe,
    listed,
    process_of,
    register,
    run,
    start_listening,
    until,
    verdict,
)

HOOKS = Path("/usr/share/containers/oci/hooks.d")
WHOLE = ("--annotation", "run.oci.systemd.subgroup=")
"""Have crun make no control group of its own in the scope."""

# A sandbox is an overlay already, and has no controller of processes.
SETTINGS = {
    "/etc/containers/storage.conf": "[storage]\ndriver = 'vfs'\nrunroot = '/run/containers/storage'\n"
    "graphroot = '/var/lib/containers/storage'\n",
    "/etc/containers/containers.conf": "[containers]\npids_limit = 0\n",
}


@pytest.fixture(scope="module", autouse=True)
def podman(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """The hook, as docs/podman.md has it installed, and an image with nothing but busybox."""
    for path, text in SETTINGS.items():
        Path(path).write_text(text)
    page = Path("/moorage/docs/podman.md").read_text()
    install = re.findall(r"^    # (.*)$", page, re.MULTILINE)
    assert len(install) == 2
    run("sh", "-euxc", "\n".join(["cd /moorage", *install]))
    root = tmp_path_factory.mktemp("box")
    (root / "bin").mkdir()
    for name in ("busybox", "sh", "sleep", "id"):
        shutil.copy("/bin/busybox", root / "bin" / name)
    run("sh", "-e", "-c", f"tar -C {root} -c . | podman import - box")
    yield
    shutil.rmtree(HOOKS)


@pytest.fixture(autouse=True)
def _clean(nothing_left: None) -> Generator[None]:
    """No test leaves a container."""
    yield
    run("podman", "rm", "--all", "--force", "--time=0")


def started(name: str, *options: str, command: tuple[str, ...] = ("sleep", "1000")) -> str:
    """Run a container; return its ID."""
    return run(
        "podman", "run", "--detach", "--network=none", f"--name={name}", *options, "box", *command
    ).strip()


def leader(name: str) -> int:
    return int(run("podman", "inspect", "--format={{.State.Pid}}", name))


def complaints(since: str) -> str:
    """What the hook has said."""
    return run("journalctl", "--quiet", "--output=cat", f"--since={since}", "--identifier=moorage-oci-hook")


async def test_a_container_is_a_machine_from_its_first_moment_to_its_last(tmp_path: Path) -> None:
    container = started("web")
    async with await connect() as client:
        machine = (await listed(client))["web"]  # by the time that podman returns
        assert (machine["class"], machine["service"], machine["origin"]) == (
            "container",
            "podman",
            "registered",
        )
        assert machine["unit"] == f"libpod-{container}.scope"
        assert machine["leader"] == process_of(leader("web"))
        assert machine["id"] == container[:32]
        assert "supervisor" not in machine
        assert machine["phase"] == "running"
        found = json.loads(run("moorctl", "find", "--json", "--pid", str(leader("web"))))
        assert found["name"] == "web"
        run("moorctl", "copy-from", "web", "/bin/busybox", f"{tmp_path}/copy")
        run("cmp", f"{tmp_path}/copy", "/bin/busybox")
        run("podman", "stop", "--time=0", "web")
        ended = await verdict(client, "web")
        assert (ended["cause"], ended["leaderSignal"]) == ("leaderEnded", 9)

        # The name is free as soon as podman says so.
        for _ in range(2):
            run("podman", "start", "web")
            again = (await listed(client))["web"]
            assert again["leader"] == process_of(leader("web"))
            run("podman", "stop", "--time=0", "web")
            assert "web" not in await listed(client)
        run("podman", "rm", "web")


async def test_its_end_is_told_as_it_was() -> None:
    async with await connect() as client:
        started("web", "--rm", command=("sh", "-c", "exit 7"))

        async def ended() -> dict[str, Any] | None:
            return (await describe(client, "web")).get("verdict")

        found = await until(ended, "its end is noticed")
        assert found is not None
        assert found["leaderStatus"] == 7
        started("web", "--rm", "--replace", command=("sh", "-c", "trap exit TERM; sleep 1000 & wait"))
        run("moorctl", "stop", "web")
        assert (await verdict(client, "web"))["cause"] == "stopped"
        await until(lambda: not run("podman", "ps", "--all", "--quiet"), "podman has removed it")


async def test_all_of_its_scope_is_a_machine_for_everybody() -> None:
    container = started("web", *WHOLE)
    async with await connect() as client:
        machine = await describe(client, "web")
        assert machine["controlGroup"] == f"/machine.slice/libpod-{container}.scope"
        await client.call(f"{OURS}Freeze", {"name": "web"})
        assert (await describe(client, "web"))["freezer"] == "frozen"
        await client.call(f"{OURS}Thaw", {"name": "web"})
        await until(lambda: "web" in run("machinectl", "list"), "machined has it")
        assert run("machinectl", "show", "web", "--property=Leader", "--value").strip() == str(leader("web"))
        helper = {"name": "fs", "execStart": ["/bin/sleep", "infinity"]}
        await client.call(f"{OURS}AddHelpers", {"name": "web", "helpers": [helper]})
        run("podman", "rm", "--force", "--time=0", "web")
        assert (await verdict(client, "web"))["cause"] == "leaderEnded"
        await until(lambda: "web" not in run("machinectl", "list"), "machined has it no more")


async def test_no_container_is_kept_from_starting(spawn: Processes) -> None:
    since = run("date", "+%F %T").strip()
    async with await connect() as client:
        started("quiet", "--annotation=io.moorage.register=no")
        assert await listed(client) == {}
        taken = spawn()
        await register(client, "taken", taken)
        started("taken")
        assert (await describe(client, "taken"))["leader"] == process_of(taken)
        run("podman", "rm", "--force", "--time=0", "taken", "quiet")
        assert (await describe(client, "taken"))["leader"] == process_of(taken)
        await client.call(f"{OURS}Stop", {"name": "taken"})
    await until(lambda: "MachineExists(name='taken'" in complaints(since), "the journal has it")
    run("systemctl", "stop", "moored.socket", "moored.service")
    started("web")
    run("podman", "rm", "--force", "--time=0", "web")
    start_listening()
    assert "createRuntime of container" in complaints(since)
