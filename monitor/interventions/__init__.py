"""Interventions: from a policy's decisions to orders on the wire, and back to events.

``actions``         what a decision does, once a request and rule
``gates``           what a gate of an engine does, as an order and in words
``arming``          which gates engines have armed
``gating``          arming, and what follows from what gates decide
``gate_decisions``  what gates decided, recorded once each
``deduplicator``    what engines repeat until it is confirmed, taken once each
``operator``        an operator's orders
``leases``          the leases that bound them
"""

from monitor.interventions.actions import Actions, SendOrder
from monitor.interventions.arming import Arming
from monitor.interventions.gate_decisions import GateDecisions

__all__ = ["Actions", "Arming", "GateDecisions", "SendOrder"]
