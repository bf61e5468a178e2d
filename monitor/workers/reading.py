"""From frames to workers and from answers to verdicts: the probes that the engine does not read.

1. Of a frame's rows, those that entered the verdicts (:class:`monitor.verdicts.EnteredRows`) are taken: no replay, no
   row downstream of steering. Each probe reads those of its roles.
2. Rows whose activations came with the frame go to workers, each request always to the same one; the others are
   unscored, and counted.
3. Answers are folded into running verdicts of their own, with the same aggregates as the engine's probes have.
4. A request that ends while answers are outstanding waits for them, but not for long.

A worker remembers what its probes need of the tokens before; a request's positions without a score are simply not
there. When a worker ends, its requests go on with its successor, whose probes begin anew with their next token; the
aggregates live here, and lose nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.events import ProbeFired, Reading, RequestFinished
from monitor.telemetry.stats import Stats, UnscoredReason
from monitor.verdicts import EnteredRows, RunningVerdicts, VerdictTable
from monitor.wire.frames import Frame, StateBlock
from monitor.workers.messages import PATH_BYTES, Outcome
from monitor.workers.pool import WorkerLost, WorkerPool
from monitor.workers.queue import Answered, Asked
from monitor.workers.requests import Followed, FollowedRequests
from probes.bundle import Probe

WAIT_SECONDS: Final = 2.0
"""Seconds that a finished request waits for outstanding answers. More than the queue holds (:data:`QUEUE_ROWS`)."""
MAX_HELD: Final = 4096
"""Finished requests that wait at once; beyond it the one that has waited longest goes out with what there is."""

_REASONS: Final[dict[Outcome, UnscoredReason]] = {
    Outcome.OVERTAKEN: "overtaken",
    Outcome.UNREADABLE: "unreadable",
    Outcome.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class News:
    """Firings and finished requests that workers' answers led to."""

    fired: list[tuple[ProbeFired, bool]] = field(default_factory=list[tuple[ProbeFired, bool]])
    """First firings, and whether the request had ended by then."""
    finished: list[RequestFinished] = field(default_factory=list[RequestFinished])
    """Requests that ended, with everything that was read of them."""


class ProbeWorkers:
    """Running verdicts of the probes that workers read.

    Args:
        probes: In the order of the columns of the workers' scores.
        pool: The workers; closed with this.
        stats: Where tokens are counted.
        on_unscored: Told an engine, and how many tokens were not scored.
        on_invalid: Told an engine, a probe, and how many of its scores were no finite numbers.
        wait_seconds: How long a finished request waits for outstanding answers.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        pool: WorkerPool,
        stats: Stats,
        *,
        on_unscored: Callable[[str, int], None] = lambda _, __: None,
        on_invalid: Callable[[str, str, int], None] = lambda _, __, ___: None,
        wait_seconds: float = WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layers = sorted({probe.layer for probe in probes})
        """Layers that engines are to stream."""
        self.pool = pool
        self._running = RunningVerdicts(probes)
        self._stats, self._on_unscored, self._on_invalid = stats, on_unscored, on_invalid
        self._wait_seconds, self._clock = wait_seconds, clock
        self._layer_of_probe = np.array([self.layers.index(probe.layer) for probe in probes])
        self._unread = tuple(Reading(probe.name, 0, None, probe.threshold, None) for probe in probes)
        self._by_table: dict[int, Followed] = {}
        """Requests in flight, by their row of the verdict table."""
        self._held: dict[int, Followed] = {}
        """Finished requests that wait, by their row here, the longest waiting first."""
        self._requests = FollowedRequests(len(probes))

    def __len__(self) -> int:
        """Requests that are followed, with those that have ended and wait."""
        return len(self._requests)

    def fileno(self) -> int:
        """Readable when :meth:`collect` has something to do."""
        return self.pool.fileno()

    def finish(self, finished: Sequence[RequestFinished], table_rows: Sequence[int]) -> list[RequestFinished]:
        """Requests have ended.

        Args:
            finished: What the engine's probes have read of them.
            table_rows: The row of the verdict table that each one had.

        Returns:
            Those that need not wait for workers, and those that have waited long enough.
        """
        done: list[RequestFinished] = []
        for event, table_row in zip(finished, table_rows, strict=True):
            followed = self._by_table.pop(table_row, None)
            if followed is None:
                done.append(msgspec.structs.replace(event, readings=(*event.readings, *self._unread)))
                continue
            followed.finished, followed.deadline = event, self._clock() + self._wait_seconds
            self._held[followed.row] = followed
            if not self._requests.waiting[followed.row].any():
                done.append(self._complete(followed, event))
        while len(self._held) > MAX_HELD:
            done += self._complete_all([next(iter(self._held.values()))])
        return done

    def read(self, frame: Frame, entered: EnteredRows, table: VerdictTable, model: str) -> None:
        """Hand the rows of a frame to the workers.

        Args:
            frame: Of an engine that serves ``model``.
            entered: Its rows that entered the table.
            table: Whose rows ``entered`` names.
            model: The name that its engine serves under.
        """
        roles = frame.rows["role"][entered.index]
        reads = self._running.reads(roles)
        if not (wanted := reads.any(axis=1)).any():
            return
        index, owner, roles, reads = entered.index[wanted], entered.owner[wanted], roles[wanted], reads[wanted]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        lengths = np.diff(starts, append=len(owner))
        followed = [self._follow(row, table, model) for row in owner[starts].tolist()]
        asked = Asked(
            engine=frame.header.engine,
            model=model,
            rows=np.repeat([each.row for each in followed], lengths),
            requests=np.repeat([each.number for each in followed], lengths),
            positions=frame.rows["position"][index].astype(np.int64),
            roles=roles,
            reads=reads,
        )
        blocks, states = self._states(frame, index)
        has_state = (states >= 0)[self._layer_of_probe].T
        self._count_unscored(asked, reads & ~has_state, "no_states")
        asked = replace(asked, reads=reads & has_state)
        able = asked.reads.any(axis=1)
        workers = np.repeat([each.worker for each in followed], lengths)
        for worker in range(len(self.pool)):
            mine = np.flatnonzero(able & (workers == worker))
            for begin in range(0, len(mine), self.pool.rows_per_job):
                self._submit(worker, asked, mine[begin : begin + self.pool.rows_per_job], blocks, states)

    def collect(self) -> News:
        """Collect workers' answers since the last call, and the ends of requests that need not wait any more."""
        news = News()
        for found in self.pool.collect():
            match found:
                case Answered():
                    news.fired.extend(self._answered(found))
                case WorkerLost():
                    self._lost(found)
        news.finished.extend(self._complete_all([each for each in self._held.values() if self._is_over(each)]))
        return news

    def tick(self) -> None:
        """Do what is due for the workers themselves; :meth:`collect` comes before and after it."""
        self.pool.tick()

    def drop_engine(self, engine: str) -> None:
        """Forget an engine's requests in flight, without verdicts."""
        for table_row, followed in list(self._by_table.items()):
            if followed.request.engine == engine:
                del self._by_table[table_row]
                self._let_go(followed)

    def finish_all(self) -> list[RequestFinished]:
        """The requests that wait, with what there is."""
        return self._complete_all(list(self._held.values()))

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    def _follow(self, table_row: int, table: VerdictTable, model: str) -> Followed:
        """The request of a row of the verdict table, which may be new here."""
        if (followed := self._by_table.get(table_row)) is not None:
            return followed
        holder = table[table_row]
        worker = holder.started.slot % len(self.pool)
        followed = self._requests.begin(holder.request(model), self.pool.number(), worker)
        self._by_table[table_row] = followed
        self._running.reset(followed.row)
        return followed

    def _states(self, frame: Frame, index: NDArray[np.int64]) -> tuple[list[StateBlock | None], NDArray[np.int32]]:
        """The places of some rows' states in the rings.

        Returns:
            The block of each layer, and which of its states is each row's, −1 for none, shape ``(layers, rows)``.
        """
        blocks: list[StateBlock | None] = [None] * len(self.layers)
        of_row = np.full((len(self.layers), len(frame.rows)), -1, np.int32)
        begin = 0
        for block in frame.header.states:
            rows = frame.streamed[begin : begin + block.rows]
            begin += block.rows
            if block.layer in self.layers and len(block.path) <= PATH_BYTES:
                layer = self.layers.index(block.layer)
                blocks[layer], of_row[layer] = block, -1
                here = np.flatnonzero(rows >= 0)
                of_row[layer, rows[here]] = here
        return blocks, of_row[:, index]

    def _submit(
        self,
        worker: int,
        asked: Asked,
        chosen: NDArray[np.intp],
        blocks: Sequence[StateBlock | None],
        states: NDArray[np.int32],
    ) -> None:
        """Ask a worker for some rows of a frame."""
        asked = asked.select(chosen)
        used, indices = list[StateBlock](), list[NDArray[np.int32]]()
        for block, of_row in zip(blocks, states[:, chosen], strict=True):
            if block is not None and len(there := of_row[of_row >= 0]):
                # What lies between the first and the last that is needed; a worker copies no more.
                first, last = int(there.min()), int(there.max())
                used.append(StateBlock(block.layer, block.path, block.start + first, last - first + 1))
                indices.append(np.where(of_row >= 0, of_row - first, -1).astype(np.int32))
        refused = self.pool.submit(worker, asked, used, np.stack(indices))
        if refused is not None:
            return self._count_unscored(asked, asked.reads, refused)
        np.add.at(self._requests.waiting, asked.rows, asked.reads)
        for row in np.unique(asked.rows).tolist():
            self._requests[row].sent = True
        return None

    def _answered(self, answered: Answered) -> list[tuple[ProbeFired, bool]]:
        """Fold an answer; returns first firings, in the order of rows."""
        current = self._requests.current(answered.asked)
        if not len(current):
            return []
        asked, scores, outcomes = answered.asked.select(current), answered.scores[current], answered.outcomes[current]
        np.subtract.at(self._requests.waiting, asked.rows, asked.reads)
        for outcome, reason in _REASONS.items():
            self._count_unscored(asked, asked.reads & (outcomes == outcome), reason)
        read = asked.reads & (outcomes == Outcome.READ)
        invalid = read & ~np.isfinite(scores)
        read &= ~invalid
        np.add.at(self._requests.unscored, asked.rows, invalid)
        for probe, bad, scored in zip(self._running.probes, invalid.sum(axis=0), read.sum(axis=0), strict=True):
            if bad:
                self._stats.scores_invalid[asked.model, probe.name] += int(bad)
                self._on_invalid(asked.engine, probe.name, int(bad))
            self._stats.worker_tokens_scored[asked.model, probe.name] += int(scored)
        starts = np.flatnonzero(np.diff(asked.rows, prepend=-1))
        lengths = np.diff(starts, append=len(asked.rows))
        fired = sorted(self._running.fold(starts, lengths, asked.rows[starts], scores, asked.positions, read))
        return [self._fired(int(asked.rows[at]), probe, int(asked.roles[at])) for at, probe in fired]

    def _fired(self, row: int, probe: int, role: int) -> tuple[ProbeFired, bool]:
        followed = self._requests[row]
        return self._running.fired(row, probe, role, followed.request), followed.finished is not None

    def _lost(self, lost: WorkerLost) -> None:
        """A worker is gone, and what it remembered."""
        self._stats.worker_restarts[lost.fault,] += 1
        for asked in lost.asked:
            asked = asked.select(self._requests.current(asked))
            np.subtract.at(self._requests.waiting, asked.rows, asked.reads)
            self._count_unscored(asked, asked.reads, "worker_down")
        for followed in self._by_table.values():
            if followed.worker == lost.worker and followed.sent:
                followed.sent = False
                self._stats.worker_carries_lost[followed.request.model,] += 1

    def _is_over(self, held: Followed) -> bool:
        return self._clock() >= held.deadline or not self._requests.waiting[held.row].any()

    def _complete_all(self, waiting: Sequence[Followed]) -> list[RequestFinished]:
        return [self._complete(each, each.finished) for each in waiting if each.finished is not None]

    def _complete(self, followed: Followed, finished: RequestFinished) -> RequestFinished:
        """A finished request's event with what workers have read of it."""
        row = followed.row
        if (late := self._requests.waiting[row]).any():
            self._count(followed.request.engine, followed.request.model, late, "late")
            self._requests.unscored[row] += late
        readings = self._running.readings(row, self._requests.unscored[row].tolist())
        self._let_go(followed)
        return msgspec.structs.replace(finished, readings=(*finished.readings, *readings))

    def _let_go(self, followed: Followed) -> None:
        self._held.pop(followed.row, None)
        self._requests.end(followed)
        if followed.sent:
            self.pool.forget(followed.worker, followed.number)

    def _count_unscored(self, asked: Asked, missing: NDArray[np.bool_], reason: UnscoredReason) -> None:
        """Count tokens, ``missing`` of shape ``(rows, probes)``, of their requests and altogether."""
        if missing.any():
            np.add.at(self._requests.unscored, asked.rows, missing)
            self._count(asked.engine, asked.model, missing.sum(axis=0), reason)

    def _count(self, engine: str, model: str, tokens: NDArray[np.integer], reason: UnscoredReason) -> None:
        """Count tokens of each probe, shape ``(probes,)``."""
        for probe, count in zip(self._running.probes, tokens.tolist(), strict=True):
            if count:
                self._stats.worker_tokens_unscored[model, probe.name, reason] += count
        self._on_unscored(engine, int(tokens.sum()))
