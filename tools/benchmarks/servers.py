"""Servers of two varlink libraries, for comparing the wire alone: python3 -m benchmarks.servers LIBRARY SOCKET.

Each as its own documentation shows it, serving org.varlink.service alone.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable


async def serve_asyncvarlink(path: str) -> None:
    """Serve by asyncvarlink."""
    from asyncvarlink import VarlinkInterfaceRegistry, create_unix_server
    from asyncvarlink.serviceinterface import VarlinkServiceInterface

    registry = VarlinkInterfaceRegistry()
    registry.register_interface(
        VarlinkServiceInterface("Peer", "asyncvarlink", "1", "https://peer.test", registry)
    )
    server = await create_unix_server(registry.protocol_factory, path)
    await server.serve_forever()


def serve_varlink(path: str) -> None:
    """Serve by the varlink package, a thread for each connection."""
    import varlink

    with tempfile.TemporaryDirectory() as interfaces:

        class Handler(varlink.RequestHandler):
            service = varlink.Service(
                vendor="Peer",
                product="varlink",
                version="1",
                url="https://peer.test",
                interface_dir=interfaces,
            )

        with varlink.ThreadingServer(f"unix:{path}", Handler) as server:
            server.serve_forever()  # pyright: ignore[reportUnknownMemberType] - the package has no types


SERVERS: dict[str, Callable[[str], None]] = {
    "asyncvarlink": lambda path: asyncio.run(serve_asyncvarlink(path)),
    "varlink": serve_varlink,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](sys.argv[2])
