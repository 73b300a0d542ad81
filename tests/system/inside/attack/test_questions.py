"""Questions that a person is to answer, and never does: whoever has them under way keeps nobody else from asking."""

import json
import os
import sys
from pathlib import Path

from moored import OURS, Processes, connect, control_group, register, until
from sessions import Session

from moorage.authz.polkit import PERSONS_MAX, QUESTIONS_PER_UID_MAX

AGENT = r"""
import sys
sys.path.insert(0, "/moorage/tests/support")
from polkit_agent import AUTHORITY, blocking, jeepney
connection = blocking.open_dbus_connection("SYSTEM")
subject = ("unix-session", {"session-id": ("s", sys.argv[1])})
register = jeepney.new_method_call(AUTHORITY, "RegisterAuthenticationAgent", "(sa{sv})ss", (subject, "C", "/Agent"))
connection.send_and_get_reply(register)
asked = 0
while True:
    print(asked, file=open(sys.argv[2], "w"), flush=True)
    connection.receive()
    asked += 1
"""
"""An agent of the session that hears what it is asked, and says nothing."""

ASK = r"""
import os, signal, socket, sys
first, uids, each, group, call = *map(int, sys.argv[1:4]), *sys.argv[4:]
open(f"/sys/fs/cgroup{group}/cgroup.procs", "w").write("0")
for uid in range(first, first + uids):
    os.seteuid(uid)
    for _ in range(each):
        connected = socket.socket(socket.AF_UNIX)
        connected.connect("/run/moorage/io.moorage.Machine")
        connected.sendall(call.encode() + bytes(1))
        os.set_inheritable(connected.detach(), False)
    os.seteuid(0)
signal.pause()
"""
"""What subordinate uids of the user's (subuid(5)) do in a session; made by root, without newuidmap(1)."""


async def test_a_person_with_many_uids_leaves_room_for_others(
    spawn: Processes, creator: Session, stranger: Session
) -> None:
    async with await connect() as client:
        await register(client, "target", spawn())
    counted = Path("/home/stranger/asked")
    stranger.spawn("python3", "-c", AGENT, stranger.id, str(counted))
    await until(counted.exists, "the agent is there")
    call = json.dumps(
        {
            "method": f"{OURS}Kill",
            "parameters": {"name": "target", "signal": 9, "allowInteractiveAuthentication": True},
        }
    )
    uids = 2 * PERSONS_MAX // QUESTIONS_PER_UID_MAX
    group = control_group(stranger.spawn())
    numbers = ("100000", str(uids), str(QUESTIONS_PER_UID_MAX))
    asking = spawn((sys.executable, "-c", ASK, *numbers, group, call))
    await until(lambda: counted.read_text() == f"{PERSONS_MAX}\n", "as many as may be are asked")
    mine = creator.spawn()
    # The other half have their answers soon, as no person is asked.
    await until(
        lambda: "error" not in creator.register("mine", mine, allowInteractiveAuthentication=True),
        "there is room",
    )
    asking.kill()
    assert "error" not in creator.call("Stop", {"name": "mine"})
    os.unlink(counted)
