"""One line of JSON an event in the log of the process."""

import logging
from datetime import datetime
from typing import ClassVar, Final

import msgspec

from monitor.events import Event, Recorded, Severity, words

EVENT_LOGGER: Final = "plumbob.events"

LEVELS: Final[dict[Severity, int]] = {
    "info": logging.INFO,
    "warning": logging.WARNING,
    "critical": logging.ERROR,
}
"""Levels of the log, by how grave the words of an event say it is."""


class _Line(msgspec.Struct, frozen=True):
    sequence: int
    time: datetime
    message: str
    """The event in words."""
    event: Event


class LogSink:
    """Write one line of JSON an event: ``sequence``, ``time``, ``message`` and ``event``, its ``type`` and fields.

    Events carry ids, probes and numbers, never text of a prompt or a completion. Kinds that are not
    :attr:`monitor.events.EventBase.logged` are left out.

    Args:
        logger: Where to.
    """

    returns_at_once: ClassVar[bool] = True
    """No thread of its own: whoever reads the log of a monitor that was killed finds in it what was confirmed."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(EVENT_LOGGER)

    def emit(self, recorded: Recorded) -> None:
        """Write the event, if it is of a kind that is logged."""
        if not recorded.event.logged:
            return
        said = words.wording(recorded.event)
        line = _Line(recorded.sequence, recorded.time, str(said), recorded.event)
        self._logger.log(LEVELS[said.severity], "%s", msgspec.json.encode(line).decode())
