"""The parts of the state: an engine, a steered request, an alert that is firing."""

from dataclasses import dataclass, field

from monitor.store.entries import Channel, Fired
from monitor.store.numbers import Numbers


@dataclass(slots=True)
class EngineState:
    """One engine."""

    time: float
    """When something was noted of it last, in Unix time."""
    processed: dict[Channel, Numbers] = field(default_factory=dict[Channel, Numbers])
    """Numbers of what was recorded, or is about to be."""
    unsettled: dict[tuple[Channel, int], dict[str, int]] = field(
        default_factory=dict[tuple[Channel, int], dict[str, int]]
    )
    """Positions in durable sinks of what is processed, as long as it is not known that they have it."""
    partly: dict[tuple[Channel, int], tuple[str, ...]] = field(
        default_factory=dict[tuple[Channel, int], tuple[str, ...]]
    )
    """Durable sinks that have what is to be processed again."""
    armed: set[str] = field(default_factory=set[str])
    """Gates that it was ordered to arm, and not to disarm."""


@dataclass(slots=True)
class SteeredRequest:
    """One request in flight."""

    time: float
    admitted: bool = False
    """True where its admission is recorded, or is about to be."""
    at: dict[str, int] = field(default_factory=dict[str, int])
    """Positions of that in durable sinks."""
    partly: tuple[str, ...] = ()
    """Durable sinks that have it, where others are to have it again."""
    rules: set[str] = field(default_factory=set[str])
    """Those that were carried out on it."""
    fired: dict[str, Fired] = field(default_factory=dict[str, Fired])
    """Firings that were told, by probe."""


@dataclass(frozen=True, slots=True)
class FiringAlert:
    """The alerts of one rule, severity, model and probe."""

    since: float
    """In Unix time."""
    last: float
    times: int
