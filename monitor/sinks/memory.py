"""The last events, kept in memory: for tests, and for programs that run a monitor inside."""

from collections import deque

from monitor.events import Event, Recorded


class MemorySink:
    """Keep the last events.

    Args:
        limit: How many; beyond it the oldest is forgotten.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._kept: deque[Recorded] = deque(maxlen=limit)

    @property
    def recorded(self) -> list[Recorded]:
        """Kept events, oldest first, each with its place in the log."""
        return list(self._kept)

    @property
    def events(self) -> list[Event]:
        """The events alone, oldest first."""
        return [recorded.event for recorded in self._kept]

    def emit(self, recorded: Recorded) -> None:
        """Keep the event."""
        self._kept.append(recorded)
