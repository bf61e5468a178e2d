"""A probe's figures on data that it was not fitted on.

For each fold of :mod:`probes.fit.selection` the probe is made as it would have been without the data that the fold
leaves out: layer, kind and penalty chosen by the other folds, fitted on their data, its threshold set on the
calibrating half of the other benign sources. On what was left out are then measured: the area under the ROC curve,
recall at that threshold, tokens to detect, the false-positive rate of the benign source, and what words and length
alone would have shown. Beside it stand controls: labels drawn at random, directions drawn at random.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.calibration.thresholds import calibrate
from probes.errors import ConceptError
from probes.evaluation.baselines import TextScores, text_of, text_scores
from probes.evaluation.metrics import auroc, auroc_interval, certifiable, recall_at, recall_interval, roc_points
from probes.evaluation.results import (
    Baseline,
    Controls,
    Histogram,
    Rate,
    Reliability,
    Roc,
    Split,
    SplitKind,
    SweepPoint,
)
from probes.fit.controls import controls, reliability
from probes.fit.linear import PENALISED, Linear, Spans, Training
from probes.fit.material import Material
from probes.fit.selection import Candidate, Fold, Table, choose, make
from probes.scoring.multimax import MultiMax

SMALLEST: Final = 20
"""Examples of either label below which a slice is not reported."""
GROUPED: Final = 5
"""Folds of the split within the distribution."""


@dataclass(frozen=True)
class Evaluated:
    """The result of :func:`evaluate`."""

    splits: list[Split]
    rates: list[Rate]
    roc: list[Roc]
    scores: Histogram
    controls: Controls
    reliability: Reliability | None
    probability: tuple[float, float] | None
    """Scale and offset of the Platt probability."""
    seconds_a_token: float


def evaluate(
    material: Material,
    spans: Callable[[Candidate], Spans],
    quiet: Callable[[Candidate], tuple[Spans, NDArray[np.bool_]]],
    table: Table,
    folds: Sequence[Fold],
    rate: float,
    done: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Measure a concept's probe.

    Args:
        material: The concept's conversations.
        spans: Their rows, as a candidate reads them.
        quiet: The rows of the calibrating benign requests, and which of all benign requests they are.
        table: What every candidate showed in every fold.
        folds: What they leave out.
        rate: The false-positive rate that thresholds are set for.
        done: Called after each fold.
    """
    judged = _Judge(material, spans, quiet, rate)
    kind: SplitKind = (
        "leave-source" if len(np.unique(material.data.sources[~material.data.benign])) > 1 else "leave-topic"
    )
    for number, fold in enumerate(folds):
        judged.take(choose(table, without=number), fold, kind)
        done()
    grouped = _grouped(material)
    best = choose(table)
    for fold in grouped:
        judged.take(best, fold, None)
        done()
    return judged.found(controls(spans(best), material, grouped[0], best))


@dataclass(frozen=True, slots=True)
class _Tested:
    """Examples that a fold of the grouped split leaves out; ``(examples,)`` each."""

    margins: NDArray[np.float64]
    """Peaks less the fold's threshold."""
    labels: NDArray[np.bool_]
    groups: NDArray[np.str_]
    words: NDArray[np.float64]
    """Their TF-IDF scores."""
    length: NDArray[np.float64]
    at: NDArray[np.int64]
    """Index of each one's variant; −1: none."""

    @classmethod
    def join(cls, parts: "Sequence[_Tested]") -> "_Tested":
        """All of them."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def of(self, chosen: NDArray[np.bool_]) -> "_Tested":
        """Some of them."""
        return _Tested(*(getattr(self, name)[chosen] for name in self.__slots__))

    def split(self, name: str, kind: SplitKind) -> Split:
        """The reported figures."""
        high, low = self.labels, ~self.labels
        return Split(
            name,
            kind,
            int(high.sum()),
            int(low.sum()),
            auroc_interval(self.margins[high], self.margins[low], self.groups[high], self.groups[low]),
            recall_interval(self.margins[high], 0.0, self.groups[high]),
            Baseline(auroc(self.words[high], self.words[low]), None, auroc(self.length[high], self.length[low])),
        )


class _Judge:
    """Gathers what folds show."""

    def __init__(
        self,
        material: Material,
        spans: Callable[[Candidate], Spans],
        quiet: Callable[[Candidate], tuple[Spans, NDArray[np.bool_]]],
        rate: float,
    ) -> None:
        self._material, self._spans, self._quiet, self._rate = material, spans, quiet, rate
        self._data = material.data
        self._texts = [
            *(text_of(item.messages, material.concept) for item in material.sample.items),
            *(
                text_of(material.ordinary.sample.items[index].messages, material.concept)
                for index in np.flatnonzero(
                    ~material.ordinary.calibrating & material.ordinary.read_by(material.concept)
                )
            ),
        ]
        self._tags = [frozenset(item.tags) for item in material.sample.items]
        self._splits: list[Split] = []
        self._rates: dict[str, tuple[int, int]] = {}
        self._roc: list[Roc] = []
        self._within: list[_Tested] = []
        self._varied: list[_Tested] = []
        self._variant_spans: Spans | None = None
        self._margins: dict[str, list[NDArray[np.float64]]] = {"shows the concept": [], "does not": [], "benign": []}
        self._seconds: list[float] = []

    def take(self, candidate: Candidate, fold: Fold, kind: SplitKind | None) -> None:
        """Make the probe without what the fold leaves out, and judge it there.

        Args:
            candidate: How it is made.
            fold: What it is made without.
            kind: Of split; ``None`` for a part of the grouped one.
        """
        data, spans = self._data, self._spans(candidate)
        training = data.training(fold.fitted)
        probe = make(spans, data, fold.fitted, candidate)
        begin = time.perf_counter()
        running = spans.running(probe)
        self._seconds.append((time.perf_counter() - begin) / max(1, int(spans.counts.sum())))
        peaks = running.max(axis=1, initial=-np.inf)
        threshold = self._threshold(candidate, probe, fold)
        positive, negative = fold.test & data.labels, fold.test & ~data.labels & ~data.benign
        for name, mask in (
            ("shows the concept", positive),
            ("does not", negative),
            ("benign", fold.test & data.benign),
        ):
            self._margins[name].append(peaks[mask] - threshold)
        if kind is None:
            self._take_within(candidate, probe, fold, training, peaks - threshold, threshold)
            return
        against = negative if negative.any() else fold.test & data.benign
        if not positive.any() or not against.any():
            return
        text = self._text(fold, training, positive, against)
        # The first token where it fires; of requests on which it does not, nothing is read.
        detected = (running >= threshold).argmax(axis=1) + 1
        self._splits.append(
            self._split(f"{kind}: {fold.name}", kind, peaks, threshold, positive, against, text, detected)
        )
        self._slices(fold, peaks, threshold, positive, against, text, detected)
        if len(np.unique(peaks[against])) > 1:
            self._roc.append(
                Roc(fold.name, int(positive.sum()), int(against.sum()), roc_points(peaks[positive], peaks[against]))
            )

    def found(self, controlled: Controls) -> Evaluated:
        """Everything that was gathered."""
        within = _Tested.join(self._within)
        calibrated, probability = reliability(within.margins, within.labels, within.groups)
        return Evaluated(
            splits=[*self._splits, within.split("grouped: all sources", "grouped"), *self._variants()],
            rates=[
                Rate.of(source, fired, count, self._rate, left_out=True)
                for source, (fired, count) in sorted(self._rates.items())
            ],
            roc=self._roc,
            scores=Histogram.of({name: np.concatenate(parts) for name, parts in self._margins.items()}),
            controls=controlled,
            reliability=calibrated,
            probability=probability,
            seconds_a_token=float(np.median(self._seconds)),
        )

    def _take_within(
        self,
        candidate: Candidate,
        probe: Linear | MultiMax,
        fold: Fold,
        training: Training,
        margins: NDArray[np.float64],
        threshold: float,
    ) -> None:
        """A part of the grouped split, and the variants of its examples: neither they nor their like were fitted on."""
        data, material = self._data, self._material
        tested = np.flatnonzero(fold.test & ~data.benign)
        left = set(data.groups[tested].tolist())
        chosen = [at for at, variant in enumerate(material.variants) if variant.example.group in left]
        variants = [text_of(material.variants[at].example.messages, material.concept) for at in chosen]
        scores = self._read_words(training, [*(self._texts[index] for index in tested.tolist()), *variants])
        count = len(tested)
        self._within.append(
            _Tested(
                margins[tested],
                data.labels[tested],
                data.groups[tested],
                scores.words[:count],
                scores.length[:count],
                np.full(count, -1),
            )
        )
        if not chosen:
            return
        if self._variant_spans is None:
            rows = material.variant_rows(candidate.layer)
            self._variant_spans = Spans(rows, material.concept.roles, candidate.aggregate)
        examples = [material.variants[at].example for at in chosen]
        self._varied.append(
            _Tested(
                self._variant_spans.peaks(probe)[chosen] - threshold,
                np.array([example.label for example in examples]),
                np.array([example.group for example in examples]),
                scores.words[count:],
                scores.length[count:],
                np.array(chosen),
            )
        )

    def _variants(self) -> list[Split]:
        """A split for each family of attacks, and for each style."""
        if not self._varied:
            return []
        tested, variants = _Tested.join(self._varied), self._material.variants
        names = [(variants[at].kind, variants[at].name) for at in tested.at.tolist()]
        splits: list[Split] = []
        for kind, name in dict.fromkeys(names):
            part = tested.of(np.array([each == (kind, name) for each in names]))
            if min(part.labels.sum(), (~part.labels).sum()) >= SMALLEST:
                splits.append(part.split(f"{kind}: {name}", kind))
        return splits

    def _threshold(self, candidate: Candidate, probe: Linear | MultiMax, fold: Fold) -> float:
        """Set on benign requests whose sources the fold does not leave out; tells what it did to those left out."""
        quiet, which = self._quiet(candidate)
        peaks, sources = quiet.peaks(probe), self._material.ordinary.sources[which]
        data = self._data
        left = np.unique(data.sources[fold.test & data.benign])
        whole = {name for name in left.tolist() if not (data.benign & fold.fitted & (data.sources == name)).any()}
        kept = ~np.isin(sources, list(whole))
        if not kept.any():
            kept = np.ones(len(kept), bool)
        rate = max(self._rate, 1 / (int(kept.sum()) + 1))
        slices = {f"source={name}": (sources == name)[kept] for name in np.unique(sources[kept]).tolist()}
        try:
            threshold, _ = calibrate(peaks[kept], rate, slices)
        except ConceptError:
            return float(np.max(peaks[kept], where=np.isfinite(peaks[kept]), initial=0.0))
        for name in whole:
            mine = peaks[sources == name]
            if name not in self._rates and len(mine):
                self._rates[name] = (int((mine >= threshold).sum()), len(mine))
        return threshold

    def _read_words(self, training: Training, texts: Sequence[str]) -> TextScores:
        """The baselines' scores of texts, learnt from the same examples as the probe."""
        learnt = [self._texts[index] for index in training.chosen.tolist()]
        return text_scores(learnt, training.labels, training.weights, texts)

    def _text(
        self, fold: Fold, training: Training, positive: NDArray[np.bool_], against: NDArray[np.bool_]
    ) -> Callable[[NDArray[np.bool_], NDArray[np.bool_]], Baseline]:
        tested = np.flatnonzero(positive | against | (fold.test & self._data.benign))
        scores = self._read_words(training, [self._texts[index] for index in tested.tolist()])
        words = np.full(len(self._texts), -np.inf)
        length = np.full(len(self._texts), -np.inf)
        words[tested], length[tested] = scores.words, scores.length
        benign = words[fold.test & self._data.benign]

        def baseline(high: NDArray[np.bool_], low: NDArray[np.bool_]) -> Baseline:
            certified = len(benign) and certifiable(len(benign), self._rate)
            return Baseline(
                auroc(words[high], words[low]),
                recall_at(words[high], benign, self._rate) if certified else None,
                auroc(length[high], length[low]),
            )

        return baseline

    def _split(
        self,
        name: str,
        kind: SplitKind,
        peaks: NDArray[np.float64],
        threshold: float,
        positive: NDArray[np.bool_],
        against: NDArray[np.bool_],
        text: Callable[[NDArray[np.bool_], NDArray[np.bool_]], Baseline],
        detected: NDArray[np.int64],
    ) -> Split:
        groups = self._data.groups
        fired = positive & (peaks >= threshold)
        return Split(
            name,
            kind,
            int(positive.sum()),
            int(against.sum()),
            auroc_interval(peaks[positive], peaks[against], groups[positive], groups[against]),
            recall_interval(peaks[positive], threshold, groups[positive]) if np.isfinite(threshold) else None,
            text(positive, against),
            float(np.median(detected[fired])) if fired.any() else None,
        )

    def _slices(
        self,
        fold: Fold,
        peaks: NDArray[np.float64],
        threshold: float,
        positive: NDArray[np.bool_],
        against: NDArray[np.bool_],
        text: Callable[[NDArray[np.bool_], NDArray[np.bool_]], Baseline],
        detected: NDArray[np.int64],
    ) -> None:
        """The fold's examples that are negated, of several turns, or long."""
        tags = np.array(
            [self._slice_of(index) for index in range(len(self._tags))] + [""] * int(self._data.benign.sum())
        )
        for name, kind in _SLICES.items():
            high, low = positive & (tags == name), against & (tags == name)
            if high.sum() >= SMALLEST and low.sum() >= SMALLEST:
                label = f"{kind}: {name} of {fold.name}"
                self._splits.append(self._split(label, kind, peaks, threshold, high, low, text, detected))

    def _slice_of(self, index: int) -> str:
        if "negated" in self._tags[index]:
            return "negated"
        turns = sum(message.role != "system" for message in self._material.sample.items[index].messages)
        if turns > 2:
            return "several turns"
        return "long" if len(self._texts[index]) > 600 else ""


_SLICES: Final[dict[str, SplitKind]] = {"negated": "negation", "several turns": "multi-turn", "long": "length"}


def _grouped(material: Material) -> list[Fold]:
    """Folds within the distribution: groups kept whole, those with positives, without, and benign ones spread alike."""
    data = material.data
    positive = np.isin(data.groups, data.groups[data.labels])
    part = np.zeros(len(data.groups), np.int64)
    for side in (positive, ~positive & ~data.benign, data.benign):
        names, inverse = np.unique(data.groups[side], return_inverse=True)
        part[side] = (np.random.default_rng(0).permutation(len(names)) % GROUPED)[inverse]
    return [Fold(f"part {number + 1}", part == number, part != number) for number in range(GROUPED)]


def sweep(table: Table) -> list[SweepPoint]:
    """The figures of every candidate, for the plot."""
    return [
        SweepPoint(
            candidate.layer,
            candidate.kind,
            candidate.penalty if candidate.kind in PENALISED else None,
            float(np.nanmean([fold.recall for fold in shown])),
            float(np.nanmean([fold.auroc for fold in shown])),
        )
        for candidate, shown in table.items()
    ]
