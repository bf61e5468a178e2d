"""What goes wrong inside the engine fails no request, is told, and is over with the next step that goes well."""

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
from monitor.engine.guarded import FAILURES
from tests.harness import disturbed
from tests.harness.disturbed import House, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

AT = 8
"""Steps before something fails."""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = start(tmp_path_factory.mktemp("faults"))
    yield house
    house.engine.close()


@pytest.mark.parametrize("where", ["update", "begin", "batch", "stream", "end"])
@pytest.mark.parametrize("times", [1, FAILURES - 1])
def test_taps_that_fail_are_read_again_with_the_next_step(house: House, where, times):
    asks = [house.ask(words) for words in (3, 60)]
    undisturbed = house.disturb(asks, AT, disturbed.nothing)
    before = house.facts()
    run = house.disturb(asks, AT, disturbed.taps_fail, where, times)
    after = house.facts()
    assert after["faults"] == before["faults"] + times and not after["untapped"]
    # Told with the very frame of the step, and with all that follow.
    assert run.headers[-1].faults == after["faults"]
    assert "RuntimeError at disturbed.py" in run.headers[-1].fault and not run.headers[-1].untapped
    # What those steps computed has no score, but where it was kept before: then it is sent later. All else has the one
    # that it has where nothing fails.
    lost = 0 if where == "stream" else times
    for one, two in zip(run.told, undisturbed.told, strict=True):
        assert one.ids == two.ids
        assert len(set(two.seen.positions) - set(one.seen.positions)) == lost
        for position, scores in zip(one.seen.positions, one.seen.scores, strict=True):
            assert np.array_equal(scores, two.seen.scores[position])
        assert one.seen.finished
    # Two requests, a row each.
    assert after["unscored"] - before["unscored"] == 2 * lost
    assert (after["slots"], after["requests"], after["stages"]) == (0, 0, before["stages"])
    assert after["free"] == before["free"]


def test_requests_that_come_and_go_while_updates_fail_are_followed(house: House):
    # One ends and the next begins in the steps that fail: four run at once.
    asks = [house.ask(3, tokens=tokens) for tokens in (10, 30, 30, 30, 30, 30)]
    undisturbed = house.disturb(asks, 9, disturbed.nothing)
    run = house.disturb(asks, 9, disturbed.taps_fail, "update", 4)
    facts = house.facts()
    assert (facts["slots"], facts["requests"]) == (0, 0)
    for one, two in zip(run.told, undisturbed.told, strict=True):
        assert one.ids == two.ids and one.seen.finished
        assert len(two.seen.positions) - len(one.seen.positions) <= 4 + len(one.ask.prompt)
        for position, scores in zip(one.seen.positions, one.seen.scores, strict=True):
            assert np.array_equal(scores, two.seen.scores[position])


def test_taps_that_fail_in_every_step_are_switched_off_and_the_monitor_is_told(tmp_path):
    house = start(tmp_path)
    try:
        asks = [house.ask(words) for words in (3, 60)]
        undisturbed = house.disturb(asks, AT, disturbed.nothing)
        run = house.disturb(asks, AT, disturbed.taps_fail, "batch", 1000)
        facts = house.facts()
        assert facts["faults"] == FAILURES and facts["untapped"]
        for one, two in zip(run.told, undisturbed.told, strict=True):
            assert one.ids == two.ids
        assert run.headers[-1].untapped and "RuntimeError" in run.headers[-1].fault
        # Nothing of any request is taken for read.
        assert run.headers[-1].complete and not run.headers[-1].started
    finally:
        house.engine.close()


def test_a_request_that_cannot_be_taken_in_is_unread_and_its_neighbours_are_read(house: House):
    asks = [house.ask(words) for words in (3, 60)]
    undisturbed = house.disturb(asks, AT, disturbed.nothing)
    before = house.facts()
    house.engine.do(disturbed.taps_fail, "roles", 1)
    run = house.disturb(asks, AT, disturbed.nothing)
    after = house.facts()
    assert after["faults"] == before["faults"] + 1
    seen = [told.seen.positions for told in run.told]
    assert seen == [[], undisturbed.told[1].seen.positions]
    assert after["unscored"] - before["unscored"] == len(undisturbed.told[0].seen.positions)


def test_steps_are_counted_for_the_monitor_that_hears_of_none(house: House):
    before = house.facts()["steps"]
    run = house.disturb([house.ask(3)], AT, disturbed.nothing)
    assert house.facts()["steps"] - before == run.steps
