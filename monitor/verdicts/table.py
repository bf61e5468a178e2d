"""The verdict table: the running verdict of every request in flight, of all engines.

A frame is applied in this order:

1. Slots in ``finished`` end their requests, and so do slots that a ``complete`` frame leaves out: each gives its final
   verdict.
2. ``started`` binds slots to requests. A slot bound to the same request is left alone, since engines announce again
   after a resync; bound to another, that one has ended without our hearing of it.
3. Rows are grouped by request. Replays are set aside; skipped positions are counted as unscored; steered rows move the
   high-water mark but do not enter the verdict; what is left is read by the probes of its role.
4. Requests with one row each (decode) are folded together, the others (prefill) one by one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitor.events import ProbeFired, Reading, Request, RequestFinished
from monitor.frames import Frame, Started
from monitor.verdicts.positions import advance
from monitor.verdicts.requests import Holder, RequestRows
from monitor.verdicts.slots import MAX_SLOTS, UNKNOWN, UNTRACKED, SlotMap
from probes.aggregate import Aggregates
from probes.bundle import Bundle
from probes.roles import Role


@dataclass(slots=True)
class Tally:
    """What became of the rows of one frame."""

    scored: int = 0
    """Rows that entered a verdict."""
    unscored: int = 0
    """Positions that were skipped, and rows of requests that the table has no room for."""
    replayed: int = 0
    """Rows at or below their request's high-water mark."""
    steered: int = 0
    """Rows downstream of steering."""
    unknown: int = 0
    """Rows of slots that no request was announced for: the engine should announce its requests again."""
    untracked: int = 0
    """Requests that began while the table was full."""
    invalid: dict[str, int] = field(default_factory=dict[str, int])
    """Probe to scores that were not finite."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What one frame changed."""

    finished: list[RequestFinished]
    """Requests that ended, all of them before any row of the frame."""
    fired: list[ProbeFired]
    """First firings, in the order of the frame's rows."""
    tally: Tally


class VerdictTable:
    """Running verdicts, one row a request.

    Args:
        bundle: Its probes, thresholds and roles.
        max_requests: Requests in flight, of all engines; those beyond are unscored, and counted.
    """

    def __init__(self, bundle: Bundle, max_requests: int = 65_536) -> None:
        self._probes = bundle.probes
        self._max_requests = max_requests
        self._aggregates = Aggregates(
            [probe.aggregate for probe in bundle.probes],
            np.array([probe.threshold for probe in bundle.probes]),
        )
        # Indexed by a row's byte of role: one that this version does not know is read as TEMPLATE, without a test.
        self._reads = np.repeat(bundle.read_mask[[Role.TEMPLATE]], 256, axis=0)
        self._reads[: len(Role)] = bundle.read_mask
        self._slots: dict[str, SlotMap] = {}
        self._rows = RequestRows()

    def __len__(self) -> int:
        """Requests in flight, of all engines."""
        return len(self._rows)

    def active(self, engine: str) -> int:
        """Requests in flight of one engine."""
        slots = self._slots.get(engine)
        return len(slots.rows()) if slots else 0

    def steered(self, request: Request) -> int:
        """Positions of a request in flight that were downstream of steering; 0 for one that has ended."""
        slots = self._slots.get(request.engine)
        row = slots.row_of(request.key) if slots else UNKNOWN
        return int(self._rows.steered[row]) if row >= 0 else 0

    def apply(self, frame: Frame, model: str) -> Verdicts:
        """Read a frame.

        Args:
            frame: With as many probes as the bundle.
            model: The name that its engine serves under.

        Returns:
            The requests that ended, the probes that fired, and counts.
        """
        header, tally = frame.header, Tally()
        slots = self._slots.setdefault(header.engine, SlotMap())
        ended = [slots.release(slot) for slot in header.finished]
        if header.complete:
            ended += [slots.release(slot) for slot in slots.bound() - {started.slot for started in header.started}]
        ended += [self._start(slots, header.engine, started, tally) for started in header.started]
        finished = [self._finish(row, model, tally) for row in ended if row >= 0]
        fired = self._read(slots.lookup(frame.rows["slot"]), frame, model, tally)
        return Verdicts(finished, fired, tally)

    def drop_engine(self, engine: str) -> int:
        """Forget the requests of an engine, without verdicts; returns how many there were."""
        slots = self._slots.pop(engine, None)
        dropped = slots.rows().tolist() if slots else []
        for row in dropped:
            self._rows.recycle(row)
        return len(dropped)

    def _start(self, slots: SlotMap, engine: str, started: Started, tally: Tally) -> int:
        """Bind a slot; returns the row of the request that this ended, negative if none."""
        slot, key = started.slot, started.key
        if slots.key(slot) == key:
            return UNKNOWN
        before = slots.release(slot)
        if not 0 <= slot < MAX_SLOTS:
            tally.untracked += 1
        elif before < 0 and len(self._rows) >= self._max_requests:
            tally.untracked += 1
            slots.bind(slot, key, UNTRACKED)
        else:
            row = self._rows.allocate(Holder(engine, started))
            self._aggregates.reset(row)
            slots.bind(slot, key, row)
        return before

    def _finish(self, row: int, model: str, tally: Tally) -> RequestFinished:
        holder, aggregates = self._rows[row], self._aggregates
        # A prompt is computed or cached to its end before a token is generated: what is missing there was
        # lost, or the request was aborted. Neither was looked at.
        missing = max(0, holder.started.prompt_tokens - 1 - int(self._rows.high_water[row]))
        tally.unscored += missing
        finished = RequestFinished(
            request=holder.request(model),
            tokens=int(self._rows.tokens[row]),
            unscored=int(self._rows.unscored[row]) + missing,
            steered=int(self._rows.steered[row]),
            readings=tuple(
                Reading(
                    probe=probe.name,
                    tokens=int(aggregates.count[row, column]),
                    peak=peak if (peak := float(aggregates.peak[row, column])) > -np.inf else None,
                    threshold=probe.threshold,
                    fired_at=position if (position := int(aggregates.fired_at[row, column])) >= 0 else None,
                )
                for column, probe in enumerate(self._probes)
            ),
        )
        self._rows.recycle(row)
        return finished

    def _read(self, owners: NDArray[np.int64], frame: Frame, model: str, tally: Tally) -> list[ProbeFired]:
        """Read the rows of a frame; ``owners`` is the table row of each, shape ``(rows,)``."""
        # Stable, so that the rows of one request keep their order; unowned rows are negative and come first.
        order = np.argsort(owners, kind="stable")
        if unowned := int(np.count_nonzero(owners < 0)):
            tally.unknown = int(np.count_nonzero(owners == UNKNOWN))
            tally.unscored += unowned - tally.unknown
            order = order[unowned:]
        if not len(order):
            return []
        owner, rows, scores = owners[order], frame.rows[order], frame.scores[order]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        lengths = np.diff(starts, append=len(owner))
        positions, roles = rows["position"].astype(np.int64), rows["role"]
        requests = owner[starts]

        step = advance(positions, starts, lengths, self._rows.high_water[requests])
        clean = step.fresh & (rows["steered"] == 0)
        steered = step.fresh & ~clean
        self._rows.high_water[requests] = step.high_water
        self._rows.tokens[requests] += np.add.reduceat(clean, starts, dtype=np.int64)
        self._rows.steered[requests] += np.add.reduceat(steered, starts, dtype=np.int64)
        self._rows.unscored[requests] += np.add.reduceat(step.skipped, starts)
        tally.scored = int(np.count_nonzero(clean))
        tally.steered = int(np.count_nonzero(steered))
        tally.replayed = int(np.count_nonzero(~step.fresh))
        tally.unscored += int(step.skipped.sum())

        read = self._reads[roles] & clean[:, None]
        finite = np.isfinite(scores)
        if not finite.all():
            invalid = np.count_nonzero(read & ~finite, axis=0)
            tally.invalid = {self._probes[i].name: int(invalid[i]) for i in np.flatnonzero(invalid)}
            read &= finite
        fired = [
            (int(order[at]), probe, self._fired(int(owner[at]), probe, int(roles[at]), model))
            for at, probe in self._fold(starts, lengths, requests, scores, positions, read)
        ]
        return [event for _, _, event in sorted(fired, key=lambda item: item[:2])]

    def _fold(
        self,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        requests: NDArray[np.int64],
        scores: NDArray[np.float32],
        positions: NDArray[np.int64],
        read: NDArray[np.bool_],
    ) -> Iterator[tuple[int, int]]:
        """Fold rows, grouped by request, into the aggregates; yields ``(row, probe)`` of first firings."""
        single = lengths == 1
        at = starts[single]
        for which, probe in self._aggregates.update_each(requests[single], scores[at], positions[at], read[at]):
            yield int(at[which]), probe
        for request in np.flatnonzero(~single):
            start, row = int(starts[request]), int(requests[request])
            run = slice(start, start + int(lengths[request]))
            for probe in self._aggregates.update(row, scores[run], positions[run], read[run]):
                # A replay may carry the same position again: it comes after the row that fired.
                here = positions[run] == self._aggregates.fired_at[row, probe]
                yield start + int(np.argmax(here)), probe

    def _fired(self, row: int, probe: int, role: int, model: str) -> ProbeFired:
        return ProbeFired(
            request=self._rows[row].request(model),
            probe=self._probes[probe].name,
            aggregate=float(self._aggregates.fired_with[row, probe]),
            threshold=self._probes[probe].threshold,
            position=int(self._aggregates.fired_at[row, probe]),
            role=Role(role).name.lower() if role < len(Role) else "template",
        )
