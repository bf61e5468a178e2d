"""Events that go with every frame until the monitor has confirmed one that had them."""

import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Generic, Protocol, TypeVar


class Numbered(Protocol):
    """An event with a number, by which the monitor takes it in once."""

    @property
    def number(self) -> int:
        """Counts from 0, in order."""
        ...


_Event = TypeVar("_Event", bound=Numbered)


class Outbox(Generic[_Event]):
    """Events that wait for their confirmation. One thread appends; another sends, and takes away what has arrived.

    Args:
        waiting: The most that wait; beyond it the oldest are lost, which their numbers show.
        carried: Of them, those that one frame carries.
        frames: Frames whose confirmation is waited for; one that is older is as good as lost, and its events are sent
            again.
    """

    def __init__(self, waiting: int, carried: int, frames: int) -> None:
        self._lock = threading.Lock()
        self._events: deque[_Event] = deque(maxlen=waiting)
        self._per_frame = carried
        self._sent: deque[tuple[int, int]] = deque(maxlen=frames)
        """Frames sent with events: sequence number, and the last event's."""

    def extend(self, events: Iterable[_Event]) -> None:
        """Send these as well."""
        with self._lock:
            self._events.extend(events)

    def carry(self, sequence: int) -> list[_Event]:
        """The events that the frame of this sequence number carries, oldest first."""
        with self._lock:
            events = list(islice(self._events, self._per_frame))
        if events:
            self._sent.append((sequence, events[-1].number))
        return events

    def confirm(self, sequence: int) -> None:
        """Forget the events of a frame that has arrived; one that was dropped on its way is never confirmed itself."""
        arrived = next((number for sent, number in self._sent if sent == sequence), -1)
        with self._lock:
            while self._events and self._events[0].number <= arrived:
                self._events.popleft()
