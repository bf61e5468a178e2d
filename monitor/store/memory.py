"""The store that ships: in memory, with a journal on disk."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from monitor.store.entries import Entry, Noted
from monitor.store.journal import SEGMENT_BYTES, Journal
from monitor.store.state import State
from monitor.telemetry.stats import StoreFault


class MemoryStore:
    """Keeps the state in memory, and what it came from in a journal. It is a :class:`monitor.store.Store`.

    Args:
        folder: Of the journal, read first and then held alone; ``None``: nothing outlives the process.
        segment_bytes: A larger segment of the journal is replaced.
        clock: Unix time, in seconds.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = State()
        self.accepted = 0
        self._clock = clock
        self._journal = None if folder is None else Journal(folder, segment_bytes=segment_bytes, clock=clock)
        if self._journal is not None:
            for noted in self._journal.found:
                self.state.apply(noted)
            self._journal.found.clear()
            self.state.forget_old(clock())

    @property
    def settled(self) -> int:
        """Position up to which entries are in the journal, or never will be."""
        return self.accepted if self._journal is None else self._journal.settled

    @property
    def faults(self) -> Counter[StoreFault]:
        """Faults of the journal, and how often each occurred."""
        return Counter() if self._journal is None else self._journal.faults

    def note(self, entry: Entry) -> None:
        """Take an entry: never waits, never raises."""
        noted = Noted(self._clock(), entry)
        self.state.apply(noted)
        self.accepted += 1
        if self._journal is not None:
            self._journal.append(self.accepted, noted)

    def wait(self, position: int, seconds: float) -> bool:
        """Wait until a position is settled; false where it was not in time."""
        return self._journal is None or self._journal.wait(position, seconds)

    def close(self) -> None:
        """Write the journal to its end. May be called twice."""
        if self._journal is not None:
            self._journal.close()
