"""Directions of the residual stream as values: they add, subtract, scale, and can be made orthogonal to each other.

A direction belongs to one layer of one model. Two of different models or layers have nothing in common, whatever their
width: combining them is an error, not a warning. Every operation gives a new value.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from probes.bundle.manifest import ModelIdentity
from probes.errors import SteeringError

PARALLEL = 1e-6
"""Share of a direction's norm that must be left beside another for it to be told from rounding."""


def fingerprint(model: ModelIdentity) -> str:
    """The model that a direction is bound to: the SHA-256 of its parts, hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(sorted(model.parts.items()))).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A direction at one layer of one model; of any length, zero included.

    Raises:
        SteeringError: It is no vector, or not finite.
    """

    model: str
    """The :func:`fingerprint` of the model."""
    layer: int
    """It is a direction of the output of block ``layer``, counted from 0."""
    values: NDArray[np.float64]
    """Shape ``(hidden,)``; cannot be written to."""

    def __post_init__(self) -> None:
        values = np.array(self.values, np.float64)
        if values.ndim != 1 or not len(values):
            raise SteeringError(f"A direction of shape {values.shape} is none.", "It takes one number a dimension.")
        if not np.isfinite(values).all():
            raise SteeringError("A direction is not finite.", "Make it again from finite numbers.")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @property
    def norm(self) -> float:
        """Its length."""
        return float(np.linalg.norm(self.values))

    def unit(self) -> Self:
        """The same, of length 1.

        Raises:
            SteeringError: Its length is zero.
        """
        # By its largest number first: the squares of very small or large ones are not.
        largest = float(np.abs(self.values).max())
        if largest == 0:
            raise SteeringError("A direction of length 0 points nowhere.", "Combine vectors that differ.")
        scaled = self.values / largest
        return self._with(scaled / np.linalg.norm(scaled))

    def cosine(self, other: "Direction") -> float:
        """Of the angle between the two.

        Raises:
            SteeringError: They do not belong together, or one has no length.
        """
        self._require_alike(other)
        return float(np.clip(self.unit().values @ other.unit().values, -1.0, 1.0))

    def orthogonal_to(self, other: "Direction") -> Self:
        """The rest of it when its projection on another is taken out.

        Raises:
            SteeringError: They do not belong together, the other has no length, or nothing is left.
        """
        self._require_alike(other)
        unit = other.unit().values
        left = self.values - (self.values @ unit) * unit
        # Once more, since the first time leaves a rounding error of the size of what was taken out.
        left = left - (left @ unit) * unit
        if not np.linalg.norm(left) > PARALLEL * self.norm:
            raise SteeringError("The two directions are parallel: nothing is left.", "Combine vectors that differ.")
        return self._with(left)

    def __add__(self, other: "Direction") -> Self:
        self._require_alike(other)
        return self._with(self.values + other.values)

    def __sub__(self, other: "Direction") -> Self:
        self._require_alike(other)
        return self._with(self.values - other.values)

    def __neg__(self) -> Self:
        return self._with(-self.values)

    def __mul__(self, factor: float) -> Self:
        if not math.isfinite(factor):
            raise SteeringError(f"A direction cannot be scaled by {factor:g}.", "Give a finite number.")
        return self._with(factor * self.values)

    def __rmul__(self, factor: float) -> Self:
        return self * factor

    def __truediv__(self, divisor: float) -> Self:
        if divisor == 0 or not math.isfinite(divisor):
            raise SteeringError(f"A direction cannot be divided by {divisor:g}.", "Give a finite number other than 0.")
        return self._with(self.values / divisor)

    def _with(self, values: NDArray[np.float64]) -> Self:
        return type(self)(self.model, self.layer, values)

    def _require_alike(self, other: "Direction") -> None:
        if self.model != other.model:
            raise SteeringError("The two directions are of different models.", "Combine vectors of one model.")
        if self.layer != other.layer:
            raise SteeringError(
                f"The two directions are of layers {self.layer} and {other.layer}.",
                "Combine vectors of one layer, or steer at both.",
            )
        if len(self.values) != len(other.values):
            raise SteeringError(
                f"The two directions have {len(self.values)} and {len(other.values)} dimensions.",
                "Combine vectors of one model.",
            )
