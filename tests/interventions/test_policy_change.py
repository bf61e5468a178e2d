"""Another policy at run time: gates, rules and caps follow at once, and a bad one changes nothing."""

from dataclasses import replace

import pytest

from monitor.events import Alert, Intervention, Ordered, PolicyChanged
from monitor.policy import AlertAction, Gate, Policy, Rule, SteerAction, Steering
from monitor.wire.frames import GateEvent, Refusal, Started
from monitor.wire.orders import Act, Arm, Disarm, Steer
from probes.scoring.roles import Role
from tests.harness.desk import Desk

CLAMP = SteerAction(Steering("sycophancy", "clamp", high=0.1, gate=Gate(hold=8)))
FIRST = Policy("policy.yaml", "a" * 64, (Rule("flattery", "sycophancy", (), "enforce", (CLAMP,)),))
ADD = SteerAction(Steering("harmful_intent", dose=-0.2, gate=Gate()))
SECOND = Policy(
    "policy.yaml",
    "b" * 64,
    (
        Rule("poison", "toxicity", (), "enforce", (ADD,)),
        Rule("told", "toxicity", (), "alert", (AlertAction("info"),)),
    ),
    max_dose=0.25,
)
(OLD,), (NEW,) = FIRST.gates, SECOND.gates
NEW_ARM = Arm(NEW, "toxicity", [Act("harmful_intent", -0.2)], max_dose=0.25)


@pytest.fixture
def desk(tiny_bundle, frame):
    desk = Desk(tiny_bundle(), FIRST, frame)
    desk.hello(gates=4)
    desk.orders()
    return desk


def of(desk, kind):
    return [event for event in desk.sink.events if isinstance(event, kind)]


def test_old_gates_are_disarmed_and_new_ones_armed_at_once_and_once(desk):
    desk.monitor.change_policy(SECOND)
    assert desk.orders() == [Disarm(OLD), NEW_ARM]
    desk.hello(gates=4, armed=[NEW])
    assert desk.orders() == []
    assert [(event.order, event.kind) for event in of(desk, Ordered)] == [(OLD, "arm"), (OLD, "disarm"), (NEW, "arm")]
    # And back.
    desk.monitor.change_policy(FIRST)
    assert [type(order) for order in desk.orders()] == [Disarm, Arm]


def test_the_change_is_told_with_both_digests_and_counted(desk):
    desk.monitor.change_policy(SECOND)
    (told,) = of(desk, PolicyChanged)
    assert (told.policy, told.digest, told.before, told.in_force) == ("policy.yaml", "b" * 64, "a" * 64, True)
    assert told.reason == "2 rules and 1 gates decide from here on, digest bbbbbbbbbbbb"
    assert desk.monitor.status().policy_digest == "b" * 64
    assert desk.stats.policy_reloads == {("in_force",): 1, ("refused",): 0}


def test_requests_in_flight_are_judged_by_the_new_one(desk):
    desk.frame(started=[Started(0, "a", "user-a", 1)])
    desk.monitor.change_policy(SECOND)
    desk.frame([(0, 0, Role.USER, 0), (0, 1, Role.ASSISTANT, 0)], [[0.0, 1.5, 9.0]] * 2)
    assert [event.rule for event in of(desk, Alert)] == ["told"]
    # Sycophancy fired as well, and has no rule any more.
    assert not [event for event in of(desk, Intervention) if event.rule == "flattery"]


def test_a_decision_of_an_old_gate_that_was_under_way_still_has_its_rule(desk):
    desk.frame(started=[Started(0, "a", "user-a", 1)])
    desk.monitor.change_policy(SECOND)
    desk.orders()
    desk.frame(gates=[GateEvent(0, OLD, "opened", "a", "user-a", 3, 0.75, 0)])
    (told,) = of(desk, Intervention)
    assert (told.rule, told.vector, told.high) == ("flattery", "sycophancy", 0.1)
    # It is disarmed already.
    assert [order for order in desk.orders() if isinstance(order, Disarm)] == []


def test_the_new_cap_holds_for_orders_from_then_on(desk, tiny_bundle, frame):
    steer = Policy(
        "p",
        "c" * 64,
        (Rule("r", "toxicity", (), "enforce", (SteerAction(Steering("sycophancy", dose=-0.2, tokens=5)),)),),
        0.3,
    )
    desk.monitor.change_policy(steer)
    desk.orders()
    desk.fire()
    assert desk.orders() == [Steer("a", [Act("sycophancy", -0.2)], 5, "r:sycophancy:-0.2:5", max_dose=0.3)]
    assert desk.monitor.interventions.operator.max_dose == 0.3


def test_a_gate_that_the_new_policy_has_as_well_stays_armed(desk):
    other = Rule("told", "toxicity", (), "alert", (AlertAction("info"),))
    desk.monitor.change_policy(Policy("policy.yaml", "c" * 64, (*FIRST.rules, other)))
    desk.hello(gates=4, armed=[OLD])
    assert desk.orders() == []
    # What it does to whom is another thing than it was, or nothing.
    for changed in (
        Policy("policy.yaml", "d" * 64, FIRST.rules, max_dose=0.25),
        Policy("policy.yaml", "e" * 64, (replace(FIRST.rules[0], mode="shadow"),)),
        Policy("policy.yaml", "f" * 64, (replace(FIRST.rules[0], probe="toxicity"),)),
    ):
        desk.monitor.change_policy(FIRST)
        desk.orders()
        desk.monitor.change_policy(changed)
        assert desk.orders()[0] == Disarm(OLD)


def test_models_that_a_rule_gains_or_loses_leave_the_gates_of_the_others_alone(desk):
    for models, orders in ((("tiny", "llama"), []), (("llama",), [Disarm(OLD)])):
        desk.monitor.change_policy(Policy("p", "c" * 64, (replace(FIRST.rules[0], models=models),)))
        assert desk.orders() == orders


def test_gates_that_are_armed_go_before_new_ones_where_there_are_too_few(desk):
    desk.hello(gates=1, armed=[OLD])
    desk.monitor.change_policy(Policy("policy.yaml", "c" * 64, (*SECOND.rules, *FIRST.rules)))
    desk.hello(gates=1, armed=[OLD])
    assert desk.orders() == []
    assert [(event.order, event.result) for event in of(desk, Ordered)] == [
        (OLD, "sent"),
        (next(iter(Policy("p", "", SECOND.rules).gates)), "refused"),
    ]


def test_a_gate_that_was_refused_is_tried_again(desk):
    desk.frame(refused=[Refusal(0, "arm", OLD, "", "gate", "All 4 gates are in use.")])
    assert desk.orders() == []
    desk.monitor.change_policy(FIRST)
    (arm,) = desk.orders()
    assert (type(arm), arm.id) == (Arm, OLD)


def test_one_that_cannot_be_used_changes_nothing(desk):
    desk.monitor.refuse_policy("policy.yaml", "policy.yaml: version: is missing.")
    assert desk.orders() == []
    assert desk.monitor.policy is FIRST
    (told,) = of(desk, PolicyChanged)
    assert (told.in_force, told.digest, told.before) == (False, "", "a" * 64)
    assert told.reason == "policy.yaml: version: is missing."
    assert desk.stats.policy_reloads == {("in_force",): 0, ("refused",): 1}


def test_an_engine_that_is_held_to_shadow_is_armed_with_nothing(desk):
    desk.hello(gates=4, shadow=True, drift=0.9)
    desk.orders()
    desk.monitor.change_policy(SECOND)
    assert desk.orders() == []


def test_an_engine_that_was_lost_gets_the_new_gates_when_it_is_heard_again(desk):
    desk.now += 6
    desk.monitor.tick()
    desk.monitor.change_policy(SECOND)
    assert desk.orders() == []
    desk.hello(gates=4, armed=[OLD])
    assert desk.orders() == [Disarm(OLD), NEW_ARM]
