"""On a system without a bus (seed: appliances without a broker) everything works over the manager's own socket."""

import re
from collections.abc import Callable

from sandboxes import Sandbox

BATTERY = """
import sys
sys.path[:0] = ["/moorage/tests/support", "/moorage/tests/system/inside"]
import trio
from moored import Processes, assert_nothing_left, connect
from test_links import battery

async def main():
    processes = Processes()
    try:
        async with await connect() as client:
            await battery(client, processes)
    finally:
        processes.bury()
    await assert_nothing_left()

trio.run(main)
print("done")
"""


def test_a_life_without_a_broker(boot: Callable[..., Sandbox]) -> None:
    sandbox = boot("--no-broker")
    assert sandbox.run(["test", "-e", "/run/dbus/system_bus_socket"], check=False).returncode == 1
    sandbox.run(["systemctl", "start", "moored.socket"])
    assert sandbox.run(["python3", "-c", BATTERY]).stdout == "done\n"
    journal = sandbox.run(["journalctl", "--unit=moored.service", "--output=cat", "--no-pager"]).stdout
    assert "Traceback" not in journal
    assert "Failed" not in journal
    # There is nobody to ask, so that what asks is root's alone; others see the machines all the same.
    socket = "/run/moorage/io.moorage.Machine"
    asking = ["varlinkctl", "call", socket, "io.moorage.Machine.Register", '{"name":"hers","class":"vm"}']
    done = sandbox.run(asking, user=1000, check=False)
    assert done.returncode != 0
    assert re.search(
        "permission ?denied", done.stderr, re.IGNORECASE
    )  # varlinkctl of 262 knows the error's words
    listing = ["varlinkctl", "call", "--more", socket, "io.systemd.Machine.List", "{}"]
    assert '".host"' in sandbox.run(listing, user=1000).stdout
