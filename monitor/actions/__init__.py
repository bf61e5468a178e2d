"""Decisions to deeds: orders to engines, events to the log and to sinks.

``actions``    what a decision does, once a request and rule
``recorder``   every event to the log and to all sinks; a sink that fails breaks nothing
``sinks``      where events go
"""

from monitor.actions.actions import Actions, SendOrder
from monitor.actions.recorder import Recorder
from monitor.actions.sinks import LogSink, MemorySink, Sink

__all__ = ["Actions", "LogSink", "MemorySink", "Recorder", "SendOrder", "Sink"]
