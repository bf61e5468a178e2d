"""What the monitor tells: verdicts, alerts, interventions, and the state of engines.

Events are values. :class:`EventLog` numbers them, keeps the last ones, and hands them to subscribers; a subscriber that
does not keep up loses the oldest ones, and is told how many.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Mode = Literal["shadow", "alert", "enforce"]
"""How far a rule goes.

* ``shadow``: everything is computed and recorded as what would have happened; nothing is sent.
* ``alert``: alerts are sent; nothing changes a generation.
* ``enforce``: alerts are sent and generations are changed.
"""

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as its user and its engine know it."""

    engine: str
    model: str
    """The name it is served under."""
    request_id: str
    """The id that the user of the API sees."""
    key: str
    """The engine's own, unique id; orders are addressed to it."""
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What one probe read of one request."""

    probe: str
    tokens: int
    """Tokens of the probe's roles that were scored."""
    peak: float | None
    """The largest running aggregate, in logits; ``None`` when too few tokens were read."""
    threshold: float
    fired_at: int | None
    """Position of the token at which the probe fired."""
    unscored: int = 0
    """Tokens of the probe's roles that its worker did not score; 0 for probes that the engine reads. Positions that
    were never heard of have no role, and are among those of the request."""

    @property
    def fired(self) -> bool:
        """Whether the probe fired."""
        return self.fired_at is not None


@dataclass(frozen=True, slots=True)
class ProbeFired:
    """A probe's running aggregate reached its threshold, for the first time in this request."""

    request: Request
    probe: str
    aggregate: float
    threshold: float
    position: int
    role: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule of the policy chose to alert."""

    request: Request
    rule: str
    mode: Mode
    severity: Severity
    probe: str
    aggregate: float
    threshold: float
    position: int
    reason: str
    """The decision in words."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """A rule of the policy chose to steer; in ``shadow``, what it would have done."""

    request: Request
    rule: str
    mode: Mode
    probe: str
    aggregate: float
    threshold: float
    position: int
    vector: str
    dose: float
    tokens: int | None
    """Tokens after which steering is released; ``None``: at the end of the request."""
    sent: bool
    """Whether the order went to the engine: always false in ``shadow``."""
    reason: str
    """The decision in words."""


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request ended; the final verdict of each probe."""

    request: Request
    tokens: int
    """Positions read, each counted once."""
    unscored: int
    """Tokens that no probe could score: served from the prefix cache, or lost on the way. Never passed off as clean."""
    steered: int
    """Rows computed downstream of steering; not part of the verdict."""
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class EngineChanged:
    """An engine connected, was lost, does not fit this monitor, or does not score as its bundle's model would."""

    engine: str
    model: str
    state: Literal["connected", "lost", "refused", "shadow"]
    detail: str


@dataclass(frozen=True, slots=True)
class FramesLost:
    """A gap in an engine's sequence numbers."""

    engine: str
    model: str
    frames: int


Event = ProbeFired | Alert | Intervention | RequestFinished | EngineChanged | FramesLost


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event with its place in the log."""

    sequence: int
    """Ascending by one from 1, since the monitor started."""
    time: datetime
    """UTC."""
    event: Event


class Subscription:
    """One reader of the log: an asynchronous iterator.

    Args:
        limit: Events that may wait; beyond it the oldest is dropped.
        on_drop: Called for every event dropped.
    """

    def __init__(self, limit: int, on_drop: Callable[[], None]) -> None:
        self._waiting: deque[Recorded] = deque()
        self._limit = limit
        self._on_drop = on_drop
        self._ready = asyncio.Event()
        self._closed = False
        self.dropped = 0
        """Events that this reader was too slow for."""

    def push(self, recorded: Recorded) -> None:
        """Offer an event; never blocks."""
        if len(self._waiting) >= self._limit:
            self._waiting.popleft()
            self.dropped += 1
            self._on_drop()
        self._waiting.append(recorded)
        self._ready.set()

    def close(self) -> None:
        """End the iteration once what waits has been read."""
        self._closed = True
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[Recorded]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._closed:
                return
            self._ready.clear()
            await self._ready.wait()


class EventLog:
    """Numbers events, keeps the last ones, and feeds subscribers. To be used from one event loop.

    Args:
        keep: Events kept for subscribers that come back.
        limit: Events that may wait for one subscriber.
        on_drop: Called for every event that a subscriber was too slow for.
    """

    def __init__(self, keep: int = 4096, limit: int = 1024, on_drop: Callable[[], None] = lambda: None) -> None:
        self._kept: deque[Recorded] = deque(maxlen=keep)
        self._limit = limit
        self._on_drop = on_drop
        self._subscriptions: set[Subscription] = set()
        self.last_sequence = 0

    @property
    def subscribers(self) -> int:
        """Readers connected now."""
        return len(self._subscriptions)

    def publish(self, event: Event) -> Recorded:
        """Number an event, keep it, and offer it to every subscriber."""
        self.last_sequence += 1
        recorded = Recorded(self.last_sequence, datetime.now(UTC), event)
        self._kept.append(recorded)
        for subscription in self._subscriptions:
            subscription.push(recorded)
        return recorded

    def subscribe(self, after: int | None = None) -> Subscription:
        """Read events as they come.

        Args:
            after: Begin with the kept events of a higher sequence number; ``None`` begins with the next event.
        """
        subscription = Subscription(self._limit, self._on_drop)
        if after is not None:
            for recorded in self._kept:
                if recorded.sequence > after:
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
