"""What a monitor records of what it does: these records, in this order, and no others."""

import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from monitor import __version__
from monitor.events import EngineChanged, Intervention, Recorded, Request, RequestFinished
from monitor.ingest import Arrival, MemorySource
from monitor.policy import AlertAction, Policy, Rule, SteerAction, Steering
from monitor.service.monitor import Monitor
from monitor.sinks.audit import AuditLog, AuditSink, read_records, verify
from monitor.telemetry.stats import Stats
from monitor.wire.frames import VERSION, Hello, Started
from probes.scoring.roles import Role
from tests.events.samples import KINDS, sample

STEERING = Policy(
    "policy.yaml",
    "d" * 64,
    (
        Rule(
            "steady",
            "toxicity",
            ("tiny",),
            "enforce",
            (SteerAction(Steering("sycophancy", dose=-0.2, tokens=2)), AlertAction("info")),
        ),
        Rule("watching", "toxicity", (), "shadow", (SteerAction(Steering("harmful_intent", dose=0.5)),)),
        Rule("again", "harmful_intent", (), "enforce", (SteerAction(Steering("harmful_intent", dose=-0.1)),)),
    ),
)


class Desk:
    """A monitor that writes an audit log, and a fake engine."""

    def __init__(self, bundle, frame, path, source=None):
        self.bundle, self.make_frame, self.path, self.now = bundle, frame, path, 1000.0
        self.source = source or MemorySource()
        self.log = AuditLog(path)
        self.monitor = Monitor(bundle, STEERING, self.source, audit=self.log, clock=lambda: self.now)

    def hello(self, digest=None, **tested):
        message = Hello(VERSION, "engine", "tiny", digest or self.bundle.digest, "0.32.0", **tested)
        self.monitor.receive(Arrival(b"engine/core", message))

    def frame(self, *args, **options):
        self.monitor.receive(Arrival(b"engine/rank0", self.make_frame(*args, **options)))

    def pass_time(self, seconds):
        self.now += seconds
        self.monitor.tick()


@pytest.fixture
def desk(tiny_bundle, frame, path):
    desk = Desk(tiny_bundle(), frame, path)
    with closing(desk.monitor):
        yield desk


def started(slot=0, key="a"):
    return Started(slot, key, f"user-{key}", 1)


def rows(positions, slot=0, steered=0):
    return [(slot, position, Role.USER, steered) for position in positions]


def lines(path: Path) -> list[dict]:
    """The lines of a file, once it has been verified."""
    verify(path)
    return [msgspec.json.decode(raw) for raw in path.read_bytes().splitlines()]


def records(path: Path) -> list[dict]:
    return [line["record"] for line in lines(path)]


def kinds(path: Path) -> list[str]:
    return [record["type"] for record in records(path)]


def test_one_steered_request_gives_exactly_these_records(desk):
    desk.hello()
    # Toxicity fires at 1, harmful intent at 2; harmful intent is a probe of the user's tokens.
    desk.frame(0, rows([0]), [[0.0, 1.5, 0.0]], started=[started()])
    desk.frame(1, rows([1, 2, 3], steered=1), 1.5)
    desk.frame(2, rows([4]), [[9.0, 0.0, 0.0]])
    desk.frame(3, finished=[0])
    desk.monitor.close()
    request = {
        "engine": "engine",
        "model": "tiny",
        "request_id": "user-a",
        "engine_request_id": "a",
        "prompt_tokens": 1,
    }
    by = {"policy": "policy.yaml", "policy_digest": "d" * 64}
    fired = {"probe": "toxicity", "aggregate": 1.5, "threshold": 1.0, "position": 0}
    by_monitor = {"operation": "add", "low": None, "high": None, "gate": "", "number": None, "agree": 1, "agree_of": 1}
    found = lines(desk.path)
    reasons = [line["record"].pop("reason") for line in found if line["record"]["type"] == "intervention"]
    score = found[5]["record"].pop("aggregate")
    readings = found[6]["record"].pop("readings")
    assert [(line["context"], line["record"]) for line in found] == [
        (
            None,
            {
                "type": "monitor_started",
                "plumbob": __version__,
                "bundle": str(desk.bundle.path),
                "bundle_digest": desk.bundle.digest,
            },
        ),
        (
            None,
            {
                "type": "policy_in_force",
                **by,
                "rules": [
                    {
                        "name": "steady",
                        "probe": "toxicity",
                        "models": ["tiny"],
                        "mode": "enforce",
                        "actions": ["steer sycophancy at dose -0.2 for 2 tokens", "alert with severity info"],
                    },
                    {
                        "name": "watching",
                        "probe": "toxicity",
                        "models": [],
                        "mode": "shadow",
                        "actions": ["steer harmful_intent at dose 0.5 until the request ends"],
                    },
                    {
                        "name": "again",
                        "probe": "harmful_intent",
                        "models": [],
                        "mode": "enforce",
                        "actions": ["steer harmful_intent at dose -0.1 until the request ends"],
                    },
                ],
                "before": None,
            },
        ),
        (
            {**by, "ordered": None, "steered": None},
            {
                "type": "engine_changed",
                "engine": "engine",
                "model": "tiny",
                "state": "connected",
                "detail": "vLLM 0.32.0, not self-tested",
            },
        ),
        (
            {**by, "ordered": 0, "steered": 0},
            {
                "type": "intervention",
                "request": request,
                "rule": "steady",
                "mode": "enforce",
                **fired,
                "vector": "sycophancy",
                "dose": -0.2,
                "tokens": 2,
                "sent": True,
                "refusal": "",
                **by_monitor,
            },
        ),
        (
            {**by, "ordered": 1, "steered": 0},
            {
                "type": "intervention",
                "request": request,
                "rule": "watching",
                "mode": "shadow",
                **fired,
                "vector": "harmful_intent",
                "dose": 0.5,
                "tokens": None,
                "sent": False,
                "refusal": "",
                **by_monitor,
            },
        ),
        (
            {**by, "ordered": 1, "steered": 3},
            {
                "type": "intervention",
                "request": request,
                "rule": "again",
                "mode": "enforce",
                "probe": "harmful_intent",
                "threshold": 2.0,
                "position": 4,
                "vector": "harmful_intent",
                "dose": -0.1,
                "tokens": None,
                "sent": True,
                "refusal": "",
                **by_monitor,
            },
        ),
        (
            {**by, "ordered": 2, "steered": None},
            {"type": "request_finished", "request": request, "tokens": 2, "unscored": 0, "steered": 3, "unread": []},
        ),
        (None, {"type": "monitor_stopped"}),
    ]
    assert score >= 2.0 and "rule 'steady' enforces: steer sycophancy" in reasons[0]
    assert [reading["probe"] for reading in readings] == [probe.name for probe in desk.bundle.all_probes]


def test_an_order_that_does_not_arrive_is_refused_and_says_why(desk):
    desk.source.away.add(b"engine/core")
    desk.hello()
    desk.frame(0, rows([0]), [[0.0, 1.5, 0.0]], started=[started()], finished=[])
    desk.frame(1, finished=[0])
    desk.monitor.close()
    ordered = [record for record in records(desk.path) if record["type"] == "intervention"]
    assert [(record["mode"], record["sent"], record["refusal"]) for record in ordered] == [
        ("enforce", False, "the engine could not be reached"),
        ("shadow", False, ""),
    ]
    assert "request_finished" not in kinds(desk.path), "nothing was steered"


def test_what_happens_to_engines(desk):
    desk.hello(drift=0.75, shadow=True)
    desk.frame(0, rows([0]), [[0.0, 1.5, 0.0]], started=[started()])
    desk.pass_time(6)
    desk.hello(digest="f" * 64)
    desk.monitor.close()
    found = records(desk.path)
    assert [record["state"] for record in found if record["type"] == "engine_changed"] == [
        "shadow",
        "lost",
        "shadow",
        "refused",
    ]
    assert [record["mode"] for record in found if record["type"] == "intervention"] == ["shadow", "shadow"]


def test_the_end_of_a_request_that_an_earlier_monitor_steered(desk):
    desk.hello()
    desk.frame(7, rows([5, 6], steered=1), started=[started()], complete=True)
    desk.frame(8, finished=[0])
    desk.monitor.close()
    (line,) = [line for line in lines(desk.path) if line["record"]["type"] == "request_finished"]
    end = line["record"]
    assert (line["context"]["ordered"], end["steered"], end["tokens"]) == (0, 2, 0)


def test_tokens_cost_no_records(desk):
    desk.hello()
    desk.frame(0, rows([0]), [[0.0, 1.5, 0.0]], started=[started(), started(1, "b")])
    for number in range(1, 200):
        desk.frame(number, [*rows([number], steered=1), *rows([number], slot=1)], 0.0)
    desk.frame(200, finished=[0, 1])
    desk.monitor.close()
    assert kinds(desk.path) == [
        *("monitor_started", "policy_in_force", "engine_changed", "intervention", "intervention"),
        *("request_finished", "monitor_stopped"),
    ]


def test_the_next_monitor_goes_on_in_the_same_file(desk, tiny_bundle, frame, tmp_path):
    desk.monitor.close()
    desk.monitor.close()
    with closing(Desk(tiny_bundle(tmp_path / "other", seed=1), frame, desk.path).monitor) as second:
        digests = {desk.bundle.digest, second.bundle.digest}
    found = records(desk.path)
    assert [record["type"] for record in found] == ["monitor_started", "policy_in_force", "monitor_stopped"] * 2
    assert {record["bundle_digest"] for record in found if "bundle_digest" in record} == digests


def test_a_policy_that_changes_is_recorded_with_both_digests_and_one_that_is_refused_is_not(desk, path):
    desk.monitor.change_policy(Policy("other.yaml", "e" * 64, ()))
    desk.monitor.refuse_policy("worse.yaml", "worse.yaml: it makes no sense.")
    desk.monitor.close()
    policies = [record for record in records(path) if record["type"] == "policy_in_force"]
    assert [(record["policy"], record["policy_digest"], record["before"]) for record in policies] == [
        ("policy.yaml", "d" * 64, None),
        ("other.yaml", "e" * 64, "d" * 64),
    ]


def test_the_counters_follow(desk):
    desk.hello()
    deadline = time.monotonic() + 5
    while desk.monitor.stats.audit_records[()] < 3:
        assert time.monotonic() < deadline
        desk.pass_time(0)
        time.sleep(0.005)
    assert desk.monitor.stats.audit_records_lost[()] == 0
    assert desk.monitor.stats.audit_faults == {("write",): 0, ("sync",): 0, ("disturbed",): 0, ("segment",): 0}
    desk.monitor.close()
    assert desk.monitor.stats.audit_records[()] == verify(desk.path).records


def intervention(key: str, request_id: str = "user") -> Intervention:
    request = Request("engine", "tiny", request_id, key, 4)
    return Intervention(request, "rule", "enforce", "toxicity", 1.5, 1.0, 7, "v", 0.2, None, True, "why")


@pytest.fixture
def sink(shared_bundle, path):
    made = AuditSink(AuditLog(path), shared_bundle, STEERING, Stats(["toxicity"]), lambda request: 0, max_requests=2)
    yield made
    made.close()


def emit(sink, event):
    sink.emit(Recorded(1, msgspec.convert("2026-01-02T03:04:05Z", Recorded.__annotations__["time"]), event))


def test_what_clients_choose_is_cut_to_a_length(sink, path):
    emit(sink, intervention("k" * 10_000, "é" * 100_000))
    emit(sink, EngineChanged("engine", "tiny", "lost", "x" * 512))
    sink.close()
    found = records(path)
    request = found[2]["request"]
    assert len(request["request_id"]) == len(request["engine_request_id"]) == 512
    assert request["engine_request_id"].endswith("k…")
    assert found[3]["detail"] == "x" * 512


def test_orders_are_remembered_for_a_bounded_number_of_requests(sink, path):
    for key in "abc":
        emit(sink, intervention(key))
    for key in "abc":
        emit(sink, RequestFinished(Request("engine", "tiny", "user", key, 4), 9, 0, 0, ()))
    sink.close()
    assert [
        record["request"]["engine_request_id"] for record in records(path) if record["type"] == "request_finished"
    ] == ["b", "c"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_audited_is_recorded_as_it_is(sink, path, kind):
    event = sample(kind)
    emit(sink, event)
    sink.close()
    # Of requests that end, those that were steered.
    wanted = kind.audited or kind is RequestFinished
    found = [line.event() for line in read_records(path) if line.context is not None]
    assert found == [event] * wanted


def test_a_record_has_the_time_of_its_event(sink, path):
    emit(sink, intervention("a"))
    sink.close()
    assert msgspec.json.decode(path.read_bytes().splitlines()[2])["time"] == "2026-01-02T03:04:05Z"


def test_a_path_that_is_not_unicode(shared_bundle, path):
    policy = Policy("p\udcff.yaml", "", ())
    AuditSink(AuditLog(path), shared_bundle, policy, Stats([]), lambda request: 0).close()
    assert records(path)[1]["policy"] == "p�.yaml"
