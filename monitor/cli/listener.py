"""A gRPC watcher in a thread, for code that is not asynchronous: the demo, and tests."""

import asyncio
import threading
import time
from types import TracebackType
from typing import Self

from rich.text import Text

from monitor.api.client import Notice, follow
from monitor.cli.watch import format_event
from monitor.errors import EngineError
from monitor.v1 import event_pb2
from monitor.v1.event_pb2 import Event, RequestFinished


class Listener:
    """Collects the events of a monitor from its first kept one on; a context manager.

    Args:
        address: ``host:port`` of the monitor.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._events: list[Event] = []
        self._changed = threading.Condition()
        """Protects the list; notified at every event."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="plumbob-listener", daemon=True)
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join(timeout=5)

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
        deadline = time.monotonic() + seconds

        def connected() -> bool:
            return any(
                event.WhichOneof("payload") == "engine_changed"
                and event.engine_changed.state == event_pb2.ENGINE_STATE_CONNECTED
                for event in self._events
            )

        with self._changed:
            if not self._changed.wait_for(connected, deadline - time.monotonic()):
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

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._collect())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _collect(self) -> None:
        async for item in follow(self._address, after=0):
            if not isinstance(item, Notice):
                with self._changed:
                    self._events.append(item)
                    self._changed.notify_all()
