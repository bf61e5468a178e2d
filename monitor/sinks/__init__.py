"""Sinks: where events go, beside the log that subscribers read.

``base``        the seam
``installed``   sinks by name, those of other packages included
``log``         the log of the process, a line of JSON an event
``memory``      the last events, in memory
``background``  a sink on a thread of its own
``durable``     sinks that hold back the confirmation to an engine
``state``       what events say, noted in the store
``recorder``    every event to the log and to all sinks; a sink that fails breaks nothing
``audit/``      the append-only, hash-chained audit log
"""

from monitor.sinks.background import BackgroundSink
from monitor.sinks.base import Sink
from monitor.sinks.durable import Confirmations, DurableSink, Mark
from monitor.sinks.installed import open_sinks, require_sinks
from monitor.sinks.log import LogSink
from monitor.sinks.memory import MemorySink
from monitor.sinks.recorder import Recorder
from monitor.sinks.state import StateSink

__all__ = [
    "BackgroundSink",
    "Confirmations",
    "DurableSink",
    "LogSink",
    "Mark",
    "MemorySink",
    "Recorder",
    "Sink",
    "StateSink",
    "open_sinks",
    "require_sinks",
]
