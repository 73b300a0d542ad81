"""Starts that take as long as they may: whoever has them under way keeps nobody else waiting."""

from typing import Any

import trio
from moored import OURS, RECORDS, Processes, connect, kill, listed, register, run, units, until
from sessions import Session

STARTS = 48
"""Of root's: many times as many as the manager works on at once."""

STARTS_SECONDS = 20
"""Deadline of each of the starts: long enough for the service to be killed meanwhile."""

TAKE_BACK_SECONDS = 30.0
"""For some hundred units to go, on two cores that others use too."""

NEVER_READY: dict[str, Any] = {
    "name": "never", "type": "notify", "execStart": ["/usr/bin/sleep", "infinity"],
    "properties": {"NotifyAccess": "all", "TimeoutStartUSec": 600_000_000},
}  # fmt: skip


async def test_starts_that_never_end(spawn: Processes, creator: Session) -> None:
    """They are in nobody's way, and have an end at their deadline, be the service killed meanwhile or not."""
    leaders = [spawn() for _ in range(STARTS)]
    for number, leader in enumerate(leaders):
        async with await connect() as client:
            parameters = {
                "name": f"slow{number}", "class": "vm", "leader": {"pid": leader.pid}, "helpers": [NEVER_READY],
                "timeoutUSec": STARTS_SECONDS * 1_000_000,
            }  # fmt: skip
            await client.call_oneway(f"{OURS}Register", parameters)
    await until(lambda: len(begun()) == STARTS, "all are under way")
    mine = creator.spawn()
    reply = await trio.to_thread.run_sync(lambda: creator.register("hers", mine))
    assert reply["parameters"]["machine"]["phase"] == "running", reply
    async with await connect() as client:
        await register(client, "mine", spawn())
        kill(*leaders[::2])
        run("systemctl", "kill", "--signal=KILL", "moored.service")
    async with await connect() as client:
        await until(lambda: not begun(), "all are taken back", seconds=STARTS_SECONDS + TAKE_BACK_SECONDS)
        assert sorted(await listed(client)) == ["hers", "mine"]
        assert sorted(units()) == ["machine-hers.scope", "machine-mine.scope"]
        assert run("systemctl", "list-jobs", "--no-legend") == ""
        assert [leader.poll() for leader in leaders[1::2]] == [None] * (STARTS // 2)
        for name in ("mine", "hers"):
            await client.call(f"{OURS}Stop", {"name": name})


def begun() -> list[str]:
    return [path.name for path in RECORDS.glob(".start-*")]
