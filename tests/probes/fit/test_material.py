"""Benign requests are halved and answered evenly, whatever part of them is read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.calibration.thresholds import may_fire
from probes.data.concepts import CONCEPTS, load_benign
from probes.data.examples import Benign
from probes.fit import material as gathering
from probes.fit.bundle_fit import _rate
from probes.fit.material import CALIBRATING, _choose_ordinary, calibrating
from probes.models.chat import Message


class Source:
    """A token a character."""

    def encode(self, conversation, *, respond=False):
        return [ord(letter) for message in conversation for letter in message.content] + [0] * respond


def requests(**sources):
    """So many of each source, of 20 tokens."""
    return [
        Benign(f"{number}", "t", [Message("user", f"{number:019}")], source)
        for source, count in sources.items()
        for number in range(count)
    ]


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_whatever_part_is_read_has_its_share_of_either_half(share):
    """Requests are chosen by a hash of their names, and halved by another: else what is chosen first is all alike."""
    items = requests(one=2000, two=2000)
    chosen, _ = _choose_ordinary(Source(), items, int(share * 20 * len(items)))
    assert len(chosen.items) == pytest.approx(share * len(items), abs=1)
    halves, sources = calibrating(chosen.items), np.array([item.source for item in chosen.items])
    for name in ("one", "two"):
        assert abs(halves[sources == name].mean() - CALIBRATING) < 0.1


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_half_of_a_request_is_its_own(seed):
    items = requests(one=50, two=50)
    order = np.random.default_rng(seed).permutation(len(items))[:60]
    assert np.array_equal(calibrating([items[at] for at in order]), calibrating(items)[order])
    assert not np.array_equal(calibrating(items)[:50], calibrating(items)[50:]), "the source is part of the name"


def test_as_many_of_each_source_are_answered_as_it_has(monkeypatch):
    monkeypatch.setattr(gathering, "ANSWERED", 90)
    items = requests(large=300, other=300, small=10)
    chosen, answered = _choose_ordinary(Source(), items, 10**9)
    sources, halves = np.array([item.source for item in chosen.items]), calibrating(chosen.items)
    assert {name: int(answered[sources == name].sum()) for name in ("large", "other", "small")} == {
        "large": 40,
        "other": 40,
        "small": 10,
    }
    assert abs(halves[answered].mean() - CALIBRATING) < 0.15, "of either half its share"


def test_long_requests_are_not_answered(monkeypatch):
    monkeypatch.setattr(gathering, "ANSWERED_PROMPT", 30)
    items = [*requests(one=20), *(Benign(f"long {at}", "t", [Message("user", "x" * 40)], "one") for at in range(20))]
    chosen, answered = _choose_ordinary(Source(), items, 10**9)
    assert {len(tokens) for tokens, asked in zip(chosen.tokens, answered, strict=True) if asked} == {20}
    assert answered.sum() == 20


def test_what_ships_is_enough_for_the_thresholds_of_probes_of_requests():
    rates = [_rate(concept, CONCEPTS, 0.01) for concept in CONCEPTS]
    assert may_fire(int(calibrating(load_benign()).sum()), min(rates)) >= 0
