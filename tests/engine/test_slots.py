"""Row maps: whose row, where, and whether it is steered."""

import numpy as np
import pytest

pytest.importorskip("torch")

from monitor.engine.slots import Slots
from monitor.engine.taps import Taps
from monitor.frames import Release, Steer
from probes.roles import Role
from tests.engine.test_taps import Decoder

PROMPT = [1, 2, 7, 7, 7, 4, 1, 3]
"""A user's message of three tokens, and the header of the answer."""


class House:
    def __init__(self, bundle, slots: int = 4) -> None:
        self.taps = Taps(Decoder(), bundle, max_tokens=64, slots=slots)
        self.slots = Slots(self.taps, bundle, slots)
        self.bundle = bundle

    def step(self, **computed: tuple[int, int]):
        """Rows of a step: for each request, the position of its first row and how many there are."""
        counts = np.array([count for _, count in computed.values()])
        firsts = np.array([first for first, _ in computed.values()])
        return self.slots.map_rows(list(computed), counts, firsts)

    def steering(self, rows: int) -> list[int]:
        return self.taps.row_slot[:rows].tolist()

    def added(self, slot: int) -> list[float]:
        """What the table adds for a slot, for each vector."""
        return [float(self.taps.layers[vector.layer].table[slot, 0, 0]) for vector in self.bundle.manifest.vectors]


@pytest.fixture
def house(tiny_bundle) -> House:
    return House(tiny_bundle())


def test_rows_in_the_order_of_the_batch(house):
    one = house.slots.start("a-1", "a", PROMPT, scored=True)
    two = house.slots.start("b-1", "b", PROMPT, scored=True)
    assert (one.slot, one.request_id, one.prompt_tokens) == (0, "a", 8)
    rows = house.step(**{"b-1": (0, 8), "a-1": (6, 3)})
    assert rows["slot"].tolist() == [two.slot] * 8 + [one.slot] * 3
    assert rows["position"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8]
    user, template, assistant = Role.USER, Role.TEMPLATE, Role.ASSISTANT
    prompt = [template] * 2 + [user] * 3 + [template] * 3
    assert rows["role"].tolist() == [*prompt, template, template, assistant]
    assert not rows["steered"].any()
    assert house.steering(11) == [-1] * 11


def test_a_finished_slot_serves_the_next_request(house):
    first = house.slots.start("a-1", "a", PROMPT, scored=True)
    assert house.slots.finish("a-1") == first.slot
    assert house.slots.finish("a-1") is None
    assert house.slots.start("b-1", "b", PROMPT, scored=True).slot == first.slot
    assert [started.key for started in house.slots.in_flight()] == ["b-1"]


def test_requests_without_a_slot_are_counted_as_unscored(tiny_bundle):
    house = House(tiny_bundle(), slots=1)
    assert house.slots.start("adapter", "adapter", PROMPT, scored=False) is None
    assert house.slots.start("a-1", "a", PROMPT, scored=True) is not None
    assert house.slots.start("b-1", "b", PROMPT, scored=True) is None
    rows = house.step(**{"adapter": (0, 8), "a-1": (0, 8), "b-1": (0, 8)})
    assert house.slots.unscored == 16
    assert sorted(set(rows["slot"].tolist())) == [-1, 0]


def test_steers_response_rows_only(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.slots.order(Steer("a-1", "harmful_intent", 0.2))
    rows = house.step(**{"a-1": (0, 8)})
    # The last prompt row yields the first token of the response.
    assert house.steering(8) == [-1] * 7 + [0]
    assert rows["steered"].tolist() == [0] * 7 + [1]
    assert house.added(0) == [pytest.approx(2.0), 0.0]


def test_an_order_begins_with_the_next_row(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.step(**{"a-1": (8, 1)})
    house.slots.order(Steer("a-1", "sycophancy", -0.1, tokens=2))
    assert [house.step(**{"a-1": (position, 1)})["steered"][0] for position in (9, 10, 11)] == [1, 1, 1]
    assert house.steering(1) == [-1]
    assert house.added(0) == [0.0, 0.0]


def test_orders_add_up_and_opposites_cancel(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", "harmful_intent", 0.2))
    house.slots.order(Steer("a-1", "harmful_intent", 0.1))
    house.step(**{"a-1": (8, 1)})
    assert house.added(0)[0] == pytest.approx(3.0)
    house.slots.order(Steer("a-1", "sycophancy", 0.1))
    house.slots.order(Steer("a-1", "sycophancy", -0.1))
    house.step(**{"a-1": (9, 1)})
    assert house.added(0)[1] == 0.0


def test_an_id_is_applied_once(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    for _ in range(3):
        house.slots.order(Steer("a-1", "harmful_intent", 0.2, id="rule"))
    house.step(**{"a-1": (8, 1)})
    assert house.added(0)[0] == pytest.approx(2.0)


def test_what_was_steered_is_steered_again_when_it_is_replayed(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", "harmful_intent", 0.2, tokens=2))
    for position in (8, 9, 10):
        house.step(**{"a-1": (position, 1)})
    # Preempted: its prompt and what it has generated come again as one prefill.
    rows = house.step(**{"a-1": (0, 11)})
    assert house.steering(11) == [-1] * 8 + [0, 0, -1]
    assert rows["steered"].tolist() == [0] * 8 + [1, 1, 1]
    assert house.added(0)[0] == pytest.approx(2.0)


def test_a_release_ends_steering_but_not_its_mark(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", "harmful_intent", 0.2))
    house.step(**{"a-1": (8, 1)})
    house.slots.order(Release("a-1"))
    rows = house.step(**{"a-1": (9, 1)})
    assert house.steering(1) == [-1]
    assert rows["steered"].tolist() == [1]


def test_dose_zero_marks_nothing(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", "harmful_intent", 0.0))
    rows = house.step(**{"a-1": (8, 1)})
    assert house.steering(1) == [-1]
    assert not rows["steered"].any()


def test_the_table_is_neutral_again_for_the_next_request(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", "harmful_intent", 0.5))
    house.step(**{"a-1": (8, 1)})
    assert house.added(0)[0] != 0.0
    house.slots.finish("a-1")
    assert house.added(0) == [0.0, 0.0]


def test_orders_for_nobody_are_ignored(house):
    house.slots.order(Steer("gone", "harmful_intent", 0.5))
    house.slots.order(Release("gone"))
