"""An engine's slots: which row of the verdict table each one means now."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_SLOTS: Final = 65_536
"""Slots of one engine; vLLM's ``max_num_seqs`` is in the hundreds."""

UNKNOWN: Final = -1
"""No request was announced for the slot."""
UNTRACKED: Final = -2
"""A request was announced for which the table had no room."""


class SlotMap:
    """The slots of one engine.

    The array behind it has one element too many on each side, always :data:`UNKNOWN`, so that a lookup may
    clip instead of testing bounds.
    """

    def __init__(self) -> None:
        self._rows = np.full(2, UNKNOWN, np.int64)
        self._keys: dict[int, str] = {}
        self._slots: dict[str, int] = {}

    def lookup(self, slots: NDArray[np.integer]) -> NDArray[np.int64]:
        """The table row of each slot, :data:`UNKNOWN` or :data:`UNTRACKED`; any integer may be asked for.

        Args:
            slots: Shape ``(rows,)``.

        Returns:
            Shape ``(rows,)``.
        """
        return self._rows.take(slots.astype(np.int64) + 1, mode="clip")

    def engine_request_id(self, slot: int) -> str | None:
        """The request that ``slot`` means."""
        return self._keys.get(slot)

    def bind(self, slot: int, engine_request_id: str, row: int) -> None:
        """Let ``slot``, of 0 to :data:`MAX_SLOTS`, mean a request and its row or :data:`UNTRACKED`."""
        while slot >= len(self._rows) - 2:
            self._rows = np.concatenate([self._rows, np.full(len(self._rows), UNKNOWN, np.int64)])
        self._rows[slot + 1] = row
        self._keys[slot] = engine_request_id
        self._slots[engine_request_id] = slot

    def release(self, slot: int) -> int:
        """Let ``slot`` mean nothing; returns the row that it meant, :data:`UNKNOWN` or :data:`UNTRACKED`."""
        if (engine_request_id := self._keys.pop(slot, None)) is None:
            return UNKNOWN
        if self._slots.get(engine_request_id) == slot:
            del self._slots[engine_request_id]
        row = int(self._rows[slot + 1])
        self._rows[slot + 1] = UNKNOWN
        return row

    def bound(self) -> set[int]:
        """The slots that mean a request."""
        return set(self._keys)

    def row_of(self, engine_request_id: str) -> int:
        """The table row of a request, :data:`UNTRACKED` or :data:`UNKNOWN`."""
        slot = self._slots.get(engine_request_id)
        return UNKNOWN if slot is None else int(self._rows[slot + 1])

    def rows(self) -> NDArray[np.int64]:
        """The table rows in use."""
        return self._rows[self._rows >= 0]
