"""``fail: closed``: a generation that cannot be steered as its rule says is stopped, and that is told."""

from contextlib import closing

import msgspec
import pytest

from monitor.errors import PolicyError
from monitor.events import Ordered
from monitor.policy import SteerAction, Steering, StopAction, load_policy
from monitor.sinks.audit import AuditLog, verify
from monitor.wire.frames import Refusal, Started
from monitor.wire.orders import Act, Arm, Steer, Stop
from probes.scoring.roles import Role
from tests.harness.desk import Desk

MESSAGE = "I must stop here."
POLICY = """
version: 1
max_dose: 0.5
rules:
  - name: civil
    when: {probe: toxicity}
    mode: enforce
    actions:
      - steer: {vector: sycophancy, dose: -0.3, FAIL}
      - steer: {vector: harmful_intent, ablate: true, FAIL}
"""
CLOSED = f'fail: closed, message: "{MESSAGE}"'
FIRST, SECOND = "civil:sycophancy:-0.3", "civil:harmful_intent:ablate"
STOP = Stop("a", MESSAGE, "civil:closed")
WHY = "The steering table is full. Steer fewer requests at once."


@pytest.fixture
def load(tiny_bundle, tmp_path):
    bundle = tiny_bundle()

    def load(fail: str):
        path = tmp_path / "policy.yaml"
        path.write_text(POLICY.replace("FAIL", fail))
        return bundle, load_policy(path, bundle)

    return load


def test_a_steer_action_may_fail_closed_with_a_message(load):
    _, policy = load(CLOSED)
    steer, ablate = policy.rules[0].actions
    assert steer == SteerAction(Steering("sycophancy", dose=-0.3), StopAction(MESSAGE))
    assert ablate.on_refusal == StopAction(MESSAGE)
    assert str(steer).endswith("until the request ends; where that is refused, stop with the policy's message")
    assert [action.on_refusal for action in load("fail: closed")[1].rules[0].actions] == [StopAction("")] * 2
    assert [action.on_refusal for action in load("fail: open")[1].rules[0].actions] == [None, None]


@pytest.mark.parametrize(
    ("fail", "named"),
    [
        ("fail: shut", "steer.fail: must be 'open' or 'closed', not 'shut'"),
        ("message: x", "steer.message: is said where steering is refused and fail is closed. Write fail: closed"),
        (f"fail: closed, message: {'x' * 1001}", "steer.message: String should have at most 1000 characters"),
        ("fial: closed", "steer.fial: unknown key (1 more). Did you mean 'fail'?"),
    ],
)
def test_what_makes_no_sense_is_refused_by_place(load, fail, named):
    with pytest.raises(PolicyError) as refused:
        load(fail)
    assert named in str(refused.value)


def refusal(number=0, id=FIRST, cause="slots", key="a"):
    return Refusal(number, "steer", id, key, cause, WHY)


@pytest.fixture
def closed(load, frame):
    return Desk(*load(CLOSED), frame)


def test_steering_that_the_engine_refuses_stops_the_generation_and_is_told(closed):
    closed.hello()
    closed.fire()
    assert closed.orders() == [
        Steer("a", [Act("sycophancy", -0.3)], None, FIRST, max_dose=0.5),
        Steer("a", [Act("harmful_intent", scale=0.0)], None, SECOND, max_dose=0.5),
    ]
    closed.frame(refused=[refusal()])
    assert closed.orders() == [STOP]
    (told,) = closed.stops()
    assert (told.rule, told.mode, told.sent, told.probe, told.position) == ("civil", "enforce", True, "toxicity", 0)
    assert told.reason.endswith(f"that was refused ({WHY.rstrip('.')}), and the rule fails closed: stop")
    assert closed.stats.interventions["tiny", "civil", "", "enforce", True] == 1
    assert closed.stats.orders["engine", "steer", "refused"] == 1
    (refused,) = [event for event in closed.sink.events if isinstance(event, Ordered)]
    assert (refused.result, refused.reason) == ("refused", WHY)
    # What else is refused of it, or again, stops it no second time.
    closed.frame(refused=[refusal(), refusal(1, SECOND)])
    assert closed.orders() == []


def test_with_fail_open_the_request_goes_on_unsteered_and_that_is_told(load, frame):
    desk = Desk(*load("fail: open"), frame)
    desk.hello()
    desk.fire()
    desk.orders()
    desk.frame(refused=[refusal()])
    assert desk.orders() == [] and desk.stops() == []
    assert desk.stats.orders["engine", "steer", "refused"] == 1


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(refusal(cause="request"), id="the request has ended"),
        pytest.param(refusal(id="another:v:0.1"), id="another's order"),
        pytest.param(refusal(key="b"), id="another request"),
        pytest.param(Refusal(0, "release", FIRST, "a", "slots", WHY), id="no order to steer"),
        pytest.param(refusal(cause="expired"), id="a lease's end"),
    ],
)
def test_nothing_else_stops_it(closed, refused):
    closed.hello()
    closed.fire()
    closed.orders()
    closed.frame(refused=[refused])
    assert closed.orders() == [] and closed.stops() == []


def test_an_engine_that_cannot_be_reached_is_told_to_stop_as_soon_as_it_can(closed):
    closed.hello()
    closed.source.away.add(b"engine/core")
    closed.fire()
    closed.monitor.tick()
    assert closed.orders() == [] and closed.stops() == []
    closed.source.away.clear()
    closed.monitor.tick()
    closed.monitor.tick()
    assert closed.orders() == [STOP]
    (told,) = closed.stops()
    assert told.sent and "the engine could not be reached" in told.reason


def test_a_request_that_ended_before_it_could_be_stopped_is_told_as_that(closed):
    closed.hello()
    closed.source.away.add(b"engine/core")
    closed.fire()
    closed.frame(finished=[0])
    closed.source.away.clear()
    closed.monitor.tick()
    assert closed.orders() == []
    (told,) = closed.stops()
    assert not told.sent and told.refusal == "the engine could not be reached before the request ended"
    assert closed.stats.interventions["tiny", "civil", "", "enforce", False] == 1


def test_an_engine_that_is_gone_is_not_asked_for_ever(closed):
    closed.hello()
    closed.source.away.add(b"engine/core")
    closed.fire()
    for _ in range(2):
        closed.now += 700
        closed.monitor.tick()
    closed.source.away.clear()
    closed.monitor.tick()
    assert closed.orders() == []


def test_nothing_is_stopped_for_an_engine_that_is_held_to_shadow(closed):
    closed.hello(shadow=True, drift=0.9)
    closed.fire()
    assert closed.orders() == []
    assert closed.stops() == []


def test_a_gate_that_cannot_be_armed_is_ordered_and_fails_closed_as_well(load, frame):
    desk = Desk(*load(f"gate: true, {CLOSED}"), frame)
    desk.hello(gates=8)
    gate, other = (order.id for order in desk.orders())
    desk.frame(refused=[Refusal(0, "arm", gate, "", "gate", "All 2 gates are in use.")])
    desk.fire()
    assert desk.orders() == [Steer("a", [Act("sycophancy", -0.3)], None, FIRST, max_dose=0.5)]
    desk.frame(refused=[refusal(1, cause="dose")])
    assert desk.orders() == [STOP]
    assert other != gate


def test_a_gate_that_leaves_a_request_out_is_ordered_for_it_alone(load, frame):
    desk = Desk(*load(f"gate: true, {CLOSED}"), frame)
    desk.hello(gates=8)
    gate = desk.orders()[0].id
    assert isinstance(gate, str)
    desk.frame(started=[Started(0, "a", "user-a", 1), Started(1, "b", "user-b", 1)])
    desk.frame(refused=[Refusal(0, "arm", gate, "b", "dose", "Over the cap of 0.5.")])
    told = [event for event in desk.sink.events if isinstance(event, Ordered)][-1]
    assert (told.kind, told.result, told.request.request_id) == ("arm", "refused", "user-b")
    desk.frame([(0, 0, Role.USER, 0), (1, 0, Role.USER, 0)], 9.0)
    assert desk.orders() == [Steer("b", [Act("sycophancy", -0.3)], None, FIRST, max_dose=0.5)]
    # It goes for the next request that has the key's place, and the gate is still the engine's.
    desk.frame(finished=[1])
    assert desk.monitor.interventions.states.find("engine", "b") is None
    desk.hello(gates=8, armed=[gate])
    assert not [order for order in desk.orders() if isinstance(order, Arm) and order.id == gate]


def test_the_audit_log_says_why_it_was_stopped(load, frame, tmp_path):
    path = tmp_path / "audit.jsonl"
    desk = Desk(*load(CLOSED), frame, audit=AuditLog(path))
    with closing(desk.monitor):
        desk.hello()
        desk.fire()
        desk.frame(refused=[refusal()])
    verify(path)
    records = [msgspec.json.decode(raw)["record"] for raw in path.read_bytes().splitlines()]
    (stop,) = [record for record in records if record.get("operation") == "stop"]
    assert (stop["sent"], stop["rule"], stop["aggregate"]) == (True, "civil", 9.0)
    assert stop["request"]["request_id"] == "user-a"
    assert "fails closed" in stop["reason"]
