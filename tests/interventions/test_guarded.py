"""Releases by engines' guards, from the monitor's side: told, counted and recorded once each."""

from contextlib import closing

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from monitor.events import Guarded, Request, RequestFinished
from monitor.ingest import Arrival, MemorySource
from monitor.policy import Policy
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.sinks.audit import AuditLog, verify
from monitor.store import MemoryStore
from monitor.telemetry.collector import MonitorCollector
from monitor.wire.codec import decode, encode_frame
from monitor.wire.frames import VERSION, GateEvent, GuardEvent, Hello, Started
from probes.scoring.roles import Role

GATE = "policy:abcdef012345:flattery:0"


def released(number=0, key="a", gates=()):
    return GuardEvent(number, key, f"user-{key}", 80, 0.9, 0.7, 64, list(gates))


class Desk:
    """A monitor driven by hand, with an engine of made-up frames."""

    def __init__(self, bundle, frame, audit=None, store=None):
        self.bundle, self.make_frame, self.sink = bundle, frame, MemorySink()
        self.monitor = Monitor(
            bundle, Policy("none", "", ()), MemorySource(), sinks=[self.sink], audit=audit, store=store
        )
        self.monitor.receive(Arrival(b"engine/core", Hello(VERSION, "engine", "tiny", bundle.digest, "0.32.0")))

    def frame(self, *args, guarded=(), gates=(), **options):
        made = self.make_frame(*args, **options)
        header = msgspec.structs.replace(made.header, guarded=list(guarded), gates=list(gates))
        # As it arrives.
        self.monitor.receive(Arrival(b"engine/rank0", decode(encode_frame(header, made.rows, made.scores))))

    def told(self):
        return [event for event in self.sink.events if isinstance(event, Guarded)]

    def counted(self):
        registry = CollectorRegistry()
        registry.register(MonitorCollector(self.monitor.stats, self.monitor.status, self.monitor.events, self.bundle))
        return registry.get_sample_value("plumbob_guarded_total", {"model_name": "tiny"})


@pytest.fixture
def desk(tiny_bundle, frame):
    return Desk(tiny_bundle(), frame)


def begin(desk):
    desk.frame(0, [(0, 3, Role.USER, 0)], started=[Started(0, "a", "user-a", 4)])


def test_it_is_told_once_with_all_that_the_engine_said(desk):
    begin(desk)
    assert not desk.counted()
    desk.frame(1, guarded=[released()])
    desk.frame(2, guarded=[released(), released(1, "b", gates=[GATE])])
    first, second = desk.told()
    assert first == Guarded(
        request=Request("engine", "tiny", "user-a", "a", 4),
        position=80,
        repetition=0.9,
        threshold=0.7,
        window=64,
        gates=(),
        number=0,
        reason=(
            "90% of the sequences of three among the last 64 tokens repeat an earlier one (allowed: under 70%); from "
            "token 80 on, it is steered no more"
        ),
    )
    assert second.gates == (GATE,)
    assert second.reason.endswith(f"from token 80 on, it is steered no more; steered up to there by {GATE}")
    assert desk.counted() == 2


def test_a_gap_in_the_numbers_is_a_loss(desk):
    begin(desk)
    desk.frame(1, guarded=[released(4)])
    desk.frame(2, guarded=[released(7, "b")])
    assert [event.number for event in desk.told()] == [4, 7]
    assert desk.monitor.stats.guarded_lost == {("tiny",): 2}


def test_it_is_told_before_the_end_of_its_request(desk):
    begin(desk)
    desk.frame(1, guarded=[released()], finished=[0])
    kinds = [type(event) for event in desk.sink.events if isinstance(event, Guarded | RequestFinished)]
    assert kinds == [Guarded, RequestFinished]


def test_a_request_that_nobody_follows_is_told_of_all_the_same(desk):
    desk.frame(0, guarded=[released(key="b")])
    (event,) = desk.told()
    assert event.request == Request("engine", "tiny", "user-b", "b", 0)


def records(path):
    verify(path)
    return [msgspec.json.decode(raw)["record"] for raw in path.read_bytes().splitlines()]


def test_the_audit_log_has_it_once_though_a_second_monitor_hears_it_again(tiny_bundle, frame, tmp_path):
    bundle, path = tiny_bundle(), tmp_path / "audit.jsonl"
    opened = GateEvent(9, GATE, "opened", "a", "user-a", 5, 0.75, 0)
    store = MemoryStore(tmp_path / "state")
    first = Desk(bundle, frame, AuditLog(path, store=store), store)
    begin(first)
    first.frame(1, guarded=[released()], gates=[opened])
    first.monitor.close()
    # The confirmation was lost, and the guard acted once more meanwhile. Gates have numbers of their own.
    store = MemoryStore(tmp_path / "state")
    second = Desk(bundle, frame, AuditLog(path, store=store), store)
    with closing(second.monitor):
        second.frame(2, guarded=[released(), released(1, "b", gates=[GATE])], gates=[opened])
    found = [record for record in records(path) if record["type"] == "guarded"]
    assert [(record["number"], record["request"]["engine_request_id"]) for record in found] == [(0, "a"), (1, "b")]
    assert found[0] == {
        "type": "guarded",
        "request": {
            "engine": "engine",
            "model": "tiny",
            "request_id": "user-a",
            "engine_request_id": "a",
            "prompt_tokens": found[0]["request"]["prompt_tokens"],
        },
        "position": 80,
        "repetition": 0.9,
        "threshold": 0.7,
        "window": 64,
        "gates": [],
        "number": 0,
        "reason": found[0]["reason"],
    }
    assert len([record for record in records(path) if record["type"] == "intervention"]) == 1
