"""Events: their parts (``base``), a type each (``types``), their words (``words``), and the log of them (``log``)."""

from monitor.events import base, types, words
from monitor.events.base import *  # noqa: F403
from monitor.events.log import EventLog, Subscription
from monitor.events.types import *  # noqa: F403 — a new kind of event is named in its own module, and nowhere else

__all__ = ["EventLog", "Subscription", "words"]
__all__ += base.__all__
__all__ += types.__all__
