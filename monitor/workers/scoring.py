"""Jobs to answers: what a probe worker computes.

1. The states of a job are copied out of the rings as soon as it is taken, so that a long queue is overtaken late.
2. Jobs that wait are scored together. A request's rows in all of them are one call of each probe: the further a worker
   is behind, the more tokens each call has, and the less a token costs.
3. Each job is answered by itself, in order; then the requests that have ended are forgotten.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.workers.messages import Answer, Job, JobRows, Outcome, job_rows
from monitor.workers.rings import Rings
from probes.bundle import Probe
from probes.scoring.token_reader import TokenReader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """A job with its states."""

    job: Job
    rows: JobRows
    states: list[NDArray[np.float32] | Outcome]
    """Of each block, shape ``(states, hidden)``, or why there are none."""


class Scoring:
    """Scores rows, and remembers requests for as long as they last.

    Args:
        readers: Each probe and what reads for it, in the order of the columns of scores.
    """

    def __init__(self, readers: Sequence[tuple[Probe, TokenReader[Any]]]) -> None:
        self._readers = list(readers)
        self._rings = Rings()
        self._carries: dict[int, list[Any]] = {}
        """Number of a request to what each probe remembers of it; ``None``: nothing yet."""
        self._complained: set[str] = set()

    def __len__(self) -> int:
        """Requests that are remembered."""
        return len(self._carries)

    def take(self, job: Job) -> Taken:
        """Copy a job's states."""
        return Taken(job, job_rows(job, len(self._readers)), [self._rings.read(block) for block in job.blocks])

    def score(self, taken: Sequence[Taken]) -> list[Answer]:
        """Score jobs, one after the other in the sense of what is remembered, and answer each."""
        requests = np.concatenate([each.rows.requests for each in taken])
        reads = np.concatenate([each.rows.reads for each in taken])
        scores = np.full(reads.shape, np.nan)
        outcomes = np.full(reads.shape, Outcome.READ, np.uint8)
        layers = {layer: _layer(taken, layer) for layer in {probe.layer for probe, _ in self._readers}}
        for column, (probe, _) in enumerate(self._readers):
            states, where, why = layers[probe.layer]
            missing = reads[:, column] & (where < 0)
            outcomes[missing, column] = why[missing]
            chosen = np.flatnonzero(reads[:, column] & ~missing)
            # Stable: a request's tokens stay in order.
            chosen = chosen[np.argsort(requests[chosen], kind="stable")]
            bounds = np.flatnonzero(np.diff(requests[chosen], prepend=-1, append=-1)).tolist()
            for begin, end in pairwise(bounds):
                rows = chosen[begin:end]
                found = self._read(int(requests[rows[0]]), column, states[where[rows]])
                if found is None:
                    outcomes[rows, column] = Outcome.FAILED
                else:
                    scores[rows, column] = found
        for each in taken:
            for request in each.job.ended:
                self._carries.pop(request, None)
        ends = list(accumulate(len(each.rows.requests) for each in taken))
        parts = [slice(end - len(each.rows.requests), end) for each, end in zip(taken, ends, strict=True)]
        return [
            Answer(each.job.number, scores[part].tobytes(), outcomes[part].tobytes())
            for each, part in zip(taken, parts, strict=True)
        ]

    def sweep(self) -> None:
        """Let go of what engines that are gone have left."""
        self._rings.sweep()

    def _read(self, request: int, column: int, states: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """The scores of a request's next tokens, shape ``(tokens,)``; ``None`` where the probe fails."""
        probe, reader = self._readers[column]
        carries = self._carries.setdefault(request, [None] * len(self._readers))
        try:
            if carries[column] is None:
                carries[column] = reader.begin()
            scores = np.asarray(reader.scores(states, carries[column]), np.float64)
            if scores.shape != (len(states),):
                raise ValueError(f"it returned scores of shape {scores.shape} for {len(states)} tokens")
        except Exception:
            # Whatever a probe does, the others are read. Said once, since it may fail at each token.
            if probe.name not in self._complained:
                self._complained.add(probe.name)
                logger.exception("Probe '%s' failed; its tokens are unscored.", probe.name)
            carries[column] = None
            return None
        return scores


def _layer(taken: Sequence[Taken], layer: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint8]]:
    """The states of one layer, of all jobs.

    Returns:
        The states, shape ``(states, hidden)``; the one of each row, −1 for none; and why there is none, both of
        shape ``(rows,)``.
    """
    parts, where, why, held = list[NDArray[np.float32]](), list[NDArray[np.int64]](), list[NDArray[np.uint8]](), 0
    for each in taken:
        index = np.full(len(each.rows.requests), -1, np.int64)
        reason = np.full(len(index), Outcome.UNREADABLE, np.uint8)
        for block, states, of_row in zip(each.job.blocks, each.states, each.rows.states, strict=True):
            if block.layer != layer:
                continue
            if isinstance(states, Outcome):
                reason[:] = states
            elif not parts or states.shape[1] == parts[0].shape[1]:  # else of another model, which no probe reads
                index = np.where(of_row >= 0, of_row + held, -1)
                parts.append(states)
                held += len(states)
        where.append(index)
        why.append(reason)
    return np.concatenate(parts or [np.empty((0, 0), np.float32)]), np.concatenate(where), np.concatenate(why)
