"""Deduplication of numbered messages, which engines repeat until they are confirmed."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Generic, Protocol, TypeVar

from monitor.telemetry.stats import Stats


class Numbered(Protocol):
    """A message that an engine numbers."""

    @property
    def number(self) -> int:
        """Counts from 0 with the engine, in order."""
        ...


_Message = TypeVar("_Message", bound=Numbered)


class Deduplicator(Generic[_Message]):
    """Passes over messages that were processed already, and counts those that are missing.

    Args:
        processed: Numbers that an earlier monitor processed, by engine. It may have been killed between two that it
            processed in another order than that of their numbers, so that the highest does not speak for those before.
        max_engines: Engines whose numbers are kept; beyond it the one heard longest ago is forgotten.
        stats: Where engines that are forgotten are counted.
    """

    def __init__(self, processed: Mapping[str, AbstractSet[int]], max_engines: int, stats: Stats) -> None:
        self._last = {engine: max(numbers) for engine, numbers in processed.items() if numbers}
        self._earlier = {engine: (last, set(processed[engine])) for engine, last in self._last.items()}
        """The last that an earlier monitor processed, and which of those up to it are processed."""
        self._max_engines, self._stats = max_engines, stats

    def fresh(self, engine: str, items: Sequence[_Message]) -> tuple[list[_Message], int]:
        """Messages that were not processed yet, in order, and how many before the last of them never arrived."""
        fresh: list[_Message] = []
        missing = 0
        until, earlier = self._earlier.get(engine, (-1, set[int]()))
        for item in items:
            # What came before the first that is heard was confirmed by an earlier monitor.
            last = self._last.pop(engine, item.number - 1)
            self._last[engine] = max(last, item.number)
            if item.number > last:
                missing += item.number - last - 1
                fresh.append(item)
            elif item.number < until and item.number not in earlier:
                earlier.add(item.number)
                fresh.append(item)
        while len(self._last) > self._max_engines:
            engine = next(iter(self._last))
            del self._last[engine]
            self._earlier.pop(engine, None)
            self._stats.forgotten["engine",] += 1
        return fresh, missing
