"""Every event to the log and to all sinks."""

import logging
from collections.abc import Sequence

from monitor.events import Event, EventLog
from monitor.sinks.base import Sink
from monitor.telemetry.stats import Stats

logger = logging.getLogger(__name__)


class Recorder:
    """Records events; never raises.

    Args:
        log: What subscribers read; it numbers events.
        sinks: Each is handed every event, whatever the others do.
        stats: Where failures of sinks are counted.
    """

    def __init__(self, log: EventLog, sinks: Sequence[Sink], stats: Stats) -> None:
        self._log = log
        self._sinks = tuple(sinks)
        self._stats = stats

    def record(self, event: Event) -> None:
        """Number an event and hand it on."""
        recorded = self._log.publish(event)
        for sink in self._sinks:
            try:
                sink.emit(recorded)
            except Exception:
                name = type(sink).__name__
                self._stats.sink_errors[name,] += 1
                logger.exception("Sink %s failed to take event %d.", name, recorded.sequence)
