"""Events: one type a kind (``types``), each in words (``words``), and the log that numbers and keeps them (``log``)."""

from monitor.events import types, words
from monitor.events.log import EventLog, Subscription
from monitor.events.types import *  # noqa: F403 — a new kind of event is named in its own module, and nowhere else

__all__ = ["EventLog", "Subscription", "words"]
__all__ += types.__all__
