"""The store: keeps what the monitor has to know again after it was killed.

``base``     the seam: a store takes entries, and has a local copy of what they come to
``entries``  the entries, one type a kind
``state``    the state they come to: engines, steered requests, the policy in force, alerts that are firing
``values``   its parts
``numbers``  a set of numbers as ranges
``memory``   the store that ships: in memory, with a journal on disk
``journal``  the journal's writer, on a thread of its own
``segment``  the journal's files
"""

from monitor.store.base import Store
from monitor.store.entries import (
    Admitted,
    AlertFired,
    Applied,
    Armed,
    Channel,
    Confirmed,
    Disarmed,
    EngineForgotten,
    Entry,
    Fired,
    LogHead,
    PolicyInForce,
    Processed,
    RequestEnded,
    Resumed,
)
from monitor.store.memory import MemoryStore
from monitor.store.state import State, stored_identity
from monitor.store.values import EngineState, FiringAlert, SteeredRequest

__all__ = [
    "Admitted",
    "AlertFired",
    "Applied",
    "Armed",
    "Channel",
    "Confirmed",
    "Disarmed",
    "EngineForgotten",
    "EngineState",
    "Entry",
    "Fired",
    "FiringAlert",
    "LogHead",
    "MemoryStore",
    "PolicyInForce",
    "Processed",
    "RequestEnded",
    "Resumed",
    "State",
    "SteeredRequest",
    "Store",
    "stored_identity",
]
