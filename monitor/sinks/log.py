"""One line of JSON an event in the log of the process."""

import logging
from typing import Final

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


class LogSink:
    """Writes one line of JSON an event: ``sequence``, ``time`` and ``event``, its ``type`` and its fields.

    Events carry ids, probes and numbers, never text of a prompt or a completion. Kinds that are not
    :attr:`monitor.events.EventBase.logged` are left out.

    Args:
        logger: Where to; alerts and what is wrong with engines at WARNING, the rest at INFO.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(EVENT_LOGGER)

    def emit(self, recorded: Recorded) -> None:
        """Write the event, if it is of a kind that is logged."""
        if recorded.event.logged:
            self._logger.log(_level(recorded.event), "%s", msgspec.json.encode(recorded).decode())


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
