"""Leases of operators' orders, as values, and the table of those that run.

A lease is what bounds an order, not a connection: the engine itself undoes it after so many seconds
(:mod:`monitor.engine.steering.leases`), whether or not its operator, or this monitor, is still there, and its requests'
ends end it too. What is to be undone earlier on an engine that cannot be reached is tried again until it can be or is
gone.
"""

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Final, Literal

from monitor.events import OrderKind, Request
from monitor.interventions.gate_facts import GateFacts
from monitor.interventions.orders import SendOrder
from monitor.telemetry.stats import Stats
from monitor.wire.orders import Disarm, Release
from probes.errors import PlumbobError

MAX_LEASE_SECONDS: Final = 3600.0
"""Nobody remembers an order of last week: what is to last is a rule of the policy."""
MAX_ORDERS: Final = 64
"""Leases that run at once; gates of an engine are fewer."""
MAX_FINISHED: Final = 4096
"""Requests that are remembered to have ended, to tell them from those that never were, and as many orders."""

MAX_UNDOING: Final = 4096
"""Orders that are to be undone as soon as their engines can be reached; beyond it, the oldest run until their end."""

Why = Literal["invalid", "unknown", "state", "full", "unreachable"]
"""Why an order is refused: it makes no sense or is beyond a cap; it names what is not there; its request has ended or
its engine is held to shadow; too many leases run; the engine cannot be reached."""


class LeaseError(PlumbobError):
    """An operator's order that is refused; what an engine refuses later is its :class:`monitor.errors.OrderError`."""

    def __init__(self, why: Why, message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.why: Why = why


@dataclass(slots=True)
class Lease:
    """An order until it is undone."""

    id: str
    kind: OrderKind
    who: str
    detail: str
    ends: float
    """Of the monotonic clock, in seconds."""
    seconds: float
    """Seconds that it was given for."""
    requests: list[Request] = field(default_factory=list[Request])
    """Of ``steer``: those in flight that it steers."""
    engines: list[str] = field(default_factory=list[str])
    """Of ``arm``: those that have the gate."""
    refused: set[str] = field(default_factory=set[str])
    """Of ``arm``: those that said that they do not arm it, and were not lost since; they are not asked again."""
    facts: GateFacts | None = None
    """Of ``arm``: what its gate reads and does. The order goes out with what is left of the lease."""
    max_dose: float | None = None
    """The policy's cap when it was given."""

    @property
    def targets(self) -> list[tuple[str, Request | None]]:
        """Engines that it went to, and requests of them."""
        return [*((request.engine, request) for request in self.requests), *((engine, None) for engine in self.engines)]


class Leases:
    """Keeps the leases that run, and a while those that have ended.

    Args:
        send_order: Sends orders.
        stats: Where what is forgotten for want of room is counted.
    """

    def __init__(self, send_order: SendOrder, stats: Stats) -> None:
        self._send, self._stats = send_order, stats
        self._running: OrderedDict[str, Lease] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        """Orders whose end is recorded: what an engine says of them is no news."""
        self._undoing: list[tuple[str, Release | Disarm]] = []
        """Orders to undo that could not be sent yet, with their engine."""

    @property
    def running(self) -> list[Lease]:
        """Those that run, oldest first."""
        return list(self._running.values())

    def find(self, id: str) -> Lease | None:
        """The lease of an order; ``None`` where it does not run."""
        return self._running.get(id)

    def ended(self, id: str) -> bool:
        """True where a lease has ended by itself, or by its engine's word."""
        return id in self._ended

    def add(self, lease: Lease) -> None:
        """Let a lease run."""
        self._running[lease.id] = lease

    def end(self, lease: Lease) -> None:
        """Let a lease end, of which nothing more is to be heard."""
        del self._running[lease.id]
        self._ended[lease.id] = None
        if len(self._ended) > MAX_FINISHED:
            self._ended.popitem(last=False)
            self._stats.forgotten["ended_order",] += 1

    def undo(self, lease: Lease) -> None:
        """Undo an order before its lease ends, at once or as soon as its engines can be reached."""
        del self._running[lease.id]
        orders = [(request.engine, Release(request.engine_request_id, lease.id)) for request in lease.requests]
        orders += [(engine, Disarm(lease.id)) for engine in lease.engines]
        self._undoing += [(engine, order) for engine, order in orders if not self._send(engine, order)]
        if (excess := len(self._undoing) - MAX_UNDOING) > 0:
            del self._undoing[:excess]
            self._stats.forgotten["undo",] += excess

    def send_again(self, engines: Container[str]) -> None:
        """Undo what could not be undone before, on those engines that are still there."""
        self._undoing = [
            (engine, order) for engine, order in self._undoing if engine in engines and not self._send(engine, order)
        ]

    def lost(self, engine: str) -> None:
        """Forget that an engine has gates, or refused them."""
        for lease in self._running.values():
            if engine in lease.engines:
                lease.engines.remove(engine)
            lease.refused.discard(engine)

    def refused(self, engine: str, id: str, engine_request_id: str) -> None:
        """Take it that an engine does not carry out an order, or no more: there is nothing to undo there."""
        if (lease := self._running.get(id)) is None:
            return
        if engine in lease.engines:
            lease.engines.remove(engine)
            lease.refused.add(engine)
        refused = (engine, engine_request_id)
        lease.requests = [
            request for request in lease.requests if (request.engine, request.engine_request_id) != refused
        ]
        if not lease.engines and not lease.requests:
            self.end(lease)

    def finish(self, request: Request) -> None:
        """Take it that a request has ended: its orders have nothing left to undo."""
        for lease in [lease for lease in self._running.values() if request in lease.requests]:
            lease.requests.remove(request)
            if not lease.requests:
                del self._running[lease.id]
