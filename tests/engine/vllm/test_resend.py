"""Nothing is lost of requests in flight: not with a monitor that dies, a queue that is full, or a sender that fails.

The engine takes each step by hand (:mod:`tests.harness.stepped`), so that what happens does so at a known step.
"""

import numpy as np
import pytest

from monitor.wire.orders import Act, Steer

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
from tests.harness import disturbed
from tests.harness.disturbed import BLOCK, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

ROUNDING = 1e-5
"""Largest difference of a score between two servings of the same requests: float32, the same steps. Measured: 0."""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = start(tmp_path_factory.mktemp("resend"))
    yield house
    house.engine.close()


def require_same(disturbed_run, undisturbed) -> None:
    """Every row arrived, once and in order, with the score, role and mark that it has where nothing happens."""
    for one, two in zip(disturbed_run.told, undisturbed.told, strict=True):
        assert one.ids == two.ids
        assert one.seen.positions == two.seen.positions == list(range(len(one.ask.prompt) + len(one.ids) - 1))
        assert one.seen.roles == two.seen.roles
        assert one.seen.steered == two.seen.steered
        assert one.seen.finished
    difference = disturbed.largest(disturbed_run.told, undisturbed.told)
    print(f"largest difference of a score {difference:.2g}")
    assert difference <= ROUNDING


@pytest.mark.parametrize("away", [0, 7], ids=["at once", "after seven steps"])
def test_another_monitor_is_sent_every_row_of_requests_in_flight(house, away):
    asks = [house.ask(words) for words in (3, 30, 60, 12)]
    undisturbed = house.disturb(asks, 20, disturbed.nothing)
    again = house.disturb(asks, 20, disturbed.nothing)
    print(f"noise between two servings: {disturbed.largest(undisturbed.told, again.told):.2g}")
    run = house.disturb(asks, 20, disturbed.another_monitor, away)
    require_same(run, undisturbed)
    assert run.headers[0].complete and len(run.headers[0].started) == len(asks)


def test_what_came_from_the_prefix_cache_is_sent_again_too(house):
    asks = [house.ask(60) for _ in range(2)]
    house.disturb(asks, 100, disturbed.nothing)
    undisturbed = house.disturb(asks, 5, disturbed.nothing, fresh=False)
    assert all(told.cached >= BLOCK for told in undisturbed.told)
    require_same(house.disturb(asks, 5, disturbed.another_monitor, fresh=False), undisturbed)


def test_what_was_steered_is_sent_again_as_steered(house):
    order = Steer("", [Act("random-0", add=0.5)], id="rule")
    asks = [house.ask(10, orders=(order,), after=5), house.ask(20)]
    undisturbed = house.disturb(asks, 20, disturbed.nothing)
    steered, plain = (told.seen.steered for told in undisturbed.told)
    assert 0 < sum(steered) < len(steered) and not any(plain)
    require_same(house.disturb(asks, 20, disturbed.another_monitor, 2), undisturbed)


def test_a_step_sends_a_bounded_number_of_rows_again_and_newer_ones_wait_for_older(house):
    from monitor.engine import backlog

    asks = [house.ask(words) for words in (40, 60, 50)]
    undisturbed = house.disturb(asks, 20, disturbed.nothing)
    try:
        run = house.disturb(asks, 20, disturbed.few_at_once, 25)
    finally:
        house.engine.do(disturbed.as_many_as_ever, backlog.ROWS)
    require_same(run, undisturbed)
    # A stage of them at most, and a row of each request where it is caught up with.
    assert max(header.rows for header in run.headers) <= 25 and len(run.headers) > 10


def test_a_request_that_ends_behind_is_sent_before_its_blocks_are_anothers(house):
    from monitor.engine import backlog

    asks = [house.ask(60, tokens=24), house.ask(60, tokens=40), house.ask(10, tokens=40)]
    undisturbed = house.disturb(asks, 22, disturbed.nothing)
    try:
        run = house.disturb(asks, 22, disturbed.few_at_once, 4)
    finally:
        house.engine.do(disturbed.as_many_as_ever, backlog.ROWS)
    require_same(run, undisturbed)


def test_frames_that_find_no_stage_are_made_up_for(house):
    asks = [house.ask(words) for words in (3, 60)]
    undisturbed = house.disturb(asks, 8, disturbed.nothing)
    run = house.disturb(asks, 8, disturbed.no_stage, 6)
    assert run.lost == 6
    require_same(run, undisturbed)


def test_a_sender_that_fails_comes_back_and_nothing_is_lost(house):
    asks = [house.ask(words) for words in (3, 60)]
    undisturbed = house.disturb(asks, 8, disturbed.nothing)
    before = house.facts()
    run = house.disturb(asks, 8, disturbed.sender_fails, 3)
    after = house.facts()
    assert after["faults"] == before["faults"] + 3 and "RuntimeError" in after["last"]
    assert run.headers[-1].faults == after["faults"]
    # The monitor is the same, and is sent again what it has: replays, that it passes over.
    for one, two in zip(run.told, undisturbed.told, strict=True):
        marks = np.maximum.accumulate(one.seen.positions)
        assert sorted(set(one.seen.positions)) == two.seen.positions and (np.diff(marks, prepend=-1) <= 1).all()
    assert after["stages"] == before["stages"]


def test_preempted_requests_are_read_whole_by_another_monitor(tmp_path):
    house = start(tmp_path, num_gpu_blocks_override=12)
    try:
        asks = [house.ask(words, tokens=100) for words in (20, 24, 28, 30)]
        undisturbed = house.disturb(asks, 60, disturbed.nothing)
        counted = [len(told.seen.positions) - len(set(told.seen.positions)) for told in undisturbed.told]
        assert sum(counted), "nothing was preempted"
        run = house.disturb(asks, 60, disturbed.another_monitor, 3)
        for one, two in zip(run.told, undisturbed.told, strict=True):
            assert one.ids == two.ids
            marks = np.maximum.accumulate(one.seen.positions)
            assert (np.diff(marks, prepend=-1) <= 1).all(), "a row came before an older one"
            assert sorted(set(one.seen.positions)) == sorted(set(two.seen.positions))
    finally:
        house.engine.close()
