"""The degeneration guard without an engine: what repeats, what is blamed for it, and who is released."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.steering.repetition import repetition

torch = pytest.importorskip("torch")

from monitor.engine.settings import ENVIRONMENT, KEY, inherited, read_wanted, take_over
from monitor.engine.steering.guard import STRIDE, THRESHOLD, WINDOW, Guard, Repeats, blamed, release
from monitor.errors import OrderError
from monitor.wire.orders import Act, Steer
from tests.harness.gated_runner import House as Gated
from tests.harness.tapped_runner import PROMPT, House

BEGIN = len(PROMPT) - 1
"""The first response row."""
UP = Act("harmful_intent", add=0.4)


def request(tokens, prompt=5):
    return SimpleNamespace(output_token_ids=tokens, num_prompt_tokens=prompt)


def judged(tokens: list[int], prompt: int = 5) -> list[tuple[int, Repeats]]:
    """What the core says of an answer that comes token by token, with the tokens there were."""
    guard = Guard()
    guard.watch("a")
    found = []
    for count in range(len(tokens) + 1):
        found += [(count, repeats) for repeats in guard.judge({"a": request(tokens[:count], prompt)})]
    return found


def test_what_a_text_repeats_is_counted_within_its_window():
    # Written out, over the positions of the text itself.
    tokens = [1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4]
    seen, repeated = set(), 0
    for start in range(len(tokens) - 2):
        gram = tuple(tokens[start : start + 3])
        repeated += gram in seen
        seen.add(gram)
    assert repetition(tokens) == pytest.approx(repeated / (len(tokens) - 2))
    assert repetition(range(WINDOW)) == repetition([]) == repetition([1, 2]) == 0


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 25), st.integers(1, 40)), min_size=1, max_size=8),
)
def test_it_finds_what_a_plain_count_finds(parts):
    """Of answers made of stretches that go round and round."""
    tokens = [first + index % period for first, period, length in parts for index in range(length)]
    due, expected = WINDOW, []
    for count in range(len(tokens) + 1):
        if count < due:
            continue
        share = repetition(tokens[max(count - WINDOW, 0) : count])
        due = count + (WINDOW if share >= THRESHOLD else STRIDE)
        expected += [(count, share)] if share >= THRESHOLD else []
    assert [(count, repeats.share) for count, repeats in judged(tokens)] == expected


def test_a_varied_answer_is_never_told_of():
    assert judged(list(range(500))) == []


@pytest.mark.parametrize(("period", "told"), [(1, True), (5, True), (18, True), (19, False), (40, False)])
def test_a_loop_is_told_of_where_it_is_short(period, told):
    assert bool(judged([index % period for index in range(300)])) is told


def test_an_answer_that_begins_to_repeat_is_told_of_once_a_window_and_by_where_it_began():
    tokens = [*range(100), *[7] * 200]
    found = judged(tokens, prompt=5)
    counts = [count for count, _ in found]
    # The first judgement at which seven tenths of the window repeat, and then one a window of new tokens.
    first = next(c for c in range(WINDOW, 301, STRIDE) if repetition(tokens[c - WINDOW : c]) >= THRESHOLD)
    assert counts == list(range(first, 301, WINDOW)) and len(counts) >= 3
    assert {repeats.noticed for _, repeats in found} == {5 + first - 1}
    assert [repeats.share for _, repeats in found] == [repetition(tokens[c - WINDOW : c]) for c in counts]


def test_an_answer_that_recovers_and_falls_back_is_noticed_anew():
    tokens = [*[7] * 100, *range(1000, 1200), *[8] * 100]
    noticed = {repeats.noticed for _, repeats in judged(tokens, prompt=0)}
    assert len(noticed) == 2 and min(noticed) < 100 < 300 < max(noticed)


def test_a_request_that_has_ended_is_watched_no_more():
    guard = Guard()
    guard.watch("a")
    assert guard.judge({}) == []
    assert guard.judge({"a": request([7] * WINDOW)}) == []


def test_a_session_that_goes_on_is_judged_from_its_new_answer_on():
    guard = Guard()
    guard.watch("a")
    assert guard.judge({"a": request([7] * 500)})
    found = []
    for count in range(3 * WINDOW):
        found += [(count, repeats) for repeats in guard.judge({"a": request([7] * count, prompt=505)})]
    first, repeats = found[0]
    # Looked at again when a window might have been added, and from then on as any answer.
    assert WINDOW <= first < 2 * WINDOW and repeats.noticed == 505 + first - 1


@given(st.lists(st.integers(1, 4), min_size=WINDOW, max_size=120))
def test_an_answer_that_comes_several_tokens_at_a_time_is_judged_as_soon_as_it_is_due(steps):
    guard = Guard(pace=4)
    guard.watch("a")
    count, due = 0, WINDOW
    for tokens in steps:
        count += tokens
        found = guard.judge({"a": request([7] * count)})
        assert bool(found) is (count >= due)
        due = count + WINDOW if found else due


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 80)), max_size=6),
    st.integers(0, 250),
)
def test_steering_is_blamed_where_it_touched_half_of_the_rows_behind_the_window(parts, noticed):
    stretches = [(first, first + length) for first, length in parts]
    rows = [position - 1 for position in range(noticed - WINDOW + 1, noticed + 1)]
    touched = sum(any(first <= row < end for first, end in stretches) for row in rows)
    assert blamed(stretches, noticed) is (touched >= WINDOW / 2)


@pytest.fixture
def house(shared_bundle):
    return House(shared_bundle)


def begin(house, *acts, at=0, rows=200, tokens=None):
    """A request that answers, and is steered by an order that comes after so many rows of the answer."""
    house.slots.start("a", "user-a", PROMPT, scored=True)
    house.step(a=(0, len(PROMPT)))
    for row in range(rows):
        if row == at and acts:
            house.slots.order(Steer("a", list(acts), tokens, "order"))
        house.step(a=(len(PROMPT) + row, 1))
    return len(PROMPT) + rows


def repeats(noticed, share=0.9):
    return Repeats("a", share, noticed)


def test_steering_that_makes_an_answer_repeat_itself_is_released(house):
    upcoming = begin(house, UP)
    assert house.added(0) == [4.0, 0.0]
    event = release(repeats(100), house.slots, None, 3)
    assert (event.number, event.position, event.repetition) == (3, upcoming, 0.9)
    assert (event.engine_request_id, event.request_id, event.gates) == ("a", "user-a", [])
    house.step(a=(upcoming, 1))
    assert house.added(0) == [0.0, 0.0]
    # Nothing is left to release.
    assert release(repeats(100), house.slots, None, 4) is None


def test_rows_that_come_again_are_steered_as_they_were(house):
    upcoming = begin(house, UP)
    release(repeats(100), house.slots, None, 0)
    house.step(a=(upcoming, 1))
    house.step(a=(upcoming - 2, 4))
    assert [house.added(row)[0] for row in range(4)] == [4.0, 4.0, 0.0, 0.0]


def test_a_released_request_is_steered_by_no_order_any_more(house):
    begin(house, UP)
    release(repeats(100), house.slots, None, 0)
    with pytest.raises(OrderError, match="is steered no more") as refused:
        house.slots.order(Steer("a", [UP], None, "another"))
    assert refused.value.cause == "guard"
    # The same order again, of a monitor that was started again, is none.
    house.slots.order(Steer("a", [UP], None, "order"))
    house.step(a=(300, 1))
    assert house.added(0) == [0.0, 0.0]


@pytest.mark.parametrize("act", [Act("harmful_intent", scale=0.0), Act("harmful_intent", high=0.1)])
def test_whatever_is_done_along_a_vector_is_released(house, act):
    begin(house, act)
    assert release(repeats(100), house.slots, None, 0) is not None
    with pytest.raises(OrderError):
        house.slots.order(Steer("a", [UP]))


def test_an_answer_that_repeated_itself_before_is_not_blamed_on_steering(house):
    begin(house, UP, at=150)
    assert release(repeats(len(PROMPT) + 150 + 10), house.slots, None, 0) is None
    # With most of the window behind the order it is.
    assert release(repeats(len(PROMPT) + 150 + WINDOW), house.slots, None, 0) is not None


def test_steering_that_has_ended_is_not_blamed(house):
    begin(house, UP, tokens=80)
    assert release(repeats(70), house.slots, None, 0) is None


def test_who_is_not_steered_or_has_ended_is_left_alone(house):
    begin(house)
    assert release(repeats(100), house.slots, None, 0) is None
    house.slots.finish("a")
    assert release(repeats(100), house.slots, None, 0) is None


@pytest.fixture
def gated(tiny_bundle):
    return Gated(tiny_bundle(half_life=0.01))


def answer(gated, key, rows, first=BEGIN + 1, score=9.0):
    """Rows of an answer, one a step; which of them the gate steered behind its layer."""
    return [bool(gated.step(score, **{key: (first + row, 1)})[1, 0].any()) for row in range(rows)]


def test_a_gate_lets_the_request_go_and_no_other(gated):
    gated.arm()
    for key in ("a", "b"):
        gated.start(key)
        gated.step(9.0, **{key: (0, len(PROMPT))})
        assert all(answer(gated, key, 80))
    event = release(repeats(len(PROMPT) + 70), gated.slots, gated.gates, 0)
    assert (event.position, event.gates) == (len(PROMPT) + 80, ["g"])
    gated.events += gated.gates.take_events()
    closed = gated.events[-1]
    assert (closed.gate, closed.kind, closed.engine_request_id, closed.position) == (
        "g",
        "closed",
        "a",
        len(PROMPT) + 80,
    )
    assert not any(answer(gated, "a", 5, len(PROMPT) + 80))
    assert all(answer(gated, "b", 5, len(PROMPT) + 80))
    # Nor does the gate that takes its place, and rows from before come again as they were.
    gated.arm(acts=[Act("sycophancy", add=-0.2)])
    assert not any(answer(gated, "a", 5, len(PROMPT) + 85))
    assert all(answer(gated, "b", 2, len(PROMPT) + 85))
    again = gated.step(9.0, a=(len(PROMPT) + 78, 4))
    assert [bool(row.any()) for row in again[1]] == [True, True, False, False]


def test_who_repeats_himself_unsteered_is_not_rid_of_gates(gated):
    """Otherwise it would be a way round them."""
    gated.arm()
    gated.start("a")
    gated.step(0.0, a=(0, len(PROMPT)))
    assert not any(answer(gated, "a", 80, score=0.0))
    assert release(repeats(len(PROMPT) + 70), gated.slots, gated.gates, 0) is None
    # Nor once the gate is open: the answer had repeated itself before.
    assert all(answer(gated, "a", 80, len(PROMPT) + 80))
    assert release(repeats(len(PROMPT) + 70), gated.slots, gated.gates, 0) is None
    assert all(answer(gated, "a", 5, len(PROMPT) + 160))


def test_a_gate_that_has_closed_is_not_blamed(gated):
    gated.arm(hold=60)
    gated.start("a")
    gated.step(9.0, a=(0, len(PROMPT)))
    steered = answer(gated, "a", 80, score=0.0)
    assert steered[50] and not steered[-1]
    assert release(repeats(len(PROMPT) + 60), gated.slots, gated.gates, 0) is None
    assert all(answer(gated, "a", 5, len(PROMPT) + 80))


def test_an_order_and_the_gate_beside_it_are_released_together(gated):
    gated.arm()
    gated.start("a")
    gated.slots.order(Steer("a", [UP]))
    gated.step(9.0, a=(0, len(PROMPT)))
    answer(gated, "a", 80)
    assert release(repeats(len(PROMPT) + 70), gated.slots, gated.gates, 0).gates == ["g"]
    assert not any(answer(gated, "a", 3, len(PROMPT) + 80))
    # A gate that did not steer the request is not named, and does not steer it later either.
    gated.start("b")
    gated.slots.order(Steer("b", [UP]))
    gated.step(0.0, b=(0, len(PROMPT)))
    answer(gated, "b", 80, score=0.0)
    assert release(Repeats("b", 0.9, len(PROMPT) + 70), gated.slots, gated.gates, 1).gates == []
    assert not any(answer(gated, "b", 3, len(PROMPT) + 80))


def test_it_is_on_unless_it_is_switched_off(shared_bundle, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "")
    keys = []
    for written, expected in (({}, True), ({"guard": False}, False)):
        keys.append(take_over(read_wanted({KEY: {"bundle": str(shared_bundle.path), **written}}), shared_bundle))
        assert inherited().guard is expected
    # What is compiled is the same.
    assert keys[0] == keys[1]
