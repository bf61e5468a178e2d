import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.scoring.aggregate import Aggregate, Aggregates, running, running_mean


class Reference:
    """What one probe makes of one request, from :func:`running` over everything that it read."""

    def __init__(self, scores, positions, read, aggregate, threshold):
        means = running_mean(scores[read], aggregate.half_life, aggregate.window)
        values = running(scores[read], aggregate)
        over = np.flatnonzero(values >= threshold)
        self.count = len(means)
        self.mean = means[-1] if len(means) else np.nan
        self.peak = values.max(initial=-np.inf)
        self.fired_at = positions[read][over[0]] if len(over) else -1
        self.fired_with = values[over[0]] if len(over) else np.nan


@st.composite
def aggregate(draw):
    agree_of = draw(st.integers(1, 6))
    return Aggregate(
        half_life=draw(st.floats(0.5, 60)),
        min_tokens=draw(st.integers(1, 40)),
        window=draw(st.sampled_from([1, 1, 2, 7, 16])),
        agree=draw(st.integers(1, agree_of)),
        agree_of=agree_of,
    )


@st.composite
def requests(draw):
    """Scores of one request, and where to cut them into frames."""
    tokens, probes = draw(st.integers(1, 300)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    cuts = sorted(draw(st.lists(st.integers(1, tokens), max_size=6)))
    settings = [
        # A threshold that no average hits within a rounding error, so that both sides agree on the token.
        (draw(aggregate()), draw(st.floats(-1.5, 1.5)) + 1e-7 * np.pi)
        for _ in range(probes)
    ]
    read = random.random((tokens, probes)) < draw(st.floats(0.1, 1.0))
    return random.normal(size=(tokens, probes)), read, cuts, settings


def aggregates_of(settings, capacity=1):
    return Aggregates(
        [aggregate for aggregate, _ in settings],
        np.array([threshold for _, threshold in settings]),
        capacity,
    )


def assert_equals_reference(aggregates, row, scores, read, settings, reported):
    positions = np.arange(len(scores)) * 2
    for probe, setting in enumerate(settings):
        expected = Reference(scores[:, probe], positions, read[:, probe], *setting)
        assert aggregates.count[row, probe] == expected.count
        assert aggregates.fired_at[row, probe] == expected.fired_at
        assert (probe in reported) == (expected.fired_at >= 0)
        np.testing.assert_allclose(aggregates.peak[row, probe], expected.peak, rtol=1e-9)
        np.testing.assert_allclose(aggregates.mean(row)[probe], expected.mean, rtol=1e-9)
        np.testing.assert_allclose(aggregates.fired_with[row, probe], expected.fired_with, rtol=1e-9)


@given(requests())
def test_update_equals_the_reference_however_a_request_is_cut(request_):
    scores, read, cuts, settings = request_
    aggregates, reported = aggregates_of(settings), []
    positions = np.arange(len(scores)) * 2
    for part in np.split(np.arange(len(scores)), cuts):
        reported += aggregates.update(0, scores[part], positions[part], read[part])
    assert len(reported) == len(set(reported)), "a probe is reported once"
    assert_equals_reference(aggregates, 0, scores, read, settings, reported)


@given(requests())
def test_update_each_equals_the_reference(request_):
    scores, read, _, settings = request_
    aggregates, reported = aggregates_of(settings, capacity=4), {1: [], 3: []}
    # Two requests side by side, the second one with the scores mirrored.
    rows, signs = np.array([3, 1]), np.array([1.0, -1.0])
    for token in range(len(scores)):
        for which, probe in aggregates.update_each(
            rows, signs[:, None] * scores[token], np.array([2 * token] * 2), read[[token, token]]
        ):
            reported[int(rows[which])].append(probe)
    assert_equals_reference(aggregates, 3, scores, read, settings, reported[3])
    assert_equals_reference(aggregates, 1, -scores, read, settings, reported[1])
    assert aggregates.count[[0, 2]].sum() == 0


@given(requests())
def test_prefill_and_decode_may_alternate(request_):
    scores, read, cuts, settings = request_
    aggregates, reported = aggregates_of(settings), []
    positions = np.arange(len(scores)) * 2
    for number, part in enumerate(np.split(np.arange(len(scores)), cuts)):
        if number % 2:
            reported += aggregates.update(0, scores[part], positions[part], read[part])
        else:
            for token in part:
                fired = aggregates.update_each(np.array([0]), scores[[token]], positions[[token]], read[[token]])
                reported += [probe for _, probe in fired]
    assert_equals_reference(aggregates, 0, scores, read, settings, reported)


def test_the_first_token_counts_in_full():
    assert running_mean(np.array([3.0, 3.0, 3.0]), half_life=12.0) == pytest.approx([3.0, 3.0, 3.0])


def test_a_score_counts_half_after_a_half_life():
    means = running_mean(np.array([1.0, *[0.0] * 4]), half_life=4.0)
    weights = 0.5 ** (np.arange(5) / 4.0)
    assert means[-1] == pytest.approx(0.5 / weights.sum())


def test_a_spike_before_min_tokens_does_not_fire_by_itself():
    aggregates = aggregates_of([(Aggregate(2.0, 3), 1.0)])
    for token, score in enumerate([100.0, -100.0, -100.0, -100.0]):
        assert not aggregates.update_each(np.array([0]), np.array([[score]]), np.array([token]), np.array([[True]]))
    assert aggregates.peak[0, 0] < 1.0


def test_a_row_given_away_begins_anew_and_rows_grow():
    aggregates = aggregates_of([(Aggregate(2.0, 1), 1.0)], capacity=1)
    assert aggregates.update(0, np.array([[5.0]]), np.array([0]), np.array([[True]])) == [0]
    aggregates.reset(5)
    assert aggregates.capacity == 8
    assert aggregates.fired_at[0, 0] == 0 and aggregates.peak[0, 0] == 5.0
    aggregates.reset(0)
    assert aggregates.fired_at[0, 0] == -1 and aggregates.peak[0, 0] == -np.inf
    assert np.isnan(aggregates.fired_with[0, 0]) and np.isnan(aggregates.mean(0)[0])
    assert aggregates.update(0, np.array([[5.0]]), np.array([0]), np.array([[True]])) == [0]


def test_one_high_average_is_not_enough_where_two_must_agree():
    alone, twice = np.array([0.0, 9.0, 0.0, 0.0, 0.0]), np.array([0.0, 9.0, 0.0, 9.0, 0.0])
    agreeing = Aggregate(half_life=0.01, min_tokens=1, agree=2, agree_of=3)
    assert running(alone, agreeing).max() == pytest.approx(0.0)
    assert running(twice, agreeing).max() == pytest.approx(9.0)
    assert running(twice, agreeing)[0] == -np.inf, "two cannot have agreed yet"


def test_a_window_averages_what_there_is():
    means = running_mean(np.array([4.0, 2.0, 0.0, 0.0]), half_life=0.01, window=2)
    assert means == pytest.approx([4.0, 3.0, 1.0, 0.0])


def test_more_cannot_agree_than_there_are():
    with pytest.raises(ValueError, match="3 of the last 2"):
        Aggregate(agree=3, agree_of=2)
