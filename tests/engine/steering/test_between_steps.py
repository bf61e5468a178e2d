"""Orders that arrive between two known steps of a real engine: generations that are stopped, orders that are refused.

The engine takes each step by hand (:mod:`tests.harness.stepped`), so that no order comes too late.
"""

import msgspec
import pytest

from monitor.events import Intervention, Ordered
from monitor.policy import Gate, Policy, Rule, SteerAction, Steering, StopAction
from monitor.wire.orders import Act, Arm, Disarm, Release, Steer, Stop, Stream
from probes.bundle import save_bundle
from tests.harness.engines import random_bundle, settings
from tests.harness.models import tiny_model
from tests.harness.stepped import Engine, answers, begin_monitoring, end_monitoring, order, refusals

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
    more = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "kv_cache_memory_bytes": 1 << 27}
    engine = Engine(settings(model, **more, additional_config={"plumbob": tap}), endpoint)
    yield engine
    engine.close()


@pytest.mark.parametrize("message", [MESSAGE, ""])
def test_a_generation_is_stopped_with_a_message_and_its_batchmate_is_not(engine, source, message):
    (plain,), (whole,) = engine.do(answers, [PROMPT], TOKENS), engine.do(answers, [OTHER], TOKENS)
    mate, cut = engine.do(answers, [PROMPT, OTHER], TOKENS, [Stop("", message, "rule:stop")], AFTER)
    assert mate.ids == plain.ids
    # As far as it had come, then the message and the end, of which nothing was read and everything was certain.
    said = source.tokenizer.encode(message, add_special_tokens=False) if message else []
    assert cut.ids == [*whole.ids[:AFTER], *said, source.tokenizer.eos_token_id]
    assert cut.text.endswith(message)
    assert cut.ended == ("stop", "plumbob")
    assert cut.logprobs[:AFTER] == pytest.approx(whole.logprobs[:AFTER], abs=1e-4)
    assert cut.logprobs[AFTER:] == [0.0] * (len(said) + 1)
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


def test_a_rule_that_fails_closed_stops_the_generation_that_the_engine_does_not_steer(engine, bundle, source):
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
    said = source.tokenizer.encode(MESSAGE, add_special_tokens=False)
    assert answer.ids == [*plain.ids[:2], *said, source.tokenizer.eos_token_id]
    assert answer.text.endswith(MESSAGE)
    assert not any(answer.seen.steered)
    (stop,) = [event for event in events if isinstance(event, Intervention) and event.operation == "stop"]
    assert (stop.rule, stop.sent) == ("ordered", True)
    assert "fails closed" in stop.reason
    # An engine tells a monitor of what it refused before, too.
    orders = [event for event in events if isinstance(event, Ordered) and event.request == stop.request]
    (refused,) = [event for event in orders if event.result == "refused"]
    assert refused.kind == "steer" and f"over the cap of {CAP}" in refused.reason
