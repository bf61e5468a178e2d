"""Decisions to deeds: orders to engines, events to the log and to sinks.

``actions``    what a decision does, once a request and rule
``gates``      what a gate of an engine does, as an order and in words
``arming``     which gates engines have armed
``decisions``  what gates decided, told once each
``recorder``   every event to the log and to all sinks; a sink that fails breaks nothing
``sinks``      where events go
"""

from monitor.actions.actions import Actions, SendOrder
from monitor.actions.arming import Arming
from monitor.actions.decisions import GateDecisions
from monitor.actions.recorder import Recorder
from monitor.actions.sinks import LogSink, MemorySink, Sink

__all__ = ["Actions", "Arming", "GateDecisions", "LogSink", "MemorySink", "Recorder", "SendOrder", "Sink"]
