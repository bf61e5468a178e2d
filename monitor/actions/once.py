"""What engines repeat until it is confirmed, taken once each."""

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar


class Numbered(Protocol):
    """Something that an engine tells by number."""

    @property
    def number(self) -> int:
        """Counts from 0 with the engine, in order."""
        ...


_Told = TypeVar("_Told", bound=Numbered)


class Once(Generic[_Told]):
    """Passes over what was told already, and counts what is missing.

    Args:
        told: The last number of each engine that was told by an earlier monitor.
        max_engines: Engines whose numbers are kept; beyond it the one heard longest ago is forgotten.
    """

    def __init__(self, told: Mapping[str, int], max_engines: int) -> None:
        self._told, self._max_engines = dict(told), max_engines

    def fresh(self, engine: str, items: Sequence[_Told]) -> tuple[list[_Told], int]:
        """What was not told yet, in order, and how many before the last of it never arrived."""
        fresh: list[_Told] = []
        missing = 0
        for item in items:
            # What came before the first that is heard was confirmed by an earlier monitor.
            last = self._told.pop(engine, item.number - 1)
            self._told[engine] = max(last, item.number)
            if item.number > last:
                missing += item.number - last - 1
                fresh.append(item)
        while len(self._told) > self._max_engines:
            del self._told[next(iter(self._told))]
        return fresh, missing
