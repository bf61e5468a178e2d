"""Metrics over HTTP, on a thread of their own: a scrape is answered even when the event loop is busy."""

from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from monitor.addresses import join_address, port_error


class MetricsExporter:
    """Serves a registry until it is closed. No authentication: bound to the loopback interface by default.

    Args:
        registry: What to serve.
        host: Name or address of the interface.
        port: 0 takes a free one.

    Raises:
        PortError: The address is in use or cannot be bound.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._server: WSGIServer
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise port_error("The metrics exporter", host, port, error) from error
        self.address = join_address(host, self._server.server_port)
        """``host:port``, with the port that was really bound."""

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
