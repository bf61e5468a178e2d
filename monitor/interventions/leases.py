"""An operator's order as values: the lease that it has, and why it is refused."""

from dataclasses import dataclass, field
from typing import Final, Literal

from monitor.events import OrderKind, Request
from monitor.interventions.gate_facts import GateFacts
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
    """How long it was given for."""
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
        """What it went to: engines, and requests of them."""
        return [*((request.engine, request) for request in self.requests), *((engine, None) for engine in self.engines)]
