"""An authentication agent for one process, by the interface that those of desktops have too.

Run as the user who is asked. Writes a line of JSON for each thing that happens: {"event": "registered"}, "begin" with
the action, the message and the cookie, "cancel". For each line that it reads it ends the question at hand: "done" once
somebody with the right to do so has said to polkitd that the user authenticated, "dismiss" like a closed dialogue.
"""

import importlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

# Untyped beyond the core that the service uses.
jeepney: Any = importlib.import_module("jeepney")
blocking: Any = importlib.import_module("jeepney.io.blocking")

PATH = "/org/moorage/TestAgent"
AUTHORITY = jeepney.DBusAddress(
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1",
    "org.freedesktop.PolicyKit1.Authority",
)


def say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def main(pid: int, uid: int) -> None:
    connection = blocking.open_dbus_connection("SYSTEM")
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    subject = ("unix-process", {"pid": ("u", pid), "start-time": ("t", started), "uid": ("i", uid)})
    register = jeepney.new_method_call(
        AUTHORITY, "RegisterAuthenticationAgent", "(sa{sv})ss", (subject, "C", PATH)
    )
    reply = connection.send_and_get_reply(register)
    assert reply.header.message_type is jeepney.MessageType.method_return, reply.body
    asked: list[Any] = []

    def end() -> None:
        for line in sys.stdin:
            message = asked.pop(0)
            if line.strip() == "dismiss":
                connection.send(jeepney.new_error(message, "org.freedesktop.PolicyKit1.Error.Cancelled"))
            else:
                connection.send(jeepney.new_method_return(message))

    threading.Thread(target=end, daemon=True).start()
    say("registered")
    while True:
        message = connection.receive()
        if message.header.message_type is not jeepney.MessageType.method_call:
            continue
        if message.header.fields[jeepney.HeaderFields.member] == "BeginAuthentication":
            action, text, _, _, cookie, _ = message.body
            asked.append(message)
            say("begin", action=action, message=text, cookie=cookie)
        else:  # CancelAuthentication
            connection.send(jeepney.new_method_return(message))
            say("cancel", cookie=message.body[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
