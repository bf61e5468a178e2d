"""Thresholds by slice: which kinds of traffic have a say, and what is reported of each."""

import math

import numpy as np
import pytest

from probes.bundle.manifest import Calibration, Evaluation, Probe
from probes.calibration import thresholds as calibration
from probes.calibration.thresholds import calibrate, recalibrate, traffic_slices
from probes.data.requests import Request
from probes.errors import ConceptError
from probes.evaluation.offline_scores import Scores
from probes.scoring.aggregate import Aggregate
from probes.scoring.intervals import clopper_pearson

RATE = 0.1
CERTIFIED = 30
"""Requests of which none would have to fire for a rate of 0.1."""


def cut(*sizes):
    """Neighbouring slices, as sources named a, b, …, and their masks."""
    sources = [chr(ord("a") + at) for at, size in enumerate(sizes) for _ in range(size)]
    return traffic_slices(np.ones(len(sources), int), sources)


def test_the_loudest_certified_source_sets_the_threshold():
    peaks = np.concatenate([np.arange(100.0), 1000 + np.arange(CERTIFIED)])
    slices = cut(100, CERTIFIED)
    threshold, made = calibrate(peaks, RATE, slices)
    # 10% of 31, less one, may fire: two of the loud ones.
    assert threshold == math.nextafter(1000.0 + CERTIFIED - 3, math.inf)
    assert calibrate(peaks, RATE)[0] < 1000 + CERTIFIED - 3, "all together would fire on more of the loud source"
    assert (made.benign, made.fired, made.interval) == (130, 2, clopper_pearson(2, 130))
    quiet, loud, length = made.slices
    assert (quiet.name, quiet.benign, quiet.fired, quiet.certified) == ("source=a", 100, 0, True)
    assert quiet.threshold == calibrate(peaks[:100], RATE)[0] and quiet.interval == clopper_pearson(0, 100)
    assert (loud.name, loud.benign, loud.fired, loud.certified) == ("source=b", CERTIFIED, 2, True)
    assert loud.threshold == threshold and loud.interval == clopper_pearson(2, CERTIFIED)
    assert (length.name, length.benign, length.fired) == ("length=1-16", 130, 2)


def test_a_source_of_too_few_requests_has_no_say():
    peaks = np.concatenate([np.arange(100.0), 1000 + np.arange(CERTIFIED - 1)])
    slices = cut(100, CERTIFIED - 1)
    threshold, made = calibrate(peaks, RATE, slices)
    assert threshold == calibrate(peaks, RATE)[0]
    loud = made.slices[1]
    assert not loud.certified and loud.threshold is not None and loud.threshold > threshold
    assert loud.fired == int((peaks[100:] >= threshold).sum()) > RATE * loud.benign, "and its rate is told"


def test_a_slice_that_is_no_source_has_no_say():
    peaks = np.concatenate([np.arange(100.0), 1000 + np.arange(CERTIFIED)])
    loud = np.arange(len(peaks)) >= 100
    threshold, made = calibrate(peaks, RATE, {"language=de": loud})
    assert threshold == calibrate(peaks, RATE)[0]
    assert made.slices[0].certified and made.slices[0].fired > RATE * CERTIFIED


def test_the_pooled_quantile_holds_where_every_source_is_quieter():
    peaks = np.arange(100.0)
    odd = traffic_slices(np.ones(100, int), [str(index % 5) for index in range(100)])
    threshold, made = calibrate(peaks, RATE, odd)
    assert threshold == calibrate(peaks, RATE)[0]
    assert not any(part.certified for part in made.slices[:5])


@pytest.mark.parametrize(("count", "own"), [(8, False), (9, True)])
def test_a_slice_too_small_for_the_rate_has_no_threshold_of_its_own(count, own):
    _, made = calibrate(np.arange(100.0), RATE, cut(100 - count, count))
    assert (made.slices[1].threshold is not None) is own


def test_a_certified_source_that_never_has_a_verdict_sets_nothing():
    peaks = np.concatenate([np.arange(100.0), np.full(CERTIFIED, -np.inf)])
    threshold, made = calibrate(peaks, RATE, cut(100, CERTIFIED))
    assert threshold == made.slices[0].threshold
    assert made.slices[1].threshold is None and made.slices[1].certified and made.slices[1].fired == 0


def test_verdicts_that_are_not_numbers_are_refused():
    peaks = np.arange(100.0)
    peaks[3] = np.nan
    with pytest.raises(ConceptError, match="not numbers"):
        calibrate(peaks, RATE)


def test_lengths_are_cut_at_powers_of_two():
    lengths = [1, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 9999]
    slices = traffic_slices(np.array(lengths), [None] * len(lengths))
    assert {name: np.array(lengths)[mask].tolist() for name, mask in slices.items()} == {
        "length=1-16": [1, 16],
        "length=17-32": [17, 32],
        "length=33-64": [33, 64],
        "length=65-128": [65, 128],
        "length=129-256": [129, 256],
        "length=257+": [257, 9999],
    }


def test_slices_are_those_that_the_data_name():
    named = [{"language": "de"}, {"language": "en", "tools": "true"}, {}]
    slices = traffic_slices(np.array([1, 1, 40]), ["a", None, "a"], named)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in slices.items()} == {
        "source=a": [0, 2],
        "length=1-16": [0, 1],
        "length=33-64": [2],
        "language=de": [0],
        "language=en": [1],
        "tools=true": [1],
    }


def test_a_slice_for_every_user_is_refused(monkeypatch):
    monkeypatch.setattr(calibration, "MAX_SLICES", 10)
    lengths, users = np.ones(10, int), [{"user": str(index)} for index in range(10)]
    assert len(traffic_slices(lengths[:9], [None] * 9, users[:9])) == 10
    with pytest.raises(ConceptError, match="have 11 sources and slices; a calibration holds 10"):
        traffic_slices(lengths, [None] * 10, users)


def probe(name):
    return Probe(
        name=name,
        layer=1,
        roles=["user"],
        threshold=7.0,
        aggregate=Aggregate(),
        calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
        evaluation=Evaluation(positives=50, negatives=50, auroc=0.9, auroc_text=0.6, recall=0.8),
    )


def test_a_probe_is_calibrated_on_the_requests_that_it_reads():
    count = 40
    requests = [Request(index, prompt="x", source="ab"[index % 2]) for index in range(count)]
    tokens = np.full((count, 3), 20)
    peak = np.tile(np.arange(float(count))[:, None], (1, 3))
    # The second reads only half of them, and has a verdict on all but one of these; the third, hardly any.
    tokens[::2, 1], peak[::2, 1] = 0, -np.inf
    tokens[1, 1], peak[1, 1] = 2, -np.inf
    tokens[8:, 2], peak[8:, 2] = 0, -np.inf
    before = [probe("all"), probe("half"), probe("few")]
    after, kept = recalibrate(before, requests, Scores(peak, tokens, np.full((count, 3), -1), 0 * tokens), RATE)

    assert [one.threshold for one in after[:2]] == [
        calibrate(peak[:, 0], RATE)[0],
        calibrate(peak[1::2, 1], RATE)[0],
    ]
    assert [one.calibration.benign for one in after[:2]] == [count, count // 2]
    assert [part.name for part in after[0].calibration.slices] == ["source=a", "source=b", "length=17-32"]
    assert [(part.name, part.benign) for part in after[1].calibration.slices] == [
        ("source=b", 20),
        ("length=1-16", 1),
        ("length=17-32", 19),
    ]
    assert after[2] == before[2]
    assert list(kept) == ["few"] and "Of 40 requests, 8 have tokens that it reads" in kept["few"]
    assert [one.evaluation for one in after] == [one.evaluation for one in before]
