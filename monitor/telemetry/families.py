"""The counters of :class:`monitor.telemetry.stats.Stats`, as the names, labels and help that Prometheus shows.

Labels take their values from the operator's configuration only (models served, probes, rules, vectors, sinks)
and from the closed sets of :mod:`monitor.telemetry.stats`; requests and users are never labels. Neither are engines:
their ids are unique for each start, so a crash loop would make new series each time.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from monitor.events import AuditBeginning
from monitor.telemetry.stats import (
    AuditFault,
    DropReason,
    Forgotten,
    MalformedReason,
    SkipReason,
    Stats,
    StoreFault,
    UnscoredReason,
    WorkerFault,
)
from monitor.wire.bounds import CutReason


@dataclass(frozen=True, slots=True)
class Family:
    """One counter of :class:`Stats` as a family."""

    name: str
    """Without the prefix and without ``_total``."""
    help: str
    labels: tuple[str, ...]
    counter: Callable[[Stats], Counter[Any]]
    """Its keys are the values of the labels, in their order."""
    reasons: tuple[str, ...] = ()
    """The values of the label ``reason``, ``decision`` or ``what``, where there is one."""
    probes: Callable[[Stats], Sequence[str]] = lambda stats: stats.probes
    """The values of the label ``probe``, where there is one."""


MODEL: Final = ("model_name",)

COUNTERS: Final = (
    Family("frames_received", "Frames of engines that were read.", MODEL, lambda s: s.frames_received),
    Family("frames_lost", "Frames that never arrived: gaps in sequence.", MODEL, lambda s: s.frames_lost),
    Family(
        "frames_skipped",
        "Frames that arrived and were not read.",
        ("model_name", "reason"),
        lambda s: s.frames_skipped,
        get_args(SkipReason),
    ),
    Family(
        "messages_malformed",
        "Messages that are none of the protocol.",
        ("reason",),
        lambda s: s.frames_malformed,
        get_args(MalformedReason),
    ),
    Family(
        "message_texts_cut",
        "Texts of engines' messages, such as ids of requests, that were too long or could not be printed.",
        ("reason",),
        lambda s: s.texts_cut,
        get_args(CutReason),
    ),
    Family(
        "engine_frames_dropped",
        "Frames that engines report to have dropped: no monitor, or a full queue.",
        MODEL,
        lambda s: s.engine_frames_dropped,
    ),
    Family(
        "engine_rows_unscored",
        "Rows that engines report to have computed but not scored.",
        MODEL,
        lambda s: s.engine_rows_unscored,
    ),
    Family(
        "engine_faults",
        "Faults that engines report of their taps and of the threads that send to the monitor.",
        MODEL,
        lambda s: s.engine_faults,
    ),
    Family("resyncs", "Times an engine had to announce its requests again.", MODEL, lambda s: s.resyncs),
    Family("tokens_scored", "Tokens that entered a verdict.", MODEL, lambda s: s.tokens_scored),
    Family(
        "tokens_unscored",
        "Tokens without a score: from the prefix cache, lost on the way, or of scores that are no finite numbers.",
        MODEL,
        lambda s: s.tokens_unscored,
    ),
    Family(
        "tokens_unread",
        "Tokens of content that no probe of the bundle reads: text without the chat template, for one.",
        ("model_name", "role"),
        lambda s: s.tokens_unread,
    ),
    Family(
        "tokens_replayed",
        "Tokens computed again after a preemption; counted once in the verdict.",
        MODEL,
        lambda s: s.tokens_replayed,
    ),
    Family(
        "tokens_steered",
        "Tokens computed downstream of steering; not part of a verdict.",
        MODEL,
        lambda s: s.tokens_steered,
    ),
    Family(
        "tokens_unknown",
        "Tokens of requests that were not announced, or beyond the table's limit.",
        MODEL,
        lambda s: s.tokens_unknown,
    ),
    Family(
        "scores_invalid",
        "Scores that were no finite numbers; their tokens are unscored.",
        ("model_name", "probe"),
        lambda s: s.scores_invalid,
    ),
    Family(
        "worker_tokens_scored",
        "Tokens that a probe worker scored.",
        ("model_name", "probe"),
        lambda s: s.worker_tokens_scored,
        probes=lambda s: s.worker_probes,
    ),
    Family(
        "worker_tokens_unscored",
        "Tokens of a probe's roles that its worker did not score.",
        ("model_name", "probe", "reason"),
        lambda s: s.worker_tokens_unscored,
        get_args(UnscoredReason),
        probes=lambda s: s.worker_probes,
    ),
    Family(
        "worker_carries_lost",
        "Requests in flight of which a probe worker took to its end what it remembered.",
        MODEL,
        lambda s: s.worker_carries_lost,
    ),
    Family(
        "worker_restarts",
        "Probe workers that ended, or were stuck and killed, to be started again.",
        ("reason",),
        lambda s: s.worker_restarts,
        get_args(WorkerFault),
    ),
    Family(
        "requests_finished",
        "Requests of engines that ended with a verdict; each choice, prompt and beam of a user's request is one.",
        MODEL,
        lambda s: s.requests_finished,
    ),
    Family(
        "requests_dropped",
        "Requests without a verdict.",
        ("model_name", "reason"),
        lambda s: s.requests_dropped,
        get_args(DropReason),
    ),
    Family(
        "probe_fired",
        "Requests in which the probe reached its threshold.",
        ("model_name", "probe"),
        lambda s: s.probe_fired,
    ),
    Family(
        "alerts",
        "Alerts that rules chose; in mode shadow, none was sent.",
        ("model_name", "rule", "severity", "mode"),
        lambda s: s.alerts,
    ),
    Family(
        "interventions",
        "Interventions that rules chose; sent is whether the order went to the engine, or its gate decided itself.",
        ("model_name", "rule", "vector", "mode", "sent"),
        lambda s: s.interventions,
    ),
    Family(
        "gate_decisions",
        "Decisions of gates of engines.",
        ("model_name", "rule", "decision"),
        lambda s: s.gate_decisions,
    ),
    Family("gate_decisions_lost", "Decisions of gates that never arrived.", MODEL, lambda s: s.gate_decisions_lost),
    Family("refusals_lost", "Refusals of engines that never arrived.", MODEL, lambda s: s.refusals_lost),
    Family(
        "gate_tokens_steered",
        "Tokens that gates of engines steered, counted when they closed.",
        ("model_name", "rule"),
        lambda s: s.gate_tokens_steered,
    ),
    Family(
        "guarded",
        "Requests that guards of engines released from steering, since their answers repeated themselves.",
        MODEL,
        lambda s: s.guarded,
    ),
    Family("guarded_lost", "Such releases that the monitor was never told of.", MODEL, lambda s: s.guarded_lost),
    Family(
        "escalations",
        "Requests that rules marked for review; in mode shadow, no trace is kept.",
        ("model_name", "rule", "mode"),
        lambda s: s.escalations,
    ),
    Family(
        "orders",
        "Orders of operators, gates that the policy arms, and what engines refused.",
        ("by", "order", "result"),
        lambda s: s.orders,
    ),
    Family(
        "interventions_forgotten",
        "What was let go of about interventions, since there is room for so many.",
        ("what",),
        lambda s: s.forgotten,
        get_args(Forgotten),
    ),
    Family(
        "policy_reloads",
        "Times the policy was read again; refused: the one before it still decides.",
        ("result",),
        lambda s: s.policy_reloads,
    ),
    Family("sink_errors", "Events that a sink failed to take.", ("sink",), lambda s: s.sink_errors),
    Family(
        "sink_events_dropped",
        "Events that a sink with a queue of its own was too slow for.",
        ("sink",),
        lambda s: s.sink_events_dropped,
    ),
    Family(
        "sink_stalls",
        "Times that engines were confirmed without a durable sink, or without the journal, since it hangs.",
        ("sink",),
        lambda s: s.sink_stalls,
    ),
    Family(
        "store_faults",
        "Times that the journal could not be opened, written, confirmed or read.",
        ("reason",),
        lambda s: s.store_faults,
        get_args(StoreFault),
    ),
    Family("audit_records", "Records written to the audit log.", (), lambda s: s.audit_records),
    Family(
        "audit_records_lost",
        "Records that are missing from the audit log, since it could not be written for too long.",
        (),
        lambda s: s.audit_records_lost,
    ),
    Family(
        "audit_faults",
        "Times that the audit log could not be written or confirmed, or was changed by another.",
        ("reason",),
        lambda s: s.audit_faults,
        get_args(AuditFault),
    ),
    Family(
        "audit_files_begun",
        "Files of the audit log that were begun after another; but for rotated, something was done to the one before.",
        ("reason",),
        lambda s: s.audit_files_begun,
        get_args(AuditBeginning),
    ),
)
