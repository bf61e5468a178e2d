"""Orders that arrive between two known steps of a real engine: generations that are stopped, orders that are refused.

The engine takes each step by hand (:mod:`tests.harness.stepped`), so that no order comes too late.
"""

import msgspec
import numpy as np
import pytest

from monitor.events import Intervention, Ordered
from monitor.policy import Gate, Policy, Rule, SteerAction, Steering, StopAction
from monitor.wire.orders import Act, Arm, Disarm, Release, Steer, Stop, Stream
from probes.bundle import save_bundle
from probes.scoring.aggregate import running
from probes.scoring.roles import Role
from tests.harness.engines import random_bundle, settings
from tests.harness.models import tiny_model
from tests.harness.stepped import (
    Ask,
    Engine,
    answers,
    begin_monitoring,
    end_monitoring,
    generate,
    order,
    refusals,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LAYERS = (0, 1, 3)
CAP = 1.2
DOSE = 0.8
"""Alone within the cap, twice beyond it."""
TOKENS, AFTER = 40, 10
"""Of an answer, and those of it that there are when an order comes."""
MESSAGE = "\nI stop here."
PROMPT, OTHER = list(range(5, 17)), list(range(20, 33))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def source(model):
    from probes.models.activations import TransformersSource

    return TransformersSource(model, dtype="float32")


@pytest.fixture(scope="module")
def bundle(model, source, tmp_path_factory):
    """Probes that fire at every token, and vectors with a cap."""
    folder = tmp_path_factory.mktemp("bundles")
    plain = random_bundle(folder / "plain", model, source.markers, threshold=-1e6, layers=LAYERS)
    manifest = plain.manifest
    return save_bundle(
        folder / "bundle",
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=[(probe, plain.weight[i], float(plain.bias[i])) for i, probe in enumerate(plain.probes)],
        vectors=[
            (msgspec.structs.replace(vector, hidden_norm=8.0, max_dose=CAP), plain.vectors[row])
            for row, vector in enumerate(manifest.vectors)
        ],
    )


@pytest.fixture(scope="module")
def engine(model, bundle, tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    endpoint = f"ipc://{tmp_path_factory.mktemp('engine')}/engine.sock"
    tap = {"bundle": str(bundle.path), "endpoint": endpoint, "gates": 2}
    more = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 1 << 27,
        "max_num_batched_tokens": 64,
        "max_logprobs": -1,
    }
    engine = Engine(settings(model, **more, additional_config={"plumbob": tap}), endpoint)
    yield engine
    engine.close()


@pytest.mark.parametrize("message", [MESSAGE, ""])
def test_a_generation_is_stopped_with_a_message_and_its_batchmate_is_not(engine, message):
    (plain,), (whole,) = engine.do(answers, [PROMPT], TOKENS), engine.do(answers, [OTHER], TOKENS)
    mate, cut = engine.do(answers, [PROMPT, OTHER], TOKENS, [Stop("", message, "rule:stop")], AFTER)
    assert mate.ids == plain.ids
    # As far as it had come, and the message whole, which is no token of the model's.
    said = f"\n\n{message}" if message else ""
    assert cut.ids == whole.ids[:AFTER]
    assert cut.text == whole.text[: len(cut.text) - len(said)] + said
    assert cut.ended == ("content_filter", "plumbob")
    assert cut.logprobs[:AFTER] == pytest.approx(whole.logprobs[:AFTER], abs=1e-4)
    assert len(cut.logprobs) == AFTER
    assert cut.seen.positions == list(range(len(OTHER) + AFTER - 1))


def test_an_engine_refuses_with_the_reason_and_the_answer_is_as_it_was(engine):
    (plain,) = engine.do(answers, [PROMPT], TOKENS)
    before = engine.do(refusals)
    orders = [
        Steer("gone-1", [Act("random-0", add=0.1)], id="late"),
        Stop("gone-2", "Enough.", "late:stop"),
        Release("gone-3"),
        Stream(2, "all"),
        Arm("g", "hope", [Act("random-0", add=0.1)]),
        Steer("", [Act("hope")]),
        Steer("", [Act("random-1", add=9.0)], id="high"),
    ]
    (answer,) = engine.do(answers, [PROMPT], TOKENS, orders, AFTER)
    assert (answer.ids, answer.logprobs) == (plain.ids, plain.logprobs)
    key, found = answer.seen.started.engine_request_id, engine.do(refusals)[len(before) :]
    assert sorted((one.order, one.id, one.engine_request_id, one.cause) for one in found) == sorted(
        [
            ("steer", "late", "gone-1", "request"),
            ("stop", "late:stop", "gone-2", "request"),
            ("release", "", "gone-3", "request"),
            ("stream", "", "", "layer"),
            ("arm", "g", "", "gate"),
            ("steer", "", key, "vector"),
            ("steer", "high", key, "dose"),
        ]
    )
    assert all(one.reason for one in found)
    assert f"over the bundle's cap of {CAP}" in next(one.reason for one in found if one.id == "high")


def test_an_order_and_a_gate_come_together_to_no_more_than_the_cap(engine, bundle):
    engine.do(order, Arm("g", bundle.probes[0].name, [Act("random-0", add=DOSE)]))
    before = len(engine.do(refusals))
    orders = [
        Steer("", [Act("random-0", add=DOSE)], id="over"),
        Steer("", [Act("random-0", add=CAP - DOSE)], id="fits"),
        Steer("", [Act("random-1", add=DOSE)], id="another"),
    ]
    (answer,) = engine.do(answers, [PROMPT], TOKENS, orders, AFTER)
    engine.do(order, Disarm("g"))
    (refused,) = engine.do(refusals)[before:]
    assert refused.engine_request_id == answer.seen.started.engine_request_id
    assert (refused.id, refused.cause) == ("over", "dose")
    assert f"comes to a dose of {2 * DOSE}, over the cap of {CAP}" in refused.reason


def test_a_rule_that_fails_closed_stops_the_generation_that_the_engine_does_not_steer(engine, bundle):
    """One rule's gate leaves no room for what another orders."""
    gate = SteerAction(Steering("random-0", dose=DOSE, gate=Gate(threshold=1e9)))
    ordered = SteerAction(Steering("random-0", dose=DOSE), StopAction(MESSAGE))
    rules = (
        Rule("gated", bundle.probes[0].name, (), "enforce", (gate,)),
        Rule("ordered", bundle.probes[1].name, (), "enforce", (ordered,)),
    )
    (plain,) = engine.do(answers, [PROMPT], TOKENS)
    engine.do(begin_monitoring, bundle.path, Policy("policy.yaml", "a" * 64, rules))
    (answer,) = engine.do(answers, [PROMPT], TOKENS)
    events = engine.do(end_monitoring)
    # The prompt's frame leads to the order, the next one says that it is refused, the one behind that to the stop.
    assert answer.ids == plain.ids[:2]
    assert answer.text.endswith(MESSAGE)
    assert not any(answer.seen.steered)
    (stop,) = [event for event in events if isinstance(event, Intervention) and event.operation == "stop"]
    assert (stop.rule, stop.sent) == ("ordered", True)
    assert "fails closed" in stop.reason
    # An engine tells a monitor of what it refused before, too.
    orders = [event for event in events if isinstance(event, Ordered) and event.request == stop.request]
    (refused,) = [event for event in orders if event.result == "refused"]
    assert refused.kind == "steer" and f"over the cap of {CAP}" in refused.reason


LONG = [5 + token % 90 for token in range(200)]
"""Computed in several steps, and long enough for a block of the prefix cache."""
ENDED = ("content_filter", "plumbob")


def test_a_gate_that_stops_lets_nothing_of_an_answer_leave(engine, bundle):
    """Whether the prompt is computed in one step or in several, or comes from the prefix cache."""
    stop = Arm("s", bundle.probes[0].name, [], threshold=-1e6, stop=MESSAGE)
    (plain,) = engine.do(answers, [PROMPT], TOKENS)
    engine.do(order, stop)
    for answer in engine.do(answers, [PROMPT, OTHER, LONG], TOKENS):
        assert (answer.ids, answer.text, answer.logprobs, answer.ended) == ([], MESSAGE, [], ENDED)
        # The first token that is read opens it; of a prompt in several steps, the others are never computed.
        assert 0 < len(answer.seen.positions) <= 64
        assert not any(answer.seen.steered)
    engine.do(order, Disarm("s"))
    engine.do(generate, [Ask(LONG, 1)])
    engine.do(order, stop)
    (again,) = engine.do(generate, [Ask(LONG, TOKENS)])
    assert again.cached >= 128 and again.ids == []
    engine.do(order, Disarm("s"))
    (after,) = engine.do(answers, [PROMPT], TOKENS)
    assert (after.ids, after.logprobs) == (plain.ids, plain.logprobs)


def test_a_gate_that_stops_ends_an_answer_before_the_token_that_follows(engine, bundle):
    (plain,) = engine.do(answers, [PROMPT], TOKENS)
    scores, roles = np.array(plain.seen.scores), np.array(plain.seen.roles)
    found = []
    for column, probe in enumerate(bundle.probes):
        read = np.flatnonzero(np.isin(roles, [int(role) for role in Role if probe.reads(role)]))
        average = running(scores[read, column], probe.aggregate)
        if (at := int(read[np.nanargmax(average)])) >= len(PROMPT) + 2:
            found.append((probe.name, at, float(np.nanmax(average))))
    name, at, highest = found[0]
    engine.do(order, Arm("s", name, [], threshold=highest - 1e-4, stop=MESSAGE))
    (cut,) = engine.do(answers, [PROMPT], TOKENS)
    engine.do(order, Disarm("s"))
    # Row ``at`` yields the token behind it, which does not leave.
    assert cut.ids == plain.ids[: at - len(PROMPT) + 1]
    assert cut.ended == ENDED and cut.text.endswith(f"\n\n{MESSAGE}")
    assert cut.seen.positions == list(range(at + 1))


def test_the_monitor_records_what_a_gate_has_stopped(engine, bundle):
    rule = Rule("silenced", bundle.probes[0].name, (), "enforce", (StopAction(MESSAGE, gate=True),))
    engine.do(begin_monitoring, bundle.path, Policy("policy.yaml", "a" * 64, (rule,)))
    (answer,) = engine.do(answers, [PROMPT], TOKENS)
    events = engine.do(end_monitoring)
    assert (answer.ids, answer.text, answer.ended) == ([], MESSAGE, ENDED)
    (stop,) = [
        event
        for event in events
        if isinstance(event, Intervention) and event.request.engine_request_id == answer.seen.started.engine_request_id
    ]
    assert (stop.rule, stop.operation, stop.mode, stop.sent) == ("silenced", "stop", "enforce", True)
    assert stop.gate.startswith("policy:") and stop.position < len(PROMPT)
    assert "nothing that the model said behind it left the engine" in stop.reason
    assert not [event for event in events if isinstance(event, Ordered) and event.kind == "stop"]
