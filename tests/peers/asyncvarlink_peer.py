"""org.example.peer (see served.py) as asyncvarlink has it. Run as `serve PATH` or `call PATH`."""

import asyncio
import os
import sys
import typing
from collections.abc import Iterator

import pytest
from asyncvarlink import (
    FileDescriptor,
    TypedVarlinkErrorReply,
    VarlinkClientProtocol,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    connect_unix_varlink,
    create_unix_server,
    varlinkmethod,
)
from asyncvarlink.serviceinterface import VarlinkServiceInterface


class Failed(TypedVarlinkErrorReply, interface="org.example.peer"):
    class Parameters:
        reason: str


class EchoResult(typing.TypedDict):
    text: str
    number: int | None


class Peer(VarlinkInterface, name="org.example.peer"):
    errors = (Failed,)

    def __init__(self) -> None:
        self.noted: list[str] = []

    @varlinkmethod
    def Echo(self, *, text: str, number: int | None = None) -> EchoResult:  # noqa: N802
        return {"text": text, "number": number}

    @varlinkmethod(return_parameter="number")
    def Count(self, *, to: int) -> Iterator[int]:  # noqa: N802
        yield from range(to)

    @varlinkmethod
    def Fail(self, *, reason: str) -> None:  # noqa: N802
        raise Failed(reason=reason)  # pyright: ignore[reportCallIssue]  # made at run time

    @varlinkmethod(return_parameter="file")
    def Give(self, *, text: str) -> FileDescriptor:  # noqa: N802
        read, write = os.pipe()
        os.write(write, text.encode())
        os.close(write)
        return FileDescriptor(read, should_close=True)

    @varlinkmethod(return_parameter="text")
    def Take(self, *, file: FileDescriptor) -> str:  # noqa: N802
        return os.read(file.fileno(), 1000).decode()

    @varlinkmethod(return_parameter="notes")
    def Notes(self) -> list[str]:  # noqa: N802
        return self.noted

    @varlinkmethod
    def Note(self, *, text: str) -> None:  # noqa: N802
        self.noted.append(text)


async def serve(path: str) -> None:
    registry = VarlinkInterfaceRegistry()
    registry.register_interface(Peer())
    registry.register_interface(
        VarlinkServiceInterface("Moorage", "Peers", "1", "https://example.org", registry)
    )
    server = await create_unix_server(registry.protocol_factory, path)
    print("ready", flush=True)
    await server.serve_forever()


async def call(path: str) -> None:
    transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, path)
    service = protocol.make_proxy(VarlinkServiceInterface)
    info = await service.GetInfo()
    assert info["product"] == "Peers", info
    assert "org.example.peer" in info["interfaces"], info
    description = await service.GetInterfaceDescription(interface="org.example.peer")
    assert "method Echo" in str(description), description
    peer = protocol.make_proxy(Peer)
    assert await peer.Echo(text="ä", number=2**62) == {"text": "ä", "number": 2**62}
    assert (await peer.Echo(text=""))["text"] == ""
    assert [reply["number"] async for reply in peer.Count(to=5)] == [0, 1, 2, 3, 4]
    with pytest.raises(Failed) as caught:
        await peer.Fail(reason="why")
    assert caught.value.paramstojson() == {"reason": "why"}
    with await peer.Give(text="by file") as reply:
        assert os.read(reply["file"].fileno(), 1000) == b"by file"
    read, write = os.pipe()
    os.write(write, b"the other way")
    os.close(write)
    assert await peer.Take(file=FileDescriptor(read, should_close=True)) == {"text": "the other way"}
    await peer.Note.oneway(text="noted")
    assert await peer.Notes() == {"notes": ["noted"]}
    assert len(await asyncio.gather(*(peer.Echo(text=str(number)) for number in range(100)))) == 100
    transport.close()
    print("done")


if __name__ == "__main__":
    asyncio.run({"serve": serve, "call": call}[sys.argv[1]](sys.argv[2]))
