"""Frames in: from engines of the same host, or from memory.

``source``     the seam: messages in, messages out
``local``      over a ZeroMQ socket file
``memory``     for tests and demonstrations
``link``       what the monitor knows of one engine, and owes it
``sequence``   which frames of an engine were lost
"""

from monitor.ingest.link import Link
from monitor.ingest.local import LocalSource
from monitor.ingest.memory import MemorySource
from monitor.ingest.sequence import FrameSequence
from monitor.ingest.source import Arrival, Malformed, Source, core_identity, read_arrival

__all__ = [
    "Arrival",
    "FrameSequence",
    "Link",
    "LocalSource",
    "Malformed",
    "MemorySource",
    "Source",
    "core_identity",
    "read_arrival",
]
