"""The arithmetic of reports agrees with its definitions, with scikit-learn, and with what was simulated."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.evaluation.metrics import (
    MIN_GROUPS,
    ROC_POINTS,
    Interval,
    Platt,
    auroc,
    auroc_interval,
    bootstrap,
    certifiable,
    expected_calibration_error,
    needed,
    platt,
    proportion,
    recall_at,
    recall_interval,
    roc_points,
    selectivity,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics")

# Few distinct values, so that ties are common.
SCORE = st.integers(-4, 4).map(float) | st.floats(-5, 5)
SCORES = st.lists(SCORE, min_size=1, max_size=60)
WITH_SILENT = st.lists(SCORE | st.just(-math.inf), min_size=1, max_size=60)
RATE = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.29, 0.5, 0.9])


def finite(scores):
    """scikit-learn takes no infinity."""
    return np.nan_to_num(np.array(scores), neginf=-1e9)


def labelled(positive, negative):
    return np.arange(len(positive) + len(negative)) < len(positive), np.concatenate(
        [finite(positive), finite(negative)]
    )


@settings(deadline=None)
@given(WITH_SILENT, WITH_SILENT)
def test_auroc_is_that_of_scikit_learn(positive, negative):
    assert auroc(positive, negative) == pytest.approx(sklearn_metrics.roc_auc_score(*labelled(positive, negative)))


@settings(deadline=None)
@given(WITH_SILENT, WITH_SILENT)
def test_auroc_is_the_share_of_pairs_ranked_right_and_its_mirror(positive, negative):
    wins = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(wins))
    assert auroc(positive, negative) + auroc(negative, positive) == pytest.approx(1)


@settings(deadline=None)
@given(WITH_SILENT, WITH_SILENT, RATE)
def test_recall_is_the_best_point_of_the_curve_within_the_rate(positive, negative, rate):
    assert recall_at(positive, negative, rate) == best_within(positive, negative, rate)


def best_within(positive, negative, rate):
    """By trying every threshold that could be set: any score that is one, and none that is −inf."""
    thresholds = [t for t in {*positive, *negative} if math.isfinite(t)]
    return max(
        [0.0]
        + [
            np.mean(np.array(positive) >= t)
            for t in thresholds
            if sum(n >= t for n in negative) <= round(rate * len(negative), 9)
        ]
    )


@settings(deadline=None)
@given(SCORES, SCORES, RATE)
def test_recall_is_that_of_scikit_learns_curve(positive, negative, rate):
    fpr, recall, _ = sklearn_metrics.roc_curve(*labelled(positive, negative), drop_intermediate=False)
    assert recall_at(positive, negative, rate) == pytest.approx(recall[fpr <= rate + 1e-9].max())


def test_a_score_at_the_threshold_fires_and_a_silent_one_never():
    assert recall_at([-math.inf, 1.0, 2.0, 3.0], 2.0) == 0.5
    assert recall_at([-math.inf, 1.0], [-math.inf, -math.inf], 0.0) == 0.5


@settings(deadline=None)
@given(SCORES, SCORES)
def test_a_short_curve_is_whole(positive, negative):
    points = roc_points(positive, negative)
    fpr, recall, _ = sklearn_metrics.roc_curve(*labelled(positive, negative), drop_intermediate=False)
    best = {round(float(x), 9): round(float(y), 9) for x, y in zip(fpr, recall, strict=True)}
    assert {round(x, 9): round(y, 9) for x, y in points} == best
    assert points == sorted(points)
    area = sum((b[0] - a[0]) * a[1] for a, b in pairwise(points))
    assert area <= auroc(positive, negative) + 1e-9, "steps never flatter"


def test_a_long_curve_is_thinned_to_points_of_itself_evenly_on_a_logarithmic_axis():
    random = np.random.default_rng(0)
    positive, negative = random.normal(2, 1, 3000), random.normal(0, 1, 10_000)
    points = roc_points(positive, negative)
    assert len(points) <= ROC_POINTS
    assert points[0][0] == 0 and points[-1] == (1.0, 1.0)
    for rate, recall in points[:-1]:
        assert recall == recall_at(positive, negative, rate)
    for decade in (1e-4, 1e-3, 1e-2, 1e-1):
        assert sum(decade <= rate < 10 * decade for rate, _ in points) >= 9
    for rate in (1e-3, 1e-2, 1e-1):
        drawn = max(recall for fpr, recall in points if fpr <= rate)
        assert drawn == pytest.approx(recall_at(positive, negative, rate), abs=0.01)


@pytest.mark.parametrize("function", [auroc, recall_at, roc_points])
@pytest.mark.parametrize(
    ("positive", "negative", "says"),
    [
        ([], [1.0], "No positives"),
        ([1.0], [], "No negatives"),
        ([math.nan], [1.0], "positive is NaN"),
        ([1.0], [math.nan, 0.0], "negative is NaN"),
        ([[1.0]], [0.0], r"shape \(1, 1\)"),
    ],
)
def test_what_has_no_rank_is_refused(function, positive, negative, says):
    with pytest.raises(ValueError, match=says):
        function(positive, negative)


@pytest.mark.parametrize(("threshold", "rate"), [(math.nan, 0.1), (-math.inf, 0.1), ([0.0], 1.0), ([0.0], -0.1)])
def test_what_is_no_threshold_is_refused(threshold, rate):
    with pytest.raises(ValueError, match="is no"):
        recall_at([1.0], threshold, rate)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    """Of groups of 4 that agree among themselves: counting rows for groups would hold it about half as wide."""
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 4)
    covered = []
    for seed in range(300):
        values = np.repeat(random.normal(size=40), 4)
        interval = bootstrap(lambda rows, values=values: float(values[rows].mean()), groups, draws=200, seed=seed)
        covered.append(interval.low <= 0 <= interval.high)
    assert 0.88 <= np.mean(covered) <= 0.98


def test_copies_within_a_group_add_no_certainty():
    random = np.random.default_rng(2)
    values = random.normal(size=30)
    names = [f"group {index:02d}" for index in range(30)]

    def interval(copies):
        repeated = np.repeat(values, copies)
        return bootstrap(lambda rows: float(repeated[rows].mean()), np.repeat(names, copies), 200)

    once, often = interval(1), interval(7)
    assert (once.point, once.low, once.high) == pytest.approx((often.point, often.low, often.high))
    assert once.high - once.low > 0.3


def test_groups_need_not_be_sorted_and_stay_whole():
    groups = ["b", "a", "c", "a", "b", "a"]
    seen = []
    bootstrap(lambda rows: seen.append(sorted(rows.tolist())) or 0.0, groups, draws=50)
    assert seen[0] == [0, 1, 2, 3, 4, 5]
    for rows in seen[1:]:
        counts = np.bincount(rows, minlength=6)
        assert counts[1] == counts[3] == counts[5] and counts[0] == counts[4]
        assert counts[1] + counts[0] + counts[2] == 3
    assert len({tuple(rows) for rows in seen}) > 5


def test_the_seed_is_all_that_chooses_the_resamples():
    values = np.random.default_rng(3).normal(size=20)
    first, again, other = (
        bootstrap(lambda rows: float(values[rows].mean()), range(20), 100, seed) for seed in (5, 5, 6)
    )
    assert first == again != other


def test_resamples_on_which_nothing_is_defined_are_left_out():
    """One positive in ten: a third of the resamples have none."""
    interval = bootstrap(lambda rows: 0.5 if (rows == 0).any() else math.nan, range(10), 100)
    assert interval == Interval(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="not defined on the data"):
        bootstrap(lambda rows: math.nan, range(10))
    with pytest.raises(ValueError, match="no rows"):
        bootstrap(lambda rows: 0.0, [])


def test_the_interval_of_an_auroc_is_about_that_of_hanley_and_mcneil():
    random = np.random.default_rng(4)
    positive, negative = random.normal(1, 1, 200), random.normal(0, 1, 200)
    interval = auroc_interval(positive, negative, range(200), range(200, 400), draws=300)
    area = interval.point
    assert area == auroc(positive, negative)
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt((area * (1 - area) + 199 * (first - area**2) + 199 * (second - area**2)) / 200**2)
    assert interval.low == pytest.approx(area - 1.96 * error, abs=0.012)
    assert interval.high == pytest.approx(area + 1.96 * error, abs=0.012)


def test_matched_pairs_are_resampled_together():
    """What pairs share cancels within each only if both sides are drawn at once."""
    random = np.random.default_rng(5)
    shared = random.normal(0, 1, 100)
    widths = []
    for other in (range(100), range(100, 200)):
        interval = auroc_interval(shared + 0.5, shared, range(100), other, draws=300)
        widths.append(interval.high - interval.low)
    assert widths[0] < widths[1] / 2


def test_perfect_separation_of_few_is_not_certainty():
    low = 0.025 ** (1 / 10)
    interval = auroc_interval(np.arange(10, 20), np.arange(100) - 100, range(10), range(10, 110), 50)
    assert interval == Interval(1.0, pytest.approx(low), 1.0)
    inverted = auroc_interval(np.arange(100) - 100, np.arange(10, 20), range(100), range(100, 110), 50)
    assert inverted == Interval(0.0, 0.0, pytest.approx(1 - low))
    assert recall_interval(np.ones(10), 0.5, range(10), 50) == Interval(1.0, pytest.approx(low), 1.0)
    assert recall_interval(np.zeros(10), 0.5, range(10), 50) == Interval(0.0, 0.0, pytest.approx(1 - low))


def test_too_few_groups_say_nothing():
    scores = np.linspace(0, 1, 40)
    few, enough = np.arange(40) % (MIN_GROUPS - 1), np.arange(40) % MIN_GROUPS
    assert recall_interval(scores, 0.5, few, 50) == Interval(0.5, 0.0, 1.0)
    assert recall_interval(scores, 0.5, enough, 50).low > 0
    assert auroc_interval(scores, scores, few, enough, 50) == Interval(0.5, 0.0, 1.0)


def test_groups_and_scores_must_be_of_one_length():
    with pytest.raises(ValueError, match="3 groups for 2 scores"):
        recall_interval([1.0, 2.0], 0.5, [1, 2, 3])
    with pytest.raises(ValueError, match="1 groups for 2 scores"):
        auroc_interval([1.0], [1.0, 2.0], [1], [1])


def test_a_proportion_has_its_exact_interval():
    assert proportion(0, 10) == Interval(0.0, 0.0, pytest.approx(0.3084971, abs=1e-6))
    assert proportion(1, 100) == Interval(0.01, pytest.approx(0.0002531, abs=1e-6), pytest.approx(0.0544594, abs=1e-6))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 8), st.integers(0, 1000))
def test_the_error_is_that_of_scikit_learns_quantile_bins(each, bins, seed):
    from sklearn.calibration import calibration_curve

    random = np.random.default_rng(seed)
    probability = random.uniform(size=each * bins)
    label = random.integers(0, 2, size=each * bins)
    happened, promised = calibration_curve(label, probability, n_bins=bins, strategy="quantile")
    assert expected_calibration_error(probability, label, bins) == pytest.approx(np.abs(happened - promised).mean())


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(0, 1)), min_size=1, max_size=60))
def test_the_error_does_not_hang_on_the_order_of_equal_probabilities(examples):
    probability, label = np.array(examples).T
    error = expected_calibration_error(probability, label)
    assert error == pytest.approx(expected_calibration_error(probability[::-1], label[::-1]))
    # Four values and fifteen bins: as far as each value has bins of its own, they are not averaged with others.
    assert abs(float((probability - label).mean())) - 1e-9 <= error <= float(np.abs(probability - label).mean()) + 1e-9


def test_the_error_of_what_is_promised_and_kept_is_nought():
    probability = np.repeat([0.25, 0.75], 100)
    label = np.concatenate([np.arange(100) % 4 == 0, np.arange(100) % 4 != 0])
    assert expected_calibration_error(probability, label) == pytest.approx(0)
    assert expected_calibration_error(1 - probability, label) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("probability", "label"), [([], []), ([0.5], [1, 0]), ([1.1], [1]), ([math.nan], [1]), ([[0.5]], [[1]])]
)
def test_what_is_no_probability_is_refused(probability, label):
    with pytest.raises(ValueError, match=r"shape|between 0 and 1"):
        expected_calibration_error(probability, label)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.floats(-3, 3), st.sampled_from([0.01, 1.0, 100.0]), st.integers(0, 1000))
def test_platt_is_logistic_regression_on_smoothed_targets(count, shift, unit, seed):
    """Each example as both classes, weighted by its target: the same optimum, by another solver."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(seed)
    labels = np.arange(2 * count) < count
    scores = (random.normal(size=2 * count) + shift * labels) * unit
    smoothed = np.where(labels, (count + 1) / (count + 2), 1 / (count + 2))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(scores, 2)[:, None] / unit,
        np.repeat([1, 0], 2 * count),
        sample_weight=np.concatenate([smoothed, 1 - smoothed]),
    )
    fitted = platt(scores, labels)
    assert fitted.scale * unit == pytest.approx(model.coef_[0, 0], rel=1e-3, abs=1e-4)
    assert fitted.offset == pytest.approx(model.intercept_[0], rel=1e-3, abs=1e-3)


def test_platt_recovers_the_probabilities_that_labels_were_drawn_with():
    random = np.random.default_rng(6)
    scores = random.normal(0, 2, 20_000)
    true = Platt(1.5, -0.7)
    fitted = platt(scores, random.uniform(size=20_000) < true.probability(scores))
    assert (fitted.scale, fitted.offset) == pytest.approx((1.5, -0.7), abs=0.06)


def test_platt_stays_finite_where_the_classes_do_not_overlap():
    fitted = platt([-1.0, -1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1, 1])
    assert fitted.probability([-1.0, 1.0]).tolist() == pytest.approx([1 / 4, 4 / 5], abs=1e-6)


def test_scores_that_never_fire_do_not_pull_the_fit_and_have_no_probability():
    scores, labels = [0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1]
    fitted = platt(scores, labels)
    assert platt([*scores, -math.inf], [*labels, 0]) == fitted
    assert fitted.probability([-math.inf, 1e6]).tolist() == [0.0, 1.0]


def test_equal_scores_say_nothing():
    fitted = platt([2.0] * 6, [1, 1, 1, 0, 0, 0])
    assert fitted.probability([2.0]) == pytest.approx([0.5])
    assert Platt(0.0, 0.0).probability([-math.inf]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 2.0], [1, 1]), ([1.0, -math.inf], [1, 0]), ([1.0, math.inf], [0, 1]), ([1.0], [0, 1]), ([math.nan], [1])],
)
def test_what_platt_cannot_fit_is_refused(scores, labels):
    with pytest.raises(ValueError, match=r"positives and negatives|infinite|shape|NaN"):
        platt(scores, labels)


def test_selectivity_is_what_is_left_of_the_task():
    assert selectivity(0.9, 0.6) == pytest.approx(0.3)
    assert selectivity(0.5, 0.8) < 0


@pytest.mark.parametrize(("rate", "least"), [(0.01, 300), (0.001, 3000), (0.03, 100), (0.07, 43)])
def test_a_rate_takes_three_times_its_inverse(rate, least):
    assert needed(rate) == least
    assert certifiable(least, rate)
    assert not certifiable(least - 1, rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_a_rate_that_is_none_cannot_be_certified(rate):
    with pytest.raises(ValueError, match="is no false-positive rate"):
        certifiable(10_000, rate)
