"""Orders and gates together stay within the caps of what they steer along."""

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from monitor.engine.steering.acts import compose, entry_of
from monitor.engine.steering.caps import require_together
from monitor.errors import OrderError
from monitor.wire.orders import Act, Admission, Release, Steer
from probes.bundle import Bundle
from tests.harness.capped_runner import CAP, ONE, OTHER, House, add, arm, bundle  # noqa: F401
from tests.harness.gated_runner import PROMPT


def ordered(bundle: Bundle, *acts: Act):
    """What acts on one vector come to."""
    entries = [entry_of(bundle, act) for act in acts]
    return {row: compose(entry for at, entry in entries if at == row) for row in {row for row, _ in entries}}


@pytest.mark.parametrize(
    ("acts", "gates", "cause"),
    [
        ([add(0.3)], [[add(0.2)]], None),
        ([add(0.3)], [[add(0.25)]], "dose"),
        # One of two gates alone may be open: what they do to each other does not count.
        ([], [[add(0.4)], [add(-0.4)]], None),
        ([], [[add(0.3)], [add(0.25)]], "dose"),
        ([add(0.3)], [[add(0.1)], [add(-0.5)]], None),
        ([add(-0.3)], [[add(0.1)], [add(-0.3)]], "dose"),
        # Doses of another vector are another matter.
        ([add(0.5)], [[add(5.0, OTHER)]], None),
        # A range counts by its farther bound, beside what is added.
        ([add(0.2)], [[Act(ONE, low=-0.1, high=0.3)]], None),
        ([add(0.25)], [[Act(ONE, low=-0.1, high=0.3)]], "dose"),
        ([Act(ONE, low=0.2, high=0.3)], [[Act(ONE, low=-0.1, high=0.1)]], "conflict"),
        ([], [[Act(OTHER, low=0.2)], [Act(OTHER, high=0.1)]], "conflict"),
        ([Act(ONE, scale=0.0)], [[Act(ONE, scale=0.0)], [add(0.5)]], None),
    ],
)
def test_what_orders_and_gates_come_to(bundle, acts, gates, cause):
    orders = [arm(f"g{index}", *gate) for index, gate in enumerate(gates)]
    if cause is None:
        require_together(bundle, ordered(bundle, *acts), orders)
        return
    with pytest.raises(OrderError) as refused:
        require_together(bundle, ordered(bundle, *acts), orders)
    assert refused.value.cause == cause


@pytest.mark.parametrize("vector", [ONE, OTHER])
def test_a_cap_of_the_orders_own_counts_where_it_is_lower(bundle, vector):
    held = ordered(bundle, add(0.3, vector))
    require_together(bundle, held, [], max_dose=0.3)
    gate, capped = arm("g", add(0.1, vector)), arm("g", add(0.1, vector), max_dose=0.3)
    for gates, cap in (([], 0.2), ([gate], 0.3), ([capped], None)):
        with pytest.raises(OrderError, match="over the cap of 0"):
            require_together(bundle, held, gates, max_dose=cap)


doses = st.floats(-0.5, 0.5, allow_nan=False)


@given(st.lists(doses, max_size=2), st.lists(doses, max_size=4))
def test_no_choice_of_open_gates_is_over_the_cap_of_what_was_allowed(bundle, orders, gates):
    """And what is refused has a choice that is: the rule is exact for doses."""
    held = ordered(bundle, *map(add, orders))
    sums = [
        math.fsum([*orders, *(gate for bit, gate in enumerate(gates) if chosen >> bit & 1)])
        for chosen in range(1 << len(gates))
    ]
    try:
        require_together(bundle, held, [arm(f"g{index}", add(gate)) for index, gate in enumerate(gates)])
    except OrderError:
        assert max(map(abs, sums)) > CAP * (1 - 1e-6)
    else:
        assert max(map(abs, sums)) <= CAP * (1 + 1e-6)


@pytest.fixture
def house(bundle) -> House:
    return House(bundle)


def test_an_order_that_an_armed_gate_leaves_no_room_for_is_refused_and_changes_nothing(house):
    house.start("a")
    house.arm(arm("g", add(0.3)))
    house.slots.order(Steer("a", [add(0.2)], id="fits"))
    with pytest.raises(OrderError, match=r"comes to a dose of 0\.6, over the cap of 0\.5") as refused:
        house.slots.order(Steer("a", [add(0.1)], id="over"))
    assert refused.value.cause == "dose"
    house.slots.order(Release("a", "fits"))
    house.slots.order(Steer("a", [add(0.1)], id="over"))
    house.gates.disarm("g")
    house.slots.order(Steer("a", [add(0.4)], id="alone"))


def test_a_gate_that_another_leaves_no_room_for_is_refused_as_a_whole(house):
    house.start("a")
    house.arm(arm("g", add(0.3)))
    with pytest.raises(OrderError, match="over the cap"):
        house.arm(arm("h", add(0.3)))
    assert [gate.id for gate in house.gates.armed_for("a")] == ["g"]
    # Tuned to do something else, it is measured without what it did before.
    house.arm(arm("g", add(0.1)))
    assert house.arm(arm("h", add(0.3))) == {}


def test_a_gate_leaves_out_the_request_whose_orders_leave_no_room_for_it(house):
    slots = [house.start(key) for key in "ab"]
    house.step("a", "b")
    house.slots.order(Steer("a", [add(0.3)], id="mine"))
    refused = house.arm(arm("g", add(0.3)))
    assert {key: error.cause for key, error in refused.items()} == {"a": "dose"}
    place = house.gates._armed["g"][0]
    assert [house.applies(slot)[place] for slot in slots] == [False, True]
    # What does not apply to it leaves room for more.
    house.slots.order(Steer("a", [add(0.2)], id="more"))
    with pytest.raises(OrderError):
        house.slots.order(Steer("b", [add(0.3)], id="mine"))
    # Requests that come are judged by it.
    assert house.gates.armed_for("c") == [house.gates._armed["g"][1]]


def test_what_a_request_asks_for_beside_a_gate_is_refused_and_it_is_served(house):
    house.arm(arm("g", add(0.3)))
    house.slots.start("a", "a", PROMPT, scored=True)
    with pytest.raises(OrderError, match="over the cap"):
        house.slots.admit("a", Admission([add(0.3)]))
    house.start("b", Admission([add(0.2)]))


def test_what_has_ended_does_not_count(house):
    house.start("a")
    house.step("a")
    house.slots.order(Steer("a", [add(0.5)], tokens=1, id="short"))
    house.step("a", first=8, rows=2)
    assert house.arm(arm("g", add(0.5))) == {}


def test_what_held_another_back_takes_it_along_when_it_is_released(house):
    """That a lease ends is not to be refused."""
    house.start("a")
    house.step("a")
    for id, dose in (("one", 0.4), ("back", -0.4), ("two", 0.4)):
        house.slots.order(Steer("a", [add(dose)], id=id))
    with pytest.raises(OrderError, match="All that was ordered for request 'a' is released") as told:
        house.slots.order(Release("a", "back"))
    assert told.value.cause == "dose"
    assert not house.slots.steers(house.slots.tracked("a"))
    house.slots.order(Steer("a", [add(0.5)], id="anew"))


def test_orders_alone_are_held_to_the_lowest_cap_that_one_of_them_names(house):
    house.start("a")
    house.slots.order(Steer("a", [add(0.2)], id="one", max_dose=0.3))
    with pytest.raises(OrderError, match=r"over the cap of 0\.3"):
        house.slots.order(Steer("a", [add(0.2)], id="two"))
