"""The requests that workers read: who they are, and how many of their tokens are outstanding or lost."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.events import Request, RequestFinished
from monitor.workers.queue import Asked

_FIRST_CAPACITY: Final = 64
_FREE: Final = -1


@dataclass(slots=True)
class Followed:
    """A request of which a probe worker has read something, or was to."""

    request: Request
    number: int
    """As workers know it."""
    row: int
    """Of the running verdicts, and of the counters beside them."""
    worker: int
    sent: bool = False
    """True where its worker keeps state of it, as far as the monitor knows."""
    finished: RequestFinished | None = None
    """Without the readings of workers, while they are waited for."""
    deadline: float = 0.0
    """Until when, in seconds of the monotonic clock."""


class FollowedRequests:
    """Gives rows to requests and takes them back, with two counters a row and probe.

    Args:
        probes: How many.
    """

    def __init__(self, probes: int) -> None:
        self._holders: list[Followed | None] = []
        self._free: list[int] = []
        self._numbers = np.full(_FIRST_CAPACITY, _FREE, np.int64)
        self.waiting = np.zeros((_FIRST_CAPACITY, probes), np.int64)
        """Tokens that a worker was asked for and has not answered, shape ``(capacity, probes)``."""
        self.unscored = np.zeros_like(self.waiting)
        """Tokens that were not scored, of the same shape."""

    def __len__(self) -> int:
        return len(self._holders) - len(self._free)

    def __getitem__(self, row: int) -> Followed:
        """The request that holds ``row``.

        Raises:
            KeyError: Nobody does.
        """
        if (holder := self._holders[row]) is None:
            raise KeyError(row)
        return holder

    def begin(self, request: Request, number: int, worker: int) -> Followed:
        """Follow a request, its counters cleared."""
        row = self._free.pop() if self._free else len(self._holders)
        if row == len(self._holders):
            self._holders.append(None)
        if row == len(self._numbers):
            self._numbers = np.concatenate([self._numbers, np.full_like(self._numbers, _FREE)])
            self.waiting = np.concatenate([self.waiting, np.zeros_like(self.waiting)])
            self.unscored = np.concatenate([self.unscored, np.zeros_like(self.unscored)])
        followed = self._holders[row] = Followed(request, number, row, worker)
        self._numbers[row], self.waiting[row], self.unscored[row] = number, 0, 0
        return followed

    def end(self, followed: Followed) -> None:
        """Take a request's row back; what comes for it later is of no request."""
        self._numbers[followed.row], self._holders[followed.row] = _FREE, None
        self._free.append(followed.row)

    def current(self, asked: Asked) -> NDArray[np.intp]:
        """Indices of the rows whose request is still followed."""
        return np.flatnonzero(self._numbers[asked.rows] == asked.requests)
