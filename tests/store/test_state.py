"""The state is what its entries come to: the same after it was written down as after all of them, and bounded."""

import pytest
from hypothesis import given, settings

from monitor.store import (
    Admitted,
    AlertFired,
    Applied,
    Armed,
    Confirmed,
    Disarmed,
    EngineForgotten,
    PolicyInForce,
    Processed,
    RequestEnded,
    Resumed,
    State,
)
from monitor.store import state as limits
from monitor.store.entries import Noted
from tests.store.conftest import ENTRIES, fold, said


@settings(deadline=None)
@given(ENTRIES, ENTRIES)
def test_what_is_written_down_comes_to_the_same_state_now_and_after_whatever_follows(before, after):
    state = fold(before)
    again = fold(state.entries())
    assert said(again) == said(state)
    for noted in after:
        state.apply(noted)
        again.apply(noted)
    assert said(again) == said(state)


def entries(*given):
    return fold(Noted(float(time), entry) for time, entry in enumerate(given))


def test_what_a_durable_sink_lost_is_to_be_processed_again_and_only_there():
    state = entries(
        Processed("e", "gate", 0, {"audit": 7, "alerts": 3}),
        Processed("e", "gate", 1, {"audit": 8, "alerts": 4}),
        Processed("e", "gate", 2, {"audit": 9, "alerts": 5}),
        Processed("e", "gate", 3, {"gone": 99}),
        Resumed({"audit": 8, "alerts": 3}),
    )
    assert state.processed("gate") == {"e": {0, 3}}
    assert [state.holders(Processed("e", "gate", number)) for number in range(4)] == [(), ("audit",), (), ()]
    state.apply(Noted(9.0, Processed("e", "gate", 1, {"audit": 0, "alerts": 4})))
    state.apply(Noted(9.0, Resumed({"audit": 8, "alerts": 3})))
    assert state.holders(Processed("e", "gate", 1)) == ("audit",), "killed again: the other still lacks it"
    assert state.processed("gate") == {"e": {0, 3}}


def test_what_was_confirmed_is_processed_for_good():
    state = entries(Processed("e", "guard", 0, {"audit": 7}), Confirmed("e"), Resumed({"audit": 0}))
    assert state.processed("guard") == {"e": {0}} and state.processed("gate") == {}


def test_an_admission_that_a_durable_sink_lost_is_recorded_again_there():
    state = entries(
        Admitted("e", "a", {"audit": 7, "alerts": 3}), Applied("e", "a", ("rule",)), Resumed({"audit": 7, "alerts": 2})
    )
    for kept in (state, fold(state.entries())):
        assert kept.request("e", "a").admitted is False and kept.request("e", "a").rules == {"rule"}
        assert kept.holders(Admitted("e", "a")) == ("audit",)
    state.apply(Noted(9.0, Admitted("e", "a", {"audit": 0, "alerts": 3})))
    assert state.request("e", "a").admitted and state.holders(Admitted("e", "a")) == ()
    state.apply(Noted(9.0, RequestEnded("e", "a")))
    assert state.request("e", "a") is None


def test_gates_of_an_engine_and_what_goes_with_it():
    state = entries(Armed("e", "g"), Armed("e", "h"), Disarmed("e", "g"), Applied("e", "a", ("r",)), Armed("f", "g"))
    assert state.armed() == {"e": {"h"}, "f": {"g"}}
    state.apply(Noted(9.0, EngineForgotten("e")))
    assert state.armed() == {"f": {"g"}} and not state.requests


def test_an_alert_is_firing_until_ten_minutes_after_the_last_time():
    alert = AlertFired("tiny", "rule", "warning", "toxicity")
    state = fold([Noted(100.0, alert), Noted(400.0, alert)])
    ((key, firing),) = state.firing(999.0).items()
    assert key == ("tiny", "rule", "warning", "toxicity")
    assert (firing.since, firing.last, firing.times) == (100.0, 400.0, 2)
    assert state.firing(1000.0) == {}
    state.apply(Noted(2000.0, alert))
    assert state.firing(2001.0)[key].since == 2000.0, "it began to fire again"


def test_the_last_policy_is_in_force():
    state = entries(PolicyInForce("a.yaml", "1"), PolicyInForce("b.yaml", "2"))
    assert state.policy == PolicyInForce("b.yaml", "2")


@pytest.mark.parametrize(
    ("limit", "make", "count"),
    [
        ("MAX_REQUESTS", lambda n: Applied("e", str(n), ("r",)), lambda state: len(state.requests)),
        ("MAX_ENGINES", lambda n: Armed(str(n), "g"), lambda state: len(state.engines)),
        ("MAX_GATES", lambda n: Armed("e", str(n)), lambda state: len(state.armed()["e"])),
        ("MAX_ALERTS", lambda n: AlertFired("m", str(n), "info", "p"), lambda state: len(state.firing(0.0))),
        ("NUMBERS", lambda n: Processed("e", "gate", n, {"audit": n}), lambda state: len(state.processed("gate")["e"])),
    ],
)
def test_nothing_grows_without_bound(monkeypatch, limit, make, count):
    monkeypatch.setattr(limits, limit, 8)
    state = fold(Noted(0.0, make(number)) for number in range(40))
    assert count(state) == 8
    if limit == "NUMBERS":
        assert len(state.engines["e"].unsettled) <= 3 * 8


def test_what_is_old_is_forgotten():
    state = State()
    for time, name in ((0.0, "old"), (50_000.0, "new")):
        state.apply(Noted(time, Armed(name, "g")))
        state.apply(Noted(time, Applied(name, "a", ("r",))))
        state.apply(Noted(time, AlertFired("m", name, "info", "p")))
    state.forget_old(limits.MAX_AGE_SECONDS + 1)
    assert list(state.engines) == ["new"] and list(state.requests) == [("new", "a")]
    assert [noted for noted in state.entries() if isinstance(noted.entry, AlertFired)] == []


def test_a_long_id_is_kept_as_its_digest():
    long = "x" * 100_000
    state = entries(Applied("e", long, ("r",)))
    assert state.request("e", long).rules == {"r"} and state.request("e", long + "y") is None
    assert all(len(key) <= 256 for _, key in state.requests)
    assert said(fold(state.entries())) == said(state)
