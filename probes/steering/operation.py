r"""Steering of a row at one layer, and the numbers that the engine's table holds for it.

With the projection :math:`p = u \cdot x` of a state on a unit vector, a row becomes

.. math::

    x \leftarrow x + \bigl( a + \operatorname{clip}(c\, p, l, m) - p \bigr)\, u

and ``(a, c, l, m)`` is the entry of the engine's table (``monitor.engine.ops.tap``). An :class:`Operation` is the same
in the unit of dose: ``a``, ``l`` and ``m`` are multiples of the median norm of the residual stream at that layer, so
that 0.1 means as much at every layer and in every model. Three kinds have names:

* **add** a dose (contrastive activation addition, Rimsky et al., arXiv 2312.06681): ``a`` alone;
* **ablate** (directional ablation, Arditi et al., arXiv 2406.11717, equation 4, here at one layer): ``c = 0``;
* **clamp** the projection to a range: ``l`` and ``m``; rows that are inside it are left alone, exactly.

:func:`steer` is the reference in numpy, which the engine's op and the hook of offline runs are tested against.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probes.errors import SteeringError


class Entry(NamedTuple):
    """Of the engine's table, in the units of the residual stream."""

    add: float
    scale: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on the projection of a row on a vector; by default, none.

    Raises:
        SteeringError: A number is none, or the range is empty.
    """

    add: float = 0.0
    """Dose: added to the projection, in norms of the residual stream."""
    scale: float = 1.0
    """Factor of the projection."""
    low: float = -math.inf
    """It is at least this, before anything is added, in norms of the residual stream."""
    high: float = math.inf
    """It is at most this."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.add) and math.isfinite(self.scale)):
            raise SteeringError(
                f"A dose of {self.add:g} and a scale of {self.scale:g} cannot be applied.", "Give finite numbers."
            )
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise SteeringError(
                f"The range from {self.low:g} to {self.high:g} holds no number.", "Give the lower bound first."
            )

    @property
    def strength(self) -> float:
        """The number that a cap is compared with: the dose, and the farther bound of the range, if it has one.

        To ablate has none: it takes away what is there, and no more.
        """
        return abs(self.add) + max((abs(bound) for bound in (self.low, self.high) if math.isfinite(bound)), default=0.0)

    def entry(self, hidden_norm: float) -> Entry:
        """The numbers of the engine's table.

        Args:
            hidden_norm: Of the vector: the unit of dose.
        """
        return Entry(self.add * hidden_norm, self.scale, self.low * hidden_norm, self.high * hidden_norm)


def add(dose: float) -> Operation:
    """Add to the projection."""
    return Operation(add=dose)


def ablate() -> Operation:
    """Take the projection away."""
    return Operation(scale=0.0)


def clamp(low: float = -math.inf, high: float = math.inf) -> Operation:
    """Keep the projection in a range."""
    return Operation(low=low, high=high)


NOTHING: Final = Operation()
"""Leaves a row as it is, exactly."""


def steer(
    states: NDArray[np.floating], vectors: NDArray[np.floating], table: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Rows after steering: the reference.

    All projections are of the row before steering, so that the order of vectors does not matter.

    Args:
        states: Shape ``(tokens, hidden)``.
        vectors: Unit rows, shape ``(vectors, hidden)``.
        table: An :class:`Entry` a vector, shape ``(vectors, 4)``.

    Returns:
        Shape ``(tokens, hidden)``, float64.
    """
    states = np.asarray(states, np.float64)
    vectors = np.asarray(vectors, np.float64)
    add, scale, low, high = np.asarray(table, np.float64).T
    projection = states @ vectors.T
    # The difference first: where nothing is scaled or clipped it is exactly zero, and the amount exactly ``add``.
    amount = add + (np.clip(scale * projection, low, high) - projection)
    # Products before the sum, as in the engine's op: opposite amounts of opposite vectors then cancel exactly.
    return states + (amount[..., None] * vectors).sum(axis=-2)
