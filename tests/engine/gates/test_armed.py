"""What an engine says it has armed, over a real socket: a monitor with another policy disarms what is not its own."""

import asyncio
import tempfile
import time
from contextlib import closing, contextmanager
from types import SimpleNamespace

import msgspec
import pytest

pytest.importorskip("torch")

from monitor.engine.inbox import OrderInbox
from monitor.engine.steering.leases import Arrived, Leases
from monitor.engine.vllm import core
from monitor.events import Ordered
from monitor.ingest import LocalSource
from monitor.policy import Gate, Policy, Rule, SteerAction, Steering
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.wire.frames import VERSION, Hello
from monitor.wire.orders import Act, Arm, Disarm, Stream
from tests.harness.bundles import make_bundle

STEER = SteerAction(Steering("sycophancy", dose=-0.2, gate=Gate()))
OURS = Policy("policy.yaml", "b" * 64, (Rule("flattery", "sycophancy", (), "enforce", (STEER,)),))
(OUR_GATE,) = OURS.gates
OUR_ARM = Arm(OUR_GATE, "sycophancy", [Act("sycophancy", -0.2)])
FOREIGN = ["order:1234abcd", "policy:aaaaaaaaaaaa:flattery:0"]
SECONDS = 20.0


@pytest.fixture
def endpoint():
    # Not tmp_path: the path of a socket file has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as folder:
        yield f"ipc://{folder}/engine.sock"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("armed") / "bundle")


class Engine:
    """The core's end of the socket, and what its steps make of the orders."""

    def __init__(self, endpoint: str, digest: str, armed: list[str]) -> None:
        hello = Hello(VERSION, "engine", "tiny", digest, "0.32.0", gates=4, armed=armed)
        self.inbox, self.leases, self.armed = OrderInbox(endpoint, hello), Leases(), set(armed)

    def step(self) -> list[object]:
        orders, _ = self.leases.take(self.inbox.take(), time.monotonic(), ())
        for order in orders:
            (self.armed.add if isinstance(order, Arm) else self.armed.discard)(order.id)
        if orders:
            self.inbox.hello = msgspec.structs.replace(self.inbox.hello, armed=sorted(self.armed))
        return orders


@contextmanager
def engine(endpoint: str, bundle, armed: list[str]):
    made = Engine(endpoint, bundle.digest, armed)
    try:
        yield made
    finally:
        made.inbox.close()


def run(bundle, policy: Policy, endpoint: str, condition) -> list[Ordered]:
    """A monitor, until the condition holds; what it told of orders."""
    sink = MemorySink()

    async def serve():
        with closing(Monitor(bundle, policy, LocalSource(endpoint), sinks=[sink])) as monitor:
            running = asyncio.create_task(monitor.run())
            deadline = time.monotonic() + SECONDS
            while not condition():
                assert time.monotonic() < deadline and not running.done()
                await asyncio.sleep(0.02)
            running.cancel()

    asyncio.run(serve())
    return [event for event in sink.events if isinstance(event, Ordered)]


def test_a_monitor_disarms_what_others_left_and_arms_its_own(bundle, endpoint):
    with engine(endpoint, bundle, [*FOREIGN, "somebody-elses"]) as side:
        orders = []
        told = run(bundle, OURS, endpoint, lambda: orders.extend(side.step()) or len(orders) == 3)
        assert orders == [Disarm(FOREIGN[0]), Disarm(FOREIGN[1]), OUR_ARM]
        assert [(event.kind, event.order) for event in told] == [
            ("disarm", FOREIGN[0]),
            ("disarm", FOREIGN[1]),
            ("arm", OUR_ARM.id),
        ]
        assert side.armed == {"somebody-elses", OUR_ARM.id}
        # The next one, of the same policy, finds its gate there and tunes it; another disarms it.
        for policy, expected in ((OURS, [OUR_ARM]), (Policy("other.yaml", "c" * 64, ()), [Disarm(OUR_ARM.id)])):
            orders.clear()
            run(bundle, policy, endpoint, lambda: orders.extend(side.step()) or orders)
            assert orders == expected
        assert side.armed == {"somebody-elses"}


def test_what_is_armed_stays_while_no_monitor_is_there_and_a_lease_ends_all_the_same(bundle, endpoint):
    with engine(endpoint, bundle, []) as side:
        orders = []
        run(bundle, OURS, endpoint, lambda: orders.extend(side.step()) or orders)
        # As a monitor that was killed right behind its order left it.
        begun = time.monotonic()
        side.leases.take([Arrived(Arm("order:1", "toxicity", [Act("sycophancy", 0.1)], lease=0.3), begun)], begun, ())
        side.armed.add("order:1")
        assert side.armed == {OUR_ARM.id, "order:1"}
        while not side.step():
            assert time.monotonic() < begun + SECONDS
            time.sleep(0.01)
        assert time.monotonic() >= begun + 0.3
        assert side.armed == {OUR_ARM.id}


def test_workers_never_see_a_gate_that_the_core_cannot_keep_a_lease_for(bundle):
    """They know other things of what is in use: they would arm it, and nobody would end it."""
    hello = Hello(VERSION, "engine", "tiny", bundle.digest, "0.32.0", gates=1, armed=[])
    leases, first = Leases(), Arm("order:1", "toxicity", [Act("sycophancy", 0.1)])
    scheduler = SimpleNamespace(
        requests={},
        plumbob_gates={first.id: first},
        plumbob_leases=leases,
        plumbob_inbox=SimpleNamespace(hello=hello),
        plumbob_bundle=bundle,
    )
    second = Arm("order:2", "toxicity", [Act("sycophancy", 0.1)], lease=0.3)
    orders, _ = leases.take([Arrived(second, 1.0), Arrived(Stream(1, "all"), 1.0)], 1.0, ())
    kept, refusals = core._note_gates(scheduler, orders)
    assert kept == [Stream(1, "all")]
    assert [(refused.order, refused.id, refused.cause) for refused in refusals] == [("arm", "order:2", "gate")]
    assert "All 1 gates are in use" in refusals[0].reason
    assert list(scheduler.plumbob_gates) == ["order:1"]
    assert leases.take([], 2.0, ()) == ([], []), "its lease ends nothing"
    # Once there is room, it goes through, and so does what undoes it.
    kept, refusals = core._note_gates(scheduler, [Disarm("order:1"), second])
    assert (kept, refusals, list(scheduler.plumbob_gates)) == ([Disarm("order:1"), second], [], ["order:2"])
