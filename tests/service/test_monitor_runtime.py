import asyncio
import tempfile
import time

import pytest
import zmq
import zmq.asyncio

from monitor.events import Alert, EngineChanged, FramesLost, Intervention, ProbeFired, RequestFinished
from monitor.ingest import Arrival, LocalSource, Malformed, MemorySource
from monitor.policy import AlertAction, Policy, Rule, SteerAction, Steering, StopAction, default_policy
from monitor.service.config import Limits
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.store import MemoryStore
from monitor.wire.codec import RESYNC, decode_order, encode_frame, encode_hello
from monitor.wire.frames import VERSION, Hello, Started
from monitor.wire.orders import Ack, Act, Steer
from probes.scoring.roles import Role

STEER_ID = "rule:sycophancy:-0.2:50"
STEERING = Policy(
    "test",
    "",
    (
        Rule(
            "rule",
            "toxicity",
            ("tiny",),
            "enforce",
            (SteerAction(Steering("sycophancy", dose=-0.2, tokens=50)), AlertAction("info")),
        ),
    ),
)


def started(slot=0, key="a") -> Started:
    return Started(slot, key, f"user-{key}", 1)


def rows(positions, slot=0):
    return [(slot, position, Role.USER, 0) for position in positions]


class House:
    """A monitor driven by hand, with a clock that stands still."""

    def __init__(self, bundle, make_frame, policy=None, store=None, **limits):
        self.bundle, self.make_frame, self.now = bundle, make_frame, 1000.0
        self.source, self.sink = MemorySource(), MemorySink()
        self.monitor = Monitor(
            bundle,
            policy or default_policy(bundle),
            self.source,
            sinks=[self.sink],
            limits=Limits(**limits),
            store=store,
            clock=lambda: self.now,
        )
        self.stats = self.monitor.stats

    def hello(self, engine="engine", digest=None, **tested):
        message = Hello(VERSION, engine, "tiny", digest or self.bundle.digest, "0.32.0", **tested)
        self.monitor.receive(Arrival(f"{engine}/core".encode(), message))

    def frame(self, *args, engine="engine", **options):
        sent = self.make_frame(*args, engine=engine, monotonic_ns=int((self.now - 0.002) * 1e9), **options)
        self.monitor.receive(Arrival(f"{engine}/rank0".encode(), sent))

    def pass_time(self, seconds):
        self.now += seconds
        self.monitor.tick()

    def events(self, kind):
        return [event for event in self.sink.events if isinstance(event, kind)]

    def sent(self, engine="engine"):
        """What was sent to an engine since the last look."""
        sent, self.source.sent = self.source.sent, []
        assert all(identity.startswith(f"{engine}/".encode()) for identity, _ in sent)
        return [(identity.partition(b"/")[2].decode(), decode_order(parts)) for identity, parts in sent]

    @property
    def engine(self):
        (status,) = self.monitor.status().engines
        return status


@pytest.fixture
def house(tiny_bundle, frame):
    return House(tiny_bundle(), frame)


def test_a_firing_becomes_an_alert(house):
    house.hello()
    house.frame(0, rows([0, 1]), 1.5, started=[started()])
    house.frame(1, finished=[0])
    kinds = [type(event) for event in house.sink.events]
    assert kinds == [EngineChanged, ProbeFired, Alert, RequestFinished]
    assert house.stats.probe_fired == {("tiny", "toxicity"): 1}
    assert house.stats.tokens_scored["tiny",] == 2 and house.stats.requests_finished["tiny",] == 1
    assert house.engine.frames == 2 and house.engine.requests_active == 0
    assert house.engine.lag_seconds == pytest.approx(0.002, abs=1e-6)


def test_margins_of_finished_requests_are_counted(house):
    house.hello()
    house.frame(0, rows([0, 1]), 1.4, started=[started()])
    house.frame(1, finished=[0])
    margins = house.stats.margins["tiny"]
    assert margins.probes == ("harmful_intent", "toxicity", "sycophancy")
    # Against thresholds of 2, 1 and one that read nothing: the buckets up to -0.5, up to 0.5, and none.
    assert [counts.nonzero()[0].tolist() for counts in margins.counts] == [[5], [7], []]
    assert margins.sums.tolist() == pytest.approx([-0.6, 0.4, 0.0])


def test_enforcing_orders_the_engine_core_once(tiny_bundle, frame):
    house = House(tiny_bundle(), frame, STEERING)
    house.hello()
    house.frame(0, rows([0]), 1.5, started=[started()])
    order, _ = house.sent()
    assert order == ("core", Steer("a", [Act("sycophancy", add=-0.2)], 50, STEER_ID))
    assert [event.sent for event in house.events(Intervention)] == [True]
    house.source.away.add(b"engine/core")
    house.frame(1, rows([0], slot=1), 1.5, started=[started(1, "b")])
    assert [event.sent for event in house.events(Intervention)] == [True, False]


def test_every_rule_is_held_to_shadow_for_an_engine_that_failed_its_self_test(tiny_bundle, frame):
    house = House(tiny_bundle(), frame, STEERING)
    house.hello(drift=0.75, shadow=True)
    house.frame(0, rows([0]), 1.5, started=[started()])
    (changed,) = house.events(EngineChanged)
    assert changed.state == house.engine.state == "shadow" and house.engine.drift == 0.75
    assert "drift of 0.750" in changed.detail
    (intervention,), (alert,) = house.events(Intervention), house.events(Alert)
    assert intervention.mode == alert.mode == "shadow" and not intervention.sent
    assert intervention.reason.endswith("held to shadow: its self-test found a drift of 0.750 (0.2 is tolerated)")
    assert [message for name, message in house.sent() if name == "core"] == []
    assert house.stats.interventions == {("tiny", "rule", "sycophancy", "shadow", False): 1}
    assert house.stats.alerts == {("tiny", "rule", "info", "shadow"): 1}


def test_an_engine_leaves_shadow_when_it_is_tested_again(tiny_bundle, frame):
    house = House(tiny_bundle(), frame, STEERING)
    house.hello(drift=0.02)
    house.hello(shadow=True)
    house.frame(0, rows([0]), 1.5, started=[started()])
    house.hello(drift=0.03)
    house.hello(drift=0.03)
    house.frame(1, rows([0], slot=1), 1.5, started=[started(1, "b")])
    states = [(event.state, event.detail) for event in house.events(EngineChanged)]
    assert states == [
        ("connected", "vLLM 0.32.0, self-test drift 0.020"),
        ("shadow", "every rule is held to shadow: its weights have changed since its self-test"),
        ("connected", "vLLM 0.32.0, self-test drift 0.030"),
    ]
    assert [(event.mode, event.sent) for event in house.events(Intervention)] == [("shadow", False), ("enforce", True)]
    orders = [message.engine_request_id for name, message in house.sent() if name == "core"]
    assert orders == ["b"]


def test_an_engine_in_shadow_that_was_lost_is_still_in_shadow(house):
    house.hello(drift=0.75, shadow=True)
    house.pass_time(6)
    house.hello(drift=0.75, shadow=True)
    assert [event.state for event in house.events(EngineChanged)] == ["shadow", "lost", "shadow"]


def test_an_engine_that_comes_back_is_not_steered_twice(tiny_bundle, frame):
    house = House(tiny_bundle(), frame, STEERING)
    house.hello()
    house.frame(0, rows([0]), 1.5, started=[started()])
    house.pass_time(6)
    house.frame(1, rows([1]), 1.5, started=[started()], complete=True)
    assert len(house.events(ProbeFired)) == 2, "the verdict began anew"
    assert len(house.events(Intervention)) == 1


def test_what_was_done_about_a_request_is_forgotten_with_it(tiny_bundle, frame):
    house = House(tiny_bundle(), frame, STEERING)
    house.hello()
    for sequence in range(3):
        house.frame(sequence, rows([0]), 1.5, started=[started()], finished=[0])
    assert len(house.events(Intervention)) == 3


def test_a_gap_is_lost_frames(house):
    house.hello()
    for sequence in (0, 1, 4, 5):
        house.frame(sequence)
    assert house.events(FramesLost) == [FramesLost("engine", "tiny", 2)]
    assert house.stats.frames_lost["tiny",] == 2 == house.engine.lost
    assert house.stats.frames_received["tiny",] == 4


def test_a_duplicate_is_skipped(house):
    house.hello()
    house.frame(0, rows([0]), started=[started()])
    house.frame(0, rows([1]))
    assert house.stats.frames_skipped == {("tiny", "duplicate"): 1}
    assert house.stats.tokens_scored["tiny",] == 1


def test_a_restarted_monitor_counts_from_what_was_confirmed_and_resyncs(house):
    house.hello()
    house.frame(100, rows([50]), acked=97)
    assert house.stats.frames_lost["tiny",] == 2 and house.stats.tokens_unknown["tiny",] == 1
    assert house.sent() == [("rank0", Ack(100)), ("rank0", None)]
    house.frame(101, rows([51]), started=[started()], complete=True)
    house.frame(102, finished=[0])
    (finished,) = house.events(RequestFinished)
    assert (finished.tokens, finished.unscored) == (1, 51), "what was not seen is not passed off as clean"


def test_resyncs_are_asked_for_at_most_once_a_second(house):
    house.hello()
    for sequence in range(5):
        house.frame(sequence, rows([0], slot=3))
    asked = [message for _, message in house.sent() if message is None]
    assert len(asked) == 1 == house.stats.resyncs["tiny",]
    house.pass_time(0.9)
    assert None not in [message for _, message in house.sent()]
    house.pass_time(0.2)
    assert [message for _, message in house.sent() if message is None] == [None]
    house.frame(5, rows([0], slot=3))
    house.frame(6, rows([0], slot=3), started=[started(3)], complete=True)
    house.pass_time(2)
    assert None not in [message for _, message in house.sent()], "the engine has answered by itself"


def test_confirmations_are_few_and_the_last_one_comes(house):
    house.hello()
    for sequence in range(10):
        house.frame(sequence)
        house.now += 0.03
    assert [message.sequence for _, message in house.sent()] == [0, 4, 8]
    house.pass_time(0.1)
    assert house.sent() == [("rank0", Ack(9))]
    house.pass_time(0.1)
    assert house.sent() == []
    assert decode_order([RESYNC]) is None


def test_an_engine_with_another_bundle_is_refused_once(house):
    house.frame(0, rows([0]), started=[started()])
    assert house.engine.state == "pending" and house.engine.requests_active == 1
    house.hello(digest="f" * 64)
    house.hello(digest="f" * 64)
    house.frame(1, rows([1]), 100.0)
    (event,) = house.events(EngineChanged)
    assert event.state == "refused" == house.engine.state and "ffffffffffff" in event.detail
    assert house.stats.frames_skipped == {("tiny", "refused"): 1}
    assert house.stats.requests_dropped["tiny", "engine_lost"] == 1 and house.engine.requests_active == 0
    assert not house.events(ProbeFired)
    house.pass_time(1)
    assert house.sent("engine")[1:] == [], "what is not read is not confirmed"


def test_frames_of_other_probes_are_skipped(house):
    house.hello()
    house.frame(0, rows([0]), started=[started()], probes=4)
    assert house.stats.frames_skipped == {("tiny", "probes"): 1}


def test_a_silent_engine_is_lost_and_its_requests_have_no_verdict(house):
    house.hello()
    house.frame(0, rows([0]), started=[started()])
    house.pass_time(4.9)
    assert house.engine.state == "connected"
    house.pass_time(0.2)
    assert house.engine.state == "lost" and house.engine.last_seen_seconds == pytest.approx(5.1)
    assert house.stats.requests_dropped["tiny", "engine_lost"] == 1
    assert not house.events(RequestFinished)
    house.pass_time(1)
    house.hello()
    house.frame(1)
    assert [event.state for event in house.events(EngineChanged)] == ["connected", "lost", "connected"]
    assert house.stats.frames_lost["tiny",] == 0


def test_hellos_alone_keep_an_engine(house):
    for _ in range(20):
        house.hello()
        house.pass_time(1.0)
    assert [event.state for event in house.events(EngineChanged)] == ["connected"]


def test_engines_are_bounded_and_lost_ones_make_room(tiny_bundle, frame):
    house = House(tiny_bundle(), frame, max_engines=2)
    house.hello("one")
    house.pass_time(3)
    house.hello("two")
    house.frame(0, engine="three")
    assert house.stats.frames_skipped == {("", "engines"): 1}
    house.pass_time(3)
    house.frame(0, engine="three")
    assert [engine.engine for engine in house.monitor.status().engines] == ["two", "three"]
    house.pass_time(1000)
    house.pass_time(1)
    assert house.monitor.status().engines == ()


def test_the_engines_own_counters_are_taken_over_once(house):
    house.hello()
    for sequence, (dropped, unscored) in enumerate([(5, 1), (5, 1), (7, 4)]):
        house.frame(sequence, dropped=dropped, unscored=unscored)
    assert house.stats.engine_frames_dropped["tiny",] == 7 == house.engine.dropped
    assert house.stats.engine_rows_unscored["tiny",] == 4


def test_malformed_messages_are_counted(house):
    house.monitor.receive(Arrival(b"?", Malformed("malformed", "rubbish")))
    house.monitor.receive(Arrival(b"?", Malformed("version", "version 2")))
    assert house.stats.frames_malformed == {("malformed",): 1, ("version",): 1}


def test_it_runs_until_its_source_ends(tiny_bundle, frame):
    house = House(tiny_bundle(), frame)
    sent = frame(0, rows([0]), 1.5, started=[started()])
    house.source.put(b"engine/core", encode_hello(Hello(VERSION, "engine", "tiny", house.bundle.digest, "0.32.0")))
    house.source.put(b"engine/rank0", encode_frame(sent.header, sent.rows, sent.scores))
    house.source.put(b"engine/rank0", [b"rubbish"])

    async def scenario():
        subscription = house.monitor.events.subscribe()
        house.monitor.close()
        await house.monitor.run()
        return [type(recorded.event) async for recorded in subscription]

    assert asyncio.run(asyncio.wait_for(scenario(), 5)) == []
    assert len(house.events(Alert)) == 1 and house.stats.frames_malformed == {("malformed",): 1}


def test_over_real_sockets(tiny_bundle, frame):
    """An engine's two sockets against a running monitor: a verdict, an alert, a confirmation, an order."""
    bundle = tiny_bundle()

    async def scenario(directory):
        source = LocalSource(f"ipc://{directory}/monitor.sock")
        monitor = Monitor(bundle, STEERING, source)
        events = aiter(monitor.events.subscribe())
        running = asyncio.create_task(monitor.run())
        context = zmq.asyncio.Context()
        core, rank = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
        for socket, identity in ((core, b"engine/core"), (rank, b"engine/rank0")):
            socket.setsockopt(zmq.IDENTITY, identity)
            socket.connect(source.endpoint)
        await core.send_multipart(encode_hello(Hello(VERSION, "engine", "tiny", bundle.digest, "0.32.0")))
        assert (await anext(events)).event.state == "connected"
        sent = frame(0, rows([0]), 1.5, started=[started()], monotonic_ns=time.monotonic_ns())
        await rank.send_multipart(encode_frame(sent.header, sent.rows, sent.scores))
        assert decode_order(await core.recv_multipart()) == Steer("a", [Act("sycophancy", add=-0.2)], 50, STEER_ID)
        assert decode_order(await rank.recv_multipart()) == Ack(0)
        assert [type((await anext(events)).event) for _ in range(3)] == [ProbeFired, Intervention, Alert]
        (engine,) = monitor.status().engines
        assert 0 < engine.lag_seconds < 5 and engine.requests_active == 1
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        monitor.close()
        for socket in (core, rank):
            socket.close(linger=0)
        context.term()

    with tempfile.TemporaryDirectory(prefix="plumbob") as directory:
        asyncio.run(asyncio.wait_for(scenario(directory), 20))


# Engines that serve unread.


def states(house):
    return [(change.state, change.detail) for change in house.events(EngineChanged)]


def pass_seconds(house, seconds, **progress):
    """HELLOs every second, as an engine says them."""
    for second in range(seconds):
        house.pass_time(1.0)
        house.hello(**{name: value + second if name == "steps" else value for name, value in progress.items()})


def test_an_engine_that_computes_and_sends_no_frames_is_silent_until_one_comes(house):
    house.hello(running=2, steps=10)
    house.frame(0, [], started=[started()])
    # One long step, such as a prefill: nothing is computed meanwhile that a frame should have told of.
    for _ in range(20):
        house.pass_time(1.0)
        house.hello(running=2, steps=10)
    assert [state for state, _ in states(house)] == ["connected"]
    pass_seconds(house, 20, running=2, steps=11)
    (_, (state, detail)) = states(house)
    assert state == "silent" and "it computes, and no frame came for 5 s" in detail
    (engine,) = house.monitor.status().engines
    assert engine.state == "silent"
    # It is heard, so that it is not lost; and it stays silent while it computes nothing more.
    house.pass_time(1.0)
    house.hello(running=0, steps=60)
    assert house.monitor.status().engines[0].state == "silent"
    house.frame(5, rows([0]))
    house.pass_time(0.1)
    assert states(house)[-1] == ("connected", "it is read again")


def test_an_engine_whose_every_step_has_a_frame_is_never_silent(house):
    for second in range(30):
        house.hello(running=1, steps=10 * second)
        house.frame(second, [])
        house.pass_time(1.0)
    assert {state for state, _ in states(house)} == {"connected"}


def test_an_engine_whose_taps_fail_is_silent_for_a_while_and_for_good_where_they_are_off(house):
    house.hello()
    house.frame(0)
    house.frame(1, [], faults=1, fault="begin: IndexError at slots.py:3")
    house.pass_time(0.1)
    assert states(house)[-1][0] == "silent" and "IndexError at slots.py:3" in states(house)[-1][1]
    house.frame(2, [], faults=1, fault="begin: IndexError at slots.py:3")
    house.pass_time(4.0)
    assert states(house)[-1][0] == "silent"
    house.hello()
    house.pass_time(2.0)
    assert states(house)[-1][0] == "connected"
    house.frame(3, [], faults=10, fault="begin: IndexError at slots.py:3", untapped=True)
    house.pass_time(0.1)
    assert states(house)[-1][0] == "silent" and "switched off" in states(house)[-1][1]
    for second in range(20):
        house.hello()
        house.frame(4 + second, [], faults=10, fault="begin: IndexError at slots.py:3", untapped=True)
        house.pass_time(1.0)
    assert states(house)[-1][0] == "silent"
    assert house.stats.engine_faults["tiny",] == 10


def test_an_engine_of_another_release_is_said_once(house, caplog):
    for _ in range(3):
        house.monitor.receive(Arrival(b"other/core", Malformed("version", "A message has version 3.")))
    assert caplog.text.count("is of another release and is not read") == 1


def test_scores_that_are_no_numbers_are_told_once_in_a_while(house):
    """An engine may send thousands of them a second."""

    def told():
        found = [event.detail for event in house.events(EngineChanged) if "no finite" in event.detail]
        return [detail.removeprefix("scores that are no finite numbers: ") for detail in found]

    house.hello()
    house.frame(0, rows([0, 1]), float("nan"), started=[started()])
    house.pass_time(0.1)
    assert told() == ["2 of harmful_intent, 2 of toxicity; these tokens are unscored"]
    for sequence in range(1, 4):
        house.frame(sequence, rows([sequence + 1]), float("inf"))
        house.pass_time(1.0)
    assert len(told()) == 1
    for _ in range(15):
        house.hello()
        house.pass_time(4.0)
    assert told()[1:] == ["3 of harmful_intent, 3 of toxicity; these tokens are unscored"]
    assert house.stats.tokens_scored["tiny",] == 0 and house.stats.tokens_unscored["tiny",] == 5


# Monitors that follow one another.


def test_a_successor_that_reads_the_same_rows_again_tells_and_orders_nothing_twice(tiny_bundle, frame):
    store = MemoryStore()
    failing = SteerAction(Steering("sycophancy", dose=-0.2, tokens=50), on_refusal=StopAction("Not so."))
    rules = (
        Rule("open", "toxicity", (), "enforce", (SteerAction(Steering("sycophancy", dose=-0.2)), AlertAction("info"))),
        Rule("closed", "toxicity", (), "enforce", (failing, AlertAction("warning"))),
    )
    told = []
    for sequence in (0, 1):
        house = House(tiny_bundle(), frame, Policy("test", "", rules), store=store)
        house.hello()
        house.sent()
        house.frame(sequence, rows(range(40)), 50.0, complete=True, started=[started()])
        told.append((house.events(ProbeFired), house.events(Alert), house.events(Intervention), orders(house)))
    house.frame(2, [], finished=[0])
    (finished,) = house.events(RequestFinished)
    assert finished.unscored == 0 and finished.tokens == 40
    (fired, alerts, interventions, first), (again, *rest, second) = told
    # Its verdict is complete, whoever told of it.
    assert {event.probe for event in fired} == {reading.probe for reading in finished.readings if reading.fired}
    assert "toxicity" in {event.probe for event in fired} and len(alerts) == len(interventions) == 2 and len(first) == 2
    assert again == [] and rest == [[], []]
    # That which fails closed is ordered again, under its id, which the engine takes once: its refusal stops.
    assert [order.id for order in second] == [order.id for order in first if order.id.startswith("closed")]


def orders(house):
    return [order for _, order in house.sent() if isinstance(order, Steer)]
