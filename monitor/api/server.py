"""The gRPC server: the monitor's service, health and reflection on one port; orders where they are allowed.

There is no authentication yet, and no TLS: everybody who reaches the port can read which requests fired which probe,
and, where control is allowed, order engines to steer. It is therefore bound to the loopback interface unless told
otherwise; beyond one host, put a proxy with mTLS before it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from monitor.addresses import join_address, require_free
from monitor.api.control import ControlService
from monitor.api.service import MonitorService
from monitor.errors import PortError
from monitor.events import EventLog
from monitor.interventions.operator import Operator
from monitor.telemetry.stats import Status
from monitor.traces import Traces
from monitor.v1 import control_service_pb2
from monitor.v1.control_service_pb2_grpc import add_ControlServiceServicer_to_server
from monitor.v1.monitor_service_pb2 import DESCRIPTOR
from monitor.v1.monitor_service_pb2_grpc import add_MonitorServiceServicer_to_server
from probes.bundle import Bundle

CONTROL: Final = control_service_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name
SERVICE: Final = DESCRIPTOR.services_by_name["MonitorService"].full_name

READY: Final = "ready"
"""The name under which health tells whether anything is scored: NOT_SERVING until an engine is connected and its frames
are read."""

READY_SECONDS: Final = 0.25
"""Between two looks at that."""

MAX_CALLS: Final = 128
"""Calls served at once, watchers among them; one more is refused with RESOURCE_EXHAUSTED."""

MAX_WATCHERS: Final = 96
"""Watchers served at once."""

_OPTIONS: Final = (
    # By default several servers may share one port, and the kernel deals connections out between them.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping as often as this; by default gRPC hangs up on them.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class ApiServer:
    """A started server; make one with :meth:`start`."""

    def __init__(
        self, server: grpc.aio.Server, checks: Any, events: EventLog, status: Callable[[], Status], address: str
    ) -> None:
        self._server = server
        self._checks = checks
        self._events = events
        self._status = status
        self.address = address
        """``host:port``, with the port that was really bound."""
        self._readiness = asyncio.create_task(self._keep_ready())

    @classmethod
    async def start(
        cls,
        events: EventLog,
        status: Callable[[], Status],
        bundle: Bundle,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_calls: int = MAX_CALLS,
        max_watchers: int = MAX_WATCHERS,
        traces: Traces | None = None,
        control: Operator | None = None,
    ) -> "ApiServer":
        """Bind and serve, on the running event loop.

        Args:
            events: The log that watchers follow.
            status: Takes a snapshot of the monitor; called on the event loop.
            bundle: What the monitor reads with.
            host: Name or address of the interface; anyone who reaches it can read.
            port: 0 takes a free one.
            max_calls: Calls served at once.
            max_watchers: Watchers served at once; below ``max_calls``.
            traces: Of escalated requests; ``None``: none are kept.
            control: Takes operators' orders; ``None``: the service that gives them is not there.

        Raises:
            PortError: The address is in use or cannot be bound.
        """
        address = join_address(host, port)
        require_free("The gRPC server", host, port)
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=max_calls)
        service = MonitorService(events, status, bundle, max_watchers=max_watchers, traces=traces)
        add_MonitorServiceServicer_to_server(service, server)
        checks: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        services = [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if control is not None:
            add_ControlServiceServicer_to_server(ControlService(control), server)
            services.append(CONTROL)
        reflection.enable_server_reflection(services, server)
        try:
            bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise PortError(f"The gRPC server cannot listen on {address}.", "Choose another port.") from error
        await checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await checks.set(READY, _serving(status().scoring))
        await server.start()
        return cls(server, checks, events, status, join_address(host, bound))

    async def stop(self, grace_seconds: float = 3.0) -> None:
        """Stop gracefully: health says NOT_SERVING, watchers get what waits for them, calls finish.

        Args:
            grace_seconds: After which what still runs is cut off.
        """
        self._readiness.cancel()
        await self._checks.enter_graceful_shutdown()
        self._events.close()
        await self._server.stop(grace_seconds)

    async def _keep_ready(self) -> None:
        before: bool | None = None
        while True:
            if (scoring := self._status().scoring) is not before:
                await self._checks.set(READY, _serving(scoring))
                before = scoring
            await asyncio.sleep(READY_SECONDS)


def _serving(serves: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
