"""Interventions: from a policy's decisions and operators' orders to orders on the wire, and back to events.

``interventions``   all of it, as the monitor has it
``state``           what is known of a request that is steered, once
``decide``          the policy's decisions, carried out once a request and rule
``fail_closed``     generations that are stopped since they cannot be steered
``gates``           gates of engines: wanted against armed
``gate_facts``      what is known of a gate
``operator``        operators' orders
``targets``         the requests that they may be about
``leases``          the leases that bound them
``orders``          steering on the wire
``gate_decisions``  what gates decided, and what follows
``refusals``        what engines did not do, and what follows
``reports``         what their guard did, and what requests asked for themselves
``deduplicator``    what engines repeat until it is confirmed, taken once each
"""

from monitor.interventions.interventions import Interventions

__all__ = ["Interventions"]
