"""A gRPC watcher in a thread, for code that is not asynchronous: the demo, and tests."""

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc
from rich.text import Text

from monitor.api.client import channel_to
from monitor.api.convert import event_of
from monitor.cli.watch import format_recorded
from monitor.errors import EngineError
from monitor.events import EngineChanged, Recorded, RequestFinished, request_of
from monitor.v1.monitor_service_pb2 import WatchEventsRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub


class Listener:
    """Collect the events of a monitor from its first kept one on, until the monitor ends; a context manager.

    Args:
        address: ``host:port`` of the monitor.
    """

    def __init__(self, address: str) -> None:
        self._channel = channel_to(address)
        self._call = MonitorServiceStub(self._channel).WatchEvents(WatchEventsRequest(after_sequence=0))
        self._events: list[Recorded] = []
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
    def events(self) -> list[Recorded]:
        """Events that have come so far."""
        with self._changed:
            return list(self._events)

    def finished(self, request_id: str, seconds: float) -> RequestFinished | None:
        """The verdict of a request; ``None`` where it does not arrive in time."""

        def find() -> RequestFinished | None:
            found = (recorded.event for recorded in self._about(request_id))
            return next((event for event in found if isinstance(event, RequestFinished)), None)

        with self._changed:
            return self._changed.wait_for(find, seconds)

    def await_engine(self, seconds: float = 30.0) -> None:
        """Wait until an engine is connected to the monitor.

        Raises:
            EngineError: None is, in time.
        """

        def connected() -> bool:
            changes = (one.event for one in self._events if isinstance(one.event, EngineChanged))
            return any(change.state == "connected" for change in changes)

        with self._changed:
            if not self._changed.wait_for(connected, seconds):
                raise EngineError("The engine did not connect to the monitor.", "Look into the server's log.")

    def lines(self, request_id: str) -> list[Text]:
        """Events about a request while it ran, a line each."""
        with self._changed:
            found = list(self._about(request_id))
        return [format_recorded(one) for one in found if not isinstance(one.event, RequestFinished)]

    def _about(self, request_id: str) -> Iterator[Recorded]:
        for recorded in self._events:
            if (request := request_of(recorded.event)) is not None and request.request_id == request_id:
                yield recorded

    def _collect(self) -> None:
        try:
            for response in self._call:
                if (recorded := event_of(response.event)) is not None:
                    with self._changed:
                        self._events.append(recorded)
                        self._changed.notify_all()
        except grpc.RpcError:
            # Cancelled by __exit__, or the monitor has ended: what came is kept either way.
            return
