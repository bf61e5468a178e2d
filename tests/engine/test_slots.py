"""Row maps: whose row, where, and whether it is steered."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.engine.rows import SEGMENTS
from monitor.engine.slots import ACTS
from monitor.engine.steering.table import ENTRIES_PER_SLOT, FOREVER, Push, timeline
from monitor.errors import OrderError
from monitor.wire.orders import Act, Release, Steer
from probes.scoring.roles import Role
from probes.steering import Entry
from tests.harness.bundles import make_bundle
from tests.harness.tapped_runner import NEUTRAL, ONE, OTHER, PROMPT, House, capped, entries, house  # noqa: F401


@pytest.fixture(scope="module")
def shared_bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("shared") / "bundle")


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
    assert not any(house.steered(11))


def test_what_follows_a_text_without_a_template_is_text_as_well(house):
    # The bundle's headers of a user and of an assistant are 1 2 and 1 3.
    house.slots.start("text", "user-text", [10, 11], scored=True)
    house.slots.start("chat", "user-chat", [1, 2, 10, 4, 1, 3], scored=True)
    batch = house.slots.batch(["text", "chat"], np.array([3, 7]), np.array([0, 0]), suspended=False)
    slots = np.repeat(batch.slots, [3, 7])
    roles = batch.describe(slots, np.array([0, 1, 2, *range(7)], np.int32))["role"].tolist()
    assert roles == [Role.TEXT] * 3 + [Role.TEMPLATE] * 2 + [Role.USER] + [Role.TEMPLATE] * 3 + [Role.ASSISTANT]


def test_a_finished_slot_serves_the_next_request(house):
    first = house.slots.start("a-1", "a", PROMPT, scored=True)
    assert house.slots.finish("a-1") == first.slot
    assert house.slots.finish("a-1") is None
    assert house.slots.start("b-1", "b", PROMPT, scored=True).slot == first.slot
    assert [started.engine_request_id for started in house.slots.in_flight()] == ["b-1"]


def test_requests_without_a_slot_are_counted_as_unscored(tiny_bundle):
    house = House(tiny_bundle(), slots=1)
    assert house.slots.start("adapter", "adapter", PROMPT, scored=False) is None
    assert house.slots.start("a-1", "a", PROMPT, scored=True) is not None
    assert house.slots.start("b-1", "b", PROMPT, scored=True) is None
    rows = house.step(**{"adapter": (0, 8), "a-1": (0, 8), "b-1": (0, 8)})
    assert house.slots.unscored == 16
    assert rows["slot"].tolist() == [0] * 8
    assert rows["position"].tolist() == list(range(8))
    assert house.stage.slots.tolist() == [-1] * 8 + [0] * 8 + [-1] * 48


def test_steers_response_rows_only(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.2)]))
    rows = house.step(**{"a-1": (0, 8)})
    # The last prompt row yields the first token of the response.
    assert house.steered(8) == [False] * 7 + [True]
    assert rows["steered"].tolist() == [0] * 7 + [1]
    assert house.added(7) == [pytest.approx(2.0), 0.0]


def test_an_order_begins_with_the_next_row(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.step(**{"a-1": (8, 1)})
    house.slots.order(Steer("a-1", [Act("sycophancy", add=-0.1)], tokens=2))
    assert [house.step(**{"a-1": (position, 1)})["steered"][0] for position in (9, 10)] == [1, 1]
    assert house.added(0) == [0.0, pytest.approx(-1.0)]
    assert house.step(**{"a-1": (11, 1)})["steered"].tolist() == [1]
    assert house.added(0) == [0.0, 0.0]


def test_orders_add_up_and_opposites_cancel(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.2)]))
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.1)]))
    house.step(**{"a-1": (8, 1)})
    assert house.added(0)[0] == pytest.approx(3.0)
    house.slots.order(Steer("a-1", [Act("sycophancy", add=0.1)]))
    house.slots.order(Steer("a-1", [Act("sycophancy", add=-0.1)]))
    house.step(**{"a-1": (9, 1)})
    assert house.added(0)[1] == 0.0


def test_an_id_is_applied_once(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    for _ in range(3):
        house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.2)], id="rule"))
    house.step(**{"a-1": (8, 1)})
    assert house.added(0)[0] == pytest.approx(2.0)


def test_what_was_steered_is_steered_again_when_it_is_replayed(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.2)], tokens=2))
    for position in (8, 9, 10):
        house.step(**{"a-1": (position, 1)})
    # Preempted: its prompt and what it has generated come again as one prefill.
    rows = house.step(**{"a-1": (0, 11)})
    assert house.steered(11) == [False] * 8 + [True, True, False]
    assert rows["steered"].tolist() == [0] * 8 + [1, 1, 1]
    assert house.added(8)[0] == pytest.approx(2.0)


def test_a_replay_steers_each_row_by_what_held_when_it_was_first_computed(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.2)]))
    first = [house.step(**{"a-1": (8, 1)}) and house.added(0)]
    house.slots.order(Steer("a-1", [Act("sycophancy", add=0.1)]))
    first.append(house.step(**{"a-1": (9, 1)}) and house.added(0))
    house.slots.order(Release("a-1"))
    first.append(house.step(**{"a-1": (10, 1)}) and house.added(0))
    house.step(**{"a-1": (0, 11)})
    assert [house.added(row) for row in (8, 9, 10)] == first
    assert first[0] != first[1]


def test_positions_that_no_step_computed_are_told_once(house):
    """The prefix cache had them: at the start, and where a resumed request finds more than it had computed."""
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (5, 2)})
    (gap,) = house.batch.gaps
    assert (gap.request.engine_request_id, gap.start, gap.end) == ("a-1", 0, 5)
    rows = gap.rows()
    assert rows["position"].tolist() == [0, 1, 2, 3, 4]
    assert rows["role"].tolist() == [Role.TEMPLATE] * 2 + [Role.USER] * 3
    assert not rows["steered"].any()
    house.step(**{"a-1": (7, 1)})
    assert not house.batch.gaps
    house.step(**{"a-1": (2, 5)})
    assert not house.batch.gaps
    house.step(**{"a-1": (10, 1)})
    assert [(gap.start, gap.end) for gap in house.batch.gaps] == [(8, 10)]


def test_nothing_is_scored_while_suspended(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    batch = house.slots.batch(["a-1"], np.array([8]), np.array([0]), suspended=True)
    assert batch.slots.tolist() == [-1]
    assert (batch.unscored, house.slots.unscored) == (8, 8)
    rows = house.step(**{"a-1": (8, 1)})
    assert rows["slot"].tolist() == [0]
    # What was computed meanwhile is not looked for in the cache.
    assert not house.batch.gaps


def test_a_release_ends_steering_but_not_its_mark(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.2)]))
    house.step(**{"a-1": (8, 1)})
    house.slots.order(Release("a-1"))
    rows = house.step(**{"a-1": (9, 1)})
    assert house.added(0) == [0.0, 0.0]
    assert rows["steered"].tolist() == [1]


def test_dose_zero_marks_nothing(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.0)]))
    rows = house.step(**{"a-1": (8, 1)})
    assert int(house.taps.row_entry[0]) == -1
    assert not rows["steered"].any()


def test_the_table_is_neutral_again_for_the_next_request(house):
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.5)]))
    house.step(**{"a-1": (8, 1)})
    assert house.added(0)[0] != 0.0
    house.slots.finish("a-1")
    assert house.slots.start("b-1", "b", PROMPT, scored=True).slot == 0
    rows = house.step(**{"b-1": (0, 9)})
    assert house.taps.row_entry.tolist() == [-1] * 64
    assert not rows["steered"].any()
    assert not house.steering.active


@pytest.mark.parametrize("order", [Steer("gone", [Act("harmful_intent", add=0.5)]), Release("gone")])
def test_orders_for_a_request_that_has_ended_are_refused(house, order):
    with pytest.raises(OrderError, match="Request 'gone' has ended") as refused:
        house.slots.order(order)
    assert refused.value.cause == "request"


def test_a_full_table_refuses_the_order_and_keeps_what_held(tiny_bundle):
    house = House(tiny_bundle(), slots=1)
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})
    for position in range(8, 8 + ENTRIES_PER_SLOT):
        house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.1)]))
        house.step(**{"a-1": (position, 1)})
    held = house.added(0)
    with pytest.raises(OrderError, match="steering table is full"):
        house.slots.order(Steer("a-1", [Act("harmful_intent", add=0.1)]))
    house.step(**{"a-1": (position + 1, 1)})
    assert house.added(0) == held
    assert house.slots.finish("a-1") == 0
    assert not house.steering.active


def _push(vector: int, entry: Entry, start: int, length: int | None) -> Push:
    return Push(vector, entry, "", start, FOREVER if length is None else start + length)


pushes = st.lists(
    st.builds(_push, st.integers(0, 2), entries, st.integers(0, 30), st.integers(0, 30) | st.none()),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(pushes)
def test_a_timeline_composes_its_orders_at_every_position(drawn):
    segments = timeline(drawn)
    for position in range(70):
        expected = {}
        for push in drawn:
            if push.start <= position < push.end:
                add, scale, low, high = expected.get(push.vector, NEUTRAL)
                more, times, above, below = push.entry
                expected[push.vector] = Entry(add + more, scale * times, max(low, above), min(high, below))
        here = [segment for segment in segments if segment.start <= position < segment.end]
        assert len(here) <= 1
        assert dict(here[0].amounts if here else ()) == {v: e for v, e in expected.items() if e != NEUTRAL}


@settings(max_examples=40, deadline=None)
@given(pushes)
def test_the_device_finds_what_the_timeline_says(shared_bundle, drawn):
    house = House(shared_bundle, slots=8)
    segments = timeline([push for push in drawn if push.vector < 2])[-SEGMENTS:]
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.steering.set(0, segments)
    house.step(**{"a-1": (0, 64)})
    for position in range(64):
        here = [segment for segment in segments if segment.start <= position < segment.end]
        amounts = dict(here[0].amounts) if here else {}
        assert house.entries(position) == [amounts.get(0, NEUTRAL), amounts.get(1, NEUTRAL)]


def answering(house: House) -> None:
    """A request whose prompt has been read."""
    house.slots.start("a-1", "a", PROMPT, scored=True)
    house.step(**{"a-1": (0, 8)})


def test_one_order_acts_at_several_layers_and_in_every_way(house):
    answering(house)
    house.slots.order(Steer("a-1", [Act(ONE, add=0.2, scale=0.5), Act(OTHER, low=-0.1, high=0.3)], tokens=1))
    house.step(**{"a-1": (8, 1)})
    assert house.entries(0) == [(2.0, 0.5, -math.inf, math.inf), (0.0, 1.0, -1.0, 3.0)]
    assert house.step(**{"a-1": (9, 1)})["steered"].tolist() == [1]
    assert house.entries(0) == [NEUTRAL, NEUTRAL]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Act,
            st.sampled_from([ONE, OTHER]),
            st.floats(-1, 1),
            st.floats(-2, 2),
            st.none() | st.floats(-2, -1),
            st.none() | st.floats(1, 2),
        ),
        min_size=1,
        max_size=6,
    ),
    st.data(),
)
def test_neither_the_order_of_acts_nor_their_division_into_orders_matters(shared_bundle, acts, data):
    shuffled = data.draw(st.permutations(acts))
    cut = data.draw(st.integers(0, len(acts)))
    found = []
    for orders in ([acts], [part for part in (shuffled[:cut], shuffled[cut:]) if part]):
        house = House(shared_bundle)
        answering(house)
        for order in orders:
            house.slots.order(Steer("a-1", order))
        house.step(**{"a-1": (8, 1)})
        found.append(house.entries(0))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "orders",
    [
        pytest.param([[Act(ONE)]], id="nothing"),
        pytest.param([[Act(ONE, add=0.3), Act(ONE, add=-0.3)]], id="v - v in one order"),
        pytest.param([[Act(ONE, add=0.1)], [Act(ONE, add=0.2)], [Act(ONE, add=-0.2)], [Act(ONE, add=-0.1)]], id="sums"),
        pytest.param(
            [[Act(ONE, scale=2.0), Act(OTHER, scale=4.0)], [Act(OTHER, scale=0.25), Act(ONE, scale=0.5)]], id="scales"
        ),
    ],
)
def test_acts_that_undo_each_other_leave_a_request_unsteered(house, orders):
    answering(house)
    for acts in orders:
        house.slots.order(Steer("a-1", acts))
    rows = house.step(**{"a-1": (8, 1)})
    assert int(house.taps.row_entry[0]) == -1
    assert not rows["steered"].any()


def test_a_batchmate_is_not_steered(house):
    answering(house)
    house.slots.start("b-1", "b", PROMPT, scored=True)
    house.slots.order(Steer("a-1", [Act(ONE, add=0.2), Act(OTHER, scale=0.0)]))
    rows = house.step(**{"b-1": (0, 8), "a-1": (8, 1)})
    assert house.taps.row_entry[:8].tolist() == [-1] * 8
    assert rows["steered"].tolist() == [0] * 8 + [1]


@pytest.mark.parametrize(
    ("acts", "cause", "named"),
    [
        ([Act("hope", add=0.1)], "vector", "no steering vector 'hope'"),
        ([Act(ONE, add=math.nan)], "operation", "cannot be applied"),
        ([Act(ONE, low=0.2, high=0.1)], "operation", "holds no number"),
        ([Act(ONE, add=0.6)], "dose", "over the bundle's cap of 0.5"),
        ([Act(ONE, low=0.7)], "dose", "over the bundle's cap of 0.5"),
        ([Act(ONE, scale=1.5)], "dose", "scale of 1.5"),
        ([Act(ONE, add=0.3), Act(ONE, add=0.3)], "dose", "over the bundle's cap of 0.5"),
        ([Act(OTHER, add=0.1), Act(ONE, add=0.6)], "dose", "over the bundle's cap"),
        ([Act(ONE, low=0.1), Act(ONE, high=0.0)], "conflict", "no number in common"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_what_held(capped, acts, cause, named):
    answering(capped)
    capped.slots.order(Steer("a-1", [Act(OTHER, add=0.1)]))
    with pytest.raises(OrderError, match=named) as refused:
        capped.slots.order(Steer("a-1", acts))
    assert refused.value.cause == cause
    capped.step(**{"a-1": (8, 1)})
    assert capped.added(0) == [0.0, pytest.approx(1.0)]


def test_orders_may_come_to_the_cap_and_not_beyond_it(capped):
    answering(capped)
    for dose in (0.1, 0.2, 0.2):
        capped.slots.order(Steer("a-1", [Act(ONE, add=dose)]))
    with pytest.raises(OrderError, match="over the bundle's cap"):
        capped.slots.order(Steer("a-1", [Act(ONE, add=0.001)]))
    capped.slots.order(Steer("a-1", [Act(ONE, add=-0.4)]))
    capped.step(**{"a-1": (8, 1)})
    assert capped.added(0)[0] == pytest.approx(1.0)


def test_a_dose_beyond_float32_is_refused_where_there_is_no_cap(house):
    answering(house)
    with pytest.raises(OrderError, match="beyond float32"):
        house.slots.order(Steer("a-1", [Act(ONE, add=1e300)]))


def test_the_acts_of_one_request_are_bounded(house):
    answering(house)
    for _ in range(ACTS):
        house.slots.order(Steer("a-1", [Act(ONE)]))
    with pytest.raises(OrderError, match="more than 256 acts"):
        house.slots.order(Steer("a-1", [Act(ONE)]))


def test_an_order_is_released_alone(house):
    answering(house)
    house.slots.order(Steer("a-1", [Act(ONE, add=0.2)], id="one"))
    house.slots.order(Steer("a-1", [Act(OTHER, add=0.1)], id="other"))
    house.slots.order(Release("a-1", "one"))
    house.step(**{"a-1": (8, 1)})
    assert house.added(0) == [0.0, pytest.approx(1.0)]
