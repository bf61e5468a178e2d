"""The monitor's counters, and snapshots of its state.

:class:`Stats` only ever goes up: plain counters, cheap enough for every frame, that a metrics collector reads
when it is scraped. :class:`Status` is a snapshot of everything that goes up and down.

Keys of counters are tuples of label values, in the order that each attribute's docstring names; ``model`` is
the name an engine serves under, ``""`` until its first HELLO. Rules, probes and vectors come from the
operator's own files, so label sets are as bounded as those; models are bounded by the number of engines
(:class:`monitor.service.config.Limits`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from monitor.events import Reading
from monitor.verdicts import Tally

MARGIN_EDGES: Final = (-16.0, -8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Upper edges of the margin histogram, inclusive, in logits from the threshold; a last bucket takes the
rest."""

MAX_MODELS: Final = 256
"""Models whose series outlive their engines."""

_EDGES: Final = np.array(MARGIN_EDGES)


class MarginHistogram:
    """Histogram of the distance of one model's finished requests from each probe's threshold.

    A margin is a request's peak minus the threshold, in logits: 0 or more is a firing. Requests of which a
    probe read too few tokens have no peak, and are not in here.

    Args:
        probes: Names of the probes, in the order of the bundle.
    """

    def __init__(self, probes: Sequence[str]) -> None:
        self.probes = tuple(probes)
        self.counts: NDArray[np.int64] = np.zeros((len(self.probes), len(MARGIN_EDGES) + 1), np.int64)
        """Requests in each bucket, not cumulative, shape ``(probes, buckets)``."""
        self.sums: NDArray[np.float64] = np.zeros(len(self.probes))
        """Sum of margins, shape ``(probes,)``."""

    def observe(self, readings: Iterable[Reading]) -> None:
        """Count the final readings of one request, one a probe, in the order of the bundle."""
        for probe, reading in enumerate(readings):
            if reading.peak is not None:
                margin = reading.peak - reading.threshold
                self.counts[probe, np.searchsorted(_EDGES, margin)] += 1
                self.sums[probe] += margin


class Stats:
    """Everything that the monitor counts, since it started.

    Written from the monitor's event loop only. A reader on another thread takes ``list(counter.items())``
    first: that is atomic, where iterating is not.

    Args:
        probes: Names of the probes, in the order of the bundle.
        worker_probes: Names of those of them that probe workers read.
    """

    def __init__(self, probes: Sequence[str], worker_probes: Sequence[str] = ()) -> None:
        self.probes = tuple(probes)
        self.worker_probes = tuple(worker_probes)

        self.models: dict[str, None] = {}
        """Models that engines said they serve, in order; kept when the engine is forgotten, so that its series stay."""

        self.frames_received: Counter[tuple[str]] = Counter()
        """``(model,)``: frames that were read."""
        self.frames_lost: Counter[tuple[str]] = Counter()
        """``(model,)``: sequence numbers that never arrived, whether the engine dropped them or they were
        lost after."""
        self.frames_skipped: Counter[tuple[str, str]] = Counter()
        """``(model, reason)``: decoded, but not read; reasons are :data:`SkipReason`."""
        self.frames_malformed: Counter[tuple[str]] = Counter()
        """``(reason,)``: messages that are none of this protocol; reasons are :data:`MalformedReason`."""
        self.texts_cut: Counter[tuple[str]] = Counter()
        """``(reason,)``: texts of messages that were not taken as they are; reasons are
        :data:`monitor.wire.bounds.CutReason`."""
        self.engine_frames_dropped: Counter[tuple[str]] = Counter()
        """``(model,)``: frames that engines say they dropped since *their* start: no monitor, or a full
        queue. They are among ``frames_lost`` too, where this monitor was there to see the gap."""
        self.engine_rows_unscored: Counter[tuple[str]] = Counter()
        """``(model,)``: rows that engines say they computed but did not score since *their* start: LoRA
        requests, more requests than slots."""
        self.engine_faults: Counter[tuple[str]] = Counter()
        """``(model,)``: faults that engines report of their taps and of the threads that talk to the monitor, since
        *their* start; each goes on after it."""
        self.resyncs: Counter[tuple[str]] = Counter()
        """``(model,)``: times an engine was asked to announce its requests again."""

        self.tokens_scored: Counter[tuple[str]] = Counter()
        """``(model,)``: rows that entered a verdict."""
        self.tokens_unscored: Counter[tuple[str]] = Counter()
        """``(model,)``: positions without a score: served from the prefix cache, lost on the way, or of a
        request beyond the table's limit."""
        self.tokens_unread: Counter[tuple[str, str]] = Counter()
        """``(model, role)``: rows of content that no probe of the bundle reads."""
        self.tokens_replayed: Counter[tuple[str]] = Counter()
        """``(model,)``: rows computed again after a preemption; counted once in the verdict."""
        self.tokens_steered: Counter[tuple[str]] = Counter()
        """``(model,)``: rows downstream of steering; not part of a verdict."""
        self.tokens_unknown: Counter[tuple[str]] = Counter()
        """``(model,)``: rows of a slot that no request was announced for."""
        self.scores_invalid: Counter[tuple[str, str]] = Counter()
        """``(model, probe)``: scores that were not finite, and not read."""

        self.worker_tokens_scored: Counter[tuple[str, str]] = Counter()
        """``(model, probe)``: tokens that a probe worker scored."""
        self.worker_tokens_unscored: Counter[tuple[str, str, str]] = Counter()
        """``(model, probe, reason)``: tokens of the probe's roles that it did not score; reasons are
        :data:`UnscoredReason`."""
        self.worker_carries_lost: Counter[tuple[str]] = Counter()
        """``(model,)``: requests in flight of which a worker took to its end what it remembered: its probes begin
        anew."""
        self.worker_restarts: Counter[tuple[str]] = Counter()
        """``(reason,)``: workers that ended or were ended, to be started again; reasons are :data:`WorkerFault`."""

        self.requests_finished: Counter[tuple[str]] = Counter()
        """``(model,)``: requests that ended with a verdict."""
        self.requests_dropped: Counter[tuple[str, str]] = Counter()
        """``(model, reason)``: requests that ended, or began, without a verdict; reasons are
        :data:`DropReason`."""
        self.margins: dict[str, MarginHistogram] = {}
        """Model to the histogram of its finished requests."""

        self.probe_fired: Counter[tuple[str, str]] = Counter()
        """``(model, probe)``: requests in which the probe reached its threshold."""
        self.alerts: Counter[tuple[str, str, str, str]] = Counter()
        """``(model, rule, severity, mode)``."""
        self.interventions: Counter[tuple[str, str, str, str, bool]] = Counter()
        """``(model, rule, vector, mode, sent)``; ``sent`` is whether the order went to the engine, or its gate decided
        itself. ``vector`` is empty where a generation was stopped, ``rule`` where an operator's gate decided."""
        self.gate_decisions: Counter[tuple[str, str, str]] = Counter()
        """``(model, rule, decision)``: what gates of engines decided; decisions are :data:`GateDecision`."""
        self.gate_decisions_lost: Counter[tuple[str]] = Counter()
        """``(model,)``: decisions of gates that never arrived."""
        self.refusals_lost: Counter[tuple[str]] = Counter()
        """``(model,)``: refusals of engines that never arrived."""
        self.gate_tokens_steered: Counter[tuple[str, str]] = Counter()
        """``(model, rule)``: tokens that gates steered, counted when they closed."""
        self.guarded: Counter[tuple[str]] = Counter()
        """``(model,)``: requests that guards of engines released from steering."""
        self.guarded_lost: Counter[tuple[str]] = Counter()
        """``(model,)``: releases by guards that never arrived."""
        self.escalations: Counter[tuple[str, str, str]] = Counter()
        """``(model, rule, mode)``: requests marked for review."""
        self.orders: Counter[tuple[str, str, str]] = Counter()
        """``(by, order, result)``: orders that no decision on a request stands behind; ``by`` is ``policy``,
        ``operator``, ``request`` for what one asked for itself, or ``engine`` for any that it refused."""
        self.forgotten: Counter[tuple[str]] = Counter()
        """``(what,)``: what was let go of about interventions, for want of room; :data:`Forgotten` says what."""
        self.policy_reloads: Counter[tuple[str]] = Counter({("in_force",): 0, ("refused",): 0})
        """``(result,)``: times the policy was read again; where it was refused, the one before it is still in force."""
        self.sink_errors: Counter[tuple[str]] = Counter()
        """``(sink,)``: events that a sink failed to take; the sink's class name."""
        self.sink_stalls: Counter[tuple[str]] = Counter()
        """``(sink,)``: times that engines were confirmed without waiting any longer for a durable sink, or for
        the journal (``store``)."""
        self.sink_events_dropped: Counter[tuple[str]] = Counter()
        """``(sink,)``: events that a sink with a queue of its own was too slow for; the sink's class name."""
        self.store_faults: Counter[tuple[str]] = Counter()
        """``(reason,)``: times that something was wrong with the journal; reasons are :data:`StoreFault`."""
        self.audit_records: Counter[tuple[()]] = Counter()
        """``()``: records in the audit log, of this monitor."""
        self.audit_records_lost: Counter[tuple[()]] = Counter()
        """``()``: records that never will be: more waited than are kept while it could not be written."""
        self.audit_faults: Counter[tuple[str]] = Counter()
        """``(reason,)``: times that something was wrong with the audit log; reasons are :data:`AuditFault`."""
        self.audit_files_begun: Counter[tuple[str]] = Counter()
        """``(reason,)``: files of the audit log that were begun after another; reasons are
        :data:`monitor.events.AuditBeginning`."""
        self.events_dropped = 0
        """Events that a subscriber was too slow for."""

    def note_model(self, model: str) -> None:
        """An engine serves this model: its series are shown from here on."""
        if model and len(self.models) < MAX_MODELS:
            self.models[model] = None

    def count_rows(self, model: str, tally: Tally) -> None:
        """Count what became of the rows of one frame."""
        self.tokens_scored[model,] += tally.scored
        self.tokens_unscored[model,] += tally.unscored
        for role, count in tally.unread.items():
            self.tokens_unread[model, role] += count
        self.tokens_replayed[model,] += tally.replayed
        self.tokens_steered[model,] += tally.steered
        self.tokens_unknown[model,] += tally.unknown
        self.requests_dropped[model, "table_full"] += tally.untracked
        for probe, count in tally.invalid.items():
            self.scores_invalid[model, probe] += count

    def observe_margins(self, model: str, readings: Sequence[Reading]) -> None:
        """Count the final readings of one request, one a probe, in the order of the bundle."""
        if model not in self.margins:
            self.margins[model] = MarginHistogram(self.probes)
        self.margins[model].observe(readings)


GateDecision = Literal["opened", "closed"]
"""A gate's decision: it begins to steer a request, or it steers it no more."""

SkipReason = Literal["refused", "probes", "duplicate", "engines"]
"""Why a frame was not read.

* ``refused``: its engine scores with another bundle.
* ``probes``: it has another number of probes than the bundle.
* ``duplicate``: its sequence number is not above the last one.
* ``engines``: more engines than the monitor keeps.
"""

MalformedReason = Literal["malformed", "version", "identity"]
"""Why a message was no message.

* ``malformed``: it cannot be decoded.
* ``version``: it is of a version of the protocol that this monitor does not read.
* ``identity``: its sender is not named like an engine's core or exporter.
"""

DropReason = Literal["engine_lost", "table_full"]
"""Why a request has no verdict.

* ``engine_lost``: its engine went silent, or does not fit this monitor.
* ``table_full``: more requests at once than the table keeps.
"""

Refusal = Literal["queue_full", "worker_down"]
"""Why a worker was not asked to score rows: too much waits for it, or it has ended."""

UnscoredReason = Literal["no_states", "queue_full", "worker_down", "overtaken", "unreadable", "failed", "late"]
"""Why a token has no score of a probe that workers read.

* ``no_states``: its frame came without its activations: it was served from the prefix cache, or its layer is not
  streamed (the engine was not started to, or has not had the order yet).
* ``queue_full``: more waited for the worker than may.
* ``worker_down``: the worker had ended, or ended before it answered.
* ``overtaken``: the engine had written over the activations before the worker came to them.
* ``unreadable``: the worker could not read the engine's ring.
* ``failed``: the probe raised an error.
* ``late``: the request had ended, and its verdict did not wait any longer.
"""

WorkerFault = Literal["ended", "stuck"]
"""Why a worker is started again.

* ``ended``: its process ended.
* ``stuck``: it did not answer, or not what it was asked, and was killed.
"""

Forgotten = Literal["request", "ended_request", "engine", "ended_id", "ended_order", "undo"]
"""Something about interventions that was let go of, since there is room for so many.

* ``request``: what was done to a request that may be in flight: a rule may be carried out on it again.
* ``ended_request``: the tokens that gates steered of a request that has ended; nearly always, all is told of it.
* ``engine``: the numbers of what an engine told: it may be told again.
* ``ended_id``: that a request has ended: an operator's order for it is refused as if it had never been.
* ``ended_order``: that the end of an operator's order is told: it may be told again.
* ``undo``: an operator's order that could not be undone yet: it goes on until its lease ends.
"""

StoreFault = Literal["open", "write", "sync", "damaged", "lost"]
"""A fault of the store's journal.

* ``open``: its folder cannot be used, or another monitor holds it: after a restart, nothing is known.
* ``write``: it cannot be written, such as on a full disk; tried again each second.
* ``sync``: the disk did not confirm what was written.
* ``damaged``: a part of what an earlier monitor left could not be read.
* ``lost``: an entry could not be kept: too much waited for the disk.
"""

AuditFault = Literal["write", "sync", "disturbed", "segment"]
"""A fault of the audit log.

* ``write``: it cannot be written, such as on a full disk; tried again each second.
* ``sync``: the disk did not confirm what was written.
* ``disturbed``: another process moved, removed or changed it.
* ``segment``: a file could not be closed, or the next one not begun; tried again.
"""

EngineState = Literal["pending", "connected", "lost", "refused", "shadow", "silent"]
"""The state of an engine, as the monitor sees it.

* ``pending``: it sends frames; its first HELLO has not arrived.
* ``connected``: it scores with the monitor's bundle, and its self-test passed where the bundle has canaries.
* ``lost``: it has been silent for too long.
* ``refused``: it scores with another bundle; its frames are skipped.
* ``shadow``: it scores with the monitor's bundle, but its scores are not those of the bundle's model, or that is not
  known any more: every rule is held to shadow.
* ``silent``: it serves and nobody reads it: it says that it computes and sends no frames, a part of its taps has just
  failed, or they are switched off.
"""

SCORING: Final[frozenset[EngineState]] = frozenset({"connected", "shadow"})
"""States in which an engine's scores are read."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine, now."""

    engine: str
    """Unique for each start of an engine."""
    model: str
    """The name it is served under; ``""`` until its first HELLO."""
    vllm: str
    """Version of vLLM; ``""`` until its first HELLO."""
    state: EngineState
    frames: int
    """Frames read since the monitor first heard it."""
    lost: int
    """Sequence numbers that never arrived."""
    dropped: int
    """Frames that the engine says it dropped since its start."""
    requests_active: int
    """Requests in flight that the monitor follows."""
    last_seen_seconds: float
    """Seconds since its last message."""
    lag_seconds: float | None
    """From a step computed to its frame read, of the latest frame; ``None`` before the first."""
    drift: float | None = None
    """The largest drift of a probe that its self-test found; ``None``: not tested, or not since its weights changed."""
    worker_unscored: int = 0
    """Tokens that probe workers did not score, each counted once a probe that was to read it."""
    unread: bool = False
    """Its latest frame was skipped."""

    @property
    def scoring(self) -> bool:
        """True where it is connected and its frames are read; one that has had no request yet has sent none."""
        return self.state in SCORING and not self.unread


@dataclass(frozen=True, slots=True)
class Status:
    """The monitor, now."""

    started: datetime
    """UTC."""
    bundle_path: str
    bundle_digest: str
    policy_name: str
    """Path of the policy file, or what stands in for one."""
    policy_digest: str
    """SHA-256 of the policy file."""
    engines: tuple[EngineStatus, ...]
    """In the order in which they were first heard."""
    workers: int = 0
    """Probe workers; 0 where the bundle has no probes for them."""
    workers_running: int = 0
    """Those of them that take work now."""

    @property
    def requests_active(self) -> int:
        """Requests in flight that the monitor follows, of all engines."""
        return sum(engine.requests_active for engine in self.engines)

    @property
    def scoring(self) -> bool:
        """True where at least one engine is connected and its frames are read."""
        return any(engine.scoring for engine in self.engines)

    @property
    def unready(self) -> str:
        """Why nothing is scored, in words; empty where something is."""
        if self.scoring:
            return ""
        if not self.engines:
            return "no engine is connected"
        found = Counter("unread" if engine.state in SCORING else engine.state for engine in self.engines)
        return f"no engine is scored: {', '.join(f'{count} {state}' for state, count in found.items())}"
