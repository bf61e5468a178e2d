"""Metrics of how well scores tell two classes apart, with intervals.

Pure functions on arrays. A score of −inf is a request that had too little to read: it ranks below every other and fires
at no threshold. A score that is NaN is refused, since no rank of it would be true.

Intervals resample whole groups: what was made from one template, pair or conversation is one observation, not many
(cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from probes.scoring.intervals import clopper_pearson

CONFIDENCE: Final = 0.95
"""Of every two-sided interval."""
MIN_GROUPS: Final = 5
"""Groups of a class below which resampling them says nothing: of 4 there are only 35 resamples, most of them alike."""
ROC_POINTS: Final = 200
"""More would not be seen in a figure."""

Groups = Sequence[Any] | NDArray[Any]
"""The group of each row, shape ``(rows,)``: names or numbers."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate and its 95% interval."""

    point: float
    low: float
    high: float


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """The chance that a positive scores above a negative, ties counting half: the area under the ROC curve.

    Computed from ranks (Mann and Whitney 1947; Hanley and McNeil, Radiology 1982).

    Args:
        positive: Scores of positives, shape ``(positives,)``.
        negative: Scores of negatives, shape ``(negatives,)``.

    Raises:
        ValueError: A class is empty, or a score is NaN.
    """
    from scipy.stats import rankdata

    high, low = _scores(positive, "positive"), _scores(negative, "negative")
    ranks = rankdata(np.concatenate([high, low]))[: len(high)]
    # Half-integers below 2^53: exact.
    wins = float(ranks.sum()) - len(high) * (len(high) + 1) / 2
    return wins / (len(high) * len(low))


def recall_at(positive: ArrayLike, negative_or_threshold: ArrayLike, rate: float = 0.01) -> float:
    """The share of positives that fire.

    Args:
        positive: Scores of positives, shape ``(positives,)``.
        negative_or_threshold: A threshold, at or above which a score fires; or scores of negatives, shape
            ``(negatives,)``, of which no more than ``rate`` fire at the threshold that is then taken. A threshold that
            is taken from the negatives it is judged on flatters a little: set it on others where there are others.
        rate: False-positive rate, from 0 to below 1; not used where a threshold is given.

    Raises:
        ValueError: A class is empty, a score is NaN, or the rate is none.
    """
    scores = _scores(positive, "positive")
    if np.ndim(negative_or_threshold) == 0:
        threshold = float(np.asarray(negative_or_threshold, np.float64))
        if not math.isfinite(threshold):
            raise ValueError(f"{threshold} is no threshold.")
        return float((scores >= threshold).mean())
    if not 0 <= rate < 1:
        raise ValueError(f"{rate} is no false-positive rate.")
    descending = np.sort(_scores(negative_or_threshold, "negative"))[::-1]
    # Rounded, since 0.29 * 100 is a little below 29.
    highest_quiet = descending[math.floor(round(rate * len(descending), 9))]
    return float((scores > highest_quiet).mean())


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], groups: Groups, draws: int = 1000, seed: int = 0
) -> Interval:
    """A percentile interval over resamples of whole groups (Efron 1979, by clusters).

    Args:
        statistic: Of the rows whose indices it is given, with repetition; NaN where it is not defined on them, and that
            draw is left out.
        groups: The group of each row.
        draws: Resamples.
        seed: Of the resampling; the same seed gives the same interval.

    Returns:
        The statistic on all rows in order, and the interval. Where all resamples agree it has no width, whatever the
        number of groups: see :func:`auroc_interval`, :func:`recall_interval` and :func:`proportion`.

    Raises:
        ValueError: No rows, or the statistic is not defined on all of them.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if not len(names):
        raise ValueError("Of no rows there is no interval.")
    order, sizes = np.argsort(group_of, kind="stable"), np.bincount(group_of)
    starts = np.cumsum(sizes) - sizes
    point = float(statistic(np.arange(len(group_of))))
    if math.isnan(point):
        raise ValueError("The statistic is not defined on the data.")
    random = np.random.default_rng(seed)
    values = np.empty(draws)
    for draw in range(draws):
        chosen = random.integers(len(names), size=len(names))
        taken = sizes[chosen]
        within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
        values[draw] = statistic(order[np.repeat(starts[chosen], taken) + within])
    defined = values[~np.isnan(values)]
    if not len(defined):
        raise ValueError("The statistic is defined on no resample.")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(point, min(float(low), point), max(float(high), point))


def auroc_interval(
    positive: ArrayLike,
    negative: ArrayLike,
    positive_groups: Groups,
    negative_groups: Groups,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """AUROC with its interval by groups, which the two classes may share.

    With the smaller class in ``m`` groups, ``m`` pairs of a positive and a negative can be formed that share nothing.
    Where all are ranked alike, resampling would give an interval of no width; it is then as wide as the exact one of
    ``m`` in ``m``. With fewer than :data:`MIN_GROUPS` it is all there is: 0 to 1.

    Args:
        positive: Scores, shape ``(positives,)``.
        negative: Scores, shape ``(negatives,)``.
        positive_groups: Shape ``(positives,)``.
        negative_groups: Shape ``(negatives,)``.
        draws: Resamples.
        seed: Of the resampling.

    Raises:
        ValueError: A class is empty, a score is NaN, or groups and scores differ in number.
    """
    high, low = _scores(positive, "positive"), _scores(negative, "negative")
    of_positive, of_negative = _groups(positive_groups, high), _groups(negative_groups, low)
    scores, is_positive = np.concatenate([high, low]), np.arange(len(high) + len(low)) < len(high)

    def on(rows: NDArray[np.intp]) -> float:
        labels, drawn = is_positive[rows], scores[rows]
        return auroc(drawn[labels], drawn[~labels]) if labels.any() and not labels.all() else math.nan

    interval = bootstrap(on, [*of_positive, *of_negative], draws, seed)
    return _no_narrower(interval, min(len(set(of_positive)), len(set(of_negative))))


def recall_interval(
    positive: ArrayLike, threshold: float, groups: Groups, draws: int = 1000, seed: int = 0
) -> Interval:
    """Recall at a threshold set on other data, with its interval by groups; widened as in :func:`auroc_interval`.

    Args:
        positive: Scores, shape ``(positives,)``.
        threshold: At or above which a score fires.
        groups: Shape ``(positives,)``.
        draws: Resamples.
        seed: Of the resampling.

    Raises:
        ValueError: No positives, a score is NaN, or groups and scores differ in number.
    """
    scores = _scores(positive, "positive")
    names = _groups(groups, scores)
    interval = bootstrap(lambda rows: recall_at(scores[rows], threshold), names, draws, seed)
    return _no_narrower(interval, len(set(names)))


def proportion(hits: int, count: int) -> Interval:
    """A share of independent trials with its exact interval (Clopper and Pearson 1934).

    Args:
        hits: Successes.
        count: Trials, at least 1.
    """
    return Interval(hits / count, *clopper_pearson(hits, count, CONFIDENCE))


def expected_calibration_error(probability: ArrayLike, label: ArrayLike, bins: int = 15) -> float:
    """The mean distance between what is promised and what happens, over bins of equal mass.

    Equal mass rather than equal width, which leaves most bins of a confident probe empty (Nixon et al., arXiv
    1904.01685, after Naeini et al., AAAI 2015). Equal probabilities share a bin, so that order does not matter. On few
    examples it is biased upwards.

    Args:
        probability: Predicted, 0 to 1, shape ``(examples,)``.
        label: What happened, 0 or 1, shape ``(examples,)``.
        bins: At most so many.

    Raises:
        ValueError: No examples, a probability that is none, or shapes that differ.
    """
    predicted, happened = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    if predicted.ndim != 1 or predicted.shape != happened.shape or not len(predicted):
        raise ValueError(f"Probabilities of shape {predicted.shape} and labels of shape {happened.shape}.")
    if not ((predicted >= 0) & (predicted <= 1)).all():
        raise ValueError("A probability is not between 0 and 1.")
    begins = np.ceil(np.arange(1, bins) * len(predicted) / bins).astype(int)
    edges = np.sort(predicted)[begins[begins < len(predicted)]]
    bin_of = np.searchsorted(edges, predicted, side="right")
    # |mean label − mean probability| of a bin, times its share, is |sum of differences| / examples.
    return float(np.abs(np.bincount(bin_of, weights=happened - predicted)).sum() / len(predicted))


class Platt(msgspec.Struct, frozen=True):
    """probability = sigmoid(scale · score + offset)."""

    scale: float
    offset: float

    def probability(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of scores of any shape; of −inf, what the scale makes of it: 0 where it is positive."""
        from scipy.special import expit

        values = np.asarray(scores, np.float64)
        # 0 · −inf is not a number, but a scale of 0 does not look at the score.
        return expit(self.scale * values + self.offset if self.scale else np.full(values.shape, self.offset))


def platt(scores: ArrayLike, labels: ArrayLike) -> Platt:
    """Probabilities of scores, by a logistic fit whose targets are smoothed against overconfidence.

    Targets are (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2), so that the fit is finite even where the classes do not overlap
    (Platt 1999), with the loss written so that it does not overflow (Lin, Lin and Weng, Machine Learning 2007). The
    probability holds for the mixture of classes that it was fitted on.

    Args:
        scores: Shape ``(examples,)``; those of −inf are left out, as they never fire.
        labels: 0 or 1, shape ``(examples,)``.

    Raises:
        ValueError: A class is empty, a score is NaN or +inf, or shapes differ.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    values, positive = _scores(scores, "score"), np.asarray(labels).astype(bool)
    if values.shape != positive.shape:
        raise ValueError(f"Scores of shape {values.shape} and labels of shape {positive.shape}.")
    values, positive = values[values != -np.inf], positive[values != -np.inf]
    if not np.isfinite(values).all():
        raise ValueError("A score is infinite.")
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise ValueError("A probability takes positives and negatives.")
    targets = np.where(positive, (count + 1) / (count + 2), 1 / (len(positive) - count + 2))
    mean, spread = float(values.mean()), float(values.std()) or 1.0
    rows = np.stack([(values - mean) / spread, np.ones(len(values))], axis=1)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit = rows @ weights
        entropy = np.logaddexp(0.0, logit) - targets * logit
        return float(entropy.mean()), rows.T @ (expit(logit) - targets) / len(rows)

    scale, offset = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return Platt(float(scale / spread), float(offset - scale * mean / spread))


def selectivity(task_score: float, control_score: float) -> float:
    """Selectivity: how much better a probe does on its task than on labels drawn at random.

    Hewitt and Liang, Designing and Interpreting Probes with Control Tasks, EMNLP 2019.

    Args:
        task_score: Accuracy or AUROC on held-back examples of the task.
        control_score: The same of a probe of the same kind fitted to random labels, fixed for each group.
    """
    return task_score - control_score


def certifiable(n: int, rate: float) -> bool:
    """True where ``n`` requests can show a false-positive rate of ``rate`` at all.

    No false alarm in n bounds the rate by 3/n with 95% confidence (rule of three: Hanley and Lippman-Hand, JAMA 1983).

    Args:
        n: Benign requests.
        rate: Above 0.

    Raises:
        ValueError: The rate is none.
    """
    return n >= needed(rate)


def needed(rate: float) -> int:
    """The fewest benign requests that can show a false-positive rate: 300 for 1%, 3,000 for 0.1%."""
    if not 0 < rate < 1:
        raise ValueError(f"{rate} is no false-positive rate.")
    return math.ceil(round(3 / rate, 9))


def roc_points(positive: ArrayLike, negative: ArrayLike) -> list[tuple[float, float]]:
    """The ROC curve as ``(false-positive rate, recall)``, from (0, ·) to (1, 1), both rising.

    For each rate the highest recall. Beyond :data:`ROC_POINTS` points, those are kept that are evenly spread on a
    logarithmic axis of the rate: each is on the curve, and steps drawn between them lie on or below it.

    Args:
        positive: Scores, shape ``(positives,)``.
        negative: Scores, shape ``(negatives,)``.

    Raises:
        ValueError: A class is empty, or a score is NaN.
    """
    high, low = np.sort(_scores(positive, "positive")), np.sort(_scores(negative, "negative"))
    # A threshold just above each negative, and −inf, which takes all: between two negatives only recall can change.
    quiet = np.unique(low)[::-1]
    fired = np.append(len(low) - np.searchsorted(low, quiet, side="right"), len(low)) / len(low)
    recall = np.append(len(high) - np.searchsorted(high, quiet, side="right"), len(high)) / len(high)
    if len(fired) > ROC_POINTS:
        wanted = np.geomspace(fired[1], 1.0, ROC_POINTS - 1)
        # The last of the grid is 1 only up to rounding.
        kept = np.searchsorted(fired, wanted * (1 + 1e-12), side="right") - 1
        kept = np.unique([0, *kept, len(fired) - 1])
        fired, recall = fired[kept], recall[kept]
    return list(zip(fired.tolist(), recall.tolist(), strict=True))


def _scores(values: ArrayLike, what: str) -> NDArray[np.float64]:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"No {what}s." if scores.size == 0 else f"{what}s of shape {scores.shape}.")
    if np.isnan(scores).any():
        raise ValueError(f"A {what} is NaN.")
    return scores


def _groups(groups: Groups, scores: NDArray[np.float64]) -> list[Any]:
    names = np.asarray(groups).tolist()
    if len(names) != len(scores):
        raise ValueError(f"{len(names)} groups for {len(scores)} scores.")
    return names


def _no_narrower(interval: Interval, groups: int) -> Interval:
    """The interval, widened where resampling of so few groups, or of groups that all agree, understates it."""
    if groups < MIN_GROUPS:
        return Interval(interval.point, 0.0, 1.0)
    low = clopper_pearson(groups, groups, CONFIDENCE)[0] if interval.point == 1 else 1.0
    high = clopper_pearson(0, groups, CONFIDENCE)[1] if interval.point == 0 else 0.0
    return Interval(interval.point, min(interval.low, low), max(interval.high, high))
