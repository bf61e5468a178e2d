"""Steering outside the engine: what is done to the states that leave a block.

There is one way to steer offline, for the causal check (:mod:`probes.steering.causal`), teacher forcing
(:mod:`probes.models.teacher_forcing`) and generation (:mod:`probes.steering.generation`): an edit rewrites the site
``resid_post`` of a :class:`~probes.models.hooked.HookedModel`. It does what the engine's op
does, in the same order of operations: after the block, before any further norm, in float32, and a row that nothing is
done to keeps every bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from probes.bundle import Bundle
from probes.steering.operation import Operation, ablate


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """An edit of the states that leave one block."""

    layer: int
    """The block, counted from 0."""
    vectors: NDArray[np.floating]
    """Unit rows, shape ``(vectors, hidden)``."""
    table: NDArray[np.floating]
    """An :class:`~probes.steering.operation.Entry` a vector, shape ``(vectors, 4)``."""
    everywhere: bool = False
    """To every row, whichever are chosen."""

    @classmethod
    def adding(cls, layer: int, vector: NDArray[np.floating]) -> Self:
        """Add a vector of any length, shape ``(hidden,)``, to the chosen rows."""
        # By its largest number first, whose square may be beyond all numbers.
        largest = float(np.abs(vector).max()) or 1.0
        scaled = np.asarray(vector, np.float64) / largest
        norm = float(np.linalg.norm(scaled))
        length, unit = largest * norm, scaled / (norm or 1.0)
        return cls(layer, unit[None], np.array([Operation(add=length).entry(1.0)]))

    @classmethod
    def ablating(cls, layer: int, unit: NDArray[np.floating]) -> Self:
        """Take the projection on a unit vector, shape ``(hidden,)``, out of every row.

        Arditi et al., arXiv 2406.11717, equation 4.
        """
        return cls(layer, np.asarray(unit, np.float64)[None], np.array([ablate().entry(1.0)]), everywhere=True)

    def __call__(self, states: Any, chosen: Any) -> Any:
        """Rewrite states.

        Args:
            states: A tensor of shape ``(texts, tokens, hidden)``.
            chosen: Which rows are steered, shape ``(texts, tokens)``.

        Returns:
            A tensor of the same shape and type.
        """
        exact = states.float()
        vectors, table = exact.new_tensor(self.vectors), exact.new_tensor(self.table)
        add, scale, low, high = table.unbind(-1)
        projection = exact @ vectors.T
        # See probes.steering.operation.steer, and the engine's op: the same, term by term.
        amount = add + ((scale * projection).clamp(low, high) - projection)
        change = (amount[..., None] * vectors).sum(-2)
        if not self.everywhere:
            change = change * chosen[..., None]
        return states.where(change == 0, (exact + change).to(states.dtype))


def edits_of(bundle: Bundle, operations: Mapping[str, Operation]) -> list[Edit]:
    """The edits that operations on a bundle's vectors come to, one a layer, ascending.

    Args:
        bundle: It has the vectors.
        operations: By name of the vector; several of one layer are one edit, as in the engine.

    Raises:
        BundleError: It has no such vector, or an operation is over a vector's cap.
    """
    for name, operation in operations.items():
        bundle.vector(name).require_dose(operation.strength)
    layers: dict[int, list[int]] = {}
    for row, vector in enumerate(bundle.manifest.vectors):
        if vector.name in operations:
            layers.setdefault(vector.layer, []).append(row)
    vectors = bundle.manifest.vectors
    return [
        Edit(
            layer,
            bundle.vectors[rows],
            np.array([operations[vectors[row].name].entry(vectors[row].hidden_norm) for row in rows]),
        )
        for layer, rows in sorted(layers.items())
    ]
