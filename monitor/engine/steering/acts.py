"""Acts of orders, compiled for a bundle: the vector's row, and the entry of the steering table."""

import math
from collections.abc import Iterable
from typing import Final

from monitor.engine.ops.tap import NEUTRAL
from monitor.errors import OrderError
from monitor.wire.orders import Act
from probes.bundle import Bundle, Vector
from probes.errors import BundleError, SteeringError
from probes.steering import Entry, Operation

NOTHING: Final = Entry(*NEUTRAL)
_LARGEST: Final = 3e38
"""Of the table's numbers, which are float32."""
_ROUNDING: Final = 1e-9
"""Relative: doses that add up to the cap are not over it, for the last bits of their sum."""


def entry_of(bundle: Bundle, act: Act) -> tuple[int, Entry]:
    """Row of the bundle's vectors, and what is done along it.

    Raises:
        OrderError: The bundle has no such vector, its cap is below the dose, or what is to be done makes no sense.
    """
    try:
        vector = bundle.vector(act.vector)
    except BundleError as error:
        raise OrderError("vector", error.message, error.fix) from error
    try:
        operation = operation_of(act)
    except SteeringError as error:
        raise OrderError("operation", error.message, error.fix) from error
    _require(vector, operation)
    entry = operation.entry(vector.hidden_norm)
    _require_finite(vector, entry)
    return bundle.manifest.vectors.index(vector), entry


def operation_of(act: Act) -> Operation:
    """Of the same meaning, with infinities for bounds that are not there.

    Raises:
        SteeringError: A number is none, or the range is empty.
    """
    low, high = -math.inf if act.low is None else act.low, math.inf if act.high is None else act.high
    return Operation(act.add, act.scale, low, high)


def compose(entries: Iterable[Entry]) -> Entry:
    """Several entries of one vector as one, whatever their order: what is added adds up, scales multiply, and ranges
    intersect, as the op joins those of gates (:mod:`monitor.engine.ops.tap`). The range may be empty.

    Sums are exact before they are rounded, and factors are sorted, so that not even the last bit depends on the order.
    """
    adds, scales, lows, highs = zip(*entries, strict=True)
    return Entry(math.fsum(adds), math.prod(sorted(scales)), max(lows), min(highs))


def require_composed(vector: Vector, entry: Entry) -> None:
    """Check what orders come to together.

    Args:
        vector: Whose entry it is.
        entry: Of all orders that hold at once.

    Raises:
        OrderError: Their ranges have no number in common, or together they are beyond the cap.
    """
    if entry.low > entry.high:
        raise OrderError(
            "conflict",
            f"Orders clamp the projection on vector '{vector.name}' to ranges that have no number in common.",
            "Release one of them first.",
        )
    _require_finite(vector, entry)
    unit = vector.hidden_norm * (1.0 + _ROUNDING)
    _require(vector, Operation(entry.add / unit, entry.scale, entry.low / unit, entry.high / unit))


def _require(vector: Vector, operation: Operation) -> None:
    try:
        vector.require_dose(operation.strength)
    except BundleError as error:
        raise OrderError("dose", error.message, error.fix) from error
    if vector.max_dose is not None and abs(operation.scale) > 1.0:
        # What it adds grows with the state, so that no cap on doses holds it.
        raise OrderError(
            "dose",
            f"A scale of {operation.scale:g} of vector '{vector.name}', which has a cap, amplifies without one.",
            "Scale from -1 to 1, or add a dose.",
        )


def _require_finite(vector: Vector, entry: Entry) -> None:
    if max(abs(entry.add), abs(entry.scale), entry.low, -entry.high) > _LARGEST:
        raise OrderError("operation", f"What is to be done along vector '{vector.name}' is beyond float32.", "Do less.")
