"""A sink on a thread of its own: one that blocks stops nothing else."""

import logging
from collections import deque
from threading import Condition, Thread
from typing import Final

from monitor.events import Recorded
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
        limit: Events that may wait; beyond it new ones are dropped.
    """

    def __init__(self, sink: Sink, stats: Stats, limit: int = 1024) -> None:
        self._sink, self._stats, self._limit = sink, stats, limit
        self._name = type(sink).__name__
        self._changed = Condition()
        self._waiting: deque[Recorded] = deque()
        self._closing = False
        self._thread = Thread(target=self._run, name=f"plumbob-{self._name}", daemon=True)
        self._thread.start()

    def emit(self, recorded: Recorded) -> None:
        """Queue the event, or drop it."""
        with self._changed:
            if self._closing or len(self._waiting) >= self._limit:
                self._stats.sink_events_dropped[self._name,] += 1
                return
            self._waiting.append(recorded)
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
                self._changed.wait_for(lambda: self._closing or self._waiting)
                if not self._waiting:
                    return
                recorded = self._waiting.popleft()
            try:
                self._sink.emit(recorded)
            except Exception:
                with self._changed:
                    self._stats.sink_errors[self._name,] += 1
                logger.exception("Sink %s failed to take event %d.", self._name, recorded.sequence)
