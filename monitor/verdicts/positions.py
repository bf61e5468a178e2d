"""Find the rows of a frame that are new, by the high-water mark of positions, for all its requests at once.

A request's rows arrive in order of position, with two exceptions. After a preemption the engine computes the
request again from its start: positions at or below the highest one seen are *replays*. And positions may be
*skipped*: a prefix served from the cache is never computed, and a frame may be lost.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_STRIDE: Final = 1 << 33
"""Keeps the positions of one request above those of the request before it: positions are 32-bit."""


@dataclass(frozen=True, slots=True)
class Advance:
    """The rows that a frame adds to each of its requests."""

    fresh: NDArray[np.bool_]
    """Rows above every earlier position of their request, shape ``(rows,)``; the others are replays."""
    skipped: NDArray[np.int64]
    """Positions left out just before each row, shape ``(rows,)``."""
    high_water: NDArray[np.int64]
    """Each request's new high-water mark, shape ``(requests,)``."""


def advance(
    positions: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    high_water: NDArray[np.int64],
) -> Advance:
    """Compare rows with the high-water marks of their requests, moving the marks row by row.

    Equal to a loop over each request's rows that keeps ``mark = max(mark, position)``. Here it is one running maximum
    over all rows: offset by :data:`_STRIDE` times the number of its request, every mark lies above whatever came
    before the request.

    Args:
        positions: Absolute positions, grouped by request and in order of arrival within it, shape
            ``(rows,)``.
        starts: Index of each request's first row, ascending, shape ``(requests,)``.
        lengths: Rows of each request, at least 1, shape ``(requests,)``.
        high_water: The highest position seen of each request, −1 for none, shape ``(requests,)``.

    Returns:
        Which rows are news, and the new marks.
    """
    offsets = np.arange(len(starts)) * _STRIDE
    offset = np.repeat(offsets, lengths)
    lifted = positions + offset
    marks = np.empty_like(lifted)  # the high-water mark that each row meets
    marks[1:] = lifted[:-1]
    marks[starts] = high_water + offsets
    np.maximum.accumulate(marks, out=marks)
    fresh = lifted > marks
    skipped = np.where(fresh, lifted - marks - 1, 0)
    ends = starts + lengths - 1
    return Advance(fresh, skipped, np.maximum(marks[ends], lifted[ends]) - offsets)
