"""Sinks: where events go, beside the log that subscribers read.

``base``      the seam, and the sinks that write to the process's log and to memory
``recorder``  every event to the log and to all sinks; a sink that fails breaks nothing
``audit/``    the append-only, hash-chained audit log
"""

from monitor.sinks.base import LogSink, MemorySink, Sink
from monitor.sinks.recorder import Recorder

__all__ = ["LogSink", "MemorySink", "Recorder", "Sink"]
