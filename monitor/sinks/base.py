"""Where events go, beside the log that subscribers read."""

import logging
from collections import deque
from typing import Final, Protocol

import msgspec

from monitor.events import (
    Alert,
    EngineChanged,
    Escalated,
    Event,
    FramesLost,
    Guarded,
    Intervention,
    InterventionEnded,
    InterventionsLost,
    Ordered,
    PolicyChanged,
    Recorded,
)

EVENT_LOGGER: Final = "plumbob.events"

LOGGED: Final[tuple[type[Event], ...]] = (
    Alert,
    Intervention,
    InterventionEnded,
    InterventionsLost,
    Guarded,
    Escalated,
    Ordered,
    EngineChanged,
    FramesLost,
    PolicyChanged,
)
"""What is written to the log of the process; firings and finished requests are not, since there are many."""


class Sink(Protocol):
    """Takes events as they are recorded, and keeps those that it is for.

    ``emit`` is called on the monitor's event loop: it returns at once, and what is slow goes to a queue of
    the sink's own. It may raise; that is logged and counted. An Alert, Intervention or Escalated of mode
    ``shadow`` did not happen, and a sink that reaches people leaves it out.
    """

    def emit(self, recorded: Recorded) -> None:
        """Take one event."""
        ...


class MemorySink:
    """Keeps the last events.

    Args:
        limit: How many; beyond it the oldest is forgotten.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._kept: deque[Recorded] = deque(maxlen=limit)

    @property
    def recorded(self) -> list[Recorded]:
        """What was kept, oldest first."""
        return list(self._kept)

    @property
    def events(self) -> list[Event]:
        """The events alone, oldest first."""
        return [recorded.event for recorded in self._kept]

    def emit(self, recorded: Recorded) -> None:
        """Keep the event."""
        self._kept.append(recorded)


class LogSink:
    """Writes one line of JSON an event: ``sequence``, ``time``, ``kind`` and the fields of the event.

    Events carry ids, probes and numbers, never text of a prompt or a completion.

    Args:
        logger: Where to; alerts and what is wrong with engines at WARNING, the rest at INFO.
        kinds: What is written.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        kinds: tuple[type[Event], ...] = LOGGED,
    ) -> None:
        self._logger = logger or logging.getLogger(EVENT_LOGGER)
        self._kinds = kinds

    def emit(self, recorded: Recorded) -> None:
        """Write the event, if it is of the kinds wanted."""
        event = recorded.event
        if isinstance(event, self._kinds):
            line = {
                "sequence": recorded.sequence,
                "time": recorded.time,
                "kind": type(event).__name__,
                "event": event,
            }
            self._logger.log(_level(event), "%s", msgspec.json.encode(line).decode())


def _level(event: Event) -> int:
    match event:
        case Alert(mode="shadow") | Intervention(mode="shadow") | Escalated(mode="shadow"):
            return logging.INFO
        case InterventionEnded() | EngineChanged(state="connected") | Ordered(who="policy", result="sent"):
            return logging.INFO
        case Alert() | Intervention() | InterventionsLost() | Guarded() | Escalated():
            return logging.WARNING
        case Ordered() | EngineChanged() | FramesLost() | PolicyChanged(in_force=False):
            return logging.WARNING
        case _:
            return logging.INFO
