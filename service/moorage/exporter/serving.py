"""The HTTP server: few requests at a time, each with a deadline, and an end when nobody asks any more."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client import exposition as _untyped
from prometheus_client.registry import Collector

REQUESTS_MAX: Final = 16
"""Requests at a time; further connections wait in the backlog. Two Prometheus servers for high availability, and a
person who looks, are three."""

REQUEST_SECONDS: Final = 10.0
"""How long a peer may take to send its request, or to read from the answer, s: Prometheus gives up after that."""

PAGE: Final = b"<!doctype html><title>moorage-exporter</title><a href='/metrics'>Metrics</a>\n"

_log = logging.getLogger(__name__)

Start = Callable[..., Any]

_exposition: Any = _untyped


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base has
        _log.debug("%s: %s", self.address_string(), format % args)

    def address_string(self) -> str:
        return str(self.client_address[0]) if self.client_address else "a local peer"


class Exporter(ThreadingMixIn, WSGIServer):
    """Serves ``/metrics``.

    Args:
        listener: listening stream socket; belongs to this object from now on.
        collector: has the metrics.
        idle_seconds: how long to wait for the next request; None for ever.
    """

    address_family = (
        socket.AF_UNIX
    )  # of a socket that the base makes, and that is thrown away: others may be forbidden
    daemon_threads = True

    def __init__(self, listener: socket.socket, collector: Collector, idle_seconds: float | None) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        self._metrics: Callable[[dict[str, Any], Start], Iterable[bytes]] = _exposition.make_wsgi_app(
            registry
        )
        self.set_app(self._answer)
        self.timeout = idle_seconds
        self._idle = False
        self._places = threading.BoundedSemaphore(REQUESTS_MAX)

    def serve(self) -> None:
        """Serve until nobody has asked for a while."""
        while not self._idle:
            self.handle_request()
        self.server_close()

    def handle_timeout(self) -> None:
        """Take note that nobody asks."""
        self._idle = True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a request in a thread, as soon as there is a place for one more."""
        self._places.acquire()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started: it is refused
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - those of the base
        """Take note of what went wrong with a request: a peer that hung up, or took too long."""
        _log.debug("Failed to answer a request, ignoring:", exc_info=True)

    def _answer(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            start_response("405 Method Not Allowed", [("Allow", "GET")])
            return [b""]
        if environ["PATH_INFO"] == "/metrics":
            return self._metrics(environ, start_response)
        if environ["PATH_INFO"] == "/":
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [PAGE]
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"There is only /metrics.\n"]
