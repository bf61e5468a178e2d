"""State of requests: bounded, with every loss counted, and no token that a gate steered counted twice."""

import pytest

from monitor.events import Request
from monitor.interventions.state import RequestStates
from monitor.store import MemoryStore
from monitor.telemetry.stats import Stats


def request(key: str, engine: str = "engine") -> Request:
    return Request(engine, "tiny", f"user-{key}", key, 4)


@pytest.fixture
def stats():
    return Stats([])


@pytest.fixture
def states(stats):
    return RequestStates(2, stats, MemoryStore())


def test_a_request_has_one_state_until_it_ends(states):
    states.of("engine", "a").rules.add("rule")
    assert states.of("engine", "a") is states.find("engine", "a")
    assert states.find("other", "a") is None
    assert states.finish(request("a")).rules == {"rule"}
    assert states.find("engine", "a") is None and states.finish(request("a")) is None


def test_the_request_that_was_touched_longest_ago_is_forgotten_and_that_is_counted(states, stats):
    for key in ("a", "b", "a", "c"):
        states.of("engine", key)
    assert [states.find("engine", key) is None for key in ("a", "b", "c")] == [False, True, False]
    assert stats.forgotten == {("request",): 1}


def test_the_states_of_an_engine_are_its_own(states):
    mine = states.of("engine", "a")
    states.of("other", "a")
    assert list(states.on("engine")) == [mine]


def test_a_gate_that_opens_again_counts_on_also_where_the_request_has_ended(states):
    states.of("engine", "a")
    assert [states.count_steered(request("a"), "gate", tokens) for tokens in (13, 20)] == [13, 7]
    assert states.count_steered(request("a"), "another", 5) == 5
    states.finish(request("a"))
    assert [states.count_steered(request("a"), "gate", tokens) for tokens in (20, 24)] == [0, 4]
    assert states.find("engine", "a") is None


def test_a_request_that_is_forgotten_keeps_its_tokens(states, stats):
    states.of("engine", "a")
    states.count_steered(request("a"), "gate", 13)
    for key in ("b", "c"):
        states.of("engine", key)
    assert states.count_steered(request("a"), "gate", 15) == 2
    assert stats.forgotten == {("request",): 1}


def test_requests_that_have_ended_are_bounded_as_well(states, stats):
    for key in ("a", "b", "c"):
        states.count_steered(request(key), "gate", 10)
    assert stats.forgotten == {("ended_request",): 1}
    assert states.count_steered(request("c"), "gate", 10) == 0
    assert states.count_steered(request("a"), "gate", 10) == 10
