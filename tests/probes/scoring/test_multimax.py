"""The network reads what its formula says, in pieces as in one, and is trained to find what no direction shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.errors import ConceptError
from probes.evaluation.metrics import auroc
from probes.fit.linear import Spans, Training, fit
from probes.models.activation_store import Rows
from probes.scoring.aggregate import Aggregate, running
from probes.scoring.multimax import MAX_WINDOW, MultiMax
from probes.scoring.roles import Role

HIDDEN = 6


def network(random, width=5, heads=3, window=4, whole=False):
    """Random weights; with ``whole``, small integers, of which every product and sum is exact."""
    shapes = (width, HIDDEN), (width,), (width, width), (width,), (heads, width), (heads, width), (1,)
    draw = (lambda shape: random.integers(-2, 3, shape)) if whole else (lambda shape: random.normal(size=shape) / 2)
    return MultiMax(*(draw(shape).astype(np.float32) for shape in shapes), window=window)


def by_the_formula(net, states):
    """One token, one head, one place of the window at a time."""
    outer = []
    for state in states.astype(np.float64):
        inner = np.maximum(net.w1.astype(float) @ state + net.b1, 0)
        outer.append(np.maximum(net.w2.astype(float) @ inner + net.b2, 0))
    scores = []
    for token in range(len(states)):
        score = float(net.bias[0])
        for value, query in zip(net.value.astype(float), net.attention.astype(float), strict=True):
            window = outer[max(0, token - net.window + 1) : token + 1]
            weights = [np.exp(query @ y) for y in window]
            score += sum(w * (value @ y) for w, y in zip(weights, window, strict=True)) / sum(weights)
        scores.append(score)
    return np.array(scores)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 20),
    width=st.integers(1, 7),
    heads=st.integers(1, 4),
    window=st.integers(1, 9),
)
def test_a_score_is_what_the_formula_says(seed, tokens, width, heads, window):
    random = np.random.default_rng(seed)
    net = network(random, width, heads, window)
    states = random.normal(size=(tokens, HIDDEN)).astype(np.float32)
    scores = net.scores(states, net.begin())
    assert scores.shape == (tokens,) and scores.dtype == np.float64
    np.testing.assert_allclose(scores, by_the_formula(net, states), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 30),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    window=st.integers(1, 12),
)
def test_pieces_equal_the_whole_exactly(seed, tokens, cuts, window):
    random = np.random.default_rng(seed)
    net = network(random, window=window, whole=True)
    states = random.integers(-3, 4, (tokens, HIDDEN)).astype(np.float32)
    whole_carry, carry = net.begin(), net.begin()
    whole = net.scores(states, whole_carry)
    pieces = [net.scores(part, carry) for part in np.split(states, sorted(min(cut, tokens) for cut in cuts))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(carry.recent, whole_carry.recent)
    assert carry.recent.shape == (window - 1, 3, 2), "what is remembered does not grow"


def test_tokens_before_the_window_are_forgotten():
    random = np.random.default_rng(1)
    net = network(random, window=4, whole=True)
    states = random.integers(-3, 4, (12, HIDDEN)).astype(np.float32)
    other = states.copy()
    other[:5] += 1
    one, two = (net.scores(each, net.begin()) for each in (states, other))
    assert (one[5:8] != two[5:8]).any() and np.array_equal(one[8:], two[8:])


def test_requests_do_not_share_what_is_remembered():
    random = np.random.default_rng(2)
    net = network(random)
    states = random.normal(size=(6, HIDDEN)).astype(np.float32)
    first = net.scores(states, net.begin())
    net.scores(states[::-1], net.begin())
    np.testing.assert_array_equal(net.scores(states, net.begin()), first)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("at", [[0], [4], [2, 3, 4, 5, 6, 7], [9]])
def test_a_token_that_is_not_finite_has_no_score_and_no_part_in_others(value, at):
    random = np.random.default_rng(3)
    net = network(random, whole=True)
    states = random.integers(-3, 4, (10, HIDDEN)).astype(np.float32)
    kept = np.delete(np.arange(10), at)
    damaged = states.copy()
    damaged[at] = value
    carry, clean = net.begin(), net.begin()
    scores = net.scores(damaged, carry)
    assert np.isnan(scores[at]).all()
    np.testing.assert_array_equal(scores[kept], net.scores(states[kept], clean))
    np.testing.assert_array_equal(carry.recent, clean.recent)


def test_attention_logits_of_any_size_are_a_choice():
    """A head that is sure takes one token's value, and nothing overflows."""
    one = np.ones((1, 1), np.float32)
    net = MultiMax(one, one[0], one, one[0] * 0, one, one * 1e6, one[0] * 0, window=3)
    states = np.array([[1.0], [5.0], [2.0], [0.0], [3.0]], np.float32)
    np.testing.assert_array_equal(net.scores(states, net.begin()), [2, 6, 6, 6, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": MAX_WINDOW + 1}, "window of 257 tokens is not one of 1 to 256"),
        ({"bias": np.zeros(2, np.float32)}, r"bias has shape \(2,\), not \(1,\)"),
        ({"w1": np.zeros(5, np.float32)}, "w1 and value have 1 and 2 dimensions"),
        (
            {"value": np.zeros((65, 5), np.float32), "attention": np.zeros((65, 5), np.float32)},
            "65 heads, more than 64",
        ),
    ],
)
def test_what_does_not_fit_together_is_no_probe(change, message):
    net = network(np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        MultiMax(**{**net.tensors(), "window": net.window, **change})


# Training.


AGGREGATE = Aggregate(half_life=0.25, min_tokens=2)


def rows(conversations, last=None):
    counts = [len(part) for part in conversations]
    return Rows(
        np.concatenate(conversations).astype(np.float32),
        np.full(sum(counts), Role.USER, np.uint8),
        np.ones(sum(counts), bool) if last is None else last,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
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


def planted(count=240, tokens=9, seed=0):
    """In some places two coordinates are large: of one sign in positives, of two in negatives. No direction tells."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2 == 0
    conversations = random.normal(size=(count, tokens, HIDDEN)) * 0.5
    for conversation, label in zip(conversations, labels, strict=True):
        at = random.integers(tokens - 2)
        sign = random.choice([-1, 1])
        conversation[at : at + 2, 0] += 3 * sign
        conversation[at : at + 2, 1] += 3 * sign * (1 if label else -1)
    return list(conversations), labels, np.array([f"group {index // 2}" for index in range(count)])


def fitted(*arguments, **recipe):
    pytest.importorskip("torch")
    from probes.fit.multimax_training import Recipe, fit_multimax

    return fit_multimax(*arguments, Recipe(**{"width": 16, "heads": 2, "window": 3, **recipe}))


def same(one, other):
    return all(np.array_equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.fixture
def quick(monkeypatch):
    """A few epochs, at a rate that suits few conversations."""
    fitting = pytest.importorskip("probes.fit.multimax_training")
    monkeypatch.setattr(fitting, "EPOCHS", 5)
    monkeypatch.setattr(fitting, "LEARNING_RATE", 3e-3)
    return fitting


@pytest.mark.parametrize("loss", ["attention", "token"])
def test_it_finds_what_no_direction_shows(loss, monkeypatch):
    fitting = pytest.importorskip("probes.fit.multimax_training")
    monkeypatch.setattr(fitting, "LEARNING_RATE", 3e-3)
    conversations, labels, groups = planted()
    fresh, fresh_labels, _ = planted(seed=1)
    spans, test = (Spans(rows(each), [Role.USER], AGGREGATE) for each in (conversations, fresh))
    probe = fitted(spans, training(labels), groups, loss=loss)
    found = test.peaks(probe)
    assert auroc(found[fresh_labels], found[~fresh_labels]) > 0.95
    flat = test.peaks(fit(spans, training(labels), "logistic", 1.0))
    assert auroc(flat[fresh_labels], flat[~fresh_labels]) < 0.8, "a direction reads half of them"
    assert (probe.hidden, probe.heads, probe.window) == (HIDDEN, 2, 3)


def test_verdicts_of_many_conversations_are_those_of_each():
    random = np.random.default_rng(4)
    parts = [random.normal(size=(tokens, HIDDEN)) for tokens in (7, 0, 1, 12)]
    aggregate = Aggregate(half_life=2.0, min_tokens=2, window=2, agree=1, agree_of=2)
    spans, net = Spans(rows(parts), [Role.USER], aggregate), network(random)
    wanted = [running(net.scores(part.astype(np.float32), net.begin()), aggregate) for part in parts]
    np.testing.assert_allclose(spans.peaks(net), [each.max(initial=-np.inf) for each in wanted], rtol=1e-5, atol=1e-5)


def test_the_seed_decides_and_nothing_else_is_drawn(quick):
    torch = pytest.importorskip("torch")
    conversations, labels, groups = planted(count=60)
    spans = Spans(rows(conversations), [Role.USER], AGGREGATE)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fitted(spans, training(labels), groups)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(one, fitted(spans, training(labels), groups))
    assert not same(one, fitted(spans, training(labels), groups, seed=1))


def test_only_labelled_messages_teach(quick):
    """What comes before the last message does, where the request is benign."""
    conversations, labels, groups = planted(count=60)
    last = np.tile(np.arange(9) >= 4, 60)
    other = [part.copy() for part in conversations]
    other[3][:4] += 5.0
    one, two = (Spans(rows(each, last), [Role.USER], AGGREGATE) for each in (conversations, other))
    benign = np.arange(60) == 3
    assert not labels[3]
    assert same(fitted(one, training(labels), groups), fitted(two, training(labels), groups))
    with_benign = [fitted(spans, training(labels, benign=benign), groups) for spans in (one, two)]
    assert not same(*with_benign)


def test_sides_count_the_same_and_conversations_by_their_weight(quick):
    conversations, labels, groups = planted(count=60)
    spans = Spans(rows(conversations), [Role.USER], AGGREGATE)
    one = fitted(spans, training(labels), groups)
    assert same(one, fitted(spans, training(labels, weights=np.where(labels, 4.0, 1.0)), groups))
    assert not same(one, fitted(spans, training(labels, weights=np.where(np.arange(60) < 20, 4.0, 1.0)), groups))


def test_the_scale_of_a_coordinate_does_not_matter(quick):
    conversations, labels, groups = planted(count=60)
    scale = 2.0 ** np.arange(-3, 3)
    shift = np.array([0.0, 50.0, 0.0, -9.0, 0.0, 1.0])
    one = Spans(rows(conversations), [Role.USER], AGGREGATE)
    two = Spans(rows([part * scale + shift for part in conversations]), [Role.USER], AGGREGATE)
    found = [spans.peaks(fitted(spans, training(labels), groups)) for spans in (one, two)]
    assert np.ptp(found[0]) > 0.1
    np.testing.assert_allclose(*found, atol=0.02 * np.ptp(found[0]))


@settings(deadline=None)
@given(
    labels=st.lists(st.booleans(), min_size=1, max_size=30), names=st.integers(1, 12), seed=st.integers(0, 2**32 - 1)
)
def test_no_group_is_held_out_in_part(labels, names, seed):
    fitting = pytest.importorskip("probes.fit.multimax_training")
    labels = np.array(labels)
    groups = np.random.default_rng(seed).integers(names, size=len(labels)).astype(str)
    conversations = dict.fromkeys(range(len(labels)))
    try:
        kept, held = fitting._split(conversations, labels, groups, seed)
    except ConceptError:
        sides = [set(groups[labels]), set(groups[~labels])]
        # Where either side alone has groups enough, and none is shared, there is a split.
        assert min(map(len, sides)) < 2 or sides[0] & sides[1]
        return
    assert sorted(kept + held) == list(range(len(labels))) and not set(groups[kept]) & set(groups[held])
    for part in (kept, held):
        assert labels[part].any() and not labels[part].all()


def test_what_cannot_be_fitted_is_refused(quick):
    conversations, labels, groups = planted(count=20)
    spans = Spans(rows(conversations), [Role.USER], AGGREGATE)
    with pytest.raises(ConceptError, match="Examples that show the concept are of too few groups"):
        fitted(spans, training(labels), np.full(20, "one"))
    with pytest.raises(ConceptError, match="No example that shows the concept has the 2 tokens"):
        fitted(spans, training(np.zeros(20, bool)), groups)
    with pytest.raises(ConceptError, match="No example that does not show the concept has the 30 tokens"):
        long = [np.zeros((30, HIDDEN)) if label else part for part, label in zip(conversations, labels, strict=True)]
        demanding = Aggregate(half_life=1.0, min_tokens=30)
        fitted(Spans(rows(long), [Role.USER], demanding), training(labels), groups)
    broken = [part.copy() for part in conversations]
    broken[7][3, 2] = np.nan
    with pytest.raises(ConceptError, match="Activations of conversation 7 are not finite"):
        fitted(Spans(rows(broken), [Role.USER], AGGREGATE), training(labels), groups)
    with pytest.raises(ValueError, match="19 groups for 20 conversations"):
        fitted(spans, training(labels), groups[:19])
    for wrong in ({"width": 0}, {"heads": 65}, {"window": 0}):
        with pytest.raises(ValueError, match="a network of width"):
            fitted(spans, training(labels), groups, **wrong)
