"""Requests of a step: who they are, which of their rows come from the prefix cache, and rows as a frame has them."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.engine.steering.table import Push
from monitor.wire.frames import ROW
from monitor.wire.orders import Admission
from probes.scoring.roles import Role

NEVER: Final = 2**31 - 1
"""A position that no request reaches."""


@dataclass(slots=True)
class Tracked:
    """A request in flight."""

    slot: int
    """−1: not scored (served with a LoRA adapter, or no slot was free)."""
    engine_request_id: str
    request_id: str
    prompt_roles: NDArray[np.uint8]
    answer_role: Role = Role.ASSISTANT
    """Of the tokens that are generated."""
    part: str = ""
    """The part of the user's request; empty: all of it."""
    pushes: list[Push] = field(default_factory=list[Push])
    admitted: Admission | None = None
    gated_from: int = NEVER
    """The first position that a gate steered."""
    released: bool = False
    """The guard has released it, for good (:mod:`monitor.engine.steering.guard`)."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions of a request that were not computed: they came from the prefix cache."""

    request: Tracked
    start: int
    end: int
    """One past the last."""

    def rows(self) -> NDArray[np.void]:
        """As rows of a frame, of dtype :data:`monitor.wire.frames.ROW`."""
        rows = np.zeros(self.end - self.start, ROW)
        rows["slot"], rows["position"] = self.request.slot, np.arange(self.start, self.end)
        rows["role"] = self.request.answer_role
        prompt = self.request.prompt_roles[self.start : self.end]
        rows["role"][: len(prompt)] = prompt
        return rows


@dataclass(frozen=True, slots=True)
class Begins:
    """First rows of a frame's requests; all of shape ``(requests,)``."""

    slots: NDArray[np.integer]
    terms: NDArray[np.int64]
    """Tell the requests apart that have a slot one after the other."""
    positions: NDArray[np.integer]
    """Of each one's first row."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of a step, as of that step: what follows may change while the step's rows are still on their way out."""

    slots: NDArray[np.int32]
    """Of each request, in the order of the batch; −1: not scored."""
    tainted_from: NDArray[np.int64]
    """First position of each whose state depends on steering (the KV cache carries it from there on)."""
    answer_roles: NDArray[np.uint8]
    """Role of the tokens that each generates."""
    prompts: dict[int, NDArray[np.uint8]]
    """Roles of the prompt, by slot, of requests that have rows in theirs."""
    gaps: list[Gap]
    """Positions that the step found in the prefix cache."""
    unscored: int
    """Rows that are not scored."""
    again: NDArray[np.int64]
    """Of each request, in the order of the batch: rows that were computed before; 0 where it is not scored."""
    terms: NDArray[np.int64]
    """Tell the requests apart that have a slot one after the other."""
    first: NDArray[np.int64]
    """Position of each one's first row, or a higher one where only the device knows it."""

    def describe(self, slots: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.void]:
        """The rows of a frame.

        Args:
            slots: Of each scored row, in the order of the batch, shape ``(rows,)``.
            positions: Absolute, shape ``(rows,)``.

        Returns:
            Rows of dtype :data:`monitor.wire.frames.ROW`.
        """
        rows = np.empty(len(slots), ROW)
        rows["slot"], rows["position"] = slots, positions
        # Slots are distinct and every request has a row at least, so that each change of slot begins the next request.
        starts = np.flatnonzero(np.diff(slots, prepend=-1))
        lengths = np.diff(starts, append=len(slots))
        scored = self.slots >= 0
        rows["steered"] = positions >= np.repeat(self.tainted_from[scored], lengths)
        rows["role"] = np.repeat(self.answer_roles[scored], lengths)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True) if self.prompts else ():
            if (prompt := self.prompts.get(int(slots[start]))) is not None:
                part = prompt[positions[start] : positions[start] + length]
                rows["role"][start : start + len(part)] = part
        return rows
