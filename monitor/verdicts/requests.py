"""The rows of the verdict table: which request holds which, and what was counted of it."""

from dataclasses import dataclass

import numpy as np

from monitor.events import Request
from monitor.wire.frames import Started

_FIRST_CAPACITY = 64


@dataclass(frozen=True, slots=True)
class Holder:
    """The request that holds a row."""

    engine: str
    started: Started

    def request(self, model: str) -> Request:
        """As events name it; ``model`` is what its engine serves under."""
        return Request(
            engine=self.engine,
            model=model,
            request_id=self.started.request_id,
            engine_request_id=self.started.engine_request_id,
            prompt_tokens=self.started.prompt_tokens,
            part=self.started.part,
        )


class RequestRows:
    """Gives rows to requests and takes them back, with counters of shape ``(capacity,)`` unless they say otherwise.

    Args:
        roles: How many roles are told apart.
    """

    def __init__(self, roles: int) -> None:
        self._holders: list[Holder | None] = []
        self._free: list[int] = []
        self.high_water = np.full(_FIRST_CAPACITY, -1, np.int64)
        """The highest position seen; -1 for none."""
        self.tokens = np.zeros(_FIRST_CAPACITY, np.int64)
        """Positions that entered the verdict."""
        self.unscored = np.zeros(_FIRST_CAPACITY, np.int64)
        """Positions that were skipped."""
        self.steered = np.zeros(_FIRST_CAPACITY, np.int64)
        """Positions downstream of steering."""
        self.unread = np.zeros((_FIRST_CAPACITY, roles), np.int64)
        """Positions of content that no probe reads, by role, shape ``(capacity, roles)``."""

    def __len__(self) -> int:
        return len(self._holders) - len(self._free)

    def __getitem__(self, row: int) -> Holder:
        """The request that holds ``row``.

        Raises:
            KeyError: Nobody does.
        """
        if (holder := self._holders[row]) is None:
            raise KeyError(row)
        return holder

    def named(self, request_id: str) -> list[Holder]:
        """Those who hold a row and have this id, as the user of the API sees it."""
        return [h for h in self._holders if h is not None and h.started.request_id == request_id]

    def allocate(self, holder: Holder) -> int:
        """Give out a row, its counters cleared."""
        if self._free:
            row = self._free.pop()
            self._holders[row] = holder
        else:
            row = len(self._holders)
            self._holders.append(holder)
        if row == len(self.high_water):
            for name in ("high_water", "tokens", "unscored", "steered"):
                setattr(self, name, np.resize(getattr(self, name), 2 * row))
            self.unread = np.resize(self.unread, (2 * row, self.unread.shape[1]))
        self.high_water[row] = -1
        self.tokens[row] = self.unscored[row] = self.steered[row] = 0
        self.unread[row] = 0
        return row

    def recycle(self, row: int) -> None:
        """Take a row back."""
        self._holders[row] = None
        self._free.append(row)
