"""Probes find what was planted, and read what the running verdict reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.errors import ConceptError
from probes.evaluation.metrics import auroc
from probes.fit import linear
from probes.fit.linear import Linear, Spans, Training, fit
from probes.models.activation_store import Rows
from probes.scoring.aggregate import Aggregate, running, running_mean
from probes.scoring.roles import Role

pytest.importorskip("sklearn")

HIDDEN = 16
AGGREGATE = Aggregate(half_life=4.0, min_tokens=2)
READ = (Role.USER, Role.ASSISTANT)
KINDS = ("logistic", "mean_difference", "two_direction", "at_ends")


@pytest.fixture
def random():
    return np.random.default_rng(3)


def rows(conversations, roles=None, last=None):
    """Conversations of states ``(tokens, hidden)`` as rows; all of them the user's last message, unless told."""
    states = np.concatenate([np.zeros((0, HIDDEN)), *conversations]).astype(np.float32)
    return Rows(
        states,
        np.full(len(states), Role.USER, np.uint8) if roles is None else roles,
        np.ones(len(states), bool) if last is None else last,
        np.concatenate([[0], np.cumsum([len(part) for part in conversations])]).astype(np.int64),
    )


def training(labels, **more):
    count = len(labels)
    standard = {
        "chosen": np.arange(count),
        "labels": np.array(labels, bool),
        "weights": np.ones(count),
        "polarity": np.ones(count),
        "benign": np.zeros(count, bool),
    }
    return Training(**standard | more)


def unit(random):
    vector = random.normal(size=HIDDEN)
    return vector / np.linalg.norm(vector)


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def noise(random, count, tokens=8, shift=0.0):
    return [random.normal(size=(tokens, HIDDEN)) + shift for _ in range(count)]


AGGREGATES = st.builds(
    lambda half_life, min_tokens, window, agree_of, less: Aggregate(
        half_life, min_tokens, window, max(1, agree_of - less), agree_of
    ),
    st.floats(0.3, 20),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(0, 4),
)


@settings(deadline=None, max_examples=150)
@given(
    aggregate=AGGREGATES, counts=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1)
)
def test_what_is_read_at_once_is_what_the_monitor_reads_token_by_token(aggregate, counts, seed):
    random = np.random.default_rng(seed)
    given_rows = rows([random.normal(size=(count, HIDDEN)) for count in counts])
    roles = random.choice([Role.SYSTEM, Role.USER, Role.ASSISTANT], len(given_rows.states)).astype(np.uint8)
    spans = Spans(Rows(given_rows.states, roles, given_rows.last, given_rows.offsets), READ, aggregate)
    probe = Linear(random.normal(size=HIDDEN), 0.7)
    found, peaks = spans.running(probe), spans.peaks(probe)
    assert len(found) == len(peaks) == len(counts)
    for index in range(len(counts)):
        part = slice(given_rows.offsets[index], given_rows.offsets[index + 1])
        states = given_rows.states[part][np.isin(roles[part], READ)]
        expected = running(states @ probe.weight + probe.bias, aggregate)
        assert spans.counts[index] == len(states)
        assert found[index, : len(states)] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert (found[index, len(states) :] == -np.inf).all()
        assert peaks[index] == pytest.approx(expected.max(initial=-np.inf), rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    half_life=st.floats(1.5, 6),
    window=st.integers(1, 5),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_probe_is_fitted_on_what_its_verdict_averages(half_life, window, counts, seed):
    random = np.random.default_rng(seed)
    conversations = [random.normal(size=(count, HIDDEN)) for count in counts]
    spans = Spans(rows(conversations), READ, Aggregate(half_life, 1, window))
    expected = np.concatenate(
        [np.zeros((0, HIDDEN)), *(running_mean(states, half_life, window) for states in conversations)]
    )
    points = random.permutation(len(expected))
    # Within eight half-lives nothing is forgotten.
    assert spans.means(points) == pytest.approx(expected[points], abs=1e-5)


@pytest.mark.parametrize("window", [1, 4])
def test_what_is_forgotten_of_long_conversations_is_little(random, window):
    states = random.normal(size=(300, HIDDEN))
    found = Spans(rows([states]), READ, Aggregate(5.0, 1, window)).means(np.arange(300))
    error = np.abs(found - running_mean(states, 5.0, window)).max()
    assert 0 < error < 0.02


def test_the_last_message_of_a_conversation(random):
    states = random.normal(size=(6, HIDDEN))
    roles = np.array([Role.USER, Role.USER, Role.SYSTEM, Role.ASSISTANT, Role.USER, Role.USER], np.uint8)
    spans = Spans(rows([states], roles, np.array([0, 0, 0, 0, 1, 1], bool)), (Role.USER,), AGGREGATE)
    assert spans.counts.tolist() == [4]
    assert spans.message(0) == pytest.approx(states[4:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_direction_is_recovered_in_the_units_of_the_states(random, kind):
    along, scale = unit(random), np.exp(random.normal(size=HIDDEN) * 2)
    labels = np.arange(600) % 2 == 0
    planted = [
        states * scale + 5 for label in labels for states in noise(random, 1, shift=(1.0 if label else -1.0) * along)
    ]
    spans = Spans(rows(planted), READ, AGGREGATE)
    probe = fit(spans, training(labels), kind, 1e-2)
    # The scale of each dimension is folded back: what separates is along/scale.
    assert cosine(probe.weight * scale, along) > 0.9
    peaks = spans.peaks(probe)
    assert auroc(peaks[labels], peaks[~labels]) > 0.99
    # Raised by its being the highest, and even so nearer to 0 than to either side.
    assert np.median(peaks[labels]) > 0 > np.median(peaks[~labels])


def test_the_folded_scale_is_the_standardised_model(random, monkeypatch):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(linear, "MINED", 0)
    labels = np.arange(200) % 2 == 0
    scale = np.exp(random.normal(size=HIDDEN) * 2)
    planted = [states * scale - 3 for label in labels for states in noise(random, 1, shift=0.5 * label)]
    spans = Spans(rows(planted), READ, AGGREGATE)
    probe = fit(spans, training(labels), "logistic", 0.1)
    ends = spans.means(spans.offsets[1:] - 1).astype(np.float64)
    standard = (ends - ends.mean(axis=0)) / (ends.std(axis=0) + 1e-6)
    model = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(standard, labels, sample_weight=np.full(200, 2.0))
    assert ends @ probe.weight + probe.bias == pytest.approx(model.decision_function(standard), abs=0.1)


def test_more_penalty_is_a_smaller_weight(random):
    labels = np.arange(100) % 2 == 0
    spans = Spans(rows([noise(random, 1, shift=0.5 * label)[0] for label in labels]), READ, AGGREGATE)
    norms = [np.linalg.norm(fit(spans, training(labels), "logistic", penalty).weight) for penalty in (1e-4, 1e-2, 1.0)]
    assert norms == sorted(norms) and norms[0] < norms[-1] / 10


def test_random_labels_are_not_read_on_other_conversations(random):
    spans = Spans(rows(noise(random, 400)), READ, AGGREGATE)
    labels = np.arange(400) % 2 == 0
    for kind in KINDS:
        chosen = np.arange(200)
        peaks = spans.peaks(fit(spans, training(labels[:200], chosen=chosen), kind, 1e-2))[200:]
        assert abs(auroc(peaks[labels[200:]], peaks[~labels[200:]]) - 0.5) < 0.15


def cross_validated(random, count, *, negated):
    """Statements whose truth shows along one direction, and along another with a sign that negation turns."""
    general, turned, said = np.eye(HIDDEN)[:3]
    labels = np.arange(count) % 2 == 0
    polarity = np.where(np.arange(count) // 2 % 10 < 10 * negated, -1.0, 1.0)
    sign = np.where(labels, 1.0, -1.0)
    states = [
        random.normal(size=(8, HIDDEN)) + 0.4 * s * general + 3.0 * s * p * turned + 2.0 * p * said
        for s, p in zip(sign, polarity, strict=True)
    ]
    return states, labels, polarity


def test_two_directions_do_not_invert_on_negation_where_one_does(random):
    """Fitted on statements of which few are negated, judged on negated ones."""
    taught, labels, polarity = cross_validated(random, 600, negated=0.1)
    tested, wanted, _ = cross_validated(random, 200, negated=1.0)
    spans, judged = Spans(rows(taught), READ, AGGREGATE), Spans(rows(tested), READ, AGGREGATE)
    # Where a statement is negated depends on its number, and must not on its label.
    assert abs(polarity[labels].mean() - polarity[~labels].mean()) < 0.01
    areas = {}
    for kind in ("logistic", "mean_difference", "two_direction"):
        peaks = judged.peaks(fit(spans, training(labels, polarity=polarity), kind, 1e-4))
        areas[kind] = auroc(peaks[wanted], peaks[~wanted])
    assert areas["two_direction"] > 0.85
    assert areas["logistic"] < 0.3 and areas["mean_difference"] < 0.3


def test_two_directions_without_negation_are_one(random):
    """Polarity and the constant are then the same, and the regression has no unique solution."""
    along = unit(random)
    labels = np.arange(300) % 2 == 0
    spans = Spans(rows([noise(random, 1, shift=(2 * label - 1) * along)[0] for label in labels]), READ, AGGREGATE)
    for polarity in (1.0, -1.0):
        probe = fit(spans, training(labels, polarity=np.full(300, polarity)), "two_direction", 1.0)
        peaks = spans.peaks(probe)
        assert auroc(peaks[labels], peaks[~labels]) > 0.95


def ended(random, shows, is_end, count):
    """Conversations that show their label at the last token only, where an end can be told; chance before it."""
    labels = np.arange(count) % 2 == 0
    states = [random.normal(size=(8, HIDDEN)) for _ in labels]
    for state, label in zip(states, labels, strict=True):
        # In the middle the direction is as strong as at the end, and says nothing.
        state[:-1] += np.outer(random.normal(scale=3.0, size=7), shows)
        state[-1] += (4.0 if label else -4.0) * shows + 6.0 * is_end
    return states, labels


@pytest.mark.parametrize("told", [True, False])
def test_what_only_ends_show_is_read_at_ends_that_can_be_told(random, told):
    shows, is_end = np.eye(HIDDEN)[:2]
    briefly = Aggregate(half_life=0.25, min_tokens=2)
    taught, labels = ended(random, shows, told * is_end, 400)
    tested, wanted = ended(random, shows, told * is_end, 200)
    spans, judged = Spans(rows(taught), READ, briefly), Spans(rows(tested), READ, briefly)
    running = judged.running(fit(spans, training(labels), "at_ends", 1e-2))
    area = auroc(running.max(axis=1)[wanted], running.max(axis=1)[~wanted])
    at_end = (running.argmax(axis=1) == 7).mean()
    assert (area > 0.95 and at_end > 0.95) if told else (area < 0.85 and at_end < 0.7)


def test_ends_are_all_there_is_of_messages_as_short_as_a_verdict(random):
    labels = np.arange(100) % 2 == 0
    along = 3.0 * unit(random)
    spans = Spans(rows([random.normal(size=(2, HIDDEN)) + label * along for label in labels]), READ, AGGREGATE)
    one, other = (fit(spans, training(labels), kind, 1e-2) for kind in ("at_ends", "logistic"))
    assert np.allclose(one.weight, other.weight)


def spiked(random, along, count=120):
    """Negatives that show the concept's direction for a while, in the middle, and nothing of it at their end."""
    labels = np.arange(count) % 2 == 0
    second = np.eye(HIDDEN)[0]
    second = second - along * (second @ along)
    conversations = []
    for label in labels:
        states = 0.5 * random.normal(size=(30, HIDDEN))
        if label:
            states += along
        else:
            # Told apart by something else, had the probe been shown it.
            states[8:16] += along + 2 * second
        conversations.append(states)
    return conversations, labels


def test_hard_examples_lower_the_peaks_of_negatives(random, monkeypatch):
    conversations, labels = spiked(random, unit(random))
    spans = Spans(rows(conversations), READ, AGGREGATE)

    def gap():
        peaks = spans.peaks(fit(spans, training(labels), "logistic", 1e-2))
        return np.median(peaks[labels]) - np.median(peaks[~labels])

    mined = gap()
    monkeypatch.setattr(linear, "MINED", 0)
    assert mined > max(0, gap() + 0.5)


def test_the_place_that_is_added_is_the_peak(random):
    along = unit(random)
    conversations, labels = spiked(random, along)
    spans = Spans(rows(conversations), READ, AGGREGATE)
    probe = Linear(along, 0.0)
    found = linear._highest(spans, training(labels), probe)
    running_scores = spans.running(probe)
    assert (found - spans.offsets[:-1]).tolist() == running_scores.argmax(axis=1).tolist()
    assert (np.abs(found - spans.offsets[:-1])[~labels] < 20).all(), "in the middle, not at the end"


def test_only_the_last_message_of_an_example_is_labelled(random):
    """What an earlier message says is not what the label is about; of a benign request all is benign."""
    along = unit(random)
    states = random.normal(size=(20, HIDDEN)) * 0.1
    states[:10] += 5 * along
    last = np.concatenate([np.arange(20) >= 10] * 2)
    spans = Spans(rows([states, states], last=last), READ, AGGREGATE)
    how = training([False, False], benign=np.array([False, True]))
    found = linear._highest(spans, how, Linear(along, 0.0))
    assert 10 <= found[0] < 20 and found[1] - 20 < 10


def test_a_conversation_too_short_for_a_verdict_teaches_nothing(random):
    labels = [True, False] * 20
    long, short = noise(random, 40), noise(random, 10, tokens=AGGREGATE.min_tokens - 1)
    with_short = fit(Spans(rows([*long, *short]), READ, AGGREGATE), training([*labels, *labels[:10]]), "logistic", 1e-2)
    without = fit(Spans(rows(long), READ, AGGREGATE), training(labels), "logistic", 1e-2)
    assert with_short.weight == pytest.approx(without.weight, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("label", "said"), [(True, "shows"), (False, "does not show")])
def test_a_class_too_short_for_a_verdict_is_refused(random, label, said):
    conversations = [*noise(random, 10), *noise(random, 10, tokens=1)]
    labels = [not label] * 10 + [label] * 10
    with pytest.raises(ConceptError, match=f"No example that {said} the concept has the 2 tokens"):
        fit(Spans(rows(conversations), READ, AGGREGATE), training(labels), "logistic", 1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_not_numbers_say_what_counts(random, kind):
    """Two sets of examples that contradict each other: the one that counts more is believed, not the larger one."""
    along = unit(random)
    labels = np.arange(220) % 2 == 0
    large = np.arange(220) < 200
    conversations = [
        noise(random, 1, tokens=20, shift=(1 if label else -1) * (1 if is_large else -1) * along)[0]
        for label, is_large in zip(labels, large, strict=True)
    ]
    spans = Spans(rows(conversations), READ, AGGREGATE)
    # As much a conversation, or ten times as much all in all.
    equal = fit(spans, training(labels), kind, 1e-2)
    favoured = fit(spans, training(labels, weights=np.where(large, 0.1 / 200, 1 / 20)), kind, 1e-2)
    assert cosine(equal.weight, along) > 0.6
    assert cosine(favoured.weight, along) < -0.6


def test_scaling_all_weights_changes_nothing(random):
    labels = np.arange(60) % 2 == 0
    spans = Spans(rows([noise(random, 1, shift=0.5 * label)[0] for label in labels]), READ, AGGREGATE)
    weights = random.uniform(0.1, 1, 60)
    one, other = (fit(spans, training(labels, weights=weights * by), "logistic", 1e-2) for by in (1.0, 1e-4))
    assert one.weight == pytest.approx(other.weight, rel=1e-3)


def test_classes_count_alike_however_many_they_have(random, monkeypatch):
    """Of nine negatives to a positive, the threshold of the logit is still between them."""
    monkeypatch.setattr(linear, "MINED", 0)
    along = unit(random)
    labels = np.arange(400) % 10 == 0
    spans = Spans(rows([noise(random, 1, shift=(2 * label - 1) * along)[0] for label in labels]), READ, AGGREGATE)
    probe = fit(spans, training(labels), "logistic", 1e-3)
    scores = spans.means(spans.offsets[1:] - 1) @ probe.weight + probe.bias
    assert abs(scores[labels].mean() + scores[~labels].mean()) < 0.2 * abs(scores[labels].mean())
