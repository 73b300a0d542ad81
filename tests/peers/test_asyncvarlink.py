"""asyncvarlink as client and as server."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moorage.wire.client import Client
from moorage.wire.errors import InvalidParameter, MethodNotFound, RemoteError

if TYPE_CHECKING:
    from peers.conftest import Start

PEER = str(Path(__file__).with_name("asyncvarlink_peer.py"))
NAME = "org.example.peer"


def test_its_client_is_served(ours: str) -> None:
    done = subprocess.run(
        [sys.executable, PEER, "call", ours], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


async def test_its_server_is_called(tmp_path: Path, start: "Start") -> None:
    path = str(tmp_path / "theirs")
    start([PEER, "serve", path], "ready")
    async with await Client.connect(path) as client:
        info = await client.call("org.varlink.service.GetInfo")
        assert info["product"] == "Peers"
        description = await client.call("org.varlink.service.GetInterfaceDescription", {"interface": NAME})
        assert "method Echo" in description["description"]
        assert await client.call(f"{NAME}.Echo", {"text": "ä", "number": 2**62}) == {
            "text": "ä",
            "number": 2**62,
        }
        replies = client.call_more(f"{NAME}.Count", {"to": 5})
        assert [reply["number"] async for reply in replies] == [0, 1, 2, 3, 4]
        with pytest.raises(RemoteError) as caught:
            await client.call(f"{NAME}.Fail", {"reason": "why"})
        assert (caught.value.error, caught.value.parameters()) == (f"{NAME}.Failed", {"reason": "why"})
        with pytest.raises(InvalidParameter):
            await client.call(f"{NAME}.Echo", {"text": 1})
        with pytest.raises(MethodNotFound):
            await client.call(f"{NAME}.Nope")
        reply, fds = await client.call_with_fds(f"{NAME}.Give", {"text": "by file"})
        assert os.read(fds[reply["file"]], 1000) == b"by file"
        os.close(fds[0])
        read, write = os.pipe()
        os.write(write, b"the other way")
        os.close(write)
        assert await client.call(f"{NAME}.Take", {"file": 0}, fds=[read]) == {"text": "the other way"}
        os.close(read)
        await client.call_oneway(f"{NAME}.Note", {"text": "noted"})
        assert await client.call(f"{NAME}.Notes") == {"notes": ["noted"]}
