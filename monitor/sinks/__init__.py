"""Sinks: where events go, beside the log that subscribers read.

``base``      the seam
``log``       one line of JSON an event in the log of the process
``memory``    the last events, in memory
``recorder``  every event to the log and to all sinks; a sink that fails breaks nothing
``audit/``    the append-only, hash-chained audit log
"""

from monitor.sinks.base import Sink
from monitor.sinks.log import LogSink
from monitor.sinks.memory import MemorySink
from monitor.sinks.recorder import Recorder

__all__ = ["LogSink", "MemorySink", "Recorder", "Sink"]
