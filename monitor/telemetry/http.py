"""Metrics over HTTP, on a thread of their own: a scrape is answered even when the event loop is busy.

``/healthz`` says that the process lives, ``/readyz`` whether anything is scored: 200, or 503 and why not, in words.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from monitor.addresses import join_address, port_error

LIVE: Final = "/healthz"
READY: Final = "/readyz"


class MetricsExporter:
    """Serves a registry until it is closed. No authentication: bound to the loopback interface by default.

    Args:
        registry: What to serve.
        unready: Why nothing is scored, in words, empty where something is; called on the serving threads.
        host: Name or address of the interface.
        port: 0 takes a free one.

    Raises:
        PortError: The address is in use or cannot be bound.
    """

    def __init__(
        self, registry: CollectorRegistry, unready: Callable[[], str], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._unready = unready
        self._metrics: Any = make_wsgi_app(registry)

        class Server(_Server):
            pass

        try:
            Server.address_family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = make_server(str(address[0]), port, self._answer, Server, _Quiet)
        except OSError as error:
            raise port_error("The metrics exporter", host, port, error) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="plumbob-metrics", daemon=True)
        self._thread.start()
        self.address = join_address(host, self._server.server_port)
        """``host:port``, with the port that was really bound."""

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if path not in (LIVE, READY):
            return self._metrics(environment, start)
        why = self._unready() if path == READY else ""
        status = HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK
        start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{why or 'ok'}\n".encode()]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
