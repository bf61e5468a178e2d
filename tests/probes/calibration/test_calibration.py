"""Thresholds keep the false-positive rate that they promise."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.calibration.thresholds import calibrate, may_fire
from probes.errors import ConceptError
from probes.scoring.intervals import clopper_pearson

RATES = st.integers(1, 400).map(lambda count: Fraction(1, count + 1)) | st.fractions(
    Fraction(1, 400), Fraction(1, 2), max_denominator=400
)


@settings(deadline=None)
@given(peaks=st.lists(st.floats(-100, 100) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=300), rate=RATES)
def test_no_more_fire_than_the_rate_allows(peaks, rate):
    allowed = math.floor(rate * (len(peaks) + 1)) - 1
    values = np.array(peaks)
    if allowed < 0:
        with pytest.raises(ConceptError, match="cannot be set"):
            calibrate(values, float(rate))
        return
    threshold, calibration = calibrate(values, float(rate))
    fired = int((values >= threshold).sum())
    assert calibration.fired == fired <= allowed
    assert calibration.benign == len(peaks)
    low, high = calibration.interval
    assert low <= fired / len(peaks) <= high
    if len(set(peaks)) == len(peaks):
        assert fired == allowed, "without ties, the threshold is no higher than it must be"


@settings(deadline=None)
@given(rate=RATES)
def test_the_number_that_an_error_asks_for_is_the_least_that_suffices(rate):
    needed = math.ceil(1 / rate) - 1
    assert may_fire(needed, float(rate)) >= 0
    with pytest.raises(ConceptError, match=rf"on {needed - 1} benign requests\. It takes {needed};"):
        may_fire(needed - 1, float(rate))


@pytest.mark.parametrize(("benign", "rate"), [(99, 0.01), (295, 0.01), (99, 0.05), (60, 0.1), (20, 0.2)])
def test_the_rate_on_new_requests_is_at_most_the_one_promised(benign, rate):
    """Over draws of the benign set, and no lower than the grid of such a small set forces it to be."""
    draws = 4000
    random = np.random.default_rng(benign)
    # Uniform scores: a threshold t fires on exactly 1 − t of new requests.
    rates = 1 - np.array([calibrate(random.uniform(size=benign), rate)[0] for _ in range(draws)])
    error = rates.std() / math.sqrt(draws)
    promised = math.floor(round(rate * (benign + 1), 9)) / (benign + 1)
    assert promised <= rate
    assert abs(rates.mean() - promised) < 4 * error


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ConceptError, match="above 0 and below 1"):
        calibrate(np.zeros(1000), rate)


def test_requests_that_can_never_fire_do_not_set_a_threshold():
    """A verdict of −inf means too few tokens; a threshold there would fire on everything longer."""
    peaks = np.full(100, -np.inf)
    peaks[:3] = [1.0, 2.0, 3.0]
    with pytest.raises(ConceptError, match="Of 100 benign requests, 3 have a verdict"):
        calibrate(peaks, 0.1)
    threshold, calibration = calibrate(peaks, 0.02)
    assert (threshold, calibration.fired) == (math.nextafter(2.0, math.inf), 1)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        # 1 − 0.025^(1/n) and its mirror, and two from tables.
        (0, 10, 0.0, 0.3084971),
        (10, 10, 0.6915029, 1.0),
        (5, 10, 0.1870860, 0.8129140),
        (1, 100, 0.0002531, 0.0544594),
        (0, 1, 0.0, 0.975),
    ],
)
def test_clopper_pearson_against_known_intervals(hits, count, low, high):
    assert clopper_pearson(hits, count) == pytest.approx((low, high), abs=1e-6)


def test_more_confidence_is_a_wider_interval():
    narrow, wide = clopper_pearson(3, 50, 0.8), clopper_pearson(3, 50, 0.99)
    assert wide[0] < narrow[0] < 3 / 50 < narrow[1] < wide[1]
