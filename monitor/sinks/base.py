"""The seam: what takes events, beside the log that subscribers read."""

from typing import Protocol

from monitor.events import Recorded


class Sink(Protocol):
    """Takes events as they are recorded, and keeps those that it is for.

    ``emit`` is called on the monitor's event loop: it returns at once, and what is slow goes to a queue of
    the sink's own. It may raise; that is logged and counted. An Alert, Intervention or Escalated of mode
    ``shadow`` did not happen, and a sink that reaches people leaves it out.
    """

    def emit(self, recorded: Recorded) -> None:
        """Take one event."""
        ...
