"""What words and length give away, and what they do not."""

import numpy as np
import pytest

from probes.data.concepts import Concept
from probes.evaluation.baselines import text_of, text_scores
from probes.evaluation.metrics import auroc
from probes.models.chat import Message
from probes.scoring.roles import Role

pytest.importorskip("sklearn")

ANIMALS = ("cat", "dog", "hen", "cow", "pig", "fox", "owl", "bee", "ant", "elk")


def judge(texts, labels, left_out, wanted, weights=None):
    """AUROC of words and of length on what is left out."""
    labels, wanted = np.array(labels, bool), np.array(wanted, bool)
    scores = text_scores(texts, labels, np.ones(len(texts)) if weights is None else np.array(weights), left_out)
    return tuple(auroc(values[wanted], values[~wanted]) for values in (scores.words, scores.length))


def sides(template, other, animals=ANIMALS):
    texts = [template.format(animal) for animal in animals] + [other.format(animal) for animal in animals]
    return texts, [True] * len(animals) + [False] * len(animals)


def test_texts_that_are_alike_give_nothing_away():
    texts = sides("the {} sat by the door", "the {} sat by the door")
    assert judge(*texts, *texts) == (0.5, 0.5)


def test_a_word_gives_everything_away_on_texts_that_were_not_seen():
    words, length = judge(
        *sides("the {} ran off", "the {} sat on", ANIMALS[:6]), *sides("a {} ran on", "a {} sat up", ANIMALS[6:])
    )
    assert words == 1.0
    assert length == 0.5, "both are as long"


def test_two_words_in_order_are_words_too():
    words, _ = judge(*sides("{} not good but bad", "{} not bad but good") * 2)
    assert words == 1.0


def test_words_that_were_not_seen_give_nothing_away():
    words, _ = judge(*sides("{} here", "{} there"), [f"word{index}" for index in range(20)], [True, False] * 10)
    assert words == 0.5


@pytest.mark.parametrize(("positive", "expected"), [("{} and so on and on", 1.0), ("{}", 1.0), ("{} an so", 0.0)])
def test_length_has_the_sign_that_it_was_taught(positive, expected):
    """Positives are longer where they were longer before, shorter where they were shorter; else it is wrong."""
    negative = "{} and so on"
    longer = len(positive) > len(negative)
    tested = ("{0}{0}{0}", "{0}") if longer or not expected else ("{0}", "{0}{0}{0}")
    assert judge(*sides(positive, negative), *sides(*tested))[1] == expected


def test_what_counts_more_is_believed():
    """Two data sets of which one contradicts the other."""
    texts, labels = sides("the {} ran off", "the {} sat on")
    contradiction = [not label for label in labels]
    tested = sides("a {} ran", "a {} sat")
    for mine, theirs, expected in ((10.0, 1.0, 1.0), (1.0, 10.0, 0.0)):
        weights = [mine] * len(texts) + [theirs] * len(texts)
        assert judge(texts * 2, labels + contradiction, *tested, weights)[0] == expected


def concept(*roles):
    return Concept("own", "", roles, None)


def test_the_text_is_what_the_probe_reads():
    said = [Message("system", "be kind"), Message("user", "hello"), Message("assistant", "hi"), Message("user", "bye")]
    assert text_of(said, concept(Role.USER)) == "hello\nbye"
    assert text_of(said, concept(Role.ASSISTANT)) == "hi"
    assert text_of(said, concept(Role.USER, Role.ASSISTANT)) == "hello\nhi\nbye"
    assert text_of([Message("text", "bare")], concept(Role.ASSISTANT)) == "bare"
