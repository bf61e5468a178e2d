"""Gates from the monitor's side: what it orders, and what it makes of what they decide."""

import time
from contextlib import closing

import msgspec
import pytest

from monitor.events import (
    Alert,
    Intervention,
    InterventionEnded,
    InterventionsLost,
    Ordered,
    ProbeFired,
    RequestFinished,
)
from monitor.ingest import Arrival, MemorySource
from monitor.policy import AlertAction, Gate, Policy, Rule, SteerAction, Steering, StopAction
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.sinks.audit import AuditLog, verify
from monitor.store import MemoryStore
from monitor.wire.codec import decode_order
from monitor.wire.frames import VERSION, GateEvent, Hello, Refusal, Started
from monitor.wire.orders import Ack, Act, Admission, Arm, Disarm, Release, Steer, Stop
from probes.scoring.roles import Role

CLAMP = SteerAction(
    Steering("sycophancy", "clamp", high=0.1, tokens=50, gate=Gate(hold=8, release=0.25, release_streak=2))
)
ADD = SteerAction(Steering("harmful_intent", dose=-0.2, gate=Gate(threshold=1.2)))
RULES = (
    Rule("flattery", "sycophancy", ("tiny",), "enforce", (CLAMP, AlertAction("info"))),
    Rule("others", "sycophancy", (), "alert", (AlertAction("warning"),)),
    Rule("poison", "toxicity", (), "enforce", (ADD, AlertAction("critical"))),
    Rule("watched", "toxicity", (), "shadow", (ADD,)),
    Rule("elsewhere", "toxicity", ("llama",), "enforce", (ADD,)),
)
POLICY = Policy("policy.yaml", "abcdef0123456789" * 4, RULES)
FLATTERY, POISON = [id for id, gate in POLICY.gates.items() if gate.rule.name in ("flattery", "poison")]
ARMS = [
    Arm(FLATTERY, "sycophancy", [Act("sycophancy", high=0.1)], release=0.25, release_streak=2, hold=8, budget=50),
    Arm(POISON, "toxicity", [Act("harmful_intent", -0.2)], threshold=1.2),
]
DISARMS = [Disarm(id) for id in sorted((FLATTERY, POISON))]


def opened(number=0, gate=FLATTERY, key="a", position=5, average=0.75):
    return GateEvent(number, gate, "opened", key, f"user-{key}", position, average, 0)


def closed(number=1, gate=FLATTERY, key="a", position=18, steered=13):
    return GateEvent(number, gate, "closed", key, f"user-{key}", position, None, steered)


class Desk:
    """A monitor driven by hand, with an engine of made-up frames."""

    def __init__(self, bundle, frame, policy=POLICY, audit=None, clock=1000.0, store=None):
        self.bundle, self.make_frame, self.now = bundle, frame, clock
        self.source, self.sink = MemorySource(), MemorySink()
        self.monitor = Monitor(
            bundle, policy, self.source, sinks=[self.sink], audit=audit, store=store, clock=lambda: self.now
        )
        self.stats = self.monitor.stats

    def hello(self, **said):
        message = Hello(VERSION, "engine", "tiny", self.bundle.digest, "0.32.0", **said)
        self.monitor.receive(Arrival(b"engine/core", message))

    def frame(self, *args, gates=(), refused=(), **options):
        made = self.make_frame(*args, **options)
        header = msgspec.structs.replace(made.header, gates=list(gates), refused=list(refused))
        self.monitor.receive(Arrival(b"engine/rank0", msgspec.structs.replace(made, header=header)))

    def pass_time(self, seconds):
        self.now += seconds
        self.monitor.tick()

    def events(self, kind):
        return [event for event in self.sink.events if isinstance(event, kind)]

    def orders(self):
        """What was sent since the last look, but confirmations."""
        sent, self.source.sent = self.source.sent, []
        decoded = [decode_order(parts) for _, parts in sent]
        return [order for order in decoded if order is not None and not isinstance(order, Ack)]


@pytest.fixture
def desk(tiny_bundle, frame):
    return Desk(tiny_bundle(), frame)


def started(slot=0, key="a", prompt=4):
    return Started(slot, key, f"user-{key}", prompt)


def rows(positions, slot=0, steered=0, role=Role.ASSISTANT):
    return [(slot, position, role, steered) for position in positions]


def test_gates_that_enforce_are_armed_at_connect_and_once(desk):
    desk.hello()
    desk.hello()
    assert desk.orders() == ARMS
    told = desk.events(Ordered)
    assert [(event.order, event.kind, event.result, event.who) for event in told] == [
        (FLATTERY, "arm", "sent", "policy"),
        (POISON, "arm", "sent", "policy"),
    ]
    assert desk.stats.orders == {("policy", "arm", "sent"): 2}
    assert told[0].detail == (
        "rule 'flattery' enforces: clamp sycophancy to at most 0.1 for 50 tokens, "
        "by the engine's gate holding 8 tokens until below 0.25"
    )


def test_gates_are_armed_again_after_an_engine_was_lost(desk):
    desk.hello()
    desk.orders()
    desk.pass_time(6)
    desk.hello()
    assert desk.orders() == ARMS


def test_an_engine_that_cannot_be_reached_is_tried_again(desk):
    desk.source.away.add(b"engine/core")
    desk.hello()
    assert desk.orders() == [] and desk.events(Ordered) == []
    desk.source.away.clear()
    desk.hello()
    assert desk.orders() == ARMS


def test_nothing_is_armed_in_shadow_and_what_was_is_disarmed(desk):
    desk.hello(shadow=True, drift=0.9)
    assert desk.orders() == []
    desk.hello(drift=0.01)
    assert desk.orders() == ARMS
    desk.hello(shadow=True, drift=0.9)
    assert desk.orders() == DISARMS
    desk.hello(drift=0.01)
    assert desk.orders() == ARMS


def test_an_idle_engine_has_not_armed_yet_what_it_was_ordered(desk):
    for _ in range(20):
        desk.hello(armed=[], gates=8)
        desk.pass_time(1)
    assert desk.orders() == ARMS
    desk.hello(armed=[], gates=8, shadow=True)
    assert desk.orders() == DISARMS
    # Neither has been applied when the third order comes, nor when it is to be disarmed again.
    desk.hello(armed=[FLATTERY, POISON], gates=8)
    desk.hello(armed=[FLATTERY, POISON], gates=8, shadow=True)
    assert desk.orders() == [*ARMS, *DISARMS]


def test_what_an_earlier_policy_armed_is_disarmed_where_the_engine_says_what_it_has(desk):
    old = ["policy:999999999999:flattery:0", "somebody-elses"]
    desk.hello(armed=old, gates=8)
    desk.hello(armed=[*old, FLATTERY, POISON], gates=8)
    assert desk.orders() == [Disarm(old[0]), *ARMS]
    desk.hello(armed=["somebody-elses", FLATTERY, POISON], gates=8)
    assert desk.orders() == []


def test_a_gate_of_an_earlier_policy_that_decides_is_disarmed_and_told_without_a_rule(desk):
    desk.hello()
    desk.orders()
    desk.frame(0, started=[started()], gates=[opened(gate="policy:999999999999:flattery:0")])
    assert desk.orders() == [Disarm("policy:999999999999:flattery:0")]
    (told,) = desk.events(Intervention)
    assert (told.rule, told.probe, told.sent) == ("", "", True)
    assert "was not armed by this monitor" in told.reason
    assert desk.events(ProbeFired) == []


def test_an_engine_without_room_for_a_gate_is_ordered_to_steer_instead(desk):
    desk.hello(gates=1)
    assert desk.orders() == ARMS[:1]
    assert desk.events(Ordered)[-1].reason == ("it has 1 gates; the monitor orders this itself, from the next step on")
    desk.frame(0, rows([4]), [[0.0, 1.5, 0.0]], started=[started()])
    assert desk.orders() == [Steer("a", [Act("harmful_intent", -0.2)], None, "poison:harmful_intent:-0.2")]
    assert [event.sent for event in desk.events(Intervention) if event.mode == "enforce"] == [True]


def test_so_is_one_that_refused_to_arm_it(desk):
    desk.hello()
    desk.orders()
    refusal = Refusal(0, "arm", POISON, "", "gate", "All 1 gates are in use.")
    desk.frame(0, rows([4]), 1.5, started=[started()], refused=[refusal])
    desk.frame(1, rows([4], slot=1), 1.5, started=[started(1, "b")], refused=[refusal])
    refused = [event for event in desk.events(Ordered) if event.result == "refused"]
    assert [(event.order, event.who, event.reason) for event in refused] == [
        (POISON, "engine", "All 1 gates are in use."),
    ]
    assert desk.stats.orders["engine", "arm", "refused"] == 1
    steered = desk.orders()
    assert [type(order) for order in steered] == [Steer] * len(steered)
    # The refusal came with the frame in which a fired, and was read behind its verdict or before: b is ordered surely.
    assert Steer("b", [Act("harmful_intent", -0.2)], None, "poison:harmful_intent:-0.2") in steered


STEER = Steer("a", [Act("sycophancy", high=0.1)], 50, "flattery:sycophancy:clamp:-inf..0.1:50")
REFUSED = Refusal(0, "arm", FLATTERY, "", "gate", "All 4 gates are in use.")


def flattered(slot=0):
    return rows([4], slot), [[0.0, 0.0, 0.9]]


def test_a_request_that_was_in_flight_before_its_gate_is_ordered_to_be_steered(desk):
    desk.hello(armed=[], gates=0, shadow=True, drift=0.9)
    desk.frame(0, rows([3], role=Role.USER), started=[started()])
    desk.hello(armed=[], gates=4)
    assert desk.orders() == ARMS
    # The gate takes effect behind what it should have read.
    desk.frame(1, *flattered())
    assert desk.orders() == [STEER]
    desk.frame(2, *flattered(1), started=[started(1, "b")])
    assert desk.orders() == []


def test_an_order_makes_way_for_the_gate_that_it_stood_in_for(desk):
    desk.frame(0, rows([3], role=Role.USER), started=[started()])
    desk.hello(armed=[], gates=4)
    desk.frame(1, *flattered())
    desk.orders()
    desk.frame(2, gates=[opened()])
    assert desk.orders() == [Release("a", STEER.id)]
    desk.frame(3, gates=[closed(), opened(2, position=30)])
    assert desk.orders() == []


def test_a_gate_that_opened_first_is_not_joined_by_an_order(desk):
    desk.frame(0, rows([3], role=Role.USER), started=[started()])
    desk.hello(armed=[], gates=4)
    desk.orders()
    # It has a threshold of its own, and the probe fires later.
    desk.frame(1, gates=[opened(gate=POISON, average=1.25)])
    desk.frame(2, rows([6]), [[0.0, 1.5, 0.0]])
    desk.frame(3, refused=[msgspec.structs.replace(REFUSED, id=POISON)])
    assert desk.orders() == []


def test_requests_in_flight_are_the_gates_that_an_engine_has_armed_already(desk):
    desk.frame(0, rows([3], role=Role.USER), started=[started()])
    desk.hello(armed=[FLATTERY, POISON], gates=4)
    desk.orders()
    desk.frame(1, *flattered())
    assert desk.orders() == []


def test_what_was_left_to_a_gate_that_is_refused_is_ordered_then(desk):
    desk.hello()
    desk.orders()
    for number, key in enumerate("abc"):
        desk.frame(number, *flattered(number), started=[started(number, key)])
    desk.frame(3, finished=[1], gates=[opened(key="c", position=4, average=0.9)])
    assert desk.orders() == []
    # b has ended, and c is steered by it.
    desk.frame(4, refused=[REFUSED])
    assert desk.orders() == [STEER]
    assert [event.sent for event in desk.events(Intervention) if event.request.engine_request_id == "a"] == [True]
    desk.frame(5, refused=[msgspec.structs.replace(REFUSED, number=1)])
    assert desk.orders() == []


def test_what_was_left_to_a_gate_that_leaves_the_request_out_is_ordered_then(desk):
    desk.hello()
    desk.orders()
    for number, key in enumerate("ab"):
        desk.frame(number, *flattered(number), started=[started(number, key)])
    desk.frame(2, refused=[msgspec.structs.replace(REFUSED, engine_request_id="a", cause="cap")])
    assert desk.orders() == [STEER]


def test_refusals_that_never_arrived_are_counted_and_one_of_a_later_release_is_passed_over(desk):
    desk.hello()
    desk.frame(0, refused=[msgspec.structs.replace(REFUSED, number=1, order="levitate", id="x")])
    desk.frame(1, refused=[msgspec.structs.replace(REFUSED, number=5, order="stream", id="")])
    assert desk.stats.refusals_lost == {("tiny",): 3}
    assert {key: count for key, count in desk.stats.orders.items() if key[0] == "engine"} == {
        ("engine", "stream", "refused"): 1
    }


def test_a_gate_that_leaves_out_a_request_which_is_not_followed_orders_nothing(desk):
    desk.hello()
    desk.orders()
    desk.frame(0, refused=[msgspec.structs.replace(REFUSED, engine_request_id="z", cause="cap")])
    assert desk.orders() == []
    assert desk.events(Ordered)[-1].request.engine_request_id == "z"


def test_a_gate_that_was_not_ordered_leaves_nobody_out(desk):
    desk.hello()
    desk.frame(0, *flattered(), started=[started()])
    desk.orders()
    desk.frame(
        1,
        refused=[
            msgspec.structs.replace(REFUSED, id="policy:999999999999:other:0", engine_request_id="a", cause="cap")
        ],
    )
    assert desk.orders() == []


def test_nothing_follows_a_refusal_of_what_is_not_wanted_any_more(desk):
    desk.hello()
    desk.frame(0, *flattered(), started=[started()])
    desk.monitor.change_policy(Policy("other.yaml", "f" * 64, ()))
    desk.orders()
    desk.frame(1, refused=[REFUSED])
    assert desk.orders() == []


def test_a_gate_that_opens_is_an_intervention_with_all_that_is_known_of_it(desk):
    desk.hello()
    desk.frame(0, rows(range(4), role=Role.USER), started=[started()])
    desk.frame(1, rows([5], steered=1), gates=[opened()])
    desk.frame(2, gates=[opened(), closed()])
    desk.frame(3, finished=[0])
    (told,) = desk.events(Intervention)
    assert (told.rule, told.probe, told.aggregate, told.threshold, told.position) == (
        "flattery", "sycophancy", 0.75, 0.5, 5,
    )  # fmt: skip
    assert (told.vector, told.operation, told.low, told.high, told.tokens) == ("sycophancy", "clamp", None, 0.1, 50)
    assert (told.gate, told.number, told.sent, told.mode) == (FLATTERY, 0, True, "enforce")
    assert told.request.prompt_tokens == 4 and told.request.request_id == "user-a"
    assert told.reason.startswith("the engine's gate read probe sycophancy at 0.75 (threshold 0.50) at token 5; rule")
    (ended,) = desk.events(InterventionEnded)
    assert (ended.rule, ended.position, ended.steered, ended.number) == ("flattery", 18, 13, 1)
    assert desk.stats.interventions["tiny", "flattery", "sycophancy", "enforce", True] == 1
    assert desk.stats.gate_decisions == {("tiny", "flattery", "opened"): 1, ("tiny", "flattery", "closed"): 1}
    assert desk.stats.gate_tokens_steered == {("tiny", "flattery"): 13}
    # What it saw is the probe's firing: every rule about it decides, and the verdict says so.
    (fired,) = desk.events(ProbeFired)
    assert (fired.probe, fired.position, fired.aggregate, fired.role) == ("sycophancy", 5, 0.75, "assistant")
    assert [event.rule for event in desk.events(Alert)] == ["flattery", "others"]
    (finished,) = desk.events(RequestFinished)
    assert finished.readings[2].fired_at == 5 and finished.readings[2].peak == 0.75


def test_a_gate_that_opens_again_alerts_once_and_counts_on(desk):
    desk.hello()
    desk.frame(0, rows([4]), started=[started()])
    desk.frame(1, gates=[opened(0), closed(1, steered=13), opened(2, position=30), closed(3, position=40, steered=20)])
    assert len(desk.events(Intervention)) == 2 and len(desk.events(ProbeFired)) == 1
    assert [event.rule for event in desk.events(Alert)] == ["flattery", "others"]
    assert desk.stats.gate_tokens_steered == {("tiny", "flattery"): 20}


def test_a_gate_with_a_threshold_of_its_own_is_no_firing(desk):
    desk.hello()
    desk.frame(0, rows([4]), started=[started()])
    desk.frame(1, gates=[opened(gate=POISON, average=1.25)])
    assert desk.events(ProbeFired) == []
    assert [event.rule for event in desk.events(Alert)] == ["poison"]
    (told,) = desk.events(Intervention)
    assert (told.threshold, told.rule) == (1.2, "poison")
    assert "in a row" not in told.reason


def test_a_gate_says_how_many_averages_in_a_row_its_probe_wants(tiny_bundle, frame):
    desk = Desk(tiny_bundle(agree=3), frame)
    desk.hello()
    desk.frame(0, rows([4]), started=[started()])
    desk.frame(1, gates=[opened()])
    (told,) = desk.events(Intervention)
    assert (told.agree, told.agree_of, told.rule) == (3, 3, "flattery")
    assert "3 averages in a row" in told.reason


def test_a_firing_that_the_gate_acts_on_is_not_ordered_as_well(desk):
    desk.hello()
    desk.orders()
    desk.frame(0, rows([4]), [[0.0, 0.0, 0.9]], started=[started()])
    desk.frame(1, gates=[opened(position=4, average=0.9)])
    assert desk.orders() == []
    assert len(desk.events(ProbeFired)) == 1 and len(desk.events(Intervention)) == 1


def test_decisions_are_told_once_and_gaps_are_losses(desk):
    desk.hello()
    desk.frame(0, started=[started()], gates=[opened(7)])
    desk.frame(1, gates=[opened(7), closed(8)])
    desk.frame(2, gates=[closed(8), opened(12)])
    assert [event.number for event in desk.events(Intervention)] == [7, 12]
    assert [event.number for event in desk.events(InterventionEnded)] == [8]
    assert desk.events(InterventionsLost) == [InterventionsLost("engine", "tiny", 3)]
    assert desk.stats.gate_decisions_lost == {("tiny",): 3}


def test_a_decision_about_a_request_that_ended_is_told_all_the_same(desk):
    desk.hello()
    desk.frame(0, rows([4]), started=[started()])
    desk.frame(1, finished=[0])
    desk.frame(2, gates=[opened(), closed(1)])
    (told,), (ended,) = desk.events(Intervention), desk.events(InterventionEnded)
    assert told.request.engine_request_id == "a" and told.request.prompt_tokens == 0 and ended.steered == 13
    assert [event.rule for event in desk.events(Alert)] == ["flattery", "others"]


def test_a_decision_in_the_frame_that_ends_its_request_is_part_of_the_verdict(desk):
    desk.hello()
    desk.frame(0, rows([4]), started=[started()])
    desk.frame(1, finished=[0], gates=[opened(), closed(1)])
    kinds = [type(event) for event in desk.sink.events][-5:]
    assert kinds[-1] is RequestFinished and ProbeFired in [type(event) for event in desk.sink.events]
    assert desk.events(RequestFinished)[0].readings[2].fired_at == 5


def records(path):
    verify(path)
    return [msgspec.json.decode(raw)["record"] for raw in path.read_bytes().splitlines()]


@pytest.fixture(params=["audited", "without audit"])
def restart(request, tiny_bundle, frame, tmp_path):
    """Starts one monitor after another, with the same state and, if there is one, the same audit log."""
    bundle, path = tiny_bundle(), tmp_path / "audit.jsonl"

    def start(policy=POLICY):
        store = MemoryStore(tmp_path / "state")
        audit = AuditLog(path, store=store) if request.param == "audited" else None
        return Desk(bundle, frame, policy, audit=audit, store=store)

    start.records = lambda: records(path) if request.param == "audited" else None
    return start


def test_each_decision_is_recorded_once_though_a_second_monitor_hears_them_again(restart):
    first = restart()
    first.hello()
    first.frame(0, started=[started()], gates=[opened(0), closed(1)])
    first.monitor.close()
    # The confirmation was lost, and the engine decided once more meanwhile.
    second = restart()
    with closing(second.monitor):
        second.hello()
        second.frame(1, started=[started()], complete=True, gates=[opened(0), closed(1), opened(3)])
    recorded = [[event.number for event in desk.events(Intervention)] for desk in (first, second)]
    assert recorded == [[0], [3]] and second.events(InterventionEnded) == []
    assert [event.decisions for event in second.events(InterventionsLost)] == [1]
    if (found := restart.records()) is not None:
        numbers = [(record["type"], record["number"]) for record in found if record.get("number") is not None]
        assert numbers == [("intervention", 0), ("intervention_ended", 1), ("intervention", 3)]
        assert [record["decisions"] for record in found if record["type"] == "interventions_lost"] == [1]
        (ended,) = [record for record in found if record["type"] == "intervention_ended"]
        assert (ended["rule"], ended["gate"], ended["steered"], ended["position"]) == ("flattery", FLATTERY, 13, 18)


def test_a_refusal_is_recorded_once_though_a_second_monitor_hears_it_again(restart):
    refusal = Refusal(0, "steer", "rule:v", "a", "vector", "There is no such vector.")
    first = restart()
    first.hello()
    first.frame(0, started=[started()], refused=[refusal])
    first.monitor.close()
    second = restart()
    with closing(second.monitor):
        second.hello()
        second.frame(1, started=[started()], complete=True, refused=[refusal])
    assert [[event.who for event in desk.events(Ordered)].count("engine") for desk in (first, second)] == [1, 0]


def test_the_next_policy_disarms_what_is_known_where_the_engine_does_not_say_what_it_has(restart):
    first = restart()
    first.hello()
    first.monitor.close()
    second = restart(Policy("other.yaml", "f" * 64, ()))
    with closing(second.monitor):
        second.hello()
        assert second.orders() == DISARMS
    third = restart()
    with closing(third.monitor):
        third.hello()
        assert third.orders() == ARMS
    if (found := restart.records()) is not None:
        policies = [record for record in found if record["type"] == "policy_in_force"]
        assert [record["before"] for record in policies] == [None, POLICY.digest, "f" * 64]


def test_a_rule_is_carried_out_once_though_a_second_monitor_sees_its_probe_fire_again(restart):
    told = []
    for number in range(2):
        desk = restart()
        with closing(desk.monitor):
            desk.hello(gates=0)
            desk.orders()
            desk.frame(number, rows([4]), [[0.0, 0.0, 0.9]], started=[started()], complete=True)
            told.append((len(desk.events(Alert)), len(desk.events(Intervention)), len(desk.orders())))
            if number:
                desk.frame(2, finished=[0])
    assert told[0][0] > 0 and told[0][1] > 0 and told[1] == (0, 0, 0)
    last = restart()
    with closing(last.monitor):
        assert last.monitor.store.state.requests == {}, "it has ended"


def test_a_frame_with_decisions_is_not_confirmed_before_they_are_on_disk(tiny_bundle, frame, tmp_path, monkeypatch):
    log = AuditLog(tmp_path / "audit.jsonl")
    desk = Desk(tiny_bundle(), frame, audit=log)
    with closing(desk.monitor):
        desk.hello()
        desk.source.sent.clear()
        monkeypatch.setattr("os.write", _full)
        desk.frame(0, started=[started()], gates=[opened()])
        desk.pass_time(1)
        assert [decode_order(parts) for _, parts in desk.source.sent] == []
        monkeypatch.undo()
        while log.settled < log.accepted:
            time.sleep(0.005)
        desk.pass_time(1)
        assert Ack(0) in [decode_order(parts) for _, parts in desk.source.sent]


def _full(descriptor, data):
    raise OSError(28, "No space left on device")


def test_what_a_request_asked_to_be_steered_by_is_told_once(desk):
    asked = Admission([Act("sycophancy", -0.2), Act("harmful_intent", scale=0.0, high=0.5)], tokens=20)
    begun = msgspec.structs.replace(started(), admitted=asked)
    desk.hello()
    desk.frame(0, started=[begun, started(1, "b")])
    desk.frame(1, started=[begun, started(1, "b")], complete=True)
    (told,) = [event for event in desk.events(Ordered) if event.kind == "admission"]
    assert (told.who, told.result, told.request.engine_request_id) == ("request", "sent", "a")
    assert told.detail == (
        "steer sycophancy at dose -0.2 and ablate harmful_intent, clamp harmful_intent to at most 0.5 for 20 tokens"
    )
    assert desk.stats.orders["request", "admission", "sent"] == 1


def test_what_a_request_asked_for_is_recorded_once_though_its_engine_was_lost_and_the_monitor_is_another(restart):
    begun = msgspec.structs.replace(started(), admitted=Admission([Act("sycophancy", -0.2)]))
    first = restart()
    with closing(first.monitor):
        first.hello()
        first.frame(0, started=[begun])
        first.pass_time(6)
        first.hello()
        first.frame(1, started=[begun], complete=True)
    second = restart()
    with closing(second.monitor):
        second.hello()
        second.frame(2, started=[begun, msgspec.structs.replace(begun, slot=1, engine_request_id="b")], complete=True)
    admissions = [
        event.request.engine_request_id
        for desk in (first, second)
        for event in desk.events(Ordered)
        if event.kind == "admission"
    ]
    assert admissions == ["a", "b"]
    if (found := restart.records()) is not None:
        assert sum(record.get("kind") == "admission" for record in found) == 2


STOPS = Policy(
    "policy.yaml",
    "abcdef0123456789" * 4,
    (Rule("silenced", "sycophancy", (), "enforce", (StopAction("Enough.", gate=True), AlertAction("info"))),),
)
(SILENCE,) = STOPS.gates


def test_a_gate_that_stops_is_armed_and_what_it_stopped_is_recorded(tiny_bundle, frame):
    desk = Desk(tiny_bundle(), frame, policy=STOPS)
    desk.hello()
    assert desk.orders() == [Arm(SILENCE, "sycophancy", [], stop="Enough.")]
    desk.frame(0, rows([0, 1]), 0.1, started=[started()], gates=[opened(gate=SILENCE, position=1)])
    assert desk.orders() == []
    (stop,) = desk.events(Intervention)
    assert (stop.rule, stop.operation, stop.sent, stop.gate, stop.position) == ("silenced", "stop", True, SILENCE, 1)
    assert stop.reason.endswith("nothing that the model said behind it left the engine")
    assert [event.rule for event in desk.events(Alert)] == ["silenced"]
    assert [event.position for event in desk.events(ProbeFired)] == [1]


def test_what_no_gate_stops_the_monitor_stops(tiny_bundle, frame):
    desk = Desk(tiny_bundle(), frame, policy=STOPS)
    desk.hello(gates=0)
    desk.frame(0, rows([4]), 9.0, started=[started()])
    assert desk.orders() == [Stop("a", "Enough.", "silenced:stop")]
    refusing = Desk(tiny_bundle(), frame, policy=STOPS)
    refusing.hello()
    refusing.orders()
    refusing.frame(0, rows([4]), 9.0, started=[started()])
    assert refusing.orders() == []
    refusing.frame(1, refused=[Refusal(0, "arm", SILENCE, "", "gate", "It runs on a GPU.")])
    assert refusing.orders() == [Stop("a", "Enough.", "silenced:stop")]


def test_no_gate_stops_in_shadow(tiny_bundle, frame):
    desk = Desk(tiny_bundle(), frame, policy=STOPS)
    desk.hello(shadow=True, drift=0.9)
    desk.frame(0, rows([4]), 9.0, started=[started()])
    assert desk.orders() == []
    (event,) = desk.events(Intervention)
    assert (event.mode, event.operation, event.sent) == ("shadow", "stop", False)
