"""Probes find what was planted, report no more than there is, and are never judged on what they were fitted to."""

from pathlib import Path

import numpy as np
import pytest

from probes import linear
from probes.activations import Reading
from probes.aggregate import Aggregate, running_mean
from probes.chat import Message
from probes.concepts import Concept, Pair
from probes.errors import ConceptError
from probes.fit import _auroc, _Benign, _Contrast, last_message
from probes.linear import Linear, averaged, cross_validate, fit, text_auroc
from probes.roles import Role

pytest.importorskip("sklearn")

HIDDEN, PAIRS, BENIGN = 16, 60, 80
ANIMALS = ("cat", "dog", "hen", "cow", "pig", "fox", "owl", "bee", "ant", "elk")
AGGREGATE = Aggregate(half_life=4.0, min_tokens=2)


@pytest.fixture
def random():
    return np.random.default_rng(3)


def direction(random):
    vector = random.normal(size=HIDDEN)
    return vector / np.linalg.norm(vector)


def spans(random, count, *, along=None, strength=0.0, tokens=8):
    """Running means of noise, shifted along a direction."""
    shift = 0.0 if along is None else strength * along
    return [averaged(random.normal(size=(tokens, HIDDEN)) + shift, AGGREGATE) for _ in range(count)]


def test_a_planted_direction_is_recovered_in_the_units_of_the_states(random):
    along = direction(random)
    scale = np.exp(random.normal(size=HIDDEN) * 2)
    planted = [
        [span * scale for span in side]
        for side in (
            spans(random, 400, along=along, strength=1.0),
            spans(random, 400, along=along, strength=-1.0),
            spans(random, 100, along=along, strength=-1.0),
        )
    ]
    probe = fit(*planted, penalty=3e-2, min_tokens=2)
    # The scale of each dimension is folded back: what separates is along/scale.
    found = probe.weight * scale
    assert found @ along / np.linalg.norm(found) > 0.95
    positive, negative = (probe.verdicts(side, 2) for side in planted[:2])
    assert np.median(positive) > 0 > np.median(negative)


def test_a_verdict_is_the_highest_running_score_after_enough_tokens(random):
    states = random.normal(size=(10, HIDDEN))
    probe = Linear(random.normal(size=HIDDEN), 0.7)
    scores = running_mean(states @ probe.weight + probe.bias, AGGREGATE.half_life)
    verdict = probe.verdicts([averaged(states, AGGREGATE)], 3)
    assert verdict == pytest.approx([scores[2:].max()], rel=1e-4)
    assert probe.verdicts([averaged(states[:2], AGGREGATE)], 3).tolist() == [-np.inf]


def test_benign_requests_teach_what_is_ordinary(random):
    """Something that all pairs share, and ordinary requests do not, must not make ordinary requests fire."""
    along, shared = np.eye(HIDDEN)[:2]
    positive, negative = (
        [span + 3 * shared for span in spans(random, PAIRS, along=along, strength=s)] for s in (1.0, -1.0)
    )
    ordinary = spans(random, BENIGN)
    without = fit(positive, negative, [], 3e-2, 2).verdicts(ordinary, 2)
    taught = fit(positive, negative, ordinary, 3e-2, 2).verdicts(ordinary, 2)
    assert (taught > 0).mean() < (without > 0).mean() / 2


def test_short_benign_requests_are_left_out(random):
    positive, negative = spans(random, 20), spans(random, 20)
    long, short = spans(random, 10), spans(random, 5, tokens=1)
    with_short, without = (fit(positive, negative, benign, 3e-2, 2) for benign in ([*long, *short], long))
    assert np.array_equal(with_short.weight, without.weight)


def test_pairs_stay_whole_and_each_is_judged_once_by_a_probe_that_did_not_see_it(monkeypatch):
    positive, negative, benign = (
        [np.full((2, 1), kind * 1000 + index) for index in range(count)] for kind, count in ((1, 23), (2, 23), (3, 31))
    )
    folds = []

    class Recorder:
        def __init__(self, *taught):
            self.taught = [{int(span[0, 0]) % 1000 for span in side} for side in taught]
            self.judged = []
            folds.append(self)

        def verdicts(self, spans, min_tokens):
            self.judged.append({int(span[0, 0]) % 1000 for span in spans})
            return np.zeros(len(spans))

    monkeypatch.setattr(linear, "fit", lambda p, n, b, penalty, min_tokens: Recorder(p, n, b))
    cross_validate(0, 1.0, positive, negative, benign, 2, 0.1)
    assert len(folds) == linear.FOLDS
    for fold in folds:
        assert fold.taught[0] == fold.taught[1], "a pair is taught whole"
        assert fold.judged[0] == fold.judged[1], "a pair is judged whole"
        for taught, judged, count in zip(fold.taught, fold.judged, (23, 23, 31), strict=True):
            assert not taught & judged
            assert taught | judged == set(range(count))
    for side, count in enumerate((23, 23, 31)):
        assert sorted(index for fold in folds for index in fold.judged[side]) == list(range(count))


def test_without_a_signal_cross_validation_shows_none(random):
    choice = cross_validate(0, 3e-2, spans(random, PAIRS), spans(random, PAIRS), spans(random, BENIGN), 2, 0.05)
    assert abs(_auroc(choice.positive, choice.negative) - 0.5) < 0.15
    assert abs(choice.informedness) < 0.15


def test_shuffled_labels_take_the_signal_away(random):
    along = direction(random)
    sides = spans(random, PAIRS, along=along, strength=1.0), spans(random, PAIRS, along=along, strength=-1.0)
    benign = spans(random, BENIGN, along=along, strength=-1.0)
    honest = cross_validate(0, 3e-2, *sides, benign, 2, 0.05)
    assert _auroc(honest.positive, honest.negative) > 0.95
    flips = random.permutation(np.arange(PAIRS) % 2)
    shuffled = [[sides[(at + flip) % 2][index] for index, flip in enumerate(flips)] for at in (0, 1)]
    choice = cross_validate(0, 3e-2, *shuffled, benign, 2, 0.05)
    assert abs(_auroc(choice.positive, choice.negative) - 0.5) < 0.15


def test_texts_that_are_alike_give_nothing_away():
    texts = [f"the {word} sat by the door" for word in ANIMALS] * 4
    assert text_auroc(texts, texts) == pytest.approx(0.5)


def test_texts_that_differ_in_a_word_give_everything_away():
    words = ANIMALS * 4
    assert text_auroc([f"the {word} sat down quickly" for word in words], [f"the {word} sat" for word in words]) > 0.99


def test_words_that_only_one_pair_has_give_nothing_away():
    """A word is evidence where it was seen in another pair; with pairs torn apart, this would be far from a half."""
    left = [f"word{index} here" for index in range(50)]
    right = [f"word{index} here" for index in range(100, 150)]
    assert abs(text_auroc(left, right) - 0.5) < 0.15


def make_contrast(random, informative, *, layers=(2, 3, 5), tokens=6):
    """Readings of three layers, one of which tells the sides apart."""
    along = direction(random)
    template, user = [Role.TEMPLATE] * 2, [Role.USER] * tokens

    def reading(strength):
        roles = np.array([*template, *user], np.uint8)
        states = random.normal(size=(len(layers), len(roles), HIDDEN)).astype(np.float32)
        states[layers.index(informative), len(template) :] += strength * along
        return Reading(np.arange(len(roles)), roles, states)

    concept = Concept("planted", "a test", (Role.USER,), Path("nowhere"))
    # In place of a file's.
    vars(concept)["pairs"] = [
        Pair(str(index), "t", [Message("user", f"yes {index}")], [Message("user", f"no {index}")])
        for index in range(PAIRS)
    ]
    positive, negative = ([reading(strength) for _ in range(PAIRS)] for strength in (1.5, -1.5))
    benign = _Benign([reading(-1.5) for _ in range(40)], [reading(-1.5) for _ in range(50)])
    return _Contrast(concept, layers, positive, negative, benign, AGGREGATE), along


@pytest.mark.parametrize("informative", [2, 3, 5])
def test_selection_takes_the_layer_that_tells(random, informative):
    contrast, along = make_contrast(random, informative)
    probe, found = contrast.probe(0.05, lambda *_: None)
    assert probe.layer == informative
    assert found.weight @ along / np.linalg.norm(found.weight) > 0.7
    assert probe.evaluation.auroc > 0.95 and probe.evaluation.paired > 0.95
    assert probe.evaluation.auroc_text > 0.95, "yes and no are words"
    # The half that taught has 40.
    assert (probe.evaluation.pairs, probe.calibration.benign) == (PAIRS, 50)
    assert probe.calibration.fired <= 1


def test_the_vector_points_to_more_of_the_concept(random):
    contrast, along = make_contrast(random, 3)
    # Its dose is in norms of answers, which these readings do not have.
    for reading in contrast._benign.training:
        reading.roles[-2:] = Role.ASSISTANT
    vector, difference = contrast.vector(3)
    assert difference @ along / np.linalg.norm(difference) > 0.95
    assert np.linalg.norm(difference) == pytest.approx(3.0, rel=0.2), "the distance between the sides' means"
    answers = [reading.states[1, -2:] for reading in contrast._benign.training]
    assert vector.hidden_norm == pytest.approx(np.median(np.linalg.norm(np.concatenate(answers), axis=-1)))


def test_a_message_shorter_than_a_verdict_is_refused(random):
    with pytest.raises(ConceptError, match="concept 'planted' has 1 tokens"):
        make_contrast(random, 3, tokens=1)


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("..uuu..aaaa..", "       1111  "),
        ("..uuu..aaaa..uu", "             11"),
        ("..sss..uu..", "       11  "),
        ("uuuu", "1111"),
        ("..", "  "),
        ("", ""),
    ],
)
def test_the_last_message(roles, expected):
    kinds = {".": Role.TEMPLATE, "u": Role.USER, "a": Role.ASSISTANT, "s": Role.SYSTEM}
    mask = last_message(np.array([kinds[letter] for letter in roles], np.uint8))
    assert mask.tolist() == [letter == "1" for letter in expected]
