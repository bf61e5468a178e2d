"""From a concept's conversations to its probe, with everything that is reported of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from probes.bundle.manifest import Evaluation, Probability, Probe, Vector
from probes.calibration.thresholds import calibrate, traffic_slices
from probes.data.corpus import MAX_TOKENS
from probes.evaluation.metrics import MIN_GROUPS, Interval
from probes.evaluation.results import Causal, Heatmap, Histogram, ProbeReport, Rate
from probes.evaluation.wording import with_interval
from probes.fit.held_out import evaluate, sweep
from probes.fit.linear import PENALISED, Linear, Spans, token_scores
from probes.fit.material import Material
from probes.fit.selection import Candidate, Fold, Shown, choose, gain, leave_out, leave_sources_out, make
from probes.models import Progress
from probes.models.activations import TransformersSource
from probes.scoring.aggregate import Aggregate, running
from probes.scoring.multimax import MultiMax
from probes.scoring.roles import Role
from probes.steering.causal import check

PENALTIES: Final = (1e-3, 1e-2)
"""Inverse penalties C of the logistic regression: strong, since probes must hold beyond the data they saw."""
BIGGER_NEEDS: Final = 1000
"""Labelled conversations below which no multi-head network is tried: it has some forty thousand weights."""
BIGGER_FOLDS: Final = 3
"""Folds on which it has to be better before it is tried on the others."""
BIGGER_AGGREGATE: Final = Aggregate(half_life=1.0, min_tokens=3)
"""Of such a network, which has windows of its own."""

CAUSAL_PAIRS: Final = 12
"""Contrast pairs of the causal check: enough to see a change, and seconds of work."""


@dataclass(frozen=True)
class Fitted:
    """A concept's probe, with everything about it."""

    probe: Probe
    reader: Linear | MultiMax
    vector: tuple[Vector, NDArray[np.floating]]
    report: ProbeReport


class ConceptFit:
    """One concept, from its conversations to its probe.

    Args:
        material: The conversations.
        layers: Candidates.
        rate: The false-positive rate of the threshold.
    """

    def __init__(self, material: Material, layers: Sequence[int], rate: float) -> None:
        self._material, self._concept, self._rate = material, material.concept, rate
        self._candidates = [
            Candidate(layer, kind, penalty, aggregate)
            for layer in layers
            for aggregate in self._concept.aggregates
            for kind in self._concept.kinds
            for penalty in (PENALTIES if kind in PENALISED else (1.0,))
        ]
        self._spans: dict[tuple[int, str], Spans] = {}
        self._quiet: dict[tuple[int, str], tuple[Spans, NDArray[np.bool_]]] = {}

    def run(self, source: TransformersSource, progress: Progress) -> Fitted:
        """Choose, fit, calibrate, evaluate."""
        material, concept, data = self._material, self._concept, self._material.data
        folds = leave_sources_out(data)
        total = (len(self._candidates) + 2) * len(folds) + 8
        count = 0

        def done() -> None:
            nonlocal count
            count += 1
            progress(f"fitting {concept.name}", min(count, total), total)

        table = leave_out(material.rows, concept.roles, data, self._candidates, folds, self._rate, done)
        plain = choose(table)
        tried = self._try_bigger(table, plain, folds, done)
        best = choose(table)
        evaluated = evaluate(material, self.spans, self.quiet, table, folds, self._rate, done)
        everything = np.ones(len(data.labels), bool)
        spans = self.spans(best)
        reader = make(spans, data, everything, best)
        quiet, which = self.quiet(best)
        threshold, calibration = calibrate(
            quiet.peaks(reader), self._rate, traffic_slices(quiet.counts, material.ordinary.sources[which].tolist())
        )
        vector = self._vector(best.layer, spans)
        outside = [split for split in evaluated.splits if split.kind in ("leave-source", "leave-topic")]
        probe = Probe(
            name=concept.name,
            layer=best.layer,
            roles=[role.name.lower() for role in concept.roles],
            threshold=threshold,
            aggregate=best.aggregate,
            calibration=calibration,
            evaluation=Evaluation(
                positives=int(data.labels.sum()),
                negatives=int((~data.labels & ~data.benign).sum()),
                auroc=float(np.mean([split.auroc.point for split in outside])),
                auroc_text=float(np.mean([split.text.auroc for split in outside])),
                recall=float(np.mean([split.recall.point if split.recall else 0.0 for split in outside])),
            ),
            definition=concept.definition,
            kind=best.kind,
            probability=Probability(
                evaluated.probability[0],
                evaluated.probability[1] - evaluated.probability[0] * threshold,
                evaluated.reliability.ece,
            )
            if evaluated.probability and evaluated.reliability
            else None,
        )
        # A network has no direction of its own: the steering vector stands in for it.
        direction = reader.weight if isinstance(reader, Linear) else vector[1]
        causal = self._causal(source, probe, direction, vector[0].hidden_norm)
        written = ProbeReport(
            name=concept.name,
            definition=concept.definition,
            layer=best.layer,
            kind=best.kind,
            roles=probe.roles,
            threshold=threshold,
            nominal=self._rate,
            aggregate=probe.aggregate.describe(),
            splits=evaluated.splits,
            false_positives=[*evaluated.rates, *_in_calibration(probe)],
            sweep=sweep(table),
            roc=evaluated.roc,
            scores=_shifted(evaluated.scores, threshold),
            heatmaps=self._heatmaps(source, probe, reader),
            causal=causal,
            controls=evaluated.controls,
            calibration=evaluated.reliability,
            seconds_a_token=evaluated.seconds_a_token,
            remarks=[text for text in (concept.limits, _cut(material), tried) if text],
        )
        progress(f"fitting {concept.name}", total, total)
        self._spans.clear()
        self._quiet.clear()
        return Fitted(probe, reader, vector, written)

    def _try_bigger(
        self, table: dict[Candidate, list[Shown]], plain: Candidate, folds: Sequence[Fold], done: Callable[[], None]
    ) -> str:
        """A multi-head network at the best linear probe's layer: added to the table if it is clearly better.

        Returns:
            What was found, for the card.
        """
        data, concept = self._material.data, self._concept
        if int((~data.benign).sum()) < BIGGER_NEEDS:
            return ""
        candidate = Candidate(plain.layer, "multimax", 1.0, BIGGER_AGGREGATE)
        positives = [int((fold.test & data.labels).sum()) for fold in folds]
        added, tried = Interval(0.0, 0.0, 0.0), dict[Candidate, list[Shown]]()
        # Networks take long: on all folds only what is better on the largest ones.
        for count in sorted({min(BIGGER_FOLDS, len(folds)), len(folds)}):
            kept = sorted(np.argsort(positives)[::-1][:count].tolist())
            some = [folds[index] for index in kept]
            tried = leave_out(self._material.rows, concept.roles, data, [candidate], some, self._rate, done)
            added = gain([table[plain][index] for index in kept], tried[candidate], data, some, self._rate)
            if added.low <= 0:
                break
        clear = added.low > 0
        if clear:
            table |= tried
        return (
            f"A network with attention heads (MultiMax) changes recall, less false alarms on matched negatives, plus "
            f"AUROC on left-out data by {with_interval(added)}; it ships only where the interval is above 0: it "
            f"{'is what ships' if clear else 'does not ship'}."
        )

    def spans(self, candidate: Candidate) -> Spans:
        """The concept's rows as a candidate reads them."""
        key = candidate.layer, repr(candidate.aggregate)
        if key not in self._spans:
            self._spans.clear()
            self._spans[key] = Spans(self._material.rows(candidate.layer), self._concept.roles, candidate.aggregate)
        return self._spans[key]

    def quiet(self, candidate: Candidate) -> tuple[Spans, NDArray[np.bool_]]:
        """The calibrating benign requests' rows as a candidate reads them."""
        key = candidate.layer, repr(candidate.aggregate)
        if key not in self._quiet:
            self._quiet.clear()
            rows, which = self._material.calibration_rows(candidate.layer)
            self._quiet[key] = Spans(rows, self._concept.roles, candidate.aggregate), which
        return self._quiet[key]

    def _causal(
        self, source: TransformersSource, probe: Probe, direction: NDArray[np.floating], norm: float
    ) -> Causal | None:
        """Check whether the model uses what the probe reads; ``None`` where too few pairs end with an answer."""
        pairs = self._concept.pairs
        if Role.ASSISTANT in self._concept.roles:
            pairs = [pair for pair in pairs if pair.positive[-1].role == pair.negative[-1].role == "assistant"]
        chosen = pairs[:: max(1, len(pairs) // CAUSAL_PAIRS)][:CAUSAL_PAIRS]
        return check(source, probe, direction, norm, chosen) if len(chosen) >= MIN_GROUPS else None

    def _heatmaps(self, source: TransformersSource, probe: Probe, reader: Linear | MultiMax) -> list[Heatmap]:
        """The first contrast pair that Plumbob ships, or the user has written, token by token."""
        pair = self._concept.pairs[0]
        sides = {"shows the concept": pair.positive, "does not": pair.negative}
        readings = source.read([source.encode(side) for side in sides.values()], [probe.layer])
        heatmaps: list[Heatmap] = []
        for title, reading in zip(sides, readings, strict=True):
            read = np.array([probe.reads(Role(role)) for role in reading.roles.tolist()])
            scores = token_scores(reader, reading.states[0])
            over = np.flatnonzero(read)[running(scores[read], probe.aggregate) >= probe.threshold]
            heatmaps.append(
                Heatmap(
                    f"{pair.id}: {title}",
                    [source.tokenizer.decode([token]) for token in reading.token_ids.tolist()],
                    [Role(role).name.lower() for role in reading.roles.tolist()],
                    [float(score) if kept else None for score, kept in zip(scores, read, strict=True)],
                    int(over[0]) if len(over) else None,
                )
            )
        return heatmaps

    def _vector(self, layer: int, spans: Spans) -> tuple[Vector, NDArray[np.floating]]:
        """The mean difference of the contrast pairs, over the messages that differ."""
        data = self._material.data
        shipped = ~data.benign & (data.sources == "shipped")
        sides = [
            [spans.message(index).mean(axis=0) for index in np.flatnonzero(shipped & (data.labels == side)).tolist()]
            for side in (True, False)
        ]
        means = [np.mean(side, axis=0) for side in sides]
        norms = np.linalg.norm(self._material.ordinary.answer_states(layer), axis=-1)
        return Vector(self._concept.name, layer, float(np.median(norms))), means[0] - means[1]


def _shifted(margins: Histogram, threshold: float) -> Histogram:
    """Folds have thresholds of their own: what they show above or below them, around the one that is deployed."""
    return msgspec.structs.replace(margins, edges=[edge + threshold for edge in margins.edges])


def _in_calibration(probe: Probe) -> list[Rate]:
    """False-positive rates of the threshold on the requests that it was set on, by kind."""
    calibration = probe.calibration
    pooled = Rate.of(
        "all requests that set the threshold",
        calibration.fired,
        calibration.benign,
        calibration.false_positive_rate,
        left_out=False,
    )
    return [
        pooled,
        *(
            Rate.of(part.name, part.fired, part.benign, calibration.false_positive_rate, left_out=False)
            for part in calibration.slices
        ),
    ]


def _cut(material: Material) -> str:
    sample = material.sample
    text = f"{len(sample.items):,} of {sample.available:,} examples were read."
    if sample.cut:
        text += f" {sample.cut} were longer than {MAX_TOKENS} tokens and cut there."
    if sample.dropped:
        text += f" {sample.dropped} were left out, since the cut took away what they are labelled for."
    return text
