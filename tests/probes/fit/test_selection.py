"""Folds leave out what belongs together, and the choice is made by what they leave out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.evaluation.metrics import auroc
from probes.fit.linear import Spans
from probes.fit.selection import (
    SHIPPED,
    TOPIC_FOLDS,
    Candidate,
    Fold,
    Labelled,
    Shown,
    choose,
    gain,
    leave_out,
    leave_sources_out,
    make,
    shown,
)
from probes.models.activation_store import Rows
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Role

HIDDEN = 6
AGGREGATE = Aggregate(half_life=3.0, min_tokens=1)


def labelled(*parts):
    """Conversations of ``(source, count, label, topic, benign)``; label ``None`` alternates, groups are pairs."""
    rows = []
    for source, count, label, topic, benign in parts:
        for number in range(count):
            rows.append(
                (
                    number % 2 == 0 if label is None else label,
                    benign,
                    source,
                    f"{source}:{number // 2}",
                    topic if isinstance(topic, str) else f"{source} topic {number // 2 % topic}",
                )
            )
    labels, benign, sources, groups, topics = zip(*rows, strict=True)
    return Labelled(
        np.array(labels),
        np.array(benign),
        np.ones(len(rows)),
        np.array(sources),
        np.array(groups),
        np.array(topics),
    )


def mixed(*parts, requests=(("gsm8k", 40), ("oasst", 40), ("shipped", 40))):
    """Labelled parts, and benign requests of several sets."""
    return labelled(
        *((source, count, label, topic, False) for source, count, label, topic in parts),
        *((source, count, False, 4, True) for source, count in requests),
    )


def left_out(data, fold, *, benign=False):
    return set(data.sources[fold.test & (data.benign == benign)].tolist())


def assert_sound(data, folds):
    for fold in folds:
        assert not (fold.test & fold.fitted).any()
        concept = ~data.benign
        assert not set(data.groups[fold.test & concept]) & set(data.groups[fold.fitted]), "a group is on both sides"
        for part in (fold.test, fold.fitted):
            assert (part & data.labels).any() and (part & data.benign).any()
    positive = sum(fold.test[data.labels].astype(int) for fold in folds)
    assert (positive == 1).all(), "every positive is left out once"


def test_each_data_set_is_left_out_whole_and_once():
    data = mixed(("shipped", 40, None, 5), ("cast", 60, None, 5), ("saplma", 30, None, 5))
    folds = leave_sources_out(data)
    assert_sound(data, folds)
    assert [fold.name for fold in folds] == ["cast", "saplma", "shipped"]
    for fold in folds:
        assert left_out(data, fold) == {fold.name}
        assert not (fold.fitted & ~data.benign & (data.sources == fold.name)).any()


def test_data_sets_about_one_topic_are_left_out_together():
    """What they share would be known from the other one."""
    data = mixed(("shipped", 40, None, "cities"), ("one", 20, None, "cities"), ("two", 20, None, "cities"))
    folds = leave_sources_out(data)
    assert_sound(data, folds)
    # What ships is about everything.
    assert [left_out(data, fold) for fold in folds] == [{"one", "two"}, {"shipped"}]
    assert folds[0].name == "one+two"


def test_relations_are_followed_through():
    """The first shares a topic with the second, the second another one with the third."""
    parts = labelled(
        ("c", 20, None, "x", False),
        ("a", 20, None, "y", False),
        ("b", 20, None, "x", False),
        ("b", 20, None, "y", False),
        ("z", 20, None, "x and more", False),
        *(("gsm8k", 20, False, 4, True), ("oasst", 20, False, 4, True)),
    )
    assert [left_out(parts, fold) for fold in leave_sources_out(parts)] == [{"a", "b", "c"}, {"z"}]


def test_groups_that_data_sets_share_are_not_fitted_on():
    data = mixed(("one", 20, None, 5), ("two", 20, None, 5))
    at = np.flatnonzero(data.sources == "two")[:2]
    groups = data.groups.copy()
    groups[at] = data.groups[0]
    data = Labelled(data.labels, data.benign, data.polarity, data.sources, groups, data.topics)
    folds = leave_sources_out(data)
    assert_sound(data, folds)
    assert not folds[0].fitted[at].any() and not folds[0].test[at].any()


def test_data_sets_without_positives_are_left_out_in_turn():
    data = mixed(
        ("one", 20, None, 5), ("two", 20, None, 5), *((name, 10, False, 5) for name in ("calm", "mild", "quiet"))
    )
    folds = leave_sources_out(data)
    assert_sound(data, folds)
    turns = [left_out(data, fold) - {fold.name} for fold in folds]
    assert turns[0] | turns[1] == {"calm", "mild", "quiet"} and not turns[0] & turns[1]


def test_benign_sources_are_left_out_in_turn():
    data = mixed(("one", 20, None, 5), ("two", 20, None, 5), requests=[(name, 20) for name in "abcde"])
    folds = leave_sources_out(data)
    turns = [left_out(data, fold, benign=True) for fold in folds]
    assert turns[0] | turns[1] == set("abcde") and not turns[0] & turns[1]


def test_of_fewer_benign_sources_than_folds_some_is_left_out_of_each():
    data = mixed(*((name, 20, None, 5) for name in ("one", "two", "three", "four")), requests=[("x", 20), ("y", 20)])
    folds = leave_sources_out(data)
    assert_sound(data, folds)
    assert all(len(left_out(data, fold, benign=True)) == 1 for fold in folds)


def test_a_single_benign_source_is_parted():
    data = mixed(("one", 20, None, 5), ("two", 20, None, 5), ("three", 20, None, 5), requests=[("shipped", 60)])
    folds = leave_sources_out(data)
    assert_sound(data, folds)
    parts = np.stack([fold.test & data.benign for fold in folds])
    assert (parts.sum(axis=0)[data.benign] == 1).all(), "each is left out once"
    assert parts.sum(axis=1).min() >= 10


def test_of_a_single_data_set_topics_are_left_out():
    data = mixed(("shipped", 120, None, 12), requests=[("shipped", 60)])
    folds = leave_sources_out(data)
    assert len(folds) == TOPIC_FOLDS
    assert_sound(data, folds)
    for fold in folds:
        concept = ~data.benign
        assert not set(data.topics[fold.test & concept]) & set(data.topics[fold.fitted & concept])
        assert abs(len(set(data.topics[fold.test & concept])) - 12 / TOPIC_FOLDS) <= 1


@settings(deadline=None, max_examples=40)
@given(
    topics=st.integers(2, 20),
    benign_topics=st.integers(1, 60),
    seed=st.integers(0, 50),
)
def test_topics_of_other_data_do_not_matter(topics, benign_topics, seed):
    """The two topics of a small concept are never left out at once, whatever benign requests are about."""
    data = labelled(("shipped", 4 * topics, None, topics, False), ("shipped", 120, False, benign_topics, True))
    folds = leave_sources_out(data, seed)
    assert min(topics, TOPIC_FOLDS) - 1 <= len(folds) <= TOPIC_FOLDS
    assert_sound(data, folds)


def test_folds_are_the_same_every_time():
    data = mixed(("shipped", 120, None, 12), requests=[("shipped", 60)])
    for one, other in zip(leave_sources_out(data), leave_sources_out(data), strict=True):
        assert np.array_equal(one.test, other.test) and np.array_equal(one.fitted, other.fitted)


def weight_of(data, **which):
    training = data.training(np.ones(len(data.labels), bool))
    mask = np.ones(len(data.labels), bool)
    for name, value in which.items():
        mask &= getattr(data, name) == value
    return training.weights[mask].sum()


def test_a_large_data_set_does_not_drown_a_small_one():
    data = mixed(("large", 2000, None, 5), ("small", 20, None, 5))
    large, small = (weight_of(data, sources=name, labels=True) for name in ("large", "small"))
    assert large / small == pytest.approx(10), "by the root of their sizes, not by these, which differ by a hundred"


def test_benign_requests_count_together_as_much_as_the_other_negatives():
    data = mixed(("one", 20, None, 5), requests=[("gsm8k", 900), ("oasst", 100)])
    negatives, benign = (weight_of(data, labels=False, benign=which) for which in (False, True))
    assert negatives == pytest.approx(benign) == pytest.approx(1.0)
    assert weight_of(data, sources="gsm8k") / weight_of(data, sources="oasst") == pytest.approx(3)


def test_training_is_of_the_chosen_alone():
    data = mixed(("one", 20, None, 5), ("two", 20, None, 5))
    training = data.training(data.sources == "two")
    assert set(data.sources[training.chosen]) == {"two"}
    assert np.array_equal(training.labels, data.labels[training.chosen])
    assert training.weights.sum() == pytest.approx(2.0)


def test_what_a_fold_shows():
    """Recall at what 1% of the left-out benign requests reach, AUROC against the fold's own negatives."""
    data = labelled(
        ("one", 4, True, 1, False), ("one", 4, False, 1, False), ("b", 100, False, 1, True), ("c", 9, False, 1, True)
    )
    fold = Fold("one", data.sources != "c", data.sources == "c")
    # Two of a hundred benign requests reach 5; the two requests of the other set would reach all.
    quiet = [5.0, 4.0, *np.zeros(97), -np.inf]
    peaks = np.array([5.0, 5.1, 4.5, 3.0, *(4.7, 1.0, 0.0, -np.inf), *quiet, *np.full(9, 99.0)])
    # Of the 99 with a verdict, 1% is none: the level is their highest.
    found = shown(peaks, data, fold, 0.01)
    assert found.recall == 0.25
    assert found.auroc == pytest.approx((4 + 4 + 3 + 3) / 16)
    assert shown(peaks, data, fold, 0.02).recall == 0.75, "now one may fire, and the level is the second"


def test_without_own_negatives_a_fold_is_judged_against_benign_requests():
    data = labelled(("one", 4, True, 1, False), ("b", 4, False, 1, True))
    fold = Fold("one", np.ones(8, bool), np.zeros(8, bool))
    found = shown(np.array([1.0, 2.0, 3.0, 4.0, 2.5, 2.5, 2.5, 0.0]), data, fold, 0.01)
    assert found.auroc == pytest.approx((1 + 1 + 4 + 4) / 16)


def test_a_fold_without_benign_requests_recalls_nothing():
    data = labelled(("one", 2, True, 1, False), ("one", 2, False, 1, False))
    found = shown(np.array([2.0, 2.0, 1.0, 1.0]), data, Fold("one", np.ones(4, bool), np.zeros(4, bool)), 0.01)
    assert (found.recall, found.auroc) == (0.0, 1.0)


def candidate(layer):
    return Candidate(layer, "logistic", 1e-2, AGGREGATE)


def table(**folds):
    """``layer_1=[(recall, auroc), …]``."""
    return {
        candidate(int(name.removeprefix("layer_"))): [Shown(np.zeros(0), *values) for values in shown_by]
        for name, shown_by in folds.items()
    }


def test_recall_and_matched_negatives_are_worth_the_same():
    assert choose(table(layer_1=[(0.5, 0.9)], layer_2=[(0.7, 0.8)])) == candidate(2)
    assert choose(table(layer_1=[(0.7, 0.8)], layer_2=[(0.6, 0.95)])) == candidate(2)
    # All is recalled where what shows the concept looks like no benign request, and the matched negatives as well.
    assert choose(table(layer_1=[(1.0, 0.5)], layer_2=[(0.8, 0.9)])) == candidate(2)


def test_recall_that_matched_negatives_share_is_worth_nothing():
    bought = {
        candidate(1): [Shown(np.zeros(0), 0.9, 0.5, alarm=0.9)],
        candidate(2): [Shown(np.zeros(0), 0.2, 0.6, alarm=0.0)],
    }
    assert choose(bought) == candidate(2)


def test_means_are_over_folds():
    assert choose(table(layer_1=[(1.0, 0.9), (0.0, 0.9)], layer_2=[(0.6, 0.85), (0.6, 0.85)])) == candidate(2)


def test_a_fold_that_is_to_be_judged_has_no_say():
    shown_by = table(layer_1=[(1.0, 1.0), (0.1, 0.6), (0.1, 0.6)], layer_2=[(0.0, 0.1), (0.3, 0.7), (0.3, 0.7)])
    assert choose(shown_by) == candidate(1)
    assert choose(shown_by, without=0) == candidate(2)
    assert choose(shown_by, without=1) == candidate(1)
    # Nor by its area.
    shown_by = table(layer_1=[(0.3, 1.0), (0.3, 0.6)], layer_2=[(0.3, 0.1), (0.3, 0.7)])
    assert (choose(shown_by), choose(shown_by, without=0)) == (candidate(1), candidate(2))


def test_a_fold_that_shows_nothing_has_no_say():
    nan = float("nan")
    assert choose(table(layer_1=[(nan, nan), (0.5, 0.8)], layer_2=[(0.4, 0.8), (0.6, 0.7)])) == candidate(1)


def test_the_layer_that_tells_is_chosen_and_nothing_that_is_left_out_was_fitted_on(monkeypatch):
    """Layer 2 holds the concept; in layer 1 the sources differ in where it is."""
    from probes.fit import selection

    pytest.importorskip("sklearn")
    random = np.random.default_rng(0)
    data = mixed(*((name, 40, None, 5) for name in ("one", "two", "three")), requests=[("x", 60), ("y", 60)])
    sign = np.where(data.labels, 1.0, -1.0)[:, None]
    axis = {name: np.eye(HIDDEN)[at] for at, name in enumerate(("one", "two", "three"))}
    own = np.array([axis.get(name, np.zeros(HIDDEN)) for name in data.sources.tolist()])
    tokens, count = 5, len(data.labels)

    def states(layer):
        planted = 2 * sign * (own if layer == 1 else np.eye(HIDDEN)[5])
        return np.repeat(planted, tokens, axis=0) + random.normal(size=(count * tokens, HIDDEN))

    def rows(layer):
        return Rows(
            states(layer).astype(np.float32),
            np.full(count * tokens, Role.USER, np.uint8),
            np.ones(count * tokens, bool),
            np.arange(0, count * tokens + 1, tokens),
        )

    folds = leave_sources_out(data)
    fitted, done = [], []
    genuine = selection.fit

    def recorded(spans, training, kind, penalty):
        fitted.append(set(training.chosen.tolist()))
        return genuine(spans, training, kind, penalty)

    monkeypatch.setattr(selection, "fit", recorded)
    candidates = [Candidate(layer, "logistic", penalty, AGGREGATE) for layer in (1, 2) for penalty in (1e-3, 1e-2)]
    found = leave_out(rows, (Role.USER,), data, candidates, folds, 0.05, lambda: done.append(1))
    assert set(found) == set(candidates) and len(done) == len(fitted) == len(candidates) * len(folds)
    for at, chosen in enumerate(fitted):
        assert chosen == set(np.flatnonzero(folds[at % len(folds)].fitted).tolist())
    assert choose(found).layer == 2
    for candidate_, by_fold in found.items():
        for fold, what in zip(folds, by_fold, strict=True):
            assert np.isneginf(what.peaks[~fold.test]).all() and np.isfinite(what.peaks[fold.test]).all()
            assert what.auroc > 0.95 if candidate_.layer == 2 else what.auroc < 0.9


def paired(random, linear, bigger, count=120):
    """Two probes' peaks on one fold: how far positives lie above negatives and benign requests."""
    data = mixed(("one", count, None, 2), requests=[("x", count)])
    fold = Fold("one", np.ones(len(data.labels), bool), np.zeros(len(data.labels), bool))
    shared = random.normal(size=len(data.labels))
    found = []
    for shift in (linear, bigger):
        peaks = shared + 0.1 * random.normal(size=len(shared)) + shift * data.labels
        found.append([shown(peaks, data, fold, 0.05)])
    return found, data, [fold]


def test_a_bigger_probe_gains_where_it_is_clearly_better_only():
    random = np.random.default_rng(1)
    found, data, folds = paired(random, 1.0, 3.0)
    better = gain(*found, data, folds, 0.05)
    assert 0.2 < better.low < better.point < better.high
    difference = [one[0].recall + one[0].auroc for one in found]
    assert better.point == pytest.approx(difference[1] - difference[0])
    worse = gain(*found[::-1], data, folds, 0.05)
    assert worse.high < 0 and worse.point == pytest.approx(-better.point)
    found, data, folds = paired(random, 1.0, 1.0)
    same = gain(*found, data, folds, 0.05)
    assert same.low <= 0 <= same.high


def test_a_network_is_made_of_what_was_chosen():
    pytest.importorskip("torch")
    from probes.fit.linear import Linear
    from probes.scoring.multimax import MultiMax

    random = np.random.default_rng(2)
    data = mixed(("one", 40, None, 4), ("two", 40, None, 4), requests=[("x", 40)])
    count = len(data.labels)
    states = np.repeat(3.0 * data.labels[:, None] * np.eye(HIDDEN)[2], 5, axis=0) + random.normal(
        size=(count * 5, HIDDEN)
    )
    spans = Spans(
        Rows(
            states.astype(np.float32),
            np.full(count * 5, Role.USER, np.uint8),
            np.ones(count * 5, bool),
            np.arange(0, count * 5 + 1, 5),
        ),
        (Role.USER,),
        AGGREGATE,
    )
    chosen = data.sources != "two"
    network = make(spans, data, chosen, Candidate(1, "multimax", 1.0, AGGREGATE))
    assert isinstance(network, MultiMax) and isinstance(make(spans, data, chosen, candidate(1)), Linear)
    peaks, left = spans.peaks(network), ~chosen & ~data.benign
    assert auroc(peaks[left & data.labels], peaks[left & ~data.labels]) > 0.9


def test_the_name_of_what_ships_is_that_of_its_examples():
    from probes.data.examples import Benign, Pair
    from probes.models.chat import Message

    pair = Pair("p", "t", [Message("user", "a")], [Message("user", "b")])
    assert {example.source for example in pair.examples("own")} == {SHIPPED}
    assert Benign("b", "t", [Message("user", "a")]).source == SHIPPED
