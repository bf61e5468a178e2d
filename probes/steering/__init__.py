"""Steering: directions as values, what may be done with them to the residual stream, and what that is worth.

What is named here needs numpy alone. Extraction, generation, the dose sweep and the comparison of policies are modules
of their own, which read a model.
"""

from probes.steering.direction import Direction, fingerprint
from probes.steering.expression import combine
from probes.steering.operation import NOTHING, Entry, Operation, ablate, add, clamp, steer

__all__ = [
    "NOTHING",
    "Direction",
    "Entry",
    "Operation",
    "ablate",
    "add",
    "clamp",
    "combine",
    "fingerprint",
    "steer",
]
