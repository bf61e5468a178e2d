"""What engines repeat until it is confirmed is told once, by whichever monitor."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from monitor.interventions.deduplicator import Deduplicator
from monitor.telemetry.stats import Stats


@dataclass(frozen=True)
class Told:
    number: int


def items(numbers):
    return [Told(number) for number in numbers]


def test_what_is_repeated_is_passed_over_and_what_is_missing_is_counted():
    numbers = Deduplicator({}, 8, Stats([]))
    assert numbers.fresh("e", items([3, 4])) == (items([3, 4]), 0)
    assert numbers.fresh("e", items([3, 4, 7])) == (items([7]), 2)
    assert numbers.fresh("e", items([3, 4, 7])) == ([], 0)
    assert numbers.fresh("other", items([0])) == (items([0]), 0)


def test_what_a_killed_monitor_passed_over_is_told():
    numbers = Deduplicator({"e": {0, 1, 12, 2}}, 8, Stats([]))
    assert numbers.fresh("e", items(range(1, 15))) == (items([*range(3, 12), 13, 14]), 0)
    assert numbers.fresh("e", items(range(1, 15))) == ([], 0)


def test_an_engine_that_was_heard_longest_ago_is_forgotten_and_that_is_counted():
    stats = Stats([])
    numbers = Deduplicator({"a": {4}}, 1, stats)
    assert numbers.fresh("a", items([4])) == ([], 0)
    assert numbers.fresh("b", items([0])) == (items([0]), 0)
    assert stats.forgotten == {("engine",): 1}
    assert numbers.fresh("a", items([4])) == (items([4]), 0)


@given(st.sets(st.integers(0, 20)), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))
def test_nothing_is_told_twice_and_nothing_that_is_heard_is_left_out(told, spans):
    """An engine repeats a stretch of numbers in each frame; the stretches never go back before where they began."""
    numbers, heard, fresh = Deduplicator({"e": told}, 8, Stats([])), set(), []
    # The first stretch begins no later than right behind what is on record: nothing was confirmed but by being told.
    begin = 0
    for step, length in spans:
        begin = min(begin + step, max(heard, default=begin))
        stretch = range(begin, begin + length)
        heard |= set(stretch)
        fresh += [item.number for item in numbers.fresh("e", items(stretch))[0]]
    assert len(fresh) == len(set(fresh))
    assert set(fresh) == heard - told
