"""Operators' orders as a client gives them: a real server, a real monitor, and an engine of made-up frames."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import msgspec
import pytest

from monitor.api import ApiServer
from monitor.events import Escalated, Intervention, Ordered
from monitor.ingest import Arrival, MemorySource
from monitor.interventions.leases import MAX_ORDERS
from monitor.policy import EscalateAction, Policy, Rule
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.v1 import control_service_pb2 as pb
from monitor.v1 import event_pb2
from monitor.v1.control_service_pb2_grpc import ControlServiceStub
from monitor.v1.monitor_service_pb2 import GetTraceRequest, ListTracesRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from monitor.wire.codec import decode_order
from monitor.wire.frames import VERSION, GateEvent, Hello, Refusal, Started
from monitor.wire.orders import Ack, Act, Arm, Disarm, Release, Steer
from probes.scoring.roles import Role

pytestmark = pytest.mark.timeout(60)

ADD = pb.Act(vector="sycophancy", operation=event_pb2.OPERATION_ADD, dose=-0.2)
REVIEW = Policy("policy.yaml", "d" * 64, (Rule("review", "toxicity", (), "alert", (EscalateAction(),)),), max_dose=0.5)


class House:
    """A monitor with an engine that serves one request, ``user-a``."""

    def __init__(self, bundle, frame):
        self.make_frame, self.bundle, self.now, self.frames = frame, bundle, 1000.0, 100
        self.source, self.sink = MemorySource(), MemorySink()
        self.monitor = Monitor(bundle, REVIEW, self.source, sinks=[self.sink], clock=lambda: self.now)

    def hello(self, engine="engine", digest=None, **said):
        message = Hello(VERSION, engine, "tiny", digest or self.bundle.digest, "0.32.0", **said)
        self.monitor.receive(Arrival(f"{engine}/core".encode(), message))

    def frame(self, *args, gates=(), **options):
        made = self.make_frame(*args, **options)
        made.header.gates.extend(gates)
        self.monitor.receive(Arrival(b"engine/rank0", made))

    def refuse(self, *refusals):
        made = self.make_frame(self.frames)
        self.frames += 1
        made.header.refused.extend(refusals)
        self.monitor.receive(Arrival(b"engine/rank0", made))

    def begin(self):
        self.hello()
        self.frame(0, [(0, 0, Role.USER, 0)], started=[Started(0, "a", "user-a", 1)])
        self.orders()

    def orders(self):
        sent, self.source.sent = self.source.sent, []
        decoded = [decode_order(parts) for _, parts in sent]
        return [order for order in decoded if order is not None and not isinstance(order, Ack)]

    def told(self):
        return [event for event in self.sink.events if isinstance(event, Ordered)]

    @asynccontextmanager
    async def serve(self, *, control=True):
        monitor = self.monitor
        server = await ApiServer.start(
            monitor.events,
            monitor.status,
            monitor.bundle,
            traces=monitor.traces,
            control=monitor.interventions.operator if control else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        try:
            async with grpc.aio.insecure_channel(server.address, options=options) as channel:
                yield ControlServiceStub(channel), MonitorServiceStub(channel)
        finally:
            await server.stop(grace_seconds=1.0)


@pytest.fixture
def house(tiny_bundle, frame):
    return House(tiny_bundle(), frame)


def run(house, scenario, **options):
    async def inside():
        async with house.serve(**options) as (control, reading):
            await scenario(control, reading)

    asyncio.run(asyncio.wait_for(inside(), 30))


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


def test_there_is_no_such_service_unless_it_is_allowed(house):
    async def scenario(control, reading):
        code, _ = await refused(control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60)))
        assert code == "UNIMPLEMENTED"

    house.begin()
    run(house, scenario, control=False)


def test_a_request_is_steered_until_the_lease_ends(house):
    async def scenario(control, reading):
        house.begin()
        answer = await control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60, tokens=9))
        id = answer.order.id
        assert house.orders() == [Steer("a", [Act("sycophancy", -0.2)], 9, id, lease=60.0, max_dose=0.5)]
        assert answer.order.detail == "steer sycophancy at dose -0.2 for 9 tokens"
        house.now += 59
        house.monitor.tick()
        assert house.orders() == []
        (running,) = (await control.ListOrders(pb.ListOrdersRequest())).orders
        assert (running.id, running.remaining_seconds) == (id, 1.0)
        house.hello()
        house.now += 2
        house.monitor.tick()
        house.monitor.tick()
        # The engine ends it by itself, and says so: that is told already.
        assert house.orders() == []
        house.refuse(Refusal(0, "steer", id, "a", "expired", "Its lease of 60 s has ended."))
        assert not (await control.ListOrders(pb.ListOrdersRequest())).orders
        assert [(event.result, event.order, event.lease_seconds) for event in house.told()] == [
            ("sent", id, 60.0),
            ("expired", id, 60.0),
        ]
        assert (
            house.told()[0].who.startswith("operator ipv4:127.0.0.1:")
            and house.told()[0].request.engine_request_id == "a"
        )
        assert await refused(control.Release(pb.ReleaseRequest(id=id))) == (
            "FAILED_PRECONDITION",
            f"No order '{id}' to steer has a lease that runs. "
            "It has ended, or never was; ListOrders names those that run.",
        )

    run(house, scenario)
    assert house.monitor.stats.orders == {
        ("operator", "steer", "sent"): 1,
        ("operator", "steer", "expired"): 1,
        ("operator", "release", "refused"): 1,
    }


def test_a_lease_outlives_its_client_and_no_longer(house):
    house.begin()

    async def order(control, reading):
        await control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=5))

    run(house, order)
    house.orders()
    house.now += 4
    house.monitor.tick()
    assert [event.result for event in house.told()] == ["sent"]
    house.now += 2
    house.monitor.tick()
    assert [event.result for event in house.told()] == ["sent", "expired"]
    assert house.orders() == []


def test_release_undoes_an_order_at_once(house):
    async def scenario(control, reading):
        house.begin()
        id = (await control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60))).order.id
        await control.Release(pb.ReleaseRequest(id=id))
        assert house.orders()[1:] == [Release("a", id)]
        house.now += 100
        house.monitor.tick()
        assert [type(order) for order in house.orders()] == []
        assert [(event.kind, event.result) for event in house.told()] == [("steer", "sent"), ("release", "sent")]

    run(house, scenario)


def test_what_cannot_be_undone_is_undone_when_the_engine_can_be_reached(house):
    async def scenario(control, reading):
        house.begin()
        id = (await control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60))).order.id
        house.orders()
        house.source.away.add(b"engine/core")
        await control.Release(pb.ReleaseRequest(id=id))
        house.monitor.tick()
        assert house.orders() == []
        house.source.away.clear()
        house.monitor.tick()
        assert [type(order) for order in house.orders()] == [Release]

    run(house, scenario)


def test_a_lease_ends_with_its_request(house):
    async def scenario(control, reading):
        house.begin()
        await control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60))
        house.frame(1, finished=[0])
        assert not (await control.ListOrders(pb.ListOrdersRequest())).orders
        code, said = await refused(control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60)))
        assert (code, said) == ("FAILED_PRECONDITION", "Request 'user-a' has ended. There is nothing left to steer.")

    run(house, scenario)


def test_gates_are_armed_on_all_engines_and_on_those_that_come(house):
    async def scenario(control, reading):
        house.begin()
        clamp = pb.Act(vector="harmful_intent", operation=event_pb2.OPERATION_CLAMP, high=0.1)
        wanted = pb.ArmRequest(
            probe="toxicity", act=clamp, lease_seconds=60, release=0.5, hold=4, threshold=0.75, tokens=90
        )
        answer = await control.Arm(wanted)
        id = answer.order.id
        how = {"threshold": 0.75, "release": 0.5, "hold": 4, "budget": 90, "max_dose": 0.5}
        gate = Arm(id, "toxicity", [Act("harmful_intent", high=0.1)], lease=60.0, **how)
        assert (house.orders(), answer.engines) == ([gate], 1)
        house.now += 1
        house.hello()
        assert house.orders() == []
        # An engine that comes later has it for what is left of the lease.
        house.hello("second", armed=[id])
        assert house.orders() == [msgspec.structs.replace(gate, lease=59.0)]
        house.frame(1, gates=[GateEvent(0, id, "opened", "a", "user-a", 3, 1.5, 0)])
        (told,) = [event for event in house.sink.events if isinstance(event, Intervention)]
        assert (told.gate, told.rule, told.probe, told.operation, told.high) == (id, "", "toxicity", "clamp", 0.1)
        assert "operator ipv4:127.0.0.1:" in told.reason
        await control.Disarm(pb.DisarmRequest(id=id))
        assert house.orders() == [Disarm(id), Disarm(id)]
        # Another monitor armed it, or the order to disarm was lost: it is heard of, and disarmed.
        house.hello("second", armed=[id])
        assert house.orders() == [Disarm(id)]

    run(house, scenario)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"request_id": "user-z"}, "NOT_FOUND", "No request 'user-z' is in flight."),
        ({"lease_seconds": 0}, "INVALID_ARGUMENT", "A lease of 0 s cannot be had. Ask for 1 to 3600 s."),
        ({"lease_seconds": 4000}, "INVALID_ARGUMENT", "A lease of 4000 s cannot be had."),
        ({"lease_seconds": float("nan")}, "INVALID_ARGUMENT", "A lease of nan s cannot be had."),
        ({"tokens": 0}, "INVALID_ARGUMENT", "the order: tokens: must be greater than or equal to 1, not 0."),
        ({"act": pb.Act(vector="none", operation=1, dose=0.1)}, "NOT_FOUND", "has no steering vector 'none'"),
        ({"act": pb.Act(vector="sycophancy", operation=1, dose=0.75)}, "INVALID_ARGUMENT", "is beyond max_dose"),
        ({"act": pb.Act(vector="sycophancy", operation=1)}, "INVALID_ARGUMENT", "the order: dose: 0 changes nothing"),
        (
            {"act": pb.Act(vector="sycophancy", operation=1, dose=float("inf"))},
            "INVALID_ARGUMENT",
            "the order: dose: must be a finite number.",
        ),
        ({"act": pb.Act(vector="sycophancy")}, "INVALID_ARGUMENT", "the order: dose: is missing."),
        (
            {"act": pb.Act(vector="sycophancy", operation=3, low=0.2, high=0.1)},
            "INVALID_ARGUMENT",
            "the order: clamp: the range from 0.2 to 0.1 clamps nothing",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(house, change, code, said):
    async def scenario(control, reading):
        house.begin()
        wanted = {"request_id": "user-a", "act": ADD, "lease_seconds": 60, **change}
        found = await refused(control.Steer(pb.SteerRequest(**wanted)))
        assert found[0] == code and said in found[1]

    run(house, scenario)
    assert house.orders() == []
    (told,) = house.told()
    assert told.result == "refused" and said in told.reason
    assert house.monitor.stats.orders == {("operator", "steer", "refused"): 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"release": 1.5}, "the order: release.logits: 1.5 is above the threshold of 1."),
        ({"release": float("nan")}, "the order: release.logits: must be a finite number."),
        ({"probe": "harmful_intent", "release": 0.0}, "the order: release: probe 'harmful_intent' reads no response"),
    ],
)
def test_a_gate_is_checked_as_that_of_a_rule_is(house, given, said):
    async def scenario(control, reading):
        house.hello()
        wanted = pb.ArmRequest(**{"probe": "toxicity", "act": ADD, "lease_seconds": 60, **given})
        code, details = await refused(control.Arm(wanted))
        assert (code, said in details) == ("INVALID_ARGUMENT", True), details

    run(house, scenario)
    assert house.orders() == []
    assert house.monitor.stats.orders == {("operator", "arm", "refused"): 1}


def test_a_probe_that_is_none_and_an_engine_that_cannot_be_had(house):
    async def scenario(control, reading):
        house.hello(shadow=True, drift=0.9)
        wanted = pb.ArmRequest(probe="zzz", act=ADD, lease_seconds=60)
        assert (await refused(control.Arm(wanted)))[0] == "NOT_FOUND"
        wanted.probe = "toxicity"
        assert (await refused(control.Arm(wanted)))[0] == "UNAVAILABLE"
        house.frame(0, started=[Started(0, "a", "user-a", 1)])
        code, said = await refused(control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60)))
        assert code == "FAILED_PRECONDITION" and "its self-test found a drift of 0.900" in said
        house.hello(drift=0.01)
        house.source.away.add(b"engine/core")
        code, said = await refused(control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60)))
        assert (code, said) == ("UNAVAILABLE", "Engine engine cannot be reached. Try again.")

    run(house, scenario)


def test_a_gate_whose_lease_has_ended_is_left_to_an_idle_engine(house):
    async def scenario(control, reading):
        house.begin()
        id = (await control.Arm(pb.ArmRequest(probe="toxicity", act=ADD, lease_seconds=60))).order.id
        house.orders()
        house.now += 61
        house.monitor.tick()
        house.hello(armed=[id])
        assert house.orders() == []
        house.hello("second")
        assert house.orders() == []
        assert [(event.result, event.who) for event in house.told()][1:] == [("expired", house.told()[0].who)]

    run(house, scenario)


def test_an_engine_that_comes_is_armed_when_it_can_be_reached_and_not_behind_the_leases_end(house):
    async def scenario(control, reading):
        house.begin()
        await control.Arm(pb.ArmRequest(probe="toxicity", act=ADD, lease_seconds=60))
        house.orders()
        house.source.away.add(b"second/core")
        house.hello("second")
        assert house.orders() == []
        house.source.away.clear()
        house.hello("second")
        assert [type(order) for order in house.orders()] == [Arm]
        # The lease has run out, and the monitor has not seen to it yet.
        house.now += 60
        house.hello("third")
        assert house.orders() == []

    run(house, scenario)


def test_what_an_engine_ended_without_this_monitor_is_told_when_it_is_heard_of(house):
    """The monitor that ordered it was killed."""
    house.begin()
    ended = [
        Refusal(0, "arm", "order:1234", "", "expired", "Its lease of 600 s has ended."),
        Refusal(1, "steer", "order:5678", "a", "expired", "Its lease of 60 s has ended."),
    ]
    house.refuse(*ended)
    house.refuse(*ended)
    assert [(event.order, event.kind, event.result, event.who, event.reason) for event in house.told()] == [
        ("order:1234", "arm", "expired", "engine", "Its lease of 600 s has ended."),
        ("order:5678", "steer", "expired", "engine", "Its lease of 60 s has ended."),
    ]
    assert house.told()[1].request.request_id == "user-a"
    assert house.monitor.stats.orders == {("engine", "arm", "expired"): 1, ("engine", "steer", "expired"): 1}


def test_an_engine_that_ends_a_lease_first_is_believed(house):
    """Its clock, or this monitor's loop, is not to be relied on to the millisecond."""

    async def scenario(control, reading):
        house.begin()
        id = (await control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60))).order.id
        house.refuse(Refusal(0, "steer", id, "a", "expired", "Its lease of 60 s has ended."))
        assert not (await control.ListOrders(pb.ListOrdersRequest())).orders
        house.now += 61
        house.monitor.tick()
        assert [event.result for event in house.told()] == ["sent", "expired"]

    run(house, scenario)


def test_an_engine_with_another_models_vectors_is_ordered_nothing(house):
    """It scores with another bundle: whatever its vectors are called, they are not those of the order."""

    async def scenario(control, reading):
        house.begin()
        house.hello(digest="f" * 64)
        code, said = await refused(control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60)))
        assert (code, said) == ("NOT_FOUND", "No request 'user-a' is in flight. Its id is that of its answer.")
        code, _ = await refused(control.Arm(pb.ArmRequest(probe="toxicity", act=ADD, lease_seconds=60)))
        assert code == "UNAVAILABLE"

    run(house, scenario)
    assert house.orders() == []
    assert [event.result for event in house.told()] == ["refused", "refused"]
    assert house.monitor.stats.orders == {("operator", "steer", "refused"): 1, ("operator", "arm", "refused"): 1}


def test_an_order_that_the_engine_refuses_is_told_and_has_no_lease(house):
    async def scenario(control, reading):
        house.begin()
        id = (await control.Steer(pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60))).order.id
        made = house.make_frame(1)
        made.header.refused.append(Refusal(0, "steer", id, "a", "slots", "Too much is steered at once."))
        house.monitor.receive(Arrival(b"engine/rank0", made))
        assert not (await control.ListOrders(pb.ListOrdersRequest())).orders
        told = house.told()[-1]
        assert (told.order, told.result, told.who, told.reason) == (
            id,
            "refused",
            "engine",
            "Too much is steered at once.",
        )
        assert told.request.request_id == "user-a" and told.detail == f"steer {id} (slots)"

    run(house, scenario)


def test_an_engine_that_refuses_a_gate_is_asked_again_only_after_it_was_lost(house):
    async def scenario(control, reading):
        house.begin()
        house.hello("second")
        id = (await control.Arm(pb.ArmRequest(probe="toxicity", act=ADD, lease_seconds=60))).order.id
        house.orders()
        house.refuse(Refusal(0, "arm", id, "", "gate", "All 1 gates are in use."))
        for _ in range(3):
            house.hello(gates=1, armed=["somebody-elses"])
        assert house.orders() == []
        assert [event.result for event in house.told()] == ["sent", "sent", "refused"]
        # It may be another's then.
        house.now += 6
        house.monitor.tick()
        house.hello(gates=1, armed=[])
        (arm,) = house.orders()
        assert arm.id == id

    run(house, scenario)


def test_an_engine_without_gates_is_not_asked_to_arm_any(house):
    async def scenario(control, reading):
        house.hello(gates=0, armed=[])
        wanted = pb.ArmRequest(probe="toxicity", act=ADD, lease_seconds=60)
        code, said = await refused(control.Arm(wanted))
        assert (code, "No engine is connected that has gates" in said) == ("UNAVAILABLE", True)
        house.hello("second", gates=4, armed=[])
        assert (await control.Arm(wanted)).engines == 1
        house.orders()
        house.hello(gates=0, armed=[])
        assert house.orders() == []

    run(house, scenario)


def test_leases_are_bounded(house):
    async def scenario(control, reading):
        house.begin()
        wanted = pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60)
        for _ in range(MAX_ORDERS):
            await control.Steer(wanted)
        assert (await refused(control.Steer(wanted)))[0] == "RESOURCE_EXHAUSTED"

    run(house, scenario)


def test_orders_that_wait_to_be_undone_are_bounded_and_those_let_go_are_counted(house, monkeypatch):
    monkeypatch.setattr("monitor.interventions.leases.MAX_UNDOING", 2)

    async def scenario(control, reading):
        house.begin()
        wanted = pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=60)
        ids = [(await control.Steer(wanted)).order.id for _ in range(3)]
        house.orders()
        house.source.away.add(b"engine/core")
        for id in ids:
            await control.Release(pb.ReleaseRequest(id=id))
        house.source.away.clear()
        house.monitor.tick()
        assert house.orders() == [Release("a", id) for id in ids[1:]]

    run(house, scenario)
    assert house.monitor.stats.forgotten == {("undo",): 1}


def test_what_is_remembered_of_orders_and_requests_that_ended_is_bounded_and_counted(house, monkeypatch):
    for module in ("leases", "targets"):
        monkeypatch.setattr(f"monitor.interventions.{module}.MAX_FINISHED", 1)

    async def scenario(control, reading):
        house.begin()
        wanted = pb.SteerRequest(request_id="user-a", act=ADD, lease_seconds=1)
        for _ in range(2):
            await control.Steer(wanted)
        house.now += 2
        house.monitor.tick()
        house.frame(1, finished=[0])
        house.frame(2, started=[Started(0, "b", "user-b", 1)])
        house.frame(3, finished=[0])
        assert (await refused(control.Steer(wanted)))[0] == "NOT_FOUND"

    run(house, scenario)
    assert house.monitor.stats.forgotten == {("ended_order",): 1, ("ended_id",): 1}


def test_the_trace_of_an_escalated_request(house):
    async def scenario(control, reading):
        house.begin()
        assert not (await reading.ListTraces(ListTracesRequest())).traces
        code, said = await refused(reading.GetTrace(GetTraceRequest(request_id="user-a")))
        assert code == "NOT_FOUND" and "No trace of request 'user-a' is kept" in said
        house.frame(1, [(0, 1, Role.ASSISTANT, 0)], 4.0)
        house.frame(2, [(0, 2, Role.ASSISTANT, 0)], 0.0)
        house.frame(3, finished=[0])
        assert len([event for event in house.sink.events if isinstance(event, Escalated)]) == 1
        (listed,) = (await reading.ListTraces(ListTracesRequest())).traces
        assert listed.request.request_id == "user-a" and listed.finished and not listed.points
        (trace,) = (await reading.GetTrace(GetTraceRequest(request_id="user-a"))).traces
        assert list(trace.probes) == ["harmful_intent", "toxicity", "sycophancy"]
        assert [point.position for point in trace.points] == [1, 2]
        # The user's token was the only one that harmful_intent reads.
        read = [[average.logits for average in point.averages] for point in trace.points]
        assert read[0][0] == read[1][0] == 0.0 and read[0][2] == 4.0 and 0 < read[1][2] < 4.0
        kinds = [event.WhichOneof("payload") for event in trace.events]
        assert kinds == ["probe_fired", "escalated", "probe_fired", "request_finished"]

    run(house, scenario)
    assert house.monitor.stats.escalations == {("tiny", "review", "alert"): 1}
