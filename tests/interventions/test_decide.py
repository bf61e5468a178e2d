from dataclasses import replace

import pytest

from monitor.events import Alert, EngineChanged, EventLog, Intervention, ProbeFired, Request
from monitor.interventions.decide import Actions
from monitor.interventions.state import RequestStates
from monitor.policy import AlertAction, Decision, SteerAction, Steering, StopAction
from monitor.sinks import MemorySink, Recorder
from monitor.store import MemoryStore
from monitor.telemetry.stats import Stats
from monitor.wire.orders import Act, Release, Steer, Stop


def fired(key="a", probe="toxicity") -> ProbeFired:
    return ProbeFired(Request("engine", "tiny", f"user-{key}", key, 4), probe, 3.0, 2.0, 7, "user")


def decision(mode="enforce", action=None, rule="rule") -> Decision:
    return Decision(rule, mode, action or SteerAction(Steering("toxicity", dose=-0.2, tokens=50)), "because")


class Engine:
    """Takes orders, or not."""

    def __init__(self):
        self.reachable, self.orders = True, []

    def send(self, engine, order):
        self.orders.append((engine, order))
        return self.reachable


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def sink():
    return MemorySink()


@pytest.fixture
def stats():
    return Stats(["toxicity"])


@pytest.fixture
def states(stats):
    return RequestStates(2, stats, MemoryStore())


@pytest.fixture
def actions(states, engine, sink, stats):
    return Actions(states, Recorder(EventLog(), [sink], stats, MemoryStore()), stats, engine.send)


def test_enforcing_sends_an_order_and_records_it(actions, engine, sink, stats):
    actions.apply(fired(), [decision()])
    assert engine.orders == [("engine", Steer("a", [Act("toxicity", add=-0.2)], 50, "rule:toxicity:-0.2:50"))]
    (event,) = sink.events
    assert isinstance(event, Intervention) and event.sent and (event.vector, event.dose) == ("toxicity", -0.2)
    assert stats.interventions == {("tiny", "rule", "toxicity", "enforce", True): 1}


def test_shadow_records_and_sends_nothing(actions, engine, sink, stats):
    actions.apply(fired(), [decision("shadow"), decision("shadow", AlertAction("critical"))])
    assert engine.orders == []
    intervention, alert = sink.events
    assert intervention.mode == alert.mode == "shadow" and not intervention.sent
    assert stats.interventions == {("tiny", "rule", "toxicity", "shadow", False): 1}
    assert stats.alerts == {("tiny", "rule", "critical", "shadow"): 1}


def test_what_is_held_is_recorded_in_shadow_with_the_reason(actions, engine, sink):
    actions.apply(fired(), [decision(), decision("alert", AlertAction("info")), decision("shadow")], held="it drifts")
    assert engine.orders == []
    assert [event.mode for event in sink.events] == ["shadow"] * 3
    assert [event.reason for event in sink.events] == [
        "because; held to shadow: it drifts",
        "because; held to shadow: it drifts",
        "because",
    ]


def test_an_order_that_does_not_arrive_is_not_recorded_as_sent(actions, engine, sink, caplog):
    engine.reachable = False
    actions.apply(fired(), [decision()])
    assert not sink.events[0].sent
    assert "did not reach engine" in caplog.text


def test_a_rule_applies_once_a_request_with_all_its_actions(states, actions, engine, sink):
    both = [decision(), decision(action=AlertAction("info"))]
    actions.apply(fired(), both)
    actions.apply(fired(), both)
    assert len(engine.orders) == 1 and [type(event) for event in sink.events] == [Intervention, Alert]
    actions.apply(fired(), [decision(rule="another")])
    actions.apply(fired("b"), both)
    assert len(engine.orders) == 3
    states.finish(fired().request)
    actions.apply(fired(), both)
    assert len(engine.orders) == 4


def test_no_two_orders_of_a_rule_share_an_id_and_each_keeps_its_own(states, actions, engine):
    several = (
        SteerAction(Steering("toxicity", dose=0.1)),
        SteerAction(Steering("toxicity", dose=0.1000000001)),
        SteerAction(Steering("toxicity", dose=0.1, tokens=5)),
        SteerAction(Steering("toxicity", "clamp", high=0.2)),
        SteerAction(Steering("toxicity", "clamp", high=0.1)),
        SteerAction(Steering("toxicity", "clamp", low=0.1)),
        SteerAction(Steering("toxicity", "ablate")),
        SteerAction(Steering("toxicity", dose=0.1)),
        SteerAction(Steering("toxicity", dose=0.1)),
    )
    actions.apply(fired(), [decision(action=action) for action in several])
    first = [order.id for _, order in engine.orders]
    assert len(set(first)) == len(several)
    # An engine takes an id once: a monitor that is started again orders the same by the same.
    states.finish(fired().request)
    actions.apply(fired(), [decision(action=action) for action in several])
    assert [order.id for _, order in engine.orders[len(several) :]] == first


def test_what_was_applied_is_remembered_for_a_bounded_number_of_requests(actions, engine, stats, monkeypatch):
    monkeypatch.setattr("monitor.store.state.MAX_REQUESTS", 2)
    for key in ("a", "b", "c", "c", "b", "a"):
        actions.apply(fired(key), [decision()])
    assert [order.engine_request_id for _, order in engine.orders] == ["a", "b", "c", "a"]
    assert stats.forgotten == {("request",): 2}


FAILS_CLOSED = SteerAction(Steering("toxicity", dose=-0.2), StopAction("I stop."))


def test_a_generation_is_stopped_once_its_engine_can_be_reached(actions, engine, sink):
    engine.reachable = False
    actions.apply(fired(), [decision(action=FAILS_CLOSED)])
    actions.tick()
    engine.reachable, engine.orders = True, []
    actions.tick()
    actions.tick()
    assert engine.orders == [("engine", Stop("a", "I stop.", "rule:closed"))]
    assert [(event.operation, event.sent) for event in sink.events] == [("add", False), ("stop", True)]


@pytest.mark.parametrize(
    ("mode", "reachable", "sent", "refusal"),
    [
        ("enforce", True, True, ""),
        ("enforce", False, False, "the engine could not be reached"),
        ("shadow", True, False, ""),
    ],
)
def test_a_generation_is_stopped_with_the_rules_message(actions, engine, sink, stats, mode, reachable, sent, refusal):
    engine.reachable = reachable
    actions.apply(fired(), [decision(mode, StopAction("I stop."))])
    assert engine.orders == ([("engine", Stop("a", "I stop.", "rule:stop"))] if mode == "enforce" else [])
    (event,) = sink.events
    assert (event.operation, event.vector, event.dose, event.tokens) == ("stop", "", 0.0, None)
    assert (event.sent, event.refusal, event.mode) == (sent, refusal, mode)
    assert stats.interventions == {("tiny", "rule", "", mode, sent): 1}


def test_nothing_is_changed_of_a_request_that_has_ended_but_alerts_are_sent(actions, engine, sink):
    several = [decision(), decision(action=StopAction("")), decision("alert", AlertAction("info"))]
    actions.apply(fired(), several, ended=True)
    assert engine.orders == []
    assert [event.mode for event in sink.events] == ["shadow", "shadow", "alert"]
    assert sink.events[0].reason == "because; held to shadow: the request had ended"


def test_a_request_of_which_nothing_is_known_is_neither_stopped_nor_ordered_to_be_steered(actions, engine, sink):
    actions.refused(fired().request, "rule:toxicity:-0.2", "The table is full.")
    actions.follow_one(fired().request, "policy:gate")
    assert engine.orders == [] and sink.events == []


def test_the_order_that_stands_in_for_a_gate_is_released_when_it_opens_and_the_engine_can_be_reached(
    actions, engine, sink, stats
):
    actions.apply(fired(), [replace(decision(action=FAILS_CLOSED), gate="policy:gate")])
    id = engine.orders[0][1].id
    engine.reachable, engine.orders = False, []
    actions.opened(fired().request, "policy:gate")
    assert engine.orders == [("engine", Release("a", id))] and stats.orders == {}
    # The gate steers: that the order is refused is no reason to stop the generation any more.
    actions.refused(fired().request, id, "The table is full.")
    assert len(engine.orders) == 1 and [event.operation for event in sink.events] == ["add"]


def test_a_request_that_was_forgotten_is_stopped_no_more(actions, engine, stats):
    engine.reachable = False
    actions.apply(fired("a"), [decision(action=FAILS_CLOSED)])
    for key in ("b", "c"):
        actions.apply(fired(key), [decision("shadow")])
    engine.reachable, engine.orders = True, []
    actions.tick()
    assert engine.orders == [] and stats.forgotten == {("request",): 1}


def test_a_sink_that_fails_breaks_nothing(stats, caplog):
    class Broken:
        def emit(self, recorded):
            raise RuntimeError("down")

    log, last = EventLog(), MemorySink()
    recorder = Recorder(log, [Broken(), last], stats, MemoryStore())
    recorder.record(EngineChanged("engine", "tiny", "lost", "silent"))
    assert last.recorded[0].sequence == log.last_sequence == 1
    assert +stats.sink_errors == {("Broken",): 1}
    assert "down" in caplog.text
