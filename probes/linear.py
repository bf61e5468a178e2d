"""Linear probes: logistic regression on averaged states, standardised, with the scale folded back into the weights.

Each side of a contrast pair gives one example: the running mean of the state (:mod:`probes.aggregate`) at the end of
the last message, which is what the verdict will average. Benign requests of the training half give up to three
examples each, along their length, all negative, weighted as much as the pairs' negatives together. Layer and penalty
are chosen by grouped cross-validation: pairs stay whole, and whatever is reported of a pair comes from a probe that
has not seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Aggregate, running_mean
from probes.calibrate import calibrate

FOLDS: Final = 5
PENALTIES: Final = (3e-4, 3e-3, 3e-2)
"""Inverse penalties C of the logistic regression: strong, since there are more dimensions than pairs."""
BENIGN_POINTS: Final = 3
"""Examples that one benign request gives."""

Spans = Sequence[NDArray[np.floating]]
"""Running means of the states that a probe reads in each conversation, ``(tokens, hidden)`` each."""


@dataclass(frozen=True, slots=True)
class Linear:
    """score = weight · state + bias."""

    weight: NDArray[np.float64]
    bias: float

    def verdicts(self, spans: Spans, min_tokens: int) -> NDArray[np.float64]:
        """The verdict's peak of each conversation: its highest running score once ``min_tokens`` were read.

        The mean of scores is the score of the mean, so that running means of states are scored directly. Conversations
        that are shorter can never fire: −inf.
        """
        return np.array(
            [
                (span[min_tokens - 1 :] @ self.weight).max() + self.bias if len(span) >= min_tokens else -np.inf
                for span in spans
            ]
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice of layer and penalty, with what cross-validation showed of it."""

    layer: int
    penalty: float
    positive: NDArray[np.float64]
    """Peak of each positive, by the probe that did not see it, shape ``(pairs,)``."""
    negative: NDArray[np.float64]
    """The same of its matched negative."""
    threshold: float
    """Of those probes, on benign requests that they did not see; for choosing only."""

    @property
    def informedness(self) -> float:
        """Share of positives that fire, minus share of matched negatives that do."""
        return float((self.positive >= self.threshold).mean() - (self.negative >= self.threshold).mean())


def averaged(states: NDArray[np.floating], aggregate: Aggregate) -> NDArray[np.float32]:
    """Running means of states, ``(tokens, hidden)``, as the verdict takes them of scores."""
    return running_mean(states, aggregate.half_life).astype(np.float32)


def fit(positive: Spans, negative: Spans, benign: Spans, penalty: float, min_tokens: int) -> Linear:
    """Fit one probe.

    Args:
        positive: Of conversations that show the concept.
        negative: Of conversations that do not.
        benign: Of ordinary requests.
        penalty: C of the logistic regression.
        min_tokens: Shorter spans of benign requests are left out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    points: list[NDArray[np.floating]] = []
    weights: list[float] = []
    read = [span for span in benign if len(span) >= min_tokens]
    for span in read:
        chosen = np.unique(np.linspace(min_tokens - 1, len(span) - 1, BENIGN_POINTS).astype(int))
        points.append(span[chosen])
        weights += [len(negative) / len(read) / len(chosen)] * len(chosen)
    examples = np.concatenate([[span[-1] for span in positive], [span[-1] for span in negative], *points])
    labels = np.arange(len(examples)) < len(positive)
    model: Any = make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
    ).fit(
        examples,
        labels,
        logisticregression__sample_weight=np.array([1.0] * (len(positive) + len(negative)) + weights),
    )
    scaler, logistic = model[0], model[1]
    weight = logistic.coef_[0] / scaler.scale_
    return Linear(weight, float(logistic.intercept_[0] - scaler.mean_ @ weight))


def cross_validate(
    layer: int, penalty: float, positive: Spans, negative: Spans, benign: Spans, min_tokens: int, rate: float
) -> Selection:
    """What a choice is worth, on pairs and benign requests that each probe has not seen.

    The threshold of the choice is set on the benign requests left out of each fold, at ``rate``, pooled over folds:
    the half of the benign requests that the final threshold is set on is not touched.
    """
    peaks = np.full((2, len(positive)), -np.inf)
    quiet = np.full(len(benign), -np.inf)
    pair_folds, benign_folds = _folds(len(positive)), _folds(len(benign))
    for fold in range(FOLDS):
        pairs_in, benign_in = np.flatnonzero(pair_folds != fold), np.flatnonzero(benign_folds != fold)
        pairs_out, benign_out = np.flatnonzero(pair_folds == fold), np.flatnonzero(benign_folds == fold)
        probe = fit(
            [positive[index] for index in pairs_in],
            [negative[index] for index in pairs_in],
            [benign[index] for index in benign_in],
            penalty,
            min_tokens,
        )
        peaks[0, pairs_out] = probe.verdicts([positive[index] for index in pairs_out], min_tokens)
        peaks[1, pairs_out] = probe.verdicts([negative[index] for index in pairs_out], min_tokens)
        quiet[benign_out] = probe.verdicts([benign[index] for index in benign_out], min_tokens)
    # Choosing needs no certified rate: where the requests are too few for it, the strictest that they can set will do.
    threshold, _ = calibrate(quiet, max(rate, 1 / (len(quiet) + 1)))
    return Selection(layer, penalty, peaks[0], peaks[1], threshold)


def text_auroc(positive: Sequence[str], negative: Sequence[str]) -> float:
    """How well words alone tell positives from their negatives: TF-IDF and logistic regression, on the same folds."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    texts = np.array([*positive, *negative])
    labels = np.arange(len(texts)) < len(positive)
    folds = np.tile(_folds(len(positive)), 2)
    scores = np.zeros(len(texts))
    for fold in range(FOLDS):
        model: Any = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0))
        model.fit(texts[folds != fold], labels[folds != fold])
        scores[folds == fold] = model.decision_function(texts[folds == fold])
    return float(roc_auc_score(labels, scores))


def _folds(count: int) -> NDArray[np.int64]:
    """A fold for each item, shuffled the same way every time."""
    return np.random.default_rng(0).permutation(np.arange(count) % FOLDS)
