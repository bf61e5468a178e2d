"""The verdict table: the running verdict of every request in flight, of all engines.

A frame is applied in this order:

1. Slots in ``finished`` end their requests, and so do slots that a ``complete`` frame leaves out: each gives its final
   verdict.
2. ``started`` binds slots to requests. A slot bound to the same request is left alone, since engines announce again
   after a resync; bound to another, that one has ended without our hearing of it.
3. Rows are grouped by request. Replays are set aside; skipped positions are counted as unscored; steered rows move the
   high-water mark but do not enter the verdict; what is left is read by the probes of its role. A row with a score that
   is no finite number, for a probe that should read it, is unscored; its other probes read it. Content of a role that
   no probe of the bundle reads is counted as unread.
4. What was read is folded into the running verdicts (:mod:`monitor.verdicts.running`).
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.events import ProbeFired, Request, RequestFinished, Unread
from monitor.verdicts.positions import advance
from monitor.verdicts.requests import Holder, RequestRows
from monitor.verdicts.running import RunningVerdicts
from monitor.verdicts.slots import MAX_SLOTS, UNKNOWN, UNTRACKED, SlotMap
from monitor.wire.frames import Frame, Started
from probes.bundle import Bundle
from probes.scoring.roles import CONTENT, Role

ROLES: Final = (*(role.name.lower() for role in Role), "unknown")
"""Names of a row's byte of role; those behind the last that is known are the last."""


@dataclass(slots=True)
class Tally:
    """Counts of a frame's rows, by what became of them."""

    scored: int = 0
    """Rows that entered a verdict."""
    unscored: int = 0
    """Positions that were skipped, rows of requests that the table has no room for, and rows with a score that is no
    finite number where a probe should read it."""
    replayed: int = 0
    """Rows at or below their request's high-water mark."""
    steered: int = 0
    """Rows downstream of steering."""
    unknown: int = 0
    """Rows of slots that no request was announced for: the engine should announce its requests again."""
    unread: dict[str, int] = field(default_factory=dict[str, int])
    """Role to rows of content that no probe of the bundle reads."""
    untracked: int = 0
    """Requests that began while the table was full."""
    invalid: dict[str, int] = field(default_factory=dict[str, int])
    """Probe to scores that were not finite."""


@dataclass(frozen=True, slots=True)
class EnteredRows:
    """The rows of a frame that a verdict is made of, grouped by request and in order of position within it; those with
    scores that are no numbers too, since other probes may read them.
    """

    index: NDArray[np.int64]
    """Index of each one's row in the frame, shape ``(rows,)``."""
    owner: NDArray[np.int64]
    """Its request's row of the table, shape ``(rows,)``."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The changes that one frame made."""

    finished: list[RequestFinished]
    """Requests that ended, all of them before any row of the frame."""
    ended: list[int]
    """The rows of the table that these had, in the same order; another request may have one of them by now."""
    fired: list[ProbeFired]
    """First firings, in the order of the frame's rows."""
    entered: EnteredRows
    tally: Tally


class VerdictTable:
    """Running verdicts, one row a request.

    Args:
        bundle: Its probes, thresholds and roles.
        max_requests: Requests in flight, of all engines; those beyond are unscored, and counted.
    """

    def __init__(self, bundle: Bundle, max_requests: int = 65_536) -> None:
        self._max_requests = max_requests
        self._running = RunningVerdicts(bundle.probes)
        self._slots: dict[str, SlotMap] = {}
        self._rows = RequestRows(len(ROLES))
        # Indexed by a row's byte of role; those that this version does not know are content as well.
        self._unread = np.ones(256, bool)
        self._unread[: len(Role)] = [
            role in CONTENT and not any(probe.reads(role) for probe in bundle.all_probes) for role in Role
        ]

    def __len__(self) -> int:
        """Requests in flight, of all engines."""
        return len(self._rows)

    def active(self, engine: str) -> int:
        """Requests in flight of one engine."""
        slots = self._slots.get(engine)
        return len(slots.rows()) if slots else 0

    def in_flight(self, engine: str) -> list[str]:
        """Keys of the requests in flight of one engine."""
        slots = self._slots.get(engine)
        return [self._rows[int(row)].started.engine_request_id for row in slots.rows()] if slots else []

    def steered(self, request: Request) -> int:
        """Positions of a request in flight that were downstream of steering; 0 for one that has ended."""
        slots = self._slots.get(request.engine)
        row = slots.row_of(request.engine_request_id) if slots else UNKNOWN
        return int(self._rows.steered[row]) if row >= 0 else 0

    def find(self, engine: str, engine_request_id: str, model: str) -> Request | None:
        """A request in flight by the engine's own id, as events name it; ``None``: it is not followed."""
        slots = self._slots.get(engine)
        row = slots.row_of(engine_request_id) if slots else UNKNOWN
        return self._rows[row].request(model) if row >= 0 else None

    def named(self, request_id: str) -> list[Holder]:
        """The requests in flight that share an id, as the user of the API sees it."""
        return self._rows.named(request_id)

    def averages(self, request: Request) -> tuple[int, tuple[float | None, ...]] | None:
        """The highest position of a request in flight, and each probe's running average, in logits; ``None``: it is not
        followed.
        """
        slots = self._slots.get(request.engine)
        row = slots.row_of(request.engine_request_id) if slots else UNKNOWN
        if row < 0:
            return None
        means = self._running.aggregates.mean(row).tolist()
        return int(self._rows.high_water[row]), tuple(None if mean != mean else mean for mean in means)

    def note_fired(self, fired: ProbeFired) -> bool:
        """Take over a firing that a gate of the engine saw.

        From that token on, the request's rows are steered and no part of the verdict.

        Returns:
            Whether it is the probe's first in the request; false as well for one that is not followed.
        """
        slots = self._slots.get(fired.request.engine)
        row = slots.row_of(fired.request.engine_request_id) if slots else UNKNOWN
        return row >= 0 and self._running.note_fired(row, fired)

    def __getitem__(self, row: int) -> Holder:
        """The request that holds a row of the table.

        Raises:
            KeyError: Nobody does.
        """
        return self._rows[row]

    def apply(self, frame: Frame, model: str) -> Verdicts:
        """Read a frame.

        Args:
            frame: With as many probes as the bundle.
            model: The name that its engine serves under.

        Returns:
            The requests that ended, the probes that fired, the rows that were read, and counts.
        """
        header, tally = frame.header, Tally()
        slots = self._slots.setdefault(header.engine, SlotMap())
        ended = [slots.release(slot) for slot in header.finished]
        if header.complete:
            ended += [slots.release(slot) for slot in slots.bound() - {started.slot for started in header.started}]
        ended += [self._start(slots, header.engine, started, tally) for started in header.started]
        ended = [row for row in ended if row >= 0]
        finished = [self._finish(row, model, tally) for row in ended]
        entered, fired = self._read(slots.lookup(frame.rows["slot"]), frame, model, tally)
        return Verdicts(finished, ended, fired, entered, tally)

    def drop_engine(self, engine: str) -> int:
        """Forget the requests of an engine, without verdicts; returns how many there were."""
        slots = self._slots.pop(engine, None)
        dropped = slots.rows().tolist() if slots else []
        for row in dropped:
            self._rows.recycle(row)
        return len(dropped)

    def _start(self, slots: SlotMap, engine: str, started: Started, tally: Tally) -> int:
        """Bind a slot; returns the row of the request that this ended, negative if none."""
        slot, engine_request_id = started.slot, started.engine_request_id
        if slots.engine_request_id(slot) == engine_request_id:
            return UNKNOWN
        before = slots.release(slot)
        if not 0 <= slot < MAX_SLOTS:
            tally.untracked += 1
        elif before < 0 and len(self._rows) >= self._max_requests:
            tally.untracked += 1
            slots.bind(slot, engine_request_id, UNTRACKED)
        else:
            row = self._rows.allocate(Holder(engine, started))
            self._running.reset(row)
            slots.bind(slot, engine_request_id, row)
        return before

    def _finish(self, row: int, model: str, tally: Tally) -> RequestFinished:
        holder = self._rows[row]
        # A prompt is computed or cached to its end before a token is generated: what is missing there was
        # lost, or the request was aborted. Neither was looked at.
        missing = max(0, holder.started.prompt_tokens - 1 - int(self._rows.high_water[row]))
        tally.unscored += missing
        finished = RequestFinished(
            request=holder.request(model),
            tokens=int(self._rows.tokens[row]),
            unscored=int(self._rows.unscored[row]) + missing,
            steered=int(self._rows.steered[row]),
            readings=self._running.readings(row),
            unread=tuple(
                Unread(ROLES[role], int(self._rows.unread[row, role]))
                for role in np.flatnonzero(self._rows.unread[row]).tolist()
            ),
        )
        self._rows.recycle(row)
        return finished

    def _read(
        self, owners: NDArray[np.int64], frame: Frame, model: str, tally: Tally
    ) -> tuple[EnteredRows, list[ProbeFired]]:
        """Read the rows of a frame; ``owners`` is the table row of each, shape ``(rows,)``."""
        # Stable, so that the rows of one request keep their order; unowned rows are negative and come first.
        order = np.argsort(owners, kind="stable")
        if unowned := int(np.count_nonzero(owners < 0)):
            tally.unknown = int(np.count_nonzero(owners == UNKNOWN))
            tally.unscored += unowned - tally.unknown
            order = order[unowned:]
        if not len(order):
            return EnteredRows(order, order), []
        owner, rows, scores = owners[order], frame.rows[order], frame.scores[order]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        lengths = np.diff(starts, append=len(owner))
        positions, roles = rows["position"].astype(np.int64), rows["role"]
        requests = owner[starts]

        step = advance(positions, starts, lengths, self._rows.high_water[requests])
        clean = step.fresh & (rows["steered"] == 0)
        steered = step.fresh & ~clean
        read = self._running.reads(roles) & clean[:, None]
        # Of any probe: what is not wholly read is not passed off as read.
        broken = self._set_aside(owner, scores, read, tally)
        scored = clean & ~broken
        self._rows.high_water[requests] = step.high_water
        unread = clean & self._unread[roles]
        if unread.any():
            self._count_unread(owner[unread], roles[unread], tally)
            scored &= ~unread
        self._rows.tokens[requests] += np.add.reduceat(scored, starts, dtype=np.int64)
        self._rows.unscored[requests] += np.add.reduceat(broken, starts, dtype=np.int64)
        self._rows.steered[requests] += np.add.reduceat(steered, starts, dtype=np.int64)
        self._rows.unscored[requests] += np.add.reduceat(step.skipped, starts)
        tally.scored = int(np.count_nonzero(scored))
        tally.steered = int(np.count_nonzero(steered))
        tally.replayed = int(np.count_nonzero(~step.fresh))
        tally.unscored += int(step.skipped.sum()) + int(np.count_nonzero(broken))

        fired: list[tuple[int, int, ProbeFired]] = []
        for at, probe in self._running.fold(starts, lengths, requests, scores, positions, read):
            row = int(owner[at])
            event = self._running.fired(row, probe, int(roles[at]), self._rows[row].request(model))
            fired.append((int(order[at]), probe, event))
        entered = EnteredRows(order[clean], owner[clean])
        return entered, [event for _, _, event in sorted(fired, key=lambda item: item[:2])]

    def _set_aside(
        self, owner: NDArray[np.int64], scores: NDArray[np.float32], read: NDArray[np.bool_], tally: Tally
    ) -> NDArray[np.bool_]:
        """Take scores that are no finite numbers out of ``read``, and count them.

        Args:
            owner: The request's row of the table, shape ``(rows,)``.
            scores: Shape ``(rows, probes)``.
            read: Which probe reads which row, the same shape; changed in place.
            tally: Counted in.

        Returns:
            The rows that have one, shape ``(rows,)``.
        """
        finite = np.isfinite(scores)
        if finite.all():
            return np.zeros(len(read), bool)
        invalid = read & ~finite
        read &= finite
        self._running.count_unscored(owner, invalid)
        counts = np.count_nonzero(invalid, axis=0)
        tally.invalid = {self._running.probes[i].name: int(counts[i]) for i in np.flatnonzero(counts)}
        return np.any(invalid, axis=1)

    def _count_unread(self, owner: NDArray[np.int64], roles: NDArray[np.uint8], tally: Tally) -> None:
        """Count rows of content that no probe reads; ``owner`` is the table row of each, both of shape ``(rows,)``."""
        known = np.minimum(roles, len(Role))
        np.add.at(self._rows.unread, (owner, known), 1)
        counts = np.bincount(known, minlength=len(ROLES)).tolist()
        tally.unread = {role: count for role, count in zip(ROLES, counts, strict=True) if count}
