"""Orders that an engine cannot carry out: each is refused with its reason, told over gRPC, counted, and does nothing.

The engine's parts refuse them, the frame carries it, and a real monitor with its servers tells it.
"""

import asyncio
from contextlib import closing
from dataclasses import replace

import msgspec
import pytest

torch = pytest.importorskip("torch")

import grpc.aio
from prometheus_client import CollectorRegistry, generate_latest

from monitor.api import ApiServer
from monitor.engine.slots import ACTS
from monitor.engine.steering.leases import Arrived, Leases
from monitor.engine.steering.refusals import refusal
from monitor.engine.streams import Streams
from monitor.errors import OrderError
from monitor.ingest import Arrival, MemorySource
from monitor.policy import Policy, Rule, SteerAction, Steering, StopAction
from monitor.service.monitor import Monitor
from monitor.telemetry import MonitorCollector
from monitor.v1 import event_pb2
from monitor.v1.monitor_service_pb2 import WatchEventsRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from monitor.wire.codec import decode_order
from monitor.wire.frames import VERSION, Hello, Refusal
from monitor.wire.orders import Act, Steer, Stop, Stream
from probes.scoring.roles import Role
from tests.harness.capped_runner import CAP, ONE, OTHER, House, add, arm, bundle  # noqa: F401
from tests.harness.frames import make_frame

RULE = "civil:sycophancy:-0.2"
"""What the policy's rule orders has this id."""
CLOSED = SteerAction(Steering(OTHER, dose=-0.2), StopAction("I stop here."))
POLICY = Policy("policy.yaml", "d" * 64, (Rule("civil", "toxicity", (), "enforce", (CLOSED,)),))


def steer(*acts: Act, key: str = "a", **more) -> Steer:
    return Steer(key, list(acts), None, RULE, **more)


def too_many(house: House) -> None:
    house.slots.order(steer(*[add(0.0)] * (ACTS + 1)))


def full(house: House) -> None:
    """The tables hold eight different doses: three other requests have them."""
    for key in "bcd":
        house.start(key)
        for tokens in (1, 2, 3):
            house.slots.order(Steer(key, [add(0.01 * tokens * ord(key), OTHER)], tokens))
    house.slots.order(steer(add(0.1, OTHER)))


def late(house: House) -> None:
    _, (refused,) = Leases().take([Arrived(steer(add(0.1), lease=5.0), 0.0)], 5.0, {"a"})
    raise OrderError(refused.cause, refused.reason)


def beside(house: House) -> None:
    house.arm(arm("g", add(0.4)))
    house.slots.order(steer(add(0.2)))


def conflict(house: House) -> None:
    house.arm(arm("g", Act(ONE, low=0.1)))
    house.slots.order(steer(Act(ONE, high=-0.1)))


BAD = {
    "unknown vector": (
        steer(),
        lambda house: house.slots.order(steer(add(0.1, "hope"))),
        "vector",
        "no steering vector",
    ),
    "dose over the cap": (steer(), lambda house: house.slots.order(steer(add(0.6))), "dose", f"cap of {CAP}"),
    "dose over the cap with a gate": (steer(), beside, "dose", f"comes to a dose of 0.6, over the cap of {CAP}"),
    "no number": (steer(), lambda house: house.slots.order(steer(add(float("nan")))), "operation", "cannot be applied"),
    "layer outside the model": (
        Stream(99, "all"),
        lambda house: Streams(house.taps, "engine", None, rows=0, exports=True).select(99, "all"),
        "layer",
        "Layer 99 cannot be streamed",
    ),
    "conflicting orders": (steer(), conflict, "conflict", "no number in common"),
    "a request that is none": (
        steer(key="z"),
        lambda house: house.slots.order(steer(add(0.1), key="z")),
        "request",
        "has ended",
    ),
    "an expired lease": (steer(), late, "lease", "ended before it could take effect"),
    "more acts than are kept": (steer(), too_many, "slots", "more than 256 acts"),
    "more than the tables hold": (steer(), full, "slots", "The steering table is full"),
    "a gate on a probe that is none": (
        arm("g"),
        lambda house: house.arm(msgspec.structs.replace(arm("g", add(0.1)), probe="hope")),
        "gate",
        "reads no probe 'hope'",
    ),
    "more gates than there are": (
        arm("g"),
        lambda house: [house.arm(arm(f"g{number}", add(0.0))) for number in range(9)],
        "gate",
        "All 3 gates are in use",
    ),
}


class Desk:
    """A monitor whose rule has ordered request ``a`` to be steered."""

    def __init__(self, bundle, policy: Policy = POLICY) -> None:
        self.source, self.frames = MemorySource(), 0
        self.monitor = Monitor(bundle, policy, self.source)
        message = Hello(VERSION, "engine", "tiny", bundle.digest, "0.32.0")
        self.monitor.receive(Arrival(b"engine/core", message))

    def frame(self, *args, refused=(), **options) -> None:
        made = make_frame(self.frames, *args, **options)
        self.frames += 1
        made.header.refused.extend(refused)
        self.monitor.receive(Arrival(b"engine/rank0", made))

    def stops(self) -> list[Stop]:
        decoded = [decode_order(parts) for _, parts in self.source.sent]
        return [order for order in decoded if isinstance(order, Stop)]

    def counted(self, order: str) -> float:
        registry = CollectorRegistry()
        monitor = self.monitor
        registry.register(MonitorCollector(monitor.stats, monitor.status, monitor.events, monitor.bundle))
        page = generate_latest(registry).decode().splitlines()
        name = f'plumbob_orders_total{{by="engine",order="{order}",result="refused"}} '
        return sum(float(line.removeprefix(name)) for line in page if line.startswith(name))


async def watch(monitor: Monitor) -> event_pb2.Ordered:
    """The order that a client hears of."""
    server = await ApiServer.start(monitor.events, monitor.status, monitor.bundle)
    options = [("grpc.use_local_subchannel_pool", 1)]
    try:
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            wanted = WatchEventsRequest(after_sequence=0, kinds=[event_pb2.EVENT_KIND_ORDERED])
            async for response in MonitorServiceStub(channel).WatchEvents(wanted):
                return response.event.ordered
    finally:
        await server.stop(grace_seconds=1.0)
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_with_the_reason_told_counted_and_nothing_is_steered(bundle, name):
    order, ask, cause, said = BAD[name]
    house = House(bundle)
    slot = house.start("a")
    house.step("a")
    with pytest.raises(OrderError, match=said) as caught:
        ask(house)
    assert caught.value.cause == cause
    assert not house.slots._steering.segments[slot].any()
    request = house.slots._requests["a"]
    assert request.pushes == [] and not house.slots.steers(request)

    refused = msgspec.structs.replace(refusal(order, caught.value), number=0)
    desk = Desk(bundle)
    with closing(desk.monitor):
        desk.frame([(0, 0, Role.USER, 0)], [[0.0, 9.0, 0.0]], started=[house.slots.in_flight()[0]])
        desk.frame([(0, 1, Role.USER, 0)], refused=[refused])
        told = asyncio.run(asyncio.wait_for(watch(desk.monitor), 20))
        assert told.result == event_pb2.ORDER_RESULT_REFUSED and told.who == "engine"
        assert told.reason == refused.reason and said in told.reason and told.detail.endswith(f"({cause})")
        assert told.HasField("request") == bool(refused.engine_request_id)
        assert desk.counted(refused.order) == 1.0
        assert desk.monitor.stats.tokens_steered["tiny",] == 0
        # Only what the rule itself ordered for a request in flight stops it.
        closes = isinstance(order, Steer) and order.engine_request_id == "a"
        assert desk.stops() == ([Stop("a", "I stop here.", "civil:closed")] if closes else [])


def test_with_fail_open_the_same_refusals_stop_nothing(bundle):
    rule = Rule("civil", "toxicity", (), "enforce", (replace(CLOSED, on_refusal=None),))
    desk = Desk(bundle, Policy("policy.yaml", "d" * 64, (rule,)))
    with closing(desk.monitor):
        house = House(bundle)
        house.start("a")
        desk.frame([(0, 0, Role.USER, 0)], [[0.0, 9.0, 0.0]], started=house.slots.in_flight())
        desk.frame(refused=[Refusal(0, "steer", RULE, "a", "slots", "The steering table is full.")])
        assert desk.stops() == []
        assert desk.counted("steer") == 1.0
