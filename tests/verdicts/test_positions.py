import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitor.verdicts.positions import advance

request = st.tuples(
    st.integers(-1, 40), st.lists(st.integers(-3, 45) | st.just(2**31 - 1) | st.just(-(2**31)), min_size=1)
)


@given(st.lists(request, min_size=1, max_size=6))
def test_it_equals_a_loop_over_rows(requests):
    fresh, skipped, marks = [], [], []
    for mark, positions in requests:
        for position in positions:
            fresh.append(position > mark)
            skipped.append(max(0, position - mark - 1))
            mark = max(mark, position)
        marks.append(mark)

    lengths = np.array([len(positions) for _, positions in requests])
    step = advance(
        np.concatenate([np.array(positions, np.int64) for _, positions in requests]),
        np.cumsum(lengths) - lengths,
        lengths,
        np.array([mark for mark, _ in requests], np.int64),
    )
    assert step.fresh.tolist() == fresh
    assert step.skipped.tolist() == skipped
    assert step.high_water.tolist() == marks
