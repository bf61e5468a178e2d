"""A gRPC watcher in a thread, for code that is not asynchronous: the demo, and tests."""

import threading
from types import TracebackType
from typing import Self

import grpc
from rich.text import Text

from monitor.cli.watch import format_event
from monitor.errors import EngineError
from monitor.v1 import event_pb2
from monitor.v1.event_pb2 import Event, RequestFinished
from monitor.v1.monitor_service_pb2 import WatchEventsRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub


class Listener:
    """Collects the events of a monitor from its first kept one on, until the monitor ends; a context manager.

    Args:
        address: ``host:port`` of the monitor.
    """

    def __init__(self, address: str) -> None:
        # The monitor is our own child: no proxy of the environment lies between.
        self._channel = grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),))
        self._call = MonitorServiceStub(self._channel).WatchEvents(WatchEventsRequest(after_sequence=0))
        self._events: list[Event] = []
        self._changed = threading.Condition()
        """Protects the list; notified at every event."""
        self._thread = threading.Thread(target=self._collect, name="plumbob-listener", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        self._thread.join(timeout=5)
        self._channel.close()

    @property
    def events(self) -> list[Event]:
        """What has come so far."""
        with self._changed:
            return list(self._events)

    def finished(self, request_id: str, seconds: float) -> RequestFinished | None:
        """The verdict of a request; ``None`` where it does not arrive in time."""

        def find() -> RequestFinished | None:
            for event in self._events:
                done = event.request_finished
                if event.WhichOneof("payload") == "request_finished" and done.request.request_id == request_id:
                    return done
            return None

        with self._changed:
            self._changed.wait_for(lambda: find() is not None, seconds)
            return find()

    def await_engine(self, seconds: float = 30.0) -> None:
        """Wait until an engine is connected to the monitor.

        Raises:
            EngineError: None is, in time.
        """

        def connected() -> bool:
            return any(
                event.WhichOneof("payload") == "engine_changed"
                and event.engine_changed.state == event_pb2.ENGINE_STATE_CONNECTED
                for event in self._events
            )

        with self._changed:
            if not self._changed.wait_for(connected, seconds):
                raise EngineError("The engine did not connect to the monitor.", "Look into the server's log.")

    def told(self, request_id: str) -> list[Text]:
        """What happened to a request while it ran, as lines."""
        shown = ("probe_fired", "alert", "intervention")
        with self._changed:
            return [
                format_event(event)
                for event in self._events
                if (kind := event.WhichOneof("payload")) in shown
                and getattr(event, kind).request.request_id == request_id
            ]

    def _collect(self) -> None:
        try:
            for response in self._call:
                with self._changed:
                    self._events.append(response.event)
                    self._changed.notify_all()
        except grpc.RpcError:
            # Cancelled by __exit__, or the monitor has ended: what came is kept either way.
            return
