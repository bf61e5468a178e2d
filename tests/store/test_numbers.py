"""Numbers as ranges are the set that they stand for."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from monitor.store.numbers import Numbers

SPAN = 12


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 5))))
def test_they_are_a_set_of_which_what_is_far_below_the_highest_is_forgotten(steps):
    numbers, reference = Numbers(SPAN), set()
    for added, first, more in steps:
        if added:
            numbers.add(first, first + more)
            reference |= set(range(first, first + more + 1))
            reference = {number for number in reference if number > max(reference) - SPAN}
        else:
            numbers.discard(first)
            reference.discard(first)
        assert set(numbers) == reference == {number for number in range(50) if number in numbers}
        ranges = numbers.ranges
        assert all(last + 1 < begin for (_, last), (begin, _) in pairwise(ranges))


def test_numbers_in_order_are_one_range():
    numbers = Numbers(1000)
    for number in range(3, 900):
        numbers.add(number)
    assert numbers.ranges == [(3, 899)]
