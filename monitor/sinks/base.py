"""The seam: what takes events, beside the log that subscribers read."""

from typing import Protocol

from monitor.events import Recorded


class Sink(Protocol):
    """Takes events as they are recorded, and keeps those that it is for.

    A sink of ``plumbob monitor`` is given a thread of its own and a bounded queue
    (:class:`monitor.sinks.BackgroundSink`), so that one that is slow stops nothing else; one whose class says
    ``returns_at_once = True`` is called on the monitor's event loop. ``emit`` may raise; that is logged and counted.
    An Alert, Intervention or Escalated of mode ``shadow`` did not happen, and a sink that reaches people leaves it out.
    """

    def emit(self, recorded: Recorded) -> None:
        """Take one event."""
        ...
