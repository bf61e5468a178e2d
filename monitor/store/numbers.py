"""A set of numbers as ranges: what engines number arrives almost in order, so that most sets are one range."""

from bisect import bisect_right
from collections.abc import Iterator


class Numbers:
    """A set of numbers, of which only those near the highest are kept.

    Args:
        span: Numbers this much below the highest are forgotten.
    """

    def __init__(self, span: int) -> None:
        self._span = span
        self._ranges: list[tuple[int, int]] = []
        """First and last of each range, ascending, with a gap between any two."""

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._ranges, number, key=_first) - 1
        return index >= 0 and number <= self._ranges[index][1]

    def __iter__(self) -> Iterator[int]:
        for first, last in self._ranges:
            yield from range(first, last + 1)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last of each range, ascending."""
        return list(self._ranges)

    @property
    def lowest_kept(self) -> int:
        """Numbers below it are forgotten."""
        return self._ranges[-1][1] - self._span + 1 if self._ranges else 0

    def add(self, first: int, last: int | None = None) -> None:
        """Add a number, or all from ``first`` to ``last``."""
        last = first if last is None else last
        begin = bisect_right(self._ranges, first, key=_first)
        if begin and self._ranges[begin - 1][1] >= first - 1:
            begin -= 1
            first = self._ranges[begin][0]
        end = bisect_right(self._ranges, last + 1, key=_first)
        if end > begin:
            last = max(last, self._ranges[end - 1][1])
        self._ranges[begin:end] = [(first, last)]
        self._forget()

    def discard(self, number: int) -> None:
        """Take a number away, if it is in the set."""
        index = bisect_right(self._ranges, number, key=_first) - 1
        if index < 0 or number > self._ranges[index][1]:
            return
        first, last = self._ranges[index]
        left = [(first, number - 1)] if first < number else []
        right = [(number + 1, last)] if number < last else []
        self._ranges[index : index + 1] = left + right

    def _forget(self) -> None:
        lowest = self.lowest_kept
        while self._ranges[0][1] < lowest:
            del self._ranges[0]
        if self._ranges[0][0] < lowest:
            self._ranges[0] = lowest, self._ranges[0][1]


def _first(span: tuple[int, int]) -> int:
    return span[0]
