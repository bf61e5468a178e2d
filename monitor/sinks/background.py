"""A sink on a thread of its own: one that blocks stops nothing else."""

import logging
from threading import Condition, Thread
from typing import Final

from monitor.events import Recorded
from monitor.events.bounds import KeptEvents
from monitor.sinks.base import Sink
from monitor.telemetry.stats import Stats

CLOSE_SECONDS: Final = 1.0
"""Seconds that the end of the process waits for what is still in the queue."""

logger = logging.getLogger(__name__)


class BackgroundSink:
    """Hands events to a sink that may take its time, such as one that writes to a pipe or a socket.

    Args:
        sink: Called from this thread only.
        stats: Where its failures, and events that it was too slow for, are counted.
        limit: Events that may wait; beyond it some are dropped, those of requests that ended before a firing
            (:class:`monitor.events.bounds.KeptEvents`).
    """

    def __init__(self, sink: Sink, stats: Stats, limit: int = 1024) -> None:
        self._sink, self._stats = sink, stats
        self._name = type(sink).__name__
        self._changed = Condition()
        self._waiting = KeptEvents(limit, 0)
        self._closing = False
        self._thread = Thread(target=self._run, name=f"plumbob-{self._name}", daemon=True)
        self._thread.start()

    def emit(self, recorded: Recorded) -> None:
        """Queue the event, and drop what there is no room for."""
        with self._changed:
            dropped = 1 if self._closing else self._waiting.add(recorded)
            if dropped:
                self._stats.sink_events_dropped[self._name,] += dropped
            self._changed.notify()

    def close(self) -> None:
        """Let the sink take what waits, for :data:`CLOSE_SECONDS` at most. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._waiting))
                if not len(self._waiting):
                    return
                recorded = self._waiting.pop()
            try:
                self._sink.emit(recorded)
            except Exception:
                with self._changed:
                    self._stats.sink_errors[self._name,] += 1
                logger.exception("Sink %s failed to take event %d.", self._name, recorded.sequence)
