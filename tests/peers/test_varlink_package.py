"""The certification dialogue with the reference implementation, in both directions."""

import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moorage.wire.client import Client
from moorage.wire.errors import RemoteError

if TYPE_CHECKING:
    from peers.conftest import Start

MODULE = "varlink.tests.test_certification"
NAME = "org.varlink.certification"


def test_their_client_is_served(ours: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", MODULE, "--client", f"--varlink=unix:{ours}"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Certification passed\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["info", "unix:{}"], "Vendor: Moorage"),
        (["help", "unix:{}/org.example.peer"], "method Echo"),
        (["call", "unix:{}/org.example.peer.Echo", '{{"text": "a", "number": 7}}'], '"number": 7'),
        (["call", "-m", "unix:{}/org.example.peer.Count", '{{"to": 3}}'], '"number": 2'),
    ],
)
def test_their_command_line(ours: str, arguments: list[str], expected: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "varlink.cli",
            *(argument.format(ours) for argument in arguments),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


async def test_their_server_is_called(tmp_path: Path, start: "Start") -> None:
    path = str(tmp_path / "theirs")
    start(["-W", "ignore", "-m", MODULE, f"--varlink=unix:{path}"], "Listening on")
    async with await Client.connect(path) as client:

        async def call(name: str, **parameters: object) -> dict[str, Any]:
            return await client.call(f"{NAME}.{name}", parameters)

        client_id = (await call("Start"))["client_id"]
        reply = await call("Test01", client_id=client_id)
        for number in range(2, 10):
            reply = await call(f"Test{number:02}", client_id=client_id, **reply)
            if number == 5:
                assert reply == {"bool": False, "int": 2, "float": math.pi, "string": "a lot of string"}
            reply.pop("client_id", None)
        parameters = {"client_id": client_id, "mytype": reply["mytype"]}
        strings = [reply["string"] async for reply in client.call_more(f"{NAME}.Test10", parameters)]
        assert strings == [f"Reply number {number}" for number in range(1, 11)]
        await client.call_oneway(f"{NAME}.Test11", {"client_id": client_id, "last_more_replies": strings})
        assert await call("End", client_id=client_id) == {"all_ok": True}
        with pytest.raises(RemoteError) as caught:
            await call("Test01", client_id=client_id)
        assert caught.value.error == f"{NAME}.CertificationError"
