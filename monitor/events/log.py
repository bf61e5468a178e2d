"""The event log: numbers events, keeps the last ones, and hands them to subscribers.

What is kept, and what waits for a subscriber, is shared out among the requests of users
(:class:`monitor.events.bounds.KeptEvents`): with 4,096 events kept, an event that is not routine is pushed out by
others only once those of 192 other requests have come after it, however many events a request has. A subscriber that
does not keep up loses events by the same rule, those of requests that ended first of all, and counts them. Whatever is
lost shows as a gap in the sequence numbers, at the next event that is read.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from monitor.events.base import Request, request_of
from monitor.events.bounds import KeptEvents, bounded
from monitor.events.types import Event, Recorded


class Subscription:
    """One reader of the log: an asynchronous iterator.

    Args:
        limit: Events that may wait; beyond it one is dropped, a routine one where there is one.
        on_drop: Called for every event dropped.
    """

    def __init__(self, limit: int, on_drop: Callable[[], None]) -> None:
        self._waiting = KeptEvents(limit, 0)
        self._on_drop = on_drop
        self._ready = asyncio.Event()
        self._closed = False
        self.dropped = 0
        """Events that this reader was too slow for."""

    def push(self, recorded: Recorded) -> None:
        """Offer an event; never blocks."""
        for _ in range(self._waiting.add(recorded)):
            self.dropped += 1
            self._on_drop()
        self._ready.set()

    def close(self) -> None:
        """End the iteration once what waits has been read."""
        self._closed = True
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[Recorded]:
        while True:
            while self._waiting:
                yield self._waiting.pop()
            if self._closed:
                return
            self._ready.clear()
            await self._ready.wait()


class EventLog:
    """Numbers events, keeps the last ones, and feeds subscribers. To be used from one event loop.

    Args:
        keep: Events kept for subscribers that come back, a quarter of them routine ones at most where room is short.
        limit: Events that may wait for one subscriber.
        on_drop: Called for every event that a subscriber was too slow for.
    """

    def __init__(self, keep: int = 4096, limit: int = 1024, on_drop: Callable[[], None] = lambda: None) -> None:
        self._kept = KeptEvents(keep, keep // 4)
        self._limit = limit
        self._on_drop = on_drop
        self._subscriptions: set[Subscription] = set()
        self.last_sequence = 0

    @property
    def subscribers(self) -> int:
        """Readers connected now."""
        return len(self._subscriptions)

    def publish(self, event: Event) -> Recorded:
        """Number an event, keep it, and offer it to every subscriber; one that is too large has its texts cut."""
        self.last_sequence += 1
        recorded = Recorded(self.last_sequence, datetime.now(UTC), bounded(event))
        self._kept.add(recorded)
        for subscription in self._subscriptions:
            subscription.push(recorded)
        return recorded

    def about(self, request: Request) -> list[Recorded]:
        """The kept events about a request, oldest first."""
        return [recorded for recorded in self._kept if request_of(recorded.event) == request]

    def subscribe(self, after: int | None = None) -> Subscription:
        """Read events as they come.

        Args:
            after: Begin with the kept events of a higher sequence number; ``None`` begins with the next event.
        """
        kept = [] if after is None else [recorded for recorded in self._kept if recorded.sequence > after]
        # What is kept for those who come back is not lost because they all come at once.
        subscription = Subscription(self._limit + len(kept), self._on_drop)
        for recorded in kept:
            subscription.push(recorded)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a reader."""
        self._subscriptions.discard(subscription)
        subscription.close()

    def close(self) -> None:
        """End all iterations."""
        for subscription in tuple(self._subscriptions):
            self.unsubscribe(subscription)
