import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.ingest import FrameSequence


@pytest.mark.parametrize(
    ("sequence", "acked", "lost"),
    [(0, -1, 0), (7, -1, 7), (8, 7, 0), (10, 7, 2), (7, 9, 0)],
    ids=["fresh", "nobody was there", "restarted monitor", "outage", "confirmed beyond"],
)
def test_the_first_frame_counts_what_nobody_confirmed(sequence, acked, lost):
    assert FrameSequence().arrive(sequence, acked) == lost


@given(st.integers(0, 5), st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_lost_and_arrived_add_up(first, numbers):
    frames = FrameSequence()
    arrived = [number for number in numbers if frames.arrive(number, first - 1) is not None]
    assert arrived == sorted(set(arrived)), "duplicates and what comes late are not read"
    assert frames.last == arrived[-1] == max(numbers)
    assert frames.lost + len(arrived) == frames.last - min(first, arrived[0]) + 1
