"""The backlog: rows of requests in flight that the monitor has not received, sent again from the scores by KV slot.

Rows of a request arrive in order of position, or verdicts count what was skipped as unscored. So a request that the
monitor was not sent all of is sent that first, and only then its newer rows:

* positions that came from the prefix cache, which no step computes;
* rows of frames that were dropped, because the monitor could not follow or the thread that sends failed;
* everything, where a monitor has connected or asked for it: the one before it may have died.

A step sends so many rows of it as there are stages to spare, at most :data:`ROWS`; until a request is caught up with,
its rows of the step itself are left out of the step's frame, and come out of the cache as well. A request that ends
meanwhile is sent as far as stages go, before its blocks are another's; the rest is unscored, as its position says.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.engine.batch import NEVER, Batch, Gap
from monitor.engine.exporter import Exporter, Step
from monitor.engine.kv_scores import Blocks, KvScores
from monitor.engine.slots import Slots
from monitor.wire.frames import Started

ROWS: Final = 16_384
"""Rows that a step sends again at most: with 48 scores, 3 MiB."""
SPARED: Final = 4
"""Stages that are left to the steps themselves."""

Described = tuple[NDArray[np.void], NDArray[np.bool_] | None]


class Backlog:
    """Sends what is owed to the monitor.

    Args:
        slots: Knows what that is.
        rows: Of a stage.
        side: The stream that copies run on; ``None`` on a CPU.
        changes: Takes the slots of requests that have ended, and the requests that have begun, for the next frame.
        settle: Makes known which rows gates have steered; called where anything is sent.
    """

    def __init__(
        self,
        slots: Slots,
        rows: int,
        side: torch.cuda.Stream | None,
        changes: Callable[[], tuple[list[int], list[Started]]],
        settle: Callable[[], None],
    ) -> None:
        self._slots, self._stage_rows, self._side = slots, rows, side
        self._changes, self._settle = changes, settle

    def note(self, exporter: Exporter) -> None:
        """Take in what has been lost since the last step; to be called before anything of a step is offered."""
        everything, lost = exporter.take_losses()
        for begins in lost:
            self._slots.owe(begins)
        if everything:
            self._slots.owe_all()

    def send(self, exporter: Exporter, batch: Batch, kv: KvScores | None, blocks: Blocks) -> NDArray[np.bool_] | None:
        """Send what comes before the rows of a step, as far as it goes.

        Args:
            exporter: Takes the frames.
            batch: The step's.
            kv: Where the scores are; ``None``: they are not kept, and what is owed is lost.
            blocks: Finds the KV blocks of a request.

        Returns:
            Which requests of the batch the step's frame is to leave out, shape ``(requests,)``; ``None``: none.
        """
        owed = self._slots.owed(batch)
        if not owed:
            return None
        if kv is None:
            self._slots.unsent[[gap.request.slot for gap in owed]] = NEVER
            return None
        room = min(ROWS, max(exporter.free - SPARED, 0) * self._stage_rows)
        self._offer(exporter, kv, blocks, _within(owed, room))
        behind = np.array([gap.request.slot for gap in owed if self._slots.unsent[gap.request.slot] < gap.end])
        return np.isin(batch.slots, behind) if len(behind) else None

    def send_last(self, exporter: Exporter, kv: KvScores | None, blocks: Blocks, leaving: Iterable[str]) -> None:
        """Send what is owed of requests whose keys and values are about to be let go of, as far as stages go."""
        owed = [gap for engine_request_id in leaving if (gap := self._slots.owed_to(engine_request_id)) is not None]
        if kv is not None:
            self._offer(exporter, kv, blocks, _within(owed, exporter.free * self._stage_rows))

    def _offer(self, exporter: Exporter, kv: KvScores, blocks: Blocks, gaps: list[Gap]) -> None:
        """Offer positions in frames of a stage each; those that are not taken stay owed."""
        if gaps:
            self._settle()
        for part in _divided(gaps, self._stage_rows):
            if (stage := exporter.take()) is None:
                return
            rows = np.concatenate([self._slots.rows(gap) for gap in part])
            torch.index_select(kv.scores, 0, kv.find(blocks, part), out=stage.scores[: len(rows)])
            stage.copy(len(rows), self._side)
            # Owed again by whoever drops the frame, which may be before it has been offered.
            for gap in part:
                self._slots.unsent[gap.request.slot] = gap.end
            finished, started = self._changes()
            exporter.offer(
                Step(
                    unscored=self._slots.unscored,
                    finished=finished,
                    started=started,
                    stage=stage,
                    rows=len(rows),
                    describe=_describe(rows),
                    begins=self._slots.begins_of(part),
                )
            )


def _within(gaps: Iterable[Gap], room: int) -> list[Gap]:
    """The first ``room`` positions."""
    kept = list[Gap]()
    for gap in gaps:
        if room <= 0:
            break
        kept.append(Gap(gap.request, gap.start, min(gap.end, gap.start + room)))
        room -= kept[-1].end - gap.start
    return kept


def _divided(gaps: Sequence[Gap], rows: int) -> Iterable[list[Gap]]:
    """Parts of ``rows`` positions each, but for the last."""
    part, room = list[Gap](), rows
    for gap in gaps:
        start = gap.start
        while start < gap.end:
            end = min(gap.end, start + room)
            part.append(Gap(gap.request, start, end))
            room -= end - start
            start = end
            if not room:
                yield part
                part, room = [], rows
    if part:
        yield part


def _describe(rows: NDArray[np.void]) -> Callable[..., Described]:
    def describe(_: NDArray[np.int32], __: NDArray[np.int32], scores: NDArray[np.float32]) -> Described:
        # NaN throughout: never scored. One score that is NaN is the probe's own failure, and is passed on.
        kept = np.logical_not(np.isnan(scores).all(axis=1))
        return rows[kept], kept

    return describe
