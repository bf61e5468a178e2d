"""``plumbob policy``, ``order`` and ``trace``, against real monitors over gRPC, and audit logs on disk."""

import asyncio
import threading
from contextlib import closing

import msgspec
import pytest

from monitor.api import ApiServer
from monitor.engine.ops.gate_layout import MAX_GATES
from monitor.ingest import Arrival, MemorySource
from monitor.policy import load_policy
from monitor.service.config import MonitorConfig
from monitor.service.monitor import Monitor
from monitor.sinks.audit import AuditLog
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.engine_command import additional_config
from monitor.wire.codec import decode_order
from monitor.wire.frames import VERSION, GateEvent, GuardEvent, Hello, Started
from monitor.wire.orders import Release, Steer
from probes.scoring.roles import Role
from tests.harness.bundles import make_bundle
from tests.harness.command_line import assert_one_error
from tests.harness.frames import make_frame

POLICY = """
version: 1
rules:
  - name: flattery
    when: {probe: sycophancy}
    mode: enforce
    actions:
      - steer: {vector: sycophancy, clamp: [null, 0.1], gate: true, tokens: 50}
      - escalate: {}
  - name: poison
    when: {probe: toxicity}
    mode: shadow
    actions:
      - steer: {vector: harmful_intent, dose: -0.2}
"""


@pytest.fixture
def files(tmp_path):
    """A bundle, a policy and where an audit log may be."""
    bundle = make_bundle(tmp_path / "bundle")
    (tmp_path / "policy.yaml").write_text(POLICY)
    return bundle, tmp_path / "policy.yaml", tmp_path / "audit.jsonl"


class Serving:
    """A monitor behind a gRPC server, on an event loop of its own; the engine is made of frames."""

    def __init__(self, files):
        bundle, policy, audit = files
        self.source = MemorySource()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.monitor = self.call(self._make, bundle, policy, audit)
        start = ApiServer.start(
            self.monitor.events,
            self.monitor.status,
            bundle,
            traces=self.monitor.traces,
            control=self.monitor.interventions.operator,
        )
        self.server = asyncio.run_coroutine_threadsafe(start, self.loop).result(10)
        self.bundle, self.sequence = bundle, 0

    def _make(self, bundle, policy, audit):
        return Monitor(bundle, load_policy(policy, bundle), self.source, audit=AuditLog(audit))

    def call(self, function, *arguments):
        """On the loop."""

        async def inside():
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(10)

    def hello(self):
        message = Hello(VERSION, "engine", "tiny", self.bundle.digest, "0.32.0")
        self.call(self.monitor.receive, Arrival(b"engine/core", message))

    def frame(self, *args, gates=(), guarded=(), **options):
        made = make_frame(self.sequence, *args, **options)
        made.header.gates.extend(gates)
        made.header.guarded.extend(guarded)
        self.sequence += 1
        self.call(self.monitor.receive, Arrival(b"engine/rank0", made))

    def close(self):
        asyncio.run_coroutine_threadsafe(self.server.stop(0.5), self.loop).result(10)
        self.call(self.monitor.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def serving(files):
    with closing(Serving(files)) as serving:
        serving.hello()
        serving.frame([(0, 0, Role.USER, 0)], started=[Started(0, "a", "user-a", 1)])
        yield serving


def test_a_policy_that_fits(plumbob, files):
    bundle, policy, _ = files
    result = plumbob("policy", "check", policy, "--bundle", bundle.path)
    assert result.code == 0 and result.err == ""
    assert "escalate to review" in result.out and "poison" in result.out
    assert f"valid: {policy}, 2 rules, 1 gates, digest " in result.out


def test_an_engine_is_served_with_the_gates_that_its_policy_needs(files):
    bundle, policy, _ = files

    def gates(**settings):
        monitor = MonitorConfig(bundle=bundle.path, **settings)
        return additional_config(ServeConfig(model="demo", monitor=monitor)).get("gates")

    assert gates() is None
    assert gates(policy=policy) == 1
    assert gates(policy=policy, allow_control=True) == 3
    rule = POLICY.partition("rules:\n")[2].partition("  - name: poison")[0]
    many = "".join(rule.replace("flattery", f"flattery-{number}") for number in range(9))
    policy.write_text("version: 1\nrules:\n" + many)
    assert gates(policy=policy) == MAX_GATES


def test_a_policy_that_does_not(plumbob, files):
    bundle, policy, _ = files
    policy.write_text(POLICY.replace("vector: sycophancy", "vector: sycofancy"))
    result = plumbob("policy", "check", policy, "--bundle", bundle.path)
    assert_one_error(result, "rules[0].actions[0].steer.vector", "Did you mean 'sycophancy'?")
    assert_one_error(plumbob("policy", "check", policy, "--bundle", policy), "bundle")


def gate_of(serving):
    return next(iter(serving.monitor.policy.gates))


def intervene(serving):
    gate = gate_of(serving)
    serving.frame(gates=[GateEvent(0, gate, "opened", "a", "user-a", 5, 0.75, 0)])
    serving.frame(gates=[GateEvent(1, gate, "closed", "a", "user-a", 18, None, 13)])
    serving.frame(guarded=[GuardEvent(0, "a", "user-a", 18, 0.9, 0.7, 64, [gate])])
    serving.frame([(0, 30, Role.USER, 0)], 9.0)
    serving.frame(finished=[0])


def test_the_chain_of_an_event(plumbob, serving):
    intervene(serving)
    kept = [(r.sequence, type(r.event).__name__) for r in serving.call(lambda: list(serving.monitor.events._kept))]
    number = next(sequence for sequence, kind in kept if kind == "Intervention")
    result = plumbob("policy", "explain", number, "--address", serving.server.address)
    assert result.code == 0, result.err
    lines = dict(line.strip().split(maxsplit=1) for line in result.out.splitlines()[1:])
    assert result.out.startswith(f"event {number}: intervention\n")
    assert lines["score"] == "probe sycophancy was at 0.75 at token 5"
    assert lines["threshold"] == "0.50; the score is 0.25 above it"
    assert lines["streak"] == "one average that reaches it is enough"
    assert lines["rule"] == "'flattery'" and lines["mode"] == "enforce: generations are changed"
    assert lines["action"] == ("clamp sycophancy to at most 0.1 for 50 tokens")
    assert lines["decided"] == f"by the engine itself, by gate {gate_of(serving)}"
    assert lines["steered"] == "13 tokens, until the gate closed"
    assert lines["guard"] == "released from token 18 on, since the answer repeated itself"
    guarded = next(sequence for sequence, kind in kept if kind == "Guarded")
    said = plumbob("policy", "explain", guarded, "--address", serving.server.address).out
    lines = dict(line.strip().split(maxsplit=1) for line in said.splitlines()[1:])
    assert lines["repetition"] == "90% of the answer's last tokens, by sequences of three, at token 18"
    assert lines["result"] == "the request is steered no more, for good" and lines["threshold"] == "70%"
    fired = next(sequence for sequence, kind in kept if kind == "ProbeFired")
    assert "probe fired" in plumbob("policy", "explain", fired, "--address", serving.server.address).out
    shadow = [sequence for sequence, kind in kept if kind == "Intervention"][1]
    said = plumbob("policy", "explain", shadow, "--address", serving.server.address).out
    assert "nothing was sent: this is what would have been done" in said and "steered    nothing" in said
    finished = next(sequence for sequence, kind in kept if kind == "RequestFinished")
    assert_one_error(
        plumbob("policy", "explain", finished, "--address", serving.server.address),
        "is of kind request_finished: no rule decided it",
    )
    assert_one_error(plumbob("policy", "explain", 999, "--address", serving.server.address), "does not keep event 999")


def test_the_chain_of_a_record(plumbob, files):
    with closing(Serving(files)) as serving:
        serving.hello()
        serving.frame([(0, 0, Role.USER, 0)], started=[Started(0, "a", "user-a", 1)])
        intervene(serving)
    path = files[2]
    lines = [msgspec.json.decode(raw) for raw in path.read_bytes().splitlines()]
    number = next(line["sequence"] for line in lines if line["record"]["type"] == "intervention")
    result = plumbob("policy", "explain", number, "--audit", path)
    assert result.code == 0, result.err
    assert f"record {number} of {path}: intervention" in result.out
    assert "0.50; the score is 0.25 above it" in result.out and "13 tokens, until the gate closed" in result.out
    assert str(files[1]) in result.out, "the policy is named"
    assert "released from token 18 on, since the answer repeated itself" in result.out
    number_of_guard = next(line["sequence"] for line in lines if line["record"]["type"] == "guarded")
    said = plumbob("policy", "explain", number_of_guard, "--audit", path).out
    assert "90% of the answer's last tokens" in said and "the request is steered no more, for good" in said
    assert_one_error(plumbob("policy", "explain", 1, "--audit", path), "is of kind monitor_started")
    assert_one_error(plumbob("policy", "explain", 99, "--audit", path), "has no record 99")
    path.write_bytes(path.read_bytes().replace(b'"position":5', b'"position":6'))
    assert_one_error(plumbob("policy", "explain", number, "--audit", path), "is not what was written")


def test_orders(plumbob, serving):
    address = ("--address", serving.server.address)
    result = plumbob("order", "steer", "user-a", "sycophancy", "--dose", "-0.2", "--lease", 60, *address)
    assert result.code == 0, result.err
    id, _, said = result.out.strip().partition(": ")
    assert said == "steer sycophancy at dose -0.2 until the request ends, for 60 s at most"
    assert f"{id}: steer sycophancy" in plumbob("order", "list", *address).out
    assert plumbob("order", "release", id, *address).out == f"{id}: released\n"
    sent = [decode_order(parts) for _, parts in serving.source.sent]
    assert [type(order) for order in sent if isinstance(order, Steer | Release)] == [Steer, Release]
    armed = plumbob("order", "arm", "toxicity", "harmful_intent", "--ablate", "--lease", 60, *address)
    assert "on 1 engines, for 60 s at most" in armed.out
    id = armed.out.partition(": ")[0]
    assert plumbob("order", "disarm", id, *address).out == f"{id}: disarmed\n"
    assert_one_error(plumbob("order", "disarm", id, *address), "The monitor refuses: No order", "ListOrders names")
    assert_one_error(
        plumbob("order", "steer", "user-z", "sycophancy", "--ablate", "--lease", 60, *address),
        "The monitor refuses: No request 'user-z' is in flight.",
    )
    assert_one_error(
        plumbob("order", "steer", "user-a", "sycophancy", "--ablate", "--dose", "0.1", "--lease", 60, *address),
        "An order does exactly one thing.",
    )


def test_traces(plumbob, serving):
    address = ("--address", serving.server.address)
    assert plumbob("trace", *address).out == ""
    intervene(serving)
    assert "user-a escalated" in plumbob("trace", *address).out
    said = plumbob("trace", "user-a", *address).out
    assert "REVIEW user-a flattery" in said and "token 0: harmful_intent 0.00" in said
    assert '"request_id":"user-a"' in plumbob("trace", "user-a", "--json", *address).out.replace(" ", "")
    assert_one_error(plumbob("trace", "user-z", *address), "No trace of request 'user-z' is kept")


def test_no_monitor(plumbob):
    for command in (("order", "list"), ("trace",), ("policy", "explain", "1")):
        assert_one_error(plumbob(*command, "--address", "127.0.0.1:1"), "No monitor answers at 127.0.0.1:1.")
