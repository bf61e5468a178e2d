"""History of gates on each request: which rows were steered, to steer them alike when they come again, and events."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from monitor.engine.batch import Batch
from monitor.engine.ops.gate_layout import Flag
from monitor.wire.frames import GateEvent

DOWNSTREAM: Final = int(Flag.STEER | Flag.EARLY | Flag.TAINTED)
"""Flags of rows whose scores lie downstream of steering."""

Stretches = list[list[int]]
"""Ascending ``[first position, one past the last]``."""


@dataclass(slots=True)
class Steered:
    """Rows of one request that one gate steered, as far as it was learnt."""

    gate: str
    """Its id."""
    learnt: int = 0
    """Positions below were."""
    rows: int = 0
    steering: bool = False
    """The last of them was steered."""
    early: Stretches = field(default_factory=list[list[int]])
    """Steered from the first layer on."""
    late: Stretches = field(default_factory=list[list[int]])
    """Steered behind the gate's layer."""


@dataclass(slots=True, eq=False)
class Judged:
    """A request that gates may judge."""

    slot: int
    engine_request_id: str
    request_id: str
    respond: int
    """Position of the first response row."""
    gates: dict[int, Steered] = field(default_factory=dict[int, Steered])
    ended: bool = False
    exempt: bool = False
    """No gate is to steer it any more."""
    without: set[str] = field(default_factory=set[str])
    """Gates that are not to steer it, since its orders leave no room for them."""


class History:
    """Learns what gates did, and makes events of it.

    Args:
        tainted: Takes the engine's id of a request, and the first position that a gate steered.
    """

    def __init__(self, tainted: Callable[[str, int], None]) -> None:
        self._tainted = tainted
        self._numbered = 0
        self._events: list[GateEvent] = []

    def take_events(self) -> list[GateEvent]:
        """Take the events since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def learn(
        self,
        ids: Mapping[int, str],
        owners: Mapping[int, Judged],
        slots: NDArray[np.int32],
        positions: NDArray[np.int32],
        flags: NDArray[np.int8],
        averages: NDArray[np.float32],
    ) -> None:
        """Take in a step. Rows that came again say nothing new.

        Args:
            ids: Of the gates.
            owners: Who held each slot in that step.
            slots: Of each row, shape ``(rows,)``.
            positions: Absolute, shape ``(rows,)``.
            flags: Of :class:`monitor.engine.ops.gate_layout.Flag`, shape ``(rows, gates)``.
            averages: Shape ``(rows, gates)``.
        """
        for row, index in np.argwhere(flags).tolist():
            request, position, flag = owners.get(int(slots[row])), int(positions[row]), int(flags[row, index])
            if request is None or index not in ids:
                continue
            steered = request.gates.setdefault(index, Steered(ids[index]))
            if position < steered.learnt:
                continue
            steered.learnt = position + 1
            if flag & Flag.FIRED:
                self._say("opened", request, steered, position, float(averages[row, index]))
            if flag & (Flag.STEER | Flag.EARLY) and not (steered.early or steered.late):
                self._tainted(request.engine_request_id, position)
            for stretches, bit in ((steered.early, Flag.EARLY), (steered.late, Flag.STEER)):
                if flag & bit:
                    _append(stretches, position)
            steered.rows += bool(flag & Flag.STEER)
            if steered.steering and not flag & Flag.STEER:
                self._say("closed", request, steered, position)
            steered.steering = bool(flag & Flag.STEER)

    def end(self, request: Judged) -> None:
        """A request has ended, and all its steps were taken in."""
        self.close(request)
        request.gates = {}

    def close(self, request: Judged) -> list[str]:
        """No gate steers a request any more, whose steps so far were all taken in; the ids of those that did."""
        closed = [steered for steered in request.gates.values() if steered.steering]
        for steered in closed:
            self._say("closed", request, steered, steered.learnt)
            steered.steering = False
        return [steered.gate for steered in closed]

    def _say(
        self,
        kind: Literal["opened", "closed"],
        request: Judged,
        steered: Steered,
        position: int,
        average: float | None = None,
    ) -> None:
        about = (steered.gate, kind, request.engine_request_id, request.request_id)
        self._events.append(GateEvent(self._numbered, *about, position, average, steered.rows))
        self._numbered += 1


def as_they_were(
    requests: Mapping[int, Judged],
    batch: Batch,
    starts: NDArray[np.integer],
    first: NDArray[np.integer],
    rows: int,
    gates: int,
) -> NDArray[np.int8]:
    """Flags of rows that are computed again, as they were.

    Args:
        requests: By slot.
        batch: Tells which rows they are.
        starts: The step's first row of each request, shape ``(requests,)``.
        first: Its position, shape ``(requests,)``.
        rows: Rows of the step.
        gates: Gates of the engine.

    Returns:
        Flags, ``(rows, gates)``: as every layer is to see them, and ``GIVEN`` for those behind the gate's.
    """
    given = np.zeros((rows, gates), np.int8)
    for at in np.flatnonzero(batch.again).tolist():
        request = requests.get(int(batch.slots[at]))
        begin, end = int(first[at]), int(first[at] + batch.again[at])
        for index, steered in request.gates.items() if request is not None else ():
            for stretches, flag in ((steered.early, Flag.STEER | Flag.EARLY), (steered.late, Flag.GIVEN)):
                for start, stop in stretches:
                    inside = slice(*(int(starts[at]) + min(max(p, begin), end) - begin for p in (start, stop)))
                    given[inside, index] |= int(flag)
    return given


def _append(stretches: Stretches, position: int) -> None:
    if stretches and stretches[-1][1] == position:
        stretches[-1][1] = position + 1
    else:
        stretches.append([position, position + 1])
