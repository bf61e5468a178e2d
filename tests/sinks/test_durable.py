"""Confirmations wait for every durable sink and for the store, for a bounded time, and no sink stops another."""

import threading
import time
from contextlib import closing
from itertools import pairwise

import msgspec
import pytest

from monitor.events import Alert, Event, EventLog, Intervention, ProbeFired, Request, RequestFinished
from monitor.ingest import Arrival, MemorySource
from monitor.policy import AlertAction, Policy, Rule
from monitor.service.monitor import Monitor
from monitor.sinks import BackgroundSink, MemorySink
from monitor.sinks.audit import AuditLog, verify
from monitor.store import MemoryStore
from monitor.telemetry.stats import Stats
from monitor.wire.codec import decode_order
from monitor.wire.frames import VERSION, GateEvent, Hello, Started
from monitor.wire.orders import Ack
from probes.scoring.roles import Role

POLICY = Policy("policy.yaml", "d" * 64, (Rule("told", "toxicity", (), "alert", (AlertAction("info"),)),))
DEADLINE = 20.0


class Durable:
    """A durable sink that settles when it is told to."""

    kinds: tuple[type[Event], ...] = (Intervention,)

    def __init__(self, name="other", settled=0):
        self.name, self.accepted, self.settled, self.numbers = name, settled, settled, []

    def emit(self, recorded):
        if isinstance(recorded.event, self.kinds):
            self.accepted += 1
            self.numbers.append(recorded.event.number)

    def settle(self):
        self.settled = self.accepted


class Raising(Durable):
    def emit(self, recorded):
        raise RuntimeError("down")


class Speechless(Durable):
    """Fails to tell its position."""

    @property
    def settled(self):
        raise RuntimeError("down")

    @settled.setter
    def settled(self, position):
        pass


class Desk:
    """A monitor driven by hand."""

    def __init__(self, bundle, frame, *durable, audit=None, store=None, sinks=()):
        self.make_frame, self.now, self.source, self.sink = frame, 1000.0, MemorySource(), MemorySink()
        self.monitor = Monitor(
            bundle,
            POLICY,
            self.source,
            sinks=[*sinks, self.sink],
            durable=durable,
            audit=audit,
            store=store,
            clock=lambda: self.now,
        )
        self.stats = self.monitor.stats
        self.monitor.receive(Arrival(b"engine/core", Hello(VERSION, "engine", "tiny", bundle.digest, "0.32.0")))

    def frame(self, number, *opened):
        made = self.make_frame(number, started=[Started(0, "a", "user-a", 4)], complete=True)
        gates = [GateEvent(one, "policy:0:rule:0", "opened", "a", "user-a", 5, 0.75, 0) for one in opened]
        header = msgspec.structs.replace(made.header, gates=gates)
        self.monitor.receive(Arrival(b"engine/rank0", msgspec.structs.replace(made, header=header)))

    def pass_time(self, seconds):
        self.now += seconds
        self.monitor.receive(
            Arrival(b"engine/core", Hello(VERSION, "engine", "tiny", self.monitor.bundle.digest, "0.32.0"))
        )
        self.monitor.tick()

    def confirmed(self):
        acks = [order.sequence for _, parts in self.source.sent if isinstance(order := decode_order(parts), Ack)]
        return acks[-1] if acks else None

    def numbers(self):
        return [event.number for event in self.sink.events if isinstance(event, Intervention)]


def test_the_confirmation_waits_for_the_slowest(tiny_bundle, frame):
    quick, slow = Durable("quick"), Durable("slow")
    desk = Desk(tiny_bundle(), frame, quick, slow)
    desk.frame(0, 0)
    for settling in (quick, slow):
        desk.pass_time(1)
        assert desk.confirmed() is None
        settling.settle()
    desk.pass_time(1)
    assert desk.confirmed() == 0 and quick.numbers == slow.numbers == [0]
    desk.frame(1)
    desk.pass_time(1)
    assert desk.confirmed() == 1, "nothing to settle"


def test_a_sink_that_never_settles_is_waited_for_so_long_and_then_counted_until_it_is_well_again(
    tiny_bundle, frame, caplog
):
    well, hung = Durable("well"), Durable("hung:/where")
    desk = Desk(tiny_bundle(), frame, well, hung)
    desk.frame(0, 0)
    well.settle()
    desk.pass_time(29)
    assert desk.confirmed() is None and +desk.stats.sink_stalls == {}
    desk.pass_time(2)
    assert desk.confirmed() == 0 and +desk.stats.sink_stalls == {("hung",): 1}
    assert "Sink hung:/where has made no progress" in caplog.text
    desk.frame(1, 1)
    desk.pass_time(1)
    assert desk.confirmed() == 0, "the others are waited for"
    well.settle()
    desk.pass_time(1)
    assert desk.confirmed() == 1 and +desk.stats.sink_stalls == {("hung",): 1}
    hung.settle()
    desk.pass_time(1)
    desk.frame(2, 2)
    well.settle()
    desk.pass_time(1)
    assert desk.confirmed() == 1, "it is waited for again"


def test_a_sink_that_makes_progress_is_not_given_up(tiny_bundle, frame):
    slow = Durable("slow")
    desk = Desk(tiny_bundle(), frame, slow)
    desk.frame(0, *range(5))
    for _ in range(4):
        slow.settled += 1
        desk.pass_time(20)
        assert desk.confirmed() is None
    slow.settled += 1
    desk.pass_time(1)
    assert desk.confirmed() == 0 and +desk.stats.sink_stalls == {}


@pytest.mark.parametrize("broken", [Raising("broken"), Speechless("broken")], ids=["emit", "settled"])
def test_a_sink_that_raises_is_counted_and_stops_no_other(tiny_bundle, frame, broken, caplog):
    well = Durable("well")
    desk = Desk(tiny_bundle(), frame, broken, well)
    desk.frame(0, 0)
    assert well.numbers == desk.numbers() == [0]
    well.settle()
    for _ in range(40):
        desk.pass_time(1)
    assert desk.confirmed() == 0 and sum(desk.stats.sink_errors.values()) >= 1
    assert sum("down" in str(record.exc_info) for record in caplog.records) <= 30, "no line for each tick"


def test_a_sink_that_blocks_in_the_background_stops_nothing_and_drops_what_it_is_too_slow_for(tiny_bundle, frame):
    release, taken, bundle = threading.Event(), [], tiny_bundle()

    class Blocking:
        def emit(self, recorded):
            release.wait(DEADLINE)
            taken.append(recorded.sequence)

    stats = Stats([])
    with closing(BackgroundSink(Blocking(), stats, limit=4)) as background:
        well = Durable("well")
        desk = Desk(bundle, frame, well, sinks=[background])
        desk.frame(0, *range(20))
        well.settle()
        desk.pass_time(1)
        assert desk.confirmed() == 0 and desk.numbers() == well.numbers == list(range(20)) and taken == []
        release.set()
    assert (
        len(taken) in (4, 5)
        and len(taken) + stats.sink_events_dropped["Blocking",] == desk.monitor.events.last_sequence
    )


def test_a_sink_that_blocks_in_the_background_misses_requests_that_ended_before_it_misses_a_firing():
    release, taken, log, stats = threading.Event(), [], EventLog(), Stats([])

    class Blocking:
        def emit(self, recorded):
            release.wait(DEADLINE)
            taken.append(recorded.event)

    with closing(BackgroundSink(Blocking(), stats, limit=64)) as background:
        for number in range(50):
            request = Request("engine", "tiny", f"user-{number}", f"{number}", 4)
            for part in range(20):
                parts = Request("engine", "tiny", f"user-{number}", f"{number}-{part}", 4)
                background.emit(log.publish(RequestFinished(parts, 9, 0, 0, ())))
            background.emit(log.publish(ProbeFired(request, "probe", 2.0, 1.0, 7, "user")))
        release.set()
    assert sum(isinstance(event, ProbeFired) for event in taken) == 50
    assert len(taken) in (64, 65) and len(taken) + stats.sink_events_dropped["Blocking",] == 50 * 21


def test_a_sink_that_raises_in_the_background_is_counted_and_goes_on(tiny_bundle, frame):
    taken, stats = [], Stats([])

    class Sometimes:
        def emit(self, recorded):
            if not taken:
                taken.append(recorded)
                raise RuntimeError("down")
            taken.append(recorded)

    with closing(BackgroundSink(Sometimes(), stats)) as background:
        Desk(tiny_bundle(), frame, sinks=[background]).frame(0, 0, 1)
    assert len(taken) >= 3 and +stats.sink_errors == {("Sometimes",): 1}


def test_the_confirmation_waits_for_the_store(tiny_bundle, frame):
    class Slow(MemoryStore):
        kept = 0

        @property
        def settled(self):
            return self.kept

    store = Slow()
    desk = Desk(tiny_bundle(), frame, store=store)
    desk.frame(0, 0)
    desk.pass_time(1)
    assert desk.confirmed() is None
    store.kept = store.accepted
    desk.pass_time(1)
    assert desk.confirmed() == 0
    desk.frame(1, 1)
    desk.pass_time(31)
    assert desk.confirmed() == 1 and +desk.stats.sink_stalls == {("store",): 1}


def test_after_a_kill_what_one_sink_lost_goes_to_that_one_alone(tiny_bundle, frame, tmp_path):
    bundle, folder = tiny_bundle(), tmp_path / "journal"
    has, lost = Durable("has"), Durable("lost")
    store = MemoryStore(folder)
    first = Desk(bundle, frame, has, lost, store=store)
    first.frame(0, 0, 1)
    has.settle()
    lost.settled = 1
    store.close()
    # Killed here. What was settled is what the next sinks of that name find.
    has, lost = Durable("has", settled=2), Durable("lost", settled=1)
    second = Desk(bundle, frame, has, lost, store=MemoryStore(folder))
    second.frame(1, 0, 1, 2)
    assert (has.numbers, lost.numbers, second.numbers()) == ([2], [1, 2], [1, 2])
    second.monitor.close()


def test_wherever_a_kill_breaks_off_both_files_each_decision_is_in_the_audit_log_once(tiny_bundle, frame, tmp_path):
    """The journal is written ahead of the log: whatever is in the log, the journal knows of."""
    bundle, folder, path = tiny_bundle(), tmp_path / "journal", tmp_path / "audit.jsonl"

    def start():
        store = MemoryStore(folder)
        return Desk(bundle, frame, audit=AuditLog(path, store=store), store=store)

    def until_settled(desk):
        deadline = time.monotonic() + DEADLINE
        for waited in (desk.monitor.store, desk.monitor._audit):
            while waited.settled < waited.accepted:
                assert time.monotonic() < deadline
                time.sleep(0.001)

    moments = []
    desk = start()
    # Nothing is confirmed: that is noted only after the log has everything.
    desk.monitor._answer = lambda link, now: None
    for number in range(3):
        desk.frame(number, *range(number + 1))
        until_settled(desk)
        moments.append((next(folder.glob("*.journal")).read_bytes(), path.read_bytes()))
    desk.monitor.close()
    # First the journal grows, byte by byte, then the log.
    kills = []
    for (journal_before, log_before), (journal, log) in pairwise(moments):
        kills += [(journal[:end], log_before) for end in range(len(journal_before), len(journal), 17)]
        kills += [(journal, log[:end]) for end in range(len(log_before), len(log) + 1, 97)]
    assert len(kills) > 20
    for journal, log in kills:
        for left in folder.glob("*.journal"):
            left.unlink()
        (folder / "00000001.journal").write_bytes(journal)
        path.write_bytes(log)
        desk = start()
        desk.frame(10, *range(4))
        desk.monitor.close()
        verify(path)
        lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]
        found = [line["record"]["number"] for line in lines if line["record"]["type"] == "intervention"]
        assert sorted(found) == [0, 1, 2, 3], (len(journal), len(log))


def test_alerts_that_fire_are_known_after_a_restart(tiny_bundle, frame, tmp_path):
    desk = Desk(tiny_bundle(), frame, store=MemoryStore(tmp_path / "journal"))
    made = frame(0, [(0, 0, Role.USER, 0)], [[0.0, 1.5, 0.0]], started=[Started(0, "a", "user-a", 1)])
    desk.monitor.receive(Arrival(b"engine/rank0", made))
    assert [event.rule for event in desk.sink.events if isinstance(event, Alert)] == ["told"]
    desk.monitor.close()
    with closing(MemoryStore(tmp_path / "journal")) as store:
        ((key, alert),) = store.state.firing(time.time()).items()
    assert key == ("tiny", "told", "info", "toxicity") and alert.times == 1
