"""From a model to a bundle.

1. Gather each concept's examples and the benign requests, choose among them within a token budget
   (:mod:`probes.corpus`), let the model answer some of the benign ones, and read the residual stream of all of them at
   candidate layers (:mod:`probes.material`). What was read stays on disk until the bundle is written, so that an
   interrupted fit goes on where it was.
2. For each concept choose layer, kind and penalty by leaving out whole data sets (:mod:`probes.selection`), fit on all
   of the data, and set the threshold on benign requests that no probe has seen (:mod:`probes.calibrate`).
3. Measure it on what was left out, beside baselines and controls (:mod:`probes.evaluate`), and ask whether the model
   uses what the probe reads (:mod:`probes.causal`).
4. Take the mean difference of the contrast pairs at that layer as steering vector (contrastive activation addition,
   Rimsky et al., arXiv 2312.06681), with the median norm of the residual stream over response tokens as the unit of
   dose.
5. Record what the probes read in the canaries (:mod:`probes.canaries`), by which an engine is tested later, and write
   bundle and report.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from probes.activations import OpenReader, TransformersSource
from probes.aggregate import Aggregate, running
from probes.bundle import Bundle, WorkerProbe, require_destination, save_bundle
from probes.calibrate import calibrate, may_fire, traffic_slices
from probes.canaries import CONVERSATIONS, Canaries
from probes.causal import check
from probes.concepts import CONCEPTS, Concept, benign_path, load_benign
from probes.corpus import MAX_TOKENS
from probes.errors import ConceptError, ModelError
from probes.evaluate import evaluate, sweep
from probes.linear import PENALISED, Linear, Spans
from probes.manifest import Evaluation, Probability, Probe, Provenance, Vector
from probes.material import CALIBRATING, Material, calibrating, gather
from probes.metrics import MIN_GROUPS, Interval
from probes.models import Progress, identify, no_progress, resolve_model
from probes.multimax import MultiMax
from probes.report.document import Causal, Heatmap, Histogram, ProbeReport, Rate, Report
from probes.report.files import HTML, JSON, decode, encode
from probes.report.page import render
from probes.report.sentences import concluded
from probes.report.words import with_interval
from probes.roles import Role
from probes.selection import SHIPPED, Candidate, Fold, Shown, choose, gain, leave_out, leave_sources_out, make
from probes.sources import provenance
from probes.store import Store

DEPTHS: Final = (0.4, 0.5, 0.6)
"""Depths at which layers are tried, as shares of the model's layers: concepts are most linear in the middle."""
PENALTIES: Final = (1e-3, 1e-2)
"""Inverse penalties C of the logistic regression: strong, since probes must hold beyond the data they saw."""
TOKENS: Final = 700_000
"""Read at most, unless told otherwise; some ten minutes for a model of 135M on two cores."""

BIGGER_NEEDS: Final = 1000
"""Labelled conversations below which no multi-head network is tried: it has some forty thousand weights."""
BIGGER_FOLDS: Final = 3
"""Folds on which it has to be better before it is tried on the others."""
BIGGER_AGGREGATE: Final = Aggregate(half_life=1.0, min_tokens=3)
"""Of such a network, which has windows of its own."""

CAUSAL_PAIRS: Final = 12
"""Contrast pairs of the causal check: enough to see a change, and seconds of work."""


@dataclass(frozen=True)
class _Fitted:
    """A concept's probe, with everything about it."""

    probe: Probe
    reader: Linear | MultiMax
    vector: tuple[Vector, NDArray[np.floating]]
    report: ProbeReport


def fit_bundle(
    model: str,
    out: Path,
    *,
    version: str,
    data: Path | None = None,
    false_positive_rate: float = 0.01,
    concepts: Sequence[Concept] = CONCEPTS,
    tokens: int = TOKENS,
    command: str = "",
    reader: OpenReader | None = None,
    progress: Progress = no_progress,
) -> Bundle:
    """Fit, calibrate, evaluate and write a bundle.

    Args:
        model: A Hugging Face id, a local directory, or ``demo``.
        out: Directory of the bundle. What is read on the way is kept beside it until the bundle is written.
        version: Of plumbob, for the manifest.
        data: Directory of public data sets; ``None`` for the pairs that ship with Plumbob alone.
        false_positive_rate: Share of benign requests on which each probe may fire; of a family of probes, together.
        concepts: What to fit.
        tokens: Read at most.
        command: That the user gave, for the report.
        reader: Reads the material and answers; ``None``: transformers does. What steers the model, example
            conversations and canaries are transformers' in any case: it has hooks, and an engine that is tested by
            canaries must not have recorded them.
        progress: Told about slow work.

    Returns:
        The bundle.

    Raises:
        PlumbobError: The model or the data cannot be used; no bundle was written.
    """
    # What would fail at the end of minutes of work fails here.
    out = require_destination(out)
    rates = {concept.name: _rate(concept, concepts, false_positive_rate) for concept in concepts}
    for concept in concepts:
        _ = concept.pairs
    if data is None:
        may_fire(int(calibrating(load_benign()).sum()), min(rates.values()))
    path = resolve_model(model, progress)
    identity = identify(path, model)
    source = TransformersSource(path)
    _require_roles(source, model, concepts)
    layers = sorted({min(round(depth * source.layers), source.layers - 1) for depth in DEPTHS})
    work = out.parent / f".{out.name}.fitting"
    # The configuration changes what the weights compute, the chat template whose tokens are whose.
    parts = "".join(identity.parts.values())
    with reader(path, layers) if reader else nullcontext(source) as reads:
        # What another reader has read is rounded otherwise, and is not mixed with this one's.
        store = Store(work, reads, parts if reads is source else f"{type(reads).__name__} {parts}", layers)
        materials = gather(reads, store, concepts, data, tokens, progress, rates)
    fitted: list[_Fitted] = []
    for material in materials:
        name = material.concept.name
        try:
            fitted.append(_Fit(material, layers, rates[name]).run(source, progress))
        except ConceptError as error:
            raise ConceptError(f"Concept '{name}' cannot be fitted: {error}") from error
    report = Report(
        plumbob=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        command=command,
        probes=[item.report for item in fitted],
        fingerprint=identity.parts,
        notes=_notes(materials, data, tokens),
    )
    encoded = encode(concluded(report))
    probes = [(item.probe, item.reader.weight, item.reader.bias) for item in fitted if isinstance(item.reader, Linear)]
    workers = [WorkerProbe(item.probe, item.reader) for item in fitted if isinstance(item.reader, MultiMax)]
    bundle = save_bundle(
        out,
        version=version,
        created=report.created,
        model=identity,
        markers=source.markers,
        probes=probes,
        worker_probes=workers,
        vectors=[item.vector for item in fitted],
        canaries=record_canaries(source, probes, progress, workers),
        provenance=_provenance(concepts, data),
        files={JSON: encoded, HTML: render(decode(encoded, "The report")).encode()},
    )
    shutil.rmtree(work, ignore_errors=True)
    return bundle


def record_canaries(
    source: TransformersSource,
    probes: Sequence[tuple[Probe, NDArray[np.floating], float]],
    progress: Progress = no_progress,
    workers: Sequence[WorkerProbe] = (),
) -> Canaries:
    """What probes read in the canaries.

    Args:
        source: Reads the model; in bfloat16 as well as in float32, since either is much nearer to the other than what
            is tolerated.
        probes: As :func:`probes.bundle.save_bundle` takes them.
        progress: Told about slow work.
        workers: The worker probes, too.
    """
    prompts = [source.encode(conversation) for conversation in CONVERSATIONS]
    layers = [*(probe.layer for probe, _, _ in probes), *(worker.probe.layer for worker in workers)]
    read = sorted(set(layers))
    readings = source.read(prompts, read, lambda _, done, total: progress("reading canaries", done, total))
    return Canaries.record(
        prompts,
        [reading.states[[read.index(layer) for layer in layers]] for reading in readings],
        np.asarray([weight for _, weight, _ in probes], np.float64).reshape(len(probes), source.hidden),
        np.asarray([bias for _, _, bias in probes], np.float64),
        [worker.reader for worker in workers],
    )


class _Fit:
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

    def run(self, source: TransformersSource, progress: Progress) -> _Fitted:
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
        return _Fitted(probe, reader, vector, written)

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
        """Whether the model uses what the probe reads; ``None`` where too few pairs end with an answer."""
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
            scores = (
                reading.states[0] @ reader.weight + reader.bias
                if isinstance(reader, Linear)
                else reader.scores(reading.states[0], reader.begin())
            )
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


def _rate(concept: Concept, concepts: Sequence[Concept], rate: float) -> float:
    """A family's budget, split evenly (Bonferroni)."""
    family = [other for other in concepts if other.family and other.family == concept.family]
    return rate / max(1, len(family))


def _require_roles(source: TransformersSource, model: str, concepts: Sequence[Concept]) -> None:
    """Check that the chat template marks what the probes read, and answers, which are the unit of dose."""
    needed = {Role.ASSISTANT}.union(*(concept.roles for concept in concepts))
    missing = sorted(role for role in needed if role.name.lower() not in source.markers.headers)
    if missing:
        raise ModelError(
            f"Model '{model}' has no chat template that marks messages of: "
            f"{', '.join(role.name.lower() for role in missing)}.",
            "Fit a model that was tuned for conversations.",
        )


def _shifted(margins: Histogram, threshold: float) -> Histogram:
    """Folds have thresholds of their own: what they show above or below them, around the one that is deployed."""
    return msgspec.structs.replace(margins, edges=[edge + threshold for edge in margins.edges])


def _in_calibration(probe: Probe) -> list[Rate]:
    """What the threshold does to the requests that it was set on, by kind."""
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


def _notes(materials: Sequence[Material], data: Path | None, tokens: int) -> list[str]:
    ordinary = materials[0].ordinary
    by_source = Counter(ordinary.sources.tolist())
    listed = ", ".join(f"{name} {count}" for name, count in sorted(by_source.items()))
    return [
        f"At most {tokens:,} tokens were read; each data set of a concept has an equal share of them, in whole groups.",
        f"Benign requests, by source: {listed}. {CALIBRATING:.0%} of them set thresholds, and no probe has seen these; "
        f"{int(ordinary.answered.sum())} were read with the model's own answer.",
        "Only what ships with Plumbob was fitted on: its sets were written by few authors."
        if data is None
        else "A split that leaves a source out makes the probe without it: layer, kind, penalty, weights, threshold.",
        "A probe can read what the model does not use. It is evidence, and no verdict on what the model intends.",
    ]


def _provenance(concepts: Sequence[Concept], data: Path | None) -> dict[str, list[Provenance]]:
    """Which files each concept, and the benign requests, come from."""

    def pairs(path: Path, rows: int) -> Provenance:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        ours = path.parent == benign_path().parent
        return Provenance(
            SHIPPED if ours else path.name, "Apache-2.0" if ours else "not stated", {path.name: digest}, rows
        )

    found = {concept.name: [pairs(concept.path, len(concept.pairs))] for concept in concepts}
    found["benign"] = [pairs(benign_path(), len(load_benign()))]
    if data is not None:
        for name, sets in found.items():
            sets += provenance(name, data)
    return found
