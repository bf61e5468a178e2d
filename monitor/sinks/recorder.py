"""Every event to the log and to all sinks."""

import logging
from collections.abc import Sequence

import msgspec

from monitor.events import Event, EventLog, Recorded
from monitor.sinks.base import Sink
from monitor.sinks.durable import DurableSink
from monitor.store import Admitted, Processed, Store
from monitor.telemetry.stats import Stats

logger = logging.getLogger(__name__)


class Recorder:
    """Records events; never raises.

    Args:
        log: What subscribers read; it numbers events.
        sinks: Each is handed every event, whatever the others do.
        stats: Where failures of sinks are counted.
        store: Takes what goes ahead of an event, so that it is recorded once.
        durable: Sinks that are waited for; they are handed events after the others.
    """

    def __init__(
        self, log: EventLog, sinks: Sequence[Sink], stats: Stats, store: Store, durable: Sequence[DurableSink] = ()
    ) -> None:
        self._log, self._stats, self._store = log, stats, store
        self._sinks, self._durable = tuple(sinks), tuple(durable)
        for sink in (*self._sinks, *self._durable):
            # The first failure is an increase, not the beginning of a series.
            stats.sink_errors[type(sink).__name__,] += 0

    def record(self, event: Event, entry: Processed | Admitted | None = None) -> None:
        """Number an event and hand it on.

        Args:
            event: What happened.
            entry: Noted first, with the position that the event will have in each durable sink; those that have it
                already, from before a restart, are left out.
        """
        holders: Sequence[str] = ()
        if entry is not None:
            holders = self._store.state.holders(entry)
            self._store.note(msgspec.structs.replace(entry, at=self._positions(event, holders)))
        recorded = self._log.publish(event)
        for sink in self._sinks:
            self._emit(sink, recorded)
        for sink in self._durable:
            if sink.name not in holders:
                self._emit(sink, recorded)

    def _positions(self, event: Event, holders: Sequence[str]) -> dict[str, int]:
        positions = dict.fromkeys(holders, 0)
        for sink in self._durable:
            if sink.name not in positions and isinstance(event, sink.kinds):
                try:
                    positions[sink.name] = sink.accepted + 1
                except Exception:
                    self._count(sink)
        return positions

    def _emit(self, sink: Sink, recorded: Recorded) -> None:
        try:
            sink.emit(recorded)
        except Exception:
            self._count(sink)
            logger.exception("Sink %s failed to take event %d.", type(sink).__name__, recorded.sequence)

    def _count(self, sink: Sink) -> None:
        self._stats.sink_errors[type(sink).__name__,] += 1
