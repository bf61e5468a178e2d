"""A bundle as it is, judged on labelled requests that somebody else wrote.

Nothing is fitted to them, and no threshold is moved.

1. Requests are scored as :mod:`probes.evaluation.offline_scores` does. Those with label 1 for a probe are its
   positives, those with label 0 its negatives; one without a label for it has no part in its figures. One without a
   verdict counts as not fired.
2. Figures are of all labelled requests, and of each source and slice that the data name and that is large enough.
   Intervals resample whole groups; a request that names no group is one of its own.
3. Words and length are learnt on these data themselves (:mod:`probes.evaluation.cross_validated_baselines`). They have
   seen data like those that they are judged on, the probe has not: they are stronger opponents here than in a bundle's
   own report.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.calibration.thresholds import SOURCE_SLICE
from probes.data.requests import Request, RequestError
from probes.evaluation.heatmaps import heatmaps
from probes.evaluation.labelled import Labelled, parts
from probes.evaluation.offline_scores import Encoded, Scorer
from probes.evaluation.results import Heatmap, ProbeReport
from probes.models import Progress, no_progress
from probes.scoring.aggregate import Aggregates
from probes.scoring.roles import RoleReader

_TIMED_TOKENS: Final = 512
_TIMED_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of :func:`judge`."""

    probes: list[ProbeReport]
    """Those that the data have labels for, in the bundle's order."""
    notes: list[str]
    """Notes that hold for all probes, in plain sentences."""


def require_labels(requests: Sequence[Request], path: Path) -> None:
    """Check what can be checked of requests before a model is loaded.

    Raises:
        RequestError: None of them has a label.
        ConceptError: They name more sources and slices than a report holds.
    """
    if not any(request.labels for request in requests):
        raise RequestError(
            f"{path} has no labels.",
            'Write what each request is known to show: "labels": {"toxicity": 1, "refusal": 0}',
        )
    parts(requests)


def judge(
    scorer: Scorer, requests: Sequence[Request], *, examples: bool = False, progress: Progress = no_progress
) -> Judgement:
    """Measure a bundle's probes, their thresholds as they are.

    Args:
        scorer: By what, and with which model.
        requests: Labelled; those without labels are not read.
        examples: Whether to show example conversations, which puts their text into the report.
        progress: Told about slow work.

    Raises:
        RequestError: The chat template refuses a conversation.
        ConceptError: The requests name more sources and slices than a report holds.
        ModelError: The model cannot be read.
    """
    labelled = [request for request in requests if request.labels]
    encoded = scorer.encode(labelled)
    begin = time.perf_counter()
    chunks = list(scorer.score(encoded, progress))
    seconds = time.perf_counter() - begin
    peaks, fired_at = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("peak", "fired_at"))
    read = _Read(labelled, encoded, peaks, fired_at, _detected(scorer, encoded, fired_at))
    cost = _seconds_a_token(scorer)
    known = {name for request in labelled for name in request.labels}
    columns = [column for column, probe in enumerate(scorer.bundle.all_probes) if probe.name in known]
    found: list[ProbeReport] = []
    for number, column in enumerate(columns):
        progress("judging probes", number, len(columns))
        found.append(_probe(scorer, column, read, cost, examples=examples))
    progress("judging probes", len(columns), len(columns))
    missing = [probe.name for probe in scorer.bundle.all_probes if probe.name not in known]
    return Judgement(found, _notes(scorer, requests, read, seconds, missing))


@dataclass(frozen=True, slots=True)
class _Read:
    """The labelled requests, and what was read of them; arrays are ``(requests, probes)``."""

    requests: Sequence[Request]
    encoded: Sequence[Encoded]
    peaks: NDArray[np.float64]
    fired_at: NDArray[np.int64]
    detected: NDArray[np.int64]
    """Tokens that a probe read up to where it fired, 0 where it did not."""


def _probe(scorer: Scorer, column: int, read: _Read, cost: float, *, examples: bool) -> ProbeReport:
    """The figures of one probe on the requests that are labelled for it."""
    bundle, probe = scorer.bundle, scorer.bundle.all_probes[column]
    rows = [index for index, request in enumerate(read.requests) if probe.name in request.labels]
    mine = [read.requests[row] for row in rows]
    of = Labelled.of(probe, mine, read.peaks[rows, column], read.detected[rows, column])
    shown: list[Heatmap] = []
    if examples:
        encoded, fired_at = [read.encoded[row] for row in rows], read.fired_at[rows, column]
        shown = heatmaps(scorer, column, mine, encoded, of.labels, of.peaks, fired_at)
    made_from = frozenset(
        f"{SOURCE_SLICE}{one.source}"
        for name in (probe.name, "benign")
        for one in bundle.manifest.provenance.get(name, [])
    )
    given = [part for name in of.parts if (part := of.given(name))]
    return ProbeReport(
        name=probe.name,
        definition=probe.definition or f"more of what '{probe.name}' names",
        layer=probe.layer,
        kind=probe.kind,
        roles=probe.roles,
        threshold=probe.threshold,
        nominal=probe.calibration.false_positive_rate,
        aggregate=probe.aggregate.describe(),
        splits=[],
        false_positives=of.rates(made_from),
        roc=[of.roc(part.name) for part in given if part.auroc],
        scores=of.scores(),
        given=given,
        heatmaps=shown,
        calibration=of.reliability(),
        seconds_a_token=cost,
        remarks=of.remarks(made_from),
    )


def _detected(scorer: Scorer, encoded: Sequence[Encoded], fired_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens that each probe read up to where it fired, 0 where it did not, shape ``(requests, probes)``."""
    reader, reads = RoleReader(scorer.bundle.manifest.markers), scorer.bundle.all_read_mask
    detected = np.zeros_like(fired_at)
    for row in np.flatnonzero((fired_at >= 0).any(axis=1)).tolist():
        read = reads[reader.prompt(encoded[row].token_ids, typed=encoded[row].typed)].cumsum(axis=0)
        for column in np.flatnonzero(fired_at[row] >= 0).tolist():
            detected[row, column] = read[fired_at[row, column], column]
    return detected


def _seconds_a_token(scorer: Scorer) -> float:
    """The cost of one probe's score and verdict beyond the activations, all probes of the bundle sharing the work."""
    probes, hidden = scorer.bundle.all_probes, scorer.bundle.manifest.model.hidden
    states = np.ones((len({probe.layer for probe in probes}), _TIMED_TOKENS, hidden), np.float32)
    thresholds = np.array([probe.threshold for probe in probes])
    aggregates = Aggregates([probe.aggregate for probe in probes], thresholds, 1)
    reads, taken = np.ones((_TIMED_TOKENS, len(probes)), bool), list[float]()
    for _ in range(_TIMED_RUNS):
        aggregates.reset(0)
        begin = time.perf_counter()
        aggregates.update(0, scorer.token_scores(states, reads), np.arange(_TIMED_TOKENS), reads)
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken)) / (_TIMED_TOKENS * len(probes))


def _notes(
    scorer: Scorer,
    requests: Sequence[Request],
    read: _Read,
    seconds: float,
    missing: Sequence[str],
) -> list[str]:
    labelled, encoded = read.requests, read.encoded
    tokens = sum(len(request.token_ids) for request in encoded)
    notes = [
        f"Bundle {scorer.bundle.digest[:12]}, judged as it is on {len(labelled):,} labelled requests: nothing was "
        "fitted to them, and no threshold was set on them.",
        "Words and length were learnt on these requests themselves, by cross-validation: they have seen data like "
        "these, the probes have not, and are the stronger opponents for it.",
        f"{tokens:,} tokens were read and scored in {seconds:.1f} s, {1e6 * seconds / max(tokens, 1):,.0f} µs a token: "
        "mostly the model's own work.",
    ]
    if truncated := sum(request.truncated for request in encoded):
        notes.append(
            f"{truncated:,} of {len(labelled):,} requests exceed the model's context: the probes read only their "
            "beginning, words and length all of them."
        )
    if unlabelled := len(requests) - len(labelled):
        notes.append(f"{unlabelled:,} of {len(requests):,} requests have no labels, and were not read.")
    if alone := sum(request.group is None for request in labelled):
        notes.append(
            f"{alone:,} of {len(labelled):,} requests name no group, and count as groups of their own: where some were "
            "made alike, intervals are too narrow."
        )
    if missing:
        notes.append(f"No request is labelled for: {', '.join(missing)}.")
    return notes
