"""A server that may open only a few files: run by test_server.py, which is its many callers."""

import os
import resource
import socket
import sys
import time

import trio

from moorage.wire.call import Call
from moorage.wire.method import method
from moorage.wire.server import Server
from moorage.wire.service import Interface, Service
from moorage.wire.types import Empty, Reply

LIMIT = 40


class Usage(Reply):
    fds: int
    cpu: float


class Report(Interface):
    def __init__(self) -> None:
        super().__init__("interface org.example.report\nmethod Report() -> (fds: int, cpu: float)")

    @method("Report")
    def report(self, call: Call, params: Empty) -> Usage:
        return Usage(
            fds=sum(1 for fd in range(LIMIT) if os.path.exists(f"/proc/self/fd/{fd}")),
            cpu=time.process_time(),
        )


def main() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    print("ready", flush=True)
    service = Service(vendor="", product="", version="", url="", interfaces=[Report()])
    server = Server()
    server.listen(listener, service)
    trio.run(server.serve)


if __name__ == "__main__":
    main()
