"""The seam between the monitor and whatever keeps its state."""

from collections import Counter
from typing import Protocol

from monitor.store.entries import Entry
from monitor.store.state import State
from monitor.telemetry.stats import StoreFault


class Store(Protocol):
    """Keeps entries, and has a local copy of what they come to.

    Nothing on the path from a frame to an order waits for it: ``note`` returns at once, ``state`` is in memory, and
    what is slow goes on elsewhere. Positions count the entries noted since the store was opened: an entry is *settled*
    once a killed monitor's successor would find it, or once that is given up and counted. A confirmation to an engine
    waits for that, and a durable sink writes what an entry is about only afterwards (``wait``), so that the entry of a
    record that is on disk is never missing.

    A store that replicas share keeps ``state`` up to date with what the others note.
    """

    @property
    def state(self) -> State:
        """The state that the entries come to. To be read, and used from the monitor's event loop only."""
        ...

    @property
    def accepted(self) -> int:
        """Position of the last entry that was noted; 0 before the first."""
        ...

    @property
    def settled(self) -> int:
        """Position up to which entries are kept, or never will be."""
        ...

    @property
    def faults(self) -> Counter[StoreFault]:
        """Faults, and how often each occurred."""
        ...

    def note(self, entry: Entry) -> None:
        """Take an entry: never waits, never raises. To be called from the monitor's event loop only."""
        ...

    def wait(self, position: int, seconds: float) -> bool:
        """Wait until a position is settled; false where it was not in time. Called from threads of sinks."""
        ...

    def close(self) -> None:
        """Keep what was noted, and let go of everything. May be called twice."""
        ...
