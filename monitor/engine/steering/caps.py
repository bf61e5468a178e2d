"""Caps on all that may be done to one request at once: orders and gates together.

A gate may be open or not, so the farthest that any choice of open gates can go counts: what gates add one way adds up
with what orders add, and so does what they add the other way; of ranges, the farthest bound. So a cap holds whatever
the gates decide, and two that would never be open together may be refused.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from monitor.engine.steering.acts import NOTHING, entry_of
from monitor.errors import OrderError
from monitor.wire.orders import Arm
from probes.bundle import Bundle, Vector
from probes.steering import Entry

_ROUNDING: Final = 1e-9
"""Relative: doses that add up to the cap are not over it, for the last bits of their sum."""


@dataclass(slots=True)
class _Along:
    """All that may be done along one vector."""

    ordered: Entry = NOTHING
    gated: list[Entry] = field(default_factory=list[Entry])
    caps: list[float] = field(default_factory=list[float])

    @property
    def dose(self) -> float:
        """The farthest, in the units of the residual stream."""
        adds = [entry.add for entry in self.gated]
        up, down = (math.fsum([self.ordered.add, *(bound(add, 0.0) for add in adds)]) for bound in (max, min))
        bounds = [abs(bound) for entry in (self.ordered, *self.gated) for bound in (entry.low, entry.high)]
        return max(abs(up), abs(down)) + max(filter(math.isfinite, bounds), default=0.0)


def require_together(
    bundle: Bundle, ordered: Mapping[int, Entry], gates: Iterable[Arm], max_dose: float | None = None
) -> None:
    """Check what orders and gates come to together.

    Args:
        bundle: Has the vectors and their caps.
        ordered: What orders do to a request at once, by the vector's row.
        gates: That may steer it meanwhile, each within the bundle's caps alone.
        max_dose: A cap of the orders' own, beside the bundle's and the gates'.

    Raises:
        OrderError: Some choice of open gates is over a cap, or ranges have no number in common.
    """
    along = {row: _Along(entry, caps=[] if max_dose is None else [max_dose]) for row, entry in ordered.items()}
    for gate in gates:
        for act in gate.acts:
            row, entry = entry_of(bundle, act)
            there = along.setdefault(row, _Along())
            there.gated.append(entry)
            there.caps += [] if gate.max_dose is None else [gate.max_dose]
    for row, there in along.items():
        _require(bundle.manifest.vectors[row], there)


def _require(vector: Vector, there: _Along) -> None:
    low = max(entry.low for entry in (there.ordered, *there.gated))
    high = min(entry.high for entry in (there.ordered, *there.gated))
    if low > high:
        raise OrderError(
            "conflict",
            f"Orders and gates clamp the projection on vector '{vector.name}' to ranges that have no number in common.",
            "Release or disarm one of them first.",
        )
    caps = [*there.caps, *([] if vector.max_dose is None else [vector.max_dose])]
    dose, cap = there.dose / vector.hidden_norm, min(caps, default=math.inf)
    if dose > cap * (1.0 + _ROUNDING):
        raise OrderError(
            "dose",
            f"What orders and gates may do at once along vector '{vector.name}' comes to a dose of {dose:g}, "
            f"over the cap of {cap:g}.",
            "Release or disarm one of them, or lower a dose.",
        )
