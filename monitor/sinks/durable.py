"""Sinks that hold back the confirmation to an engine, and how long for.

An engine repeats what it decided until a frame that had it is confirmed. So the confirmation waits until every durable
sink, and the store, have settled what was made of the frame: whenever the monitor is killed, the engine still has what
is missing. A sink that hangs must not keep the others from the engine's next decisions (a frame carries the oldest 64
that are not confirmed), so that one without any progress for some time is counted, logged, and waited for no longer
until it is well again.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from monitor.events import Event
from monitor.sinks.base import Sink
from monitor.store import Store
from monitor.telemetry.stats import Stats

STORE: Final = "store"
"""The store's name among durable sinks."""

logger = logging.getLogger(__name__)


class DurableSink(Sink, Protocol):
    """A sink whose ``settled`` position holds back the confirmation to the engine.

    Positions count what the sink has taken since it was first made, over restarts: before anything is emitted,
    ``settled`` is where an earlier monitor's sink of the same name ended. One that does not remember begins at 0, and
    is sent again what engines repeat.

    It writes a position only after ``store.wait(store.accepted at the time of emit, …)``: so what it has is always
    known to the store, and after a kill each event is in it once.
    """

    @property
    def name(self) -> str:
        """Names the sink and where it writes; the same after a restart, and no other's."""
        ...

    @property
    def kinds(self) -> tuple[type[Event], ...]:
        """Events of which ``emit`` takes every one, as one position."""
        ...

    @property
    def accepted(self) -> int:
        """Position of the last event that was taken."""
        ...

    @property
    def settled(self) -> int:
        """Position up to which events outlive the process, or never will."""
        ...


def settled_positions(sinks: Iterable[DurableSink], stats: Stats) -> dict[str, int]:
    """Positions of sinks before anything is emitted, by name; of one that fails to tell it, nothing is known."""
    positions: dict[str, int] = {}
    for sink in sinks:
        try:
            positions[sink.name] = sink.settled
        except Exception:
            stats.sink_errors[type(sink).__name__,] += 1
            logger.exception("Sink %s fails to tell its position.", type(sink).__name__)
    return positions


@dataclass(frozen=True, slots=True)
class Mark:
    """The positions of the store and of all durable sinks after a frame."""

    positions: tuple[int, ...]


@dataclass(slots=True)
class _Watched:
    """One of those that are waited for."""

    name: str
    sink: Store | DurableSink
    since: float
    """When it last made progress, or had nothing to do."""
    last: int = 0
    """Its settled position then."""
    stalled: bool = False
    silent: bool = False
    """It fails to tell its position."""

    @property
    def label(self) -> str:
        """Its name without where it writes."""
        return self.name.partition(":")[0]


class Confirmations:
    """Knows whether what was made of a frame is settled everywhere.

    Args:
        store: Waited for like a sink.
        sinks: All of them are waited for.
        stats: Where stalls are counted.
        patience_seconds: Without progress for so long, one that should make some has stalled.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        store: Store,
        sinks: Sequence[DurableSink],
        stats: Stats,
        *,
        patience_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stats, self._patience, self._clock = stats, patience_seconds, clock
        self._watched = [
            _Watched(STORE, store, clock()),
            *(_Watched(sink.name, sink, clock()) for sink in sinks),
        ]
        for watched in self._watched:
            # The first stall is an increase, not the beginning of a series.
            stats.sink_stalls[watched.label,] += 0

    def mark(self) -> Mark:
        """The present positions."""
        return Mark(tuple(self._read(watched, "accepted") for watched in self._watched))

    def settled(self, mark: Mark) -> bool:
        """True where everybody but those that have stalled is settled up to a mark."""
        return all(
            watched.stalled or self._read(watched, "settled") >= position
            for watched, position in zip(self._watched, mark.positions, strict=True)
        )

    def tick(self) -> None:
        """Find those that have stalled, and those that are well again."""
        now = self._clock()
        for watched in self._watched:
            settled, accepted = self._read(watched, "settled"), self._read(watched, "accepted")
            if settled >= accepted or settled != watched.last:
                if watched.stalled:
                    logger.warning("Sink %s makes progress again; engines are confirmed with it.", watched.name)
                watched.last, watched.since, watched.stalled = settled, now, False
            elif not watched.stalled and now - watched.since > self._patience:
                watched.stalled = True
                self._stats.sink_stalls[watched.label,] += 1
                logger.error(
                    "Sink %s has made no progress for %.0f s; engines are confirmed without it, and what it has not "
                    "settled is missing there if the monitor ends now.",
                    watched.name,
                    now - watched.since,
                )

    def _read(self, watched: _Watched, position: Literal["accepted", "settled"]) -> int:
        try:
            found = watched.sink.accepted if position == "accepted" else watched.sink.settled
        except Exception:
            if not watched.silent:
                watched.silent = True
                self._stats.sink_errors[watched.label,] += 1
                logger.exception("Sink %s fails to tell its position.", watched.name)
            return watched.last
        watched.silent = watched.silent and position == "accepted"
        return found
