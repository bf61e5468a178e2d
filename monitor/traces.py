"""Traces of requests that a rule escalated: what their probes read over time, and what was decided. No text.

All of it is bounded: so many requests, of each so many events and so many points. A trace that is full keeps every
second point and goes on at half the rate, so that it spans the whole request.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from monitor.events import Escalated, EventLog, Recorded, Request, RequestFinished, request_of

MAX_TRACES: Final = 256
"""Requests whose trace is kept; beyond it one is forgotten."""
SHARE: Final = 16
"""Traces that the parts of one request of a user may have among them: beyond it, when one is to be forgotten, it is the
oldest of the user's request that has the most. Otherwise it is the oldest."""
MAX_POINTS: Final = 512
"""Of one trace; with three probes, 512 points are about 50 kB."""
MAX_EVENTS: Final = 128
"""Of one trace."""


@dataclass(frozen=True, slots=True)
class Point:
    """The probes' averages on a request at one moment."""

    time: datetime
    """UTC."""
    position: int
    """The highest that had been read."""
    averages: tuple[float | None, ...]
    """Running average of each probe that the engine reads, in logits; ``None``: it has read nothing."""


@dataclass(slots=True)
class Trace:
    """One request that was escalated."""

    request: Request
    escalated: datetime
    events: list[Recorded] = field(default_factory=list[Recorded])
    """About it, those from before it was escalated as far as the log still had them."""
    events_dropped: int = 0
    points: list[Point] = field(default_factory=list[Point])
    """From when it was escalated on."""
    stride: int = 1
    """Every so many frames there is a point."""
    frames: int = 0
    """Seen so far."""
    finished: bool = False


class Traces:
    """Keeps traces; a :class:`monitor.sinks.Sink`.

    Args:
        events: The log, for what was said of a request before it was escalated.
        averages: Tells the highest position of a request in flight, and the running averages of its probes.
        probes: Their names, in the order of the averages.
    """

    def __init__(
        self,
        events: EventLog,
        averages: Callable[[Request], tuple[int, tuple[float | None, ...]] | None],
        probes: tuple[str, ...],
    ) -> None:
        self._events, self._averages, self.probes = events, averages, probes
        self._traces: OrderedDict[tuple[str, str], Trace] = OrderedDict()
        self._open: dict[tuple[str, str], Trace] = {}

    def emit(self, recorded: Recorded) -> None:
        """Begin a trace, or go on with it."""
        event = recorded.event
        request = request_of(event)
        if request is None:
            return
        identity = (request.engine, request.engine_request_id)
        if isinstance(event, Escalated) and event.mode != "shadow" and identity not in self._traces:
            self._begin(identity, request, recorded)
        elif (trace := self._traces.get(identity)) is not None:
            self._add(trace, recorded)
        if isinstance(event, RequestFinished) and (trace := self._open.pop(identity, None)) is not None:
            trace.finished = True

    def observe(self, engine: str) -> None:
        """Take what the probes have read of an engine's escalated requests; called once a frame."""
        for (of, _), trace in self._open.items():
            if of == engine:
                self._observe(trace)

    def find(self, request_id: str | None = None) -> list[Trace]:
        """Traces of requests of this id, as the user of the API sees it, oldest first; ``None``: all."""
        return [t for t in self._traces.values() if request_id is None or t.request.request_id == request_id]

    def _begin(self, identity: tuple[str, str], request: Request, recorded: Recorded) -> None:
        trace = self._traces[identity] = self._open[identity] = Trace(request, recorded.time)
        if len(self._traces) > MAX_TRACES:
            self._forget_one()
        # The log has this event as well.
        for before in self._events.about(request):
            self._add(trace, before)
        self._observe(trace)

    def _forget_one(self) -> None:
        held = Counter((trace.request.engine, trace.request.request_id) for trace in self._traces.values())
        most, count = held.most_common(1)[0]
        goes = next(
            identity
            for identity, trace in self._traces.items()
            if count <= SHARE or (trace.request.engine, trace.request.request_id) == most
        )
        del self._traces[goes]
        self._open.pop(goes, None)

    def _add(self, trace: Trace, recorded: Recorded) -> None:
        if len(trace.events) >= MAX_EVENTS:
            # The first ones say why it was escalated.
            trace.events_dropped += 1
        else:
            trace.events.append(recorded)

    def _observe(self, trace: Trace) -> None:
        trace.frames += 1
        if (trace.frames - 1) % trace.stride or (read := self._averages(trace.request)) is None:
            return
        position, averages = read
        if trace.points and trace.points[-1].position == position:
            return
        trace.points.append(Point(datetime.now(UTC), position, averages))
        if len(trace.points) > MAX_POINTS:
            trace.points = trace.points[::2]
            trace.stride *= 2
