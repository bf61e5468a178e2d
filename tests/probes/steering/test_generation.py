"""Generation under steering, against whole forward passes of one text at a time, without cache, batch or padding."""

import numpy as np
import pytest

from probes.errors import BundleError, SteeringError
from probes.models.activations import TransformersSource
from probes.models.chat import Message
from probes.scoring.aggregate import running
from probes.scoring.roles import Role, RoleReader
from probes.steering import Operation, add, clamp
from probes.steering.edit import Edit
from probes.steering.generation import NEVER, Answer, Arm, Trigger, generate
from tests.harness.steered_generation import edit, trigger

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

RANDOM = np.random.default_rng(5)
TOKENS = 9


@pytest.fixture(scope="module")
def source(tiny_model) -> TransformersSource:
    return TransformersSource(tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def prompts(source):
    asked = ["Is it warm?", "Tell me about the little red boat. Thank you!", "What do bees eat today?", "house"]
    talks = [[Message("user", text)] for text in asked]
    talks.append([Message("user", "Thank you!"), Message("assistant", "They eat nectar."), Message("user", "Is it?")])
    return [*(source.encode(talk, respond=True) for talk in talks), [40], RANDOM.integers(5, 290, 30).tolist()]


def one_pass(source, ids, edits, start, layer=None):
    """Logits of the last row, and the clean states that leave ``layer``, with rows from ``start`` on steered."""
    states = {}

    def hook(at, here):
        def rewrite(_module, _arguments, output):
            states[at] = output[0].clone().numpy()
            for one in here:
                chosen = torch.arange(len(ids))[None] >= start(one.layer)
                output = one(output, chosen)
            return output

        return rewrite

    layers = {one.layer for one in edits} | ({layer} if layer is not None else set())
    handles = [
        source.hooked.blocks[at].register_forward_hook(hook(at, [one for one in edits if one.layer == at]))
        for at in layers
    ]
    try:
        with torch.inference_mode():
            logits = source.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return logits, states.get(layer)


def reference(source, prompt, edits, gate=None):
    """Token by token, each from a whole pass; the gate's verdict from :func:`probes.scoring.aggregate.running`."""
    ids, said, fired, steered = list(prompt), [], None, 0
    first = len(prompt) - 1
    end = source.tokenizer.eos_token_id
    roles = RoleReader(source.markers).prompt(prompt).tolist()
    for _ in range(TOKENS):

        def start(layer, fired=fired):
            if gate is None:
                return first
            return NEVER if fired is None else max(first, fired + (layer <= gate.probe.layer))

        if gate is not None and fired is None:
            _, states = one_pass(source, ids, edits, start, gate.probe.layer)
            read = np.flatnonzero([gate.probe.reads(Role(role)) for role in roles])
            over = running(gate.scores(states[read]), gate.probe.aggregate) >= gate.probe.threshold
            if over.any():
                fired = int(read[over.argmax()])
        logits, _ = one_pass(source, ids, edits, lambda layer, now=fired, start=start: start(layer, now))
        steered += any(len(ids) - 1 >= start(one.layer, fired) for one in edits)
        token = int(logits.argmax())
        if token == end:
            break
        said.append(token)
        ids.append(token)
        roles.append(int(Role.ASSISTANT))
    return Answer(said, steered, fired)


def test_unsteered_is_what_the_model_answers(source, prompts):
    (answers,) = generate(source, prompts, [Arm()], TOKENS)
    expected = source.respond(prompts, TOKENS)
    assert [[*prompt, *answer.token_ids] for prompt, answer in zip(prompts, answers, strict=True)] == expected
    assert all(answer.steered == 0 and answer.fired_at is None for answer in answers)
    assert len({tuple(answer.token_ids) for answer in answers}) > 1


def test_always_steered_from_the_prompts_last_row_on(source, prompts):
    arms = [
        [edit(2, 1, add(0.5))],
        [edit(0, 2, add(-0.4)), edit(3, 3, clamp(-0.02, 0.02))],
        [edit(1, 1, Operation(scale=0.0)), edit(4, 4, add(0.3))],
    ]
    found = generate(source, prompts, [Arm(), *map(Arm, arms)], TOKENS)
    for edits, answers in zip(arms, found[1:], strict=True):
        assert answers == [reference(source, prompt, edits) for prompt in prompts]
        assert answers != found[0], "steering matters"


@pytest.mark.parametrize("layer", [1, 2, 3], ids=["before the vector", "at the vector", "behind the vector"])
@pytest.mark.parametrize("roles", [("assistant",), ("user", "assistant")])
def test_steered_from_the_token_at_which_the_probe_fires(source, prompts, layer, roles):
    gate = trigger(layer, {1: 1.2, 2: 0.2, 3: -0.5}[layer], roles)
    edits = [edit(2, 1, add(0.8))]
    (answers,) = generate(source, prompts, [Arm(edits, gate)], TOKENS)
    assert answers == [reference(source, prompt, edits, gate) for prompt in prompts]
    fired = [answer.fired_at for answer in answers]
    assert any(position is not None for position in fired)
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer.fired_at is None:
            assert answer.steered == 0
        assert answer.steered <= len(answer.token_ids) + 1 and len(prompt) > 0


def test_what_changes_nothing_changes_no_answer(source, prompts):
    one, opposite = edit(2, 1, add(0.5)), edit(2, 1, add(0.5))
    both = Edit(2, np.concatenate([one.vectors, -opposite.vectors]), np.concatenate([one.table, opposite.table]))
    silent = Arm([edit(2, 1, add(0.9))], trigger(1, threshold=1e6))
    arms = [Arm(), Arm([edit(2, 1, add(0.0))]), Arm([both]), silent]
    unsteered, *others = generate(source, prompts, arms, TOKENS)
    for answers in others:
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in unsteered]
    assert not any(answer.steered for answer in others[-1])


def test_arms_and_batches_do_not_mix(source, prompts, monkeypatch):
    arms = [Arm([edit(2, 1, add(0.8))], trigger(1, 1.2)), Arm(), Arm([edit(3, 2, add(-0.6))])]
    together = generate(source, prompts, arms, TOKENS)
    assert generate(source, prompts, arms[::-1], TOKENS) == together[::-1]
    monkeypatch.setattr("probes.steering.generation.TOKENS", 1)
    assert generate(source, prompts, arms, TOKENS) == together


def test_progress_tells_all_of_it(source, prompts):
    told = []
    generate(source, prompts, [Arm(), Arm()], 2, lambda what, done, total: told.append((done, total)))
    assert told[-1] == (2 * len(prompts), 2 * len(prompts)) and told == sorted(told)


def test_bad_input(source, shared_bundle):
    with pytest.raises(SteeringError, match="no tokens"):
        generate(source, [[5], []], [Arm()], 2)
    with pytest.raises(SteeringError, match="not finite"):
        generate(source, [[5, 6]], [Arm([edit(1, 1, add(1e38))])], 2)
    assert Trigger.of(shared_bundle, "toxicity").probe.name == "toxicity"
    with pytest.raises(BundleError, match=r"no linear probe 'x'.*harmful_intent, toxicity, sycophancy"):
        Trigger.of(shared_bundle, "x")
