"""A real engine as a reader: its states and answers are those of transformers, in float32, and none is lost."""

import numpy as np
import pytest

from monitor.errors import EngineError, PrerequisiteError
from monitor.offline import source as reading
from monitor.offline.source import VllmSource
from probes.data.concepts import load_benign
from probes.errors import ModelError
from tests.harness.engines import FLOAT32_LARGEST as LARGEST
from tests.harness.engines import LAYERS
from tests.harness.models import tiny_model

pytestmark = pytest.mark.vllm

STEP = 128
"""Rows of a step at most: less than the longest conversation."""
CONTEXT = 768
"""Rows of a ring, too: it is overwritten several times."""
TOKENS = 24


@pytest.fixture(scope="module")
def engine(model_path):
    with VllmSource(model_path, LAYERS, "float32", step_tokens=STEP, context=CONTEXT) as opened:
        yield opened


@pytest.fixture(scope="module")
def conversations(source):
    """Forty, in no order of length."""
    encoded = [source.encode(request.messages, respond=True) for request in load_benign()[:40]]
    encoded[7] = [token for ids in encoded for token in ids][: CONTEXT - 1]
    assert len(encoded[7]) > 5 * STEP
    assert sum(map(len, encoded)) > 3 * CONTEXT
    return encoded


@pytest.fixture(scope="module")
def expected(source, conversations):
    return source.read(conversations, LAYERS)


def differences(states, wanted):
    """Of each token, relative to the norm of its state, shape ``(layers, tokens)``."""
    return np.linalg.norm(states - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)


def assert_same(read, expected):
    assert len(read) == len(expected)
    for here, there in zip(read, expected, strict=True):
        assert here.token_ids.tolist() == there.token_ids.tolist()
        assert here.roles.tolist() == there.roles.tolist()
        assert differences(here.states, there.states).max() <= LARGEST


def test_states_are_those_of_transformers(engine, conversations, expected):
    told = []
    read = engine.read(conversations, LAYERS, lambda *step: told.append(step))
    assert_same(read, expected)
    total = sum(map(len, conversations))
    assert len(told) > 3
    assert told[-1] == ("reading activations", total, total)
    # The same bound is far from met by the token before, another layer, or the end of another conversation.
    states = expected[0].states
    for other, mine in (
        (states[:, :-1], states[:, 1:]),
        (np.roll(states, 1, axis=0), states),
        (expected[1].states[:, -1:], states[:, -1:]),
    ):
        assert differences(other, mine).min() > 100 * LARGEST


def test_layers_come_in_the_order_asked_for(engine, conversations, expected):
    (read,) = engine.read(conversations[:1], [LAYERS[2], LAYERS[0]])
    assert differences(read.states, expected[0].states[[2, 0]]).max() <= LARGEST


def test_nothing_is_read_of_nothing(engine):
    assert engine.read([], LAYERS) == []
    assert engine.respond([], TOKENS) == []


def test_answers_are_the_greedy_ones_of_transformers(engine, source, conversations):
    prompts = sorted(conversations, key=len)[:6]
    told = []
    answered = engine.respond(prompts, TOKENS, lambda *step: told.append(step))
    assert answered == source.respond(prompts, TOKENS)
    assert told == [("answering benign prompts", 6, 6)]
    lengths = {len(answer) - len(prompt) for answer, prompt in zip(answered, prompts, strict=True)}
    assert TOKENS in lengths


def test_an_answer_ends_before_the_token_that_ends_it(engine, source):
    from probes.models.chat import Message

    prompt = source.encode([Message("user", "What is the capital of France? Answer with one word.")], respond=True)
    (answered,) = engine.respond([prompt], 64)
    assert len(prompt) < len(answered) < len(prompt) + 64
    assert source.tokenizer.eos_token_id not in answered[len(prompt) :]
    assert [answered] == source.respond([prompt], 64)


def test_it_encodes_as_transformers_does(engine, source):
    messages = load_benign()[0].messages
    assert engine.encode(messages) == source.encode(messages)
    assert engine.encode(messages, respond=True) == source.encode(messages, respond=True)
    assert (engine.markers, engine.layers, engine.hidden) == (source.markers, source.layers, source.hidden)


@pytest.fixture
def losing(engine, monkeypatch):
    """Have frames lost on their way: as many of the next ones as said."""
    left = {"frames": 0}
    place = engine._inbox._place

    def lose(frame):
        if frame.header.states and left["frames"]:
            left["frames"] -= 1
        else:
            place(frame)

    monkeypatch.setattr(engine._inbox, "_place", lose)
    monkeypatch.setattr(reading, "_SETTLE_SECONDS", 0.2)
    return left


def test_what_was_lost_on_the_way_is_read_again(engine, conversations, expected, losing):
    losing["frames"] = 3
    assert_same(engine.read(conversations[:12], LAYERS), expected[:12])
    assert losing["frames"] == 0


def test_what_is_lost_each_time_is_an_error_and_the_next_reading_is_not(engine, conversations, expected, losing):
    losing["frames"] = 10_000
    with pytest.raises(EngineError, match=r"^Of 2 conversations, rows were lost each of 3 times that they were read\."):
        engine.read(conversations[:2], LAYERS)
    losing["frames"] = 0
    assert_same(engine.read(conversations[2:4], LAYERS), expected[2:4])


def test_what_the_engine_cannot_read_is_refused_and_it_lives_on(engine, conversations, expected):
    for bad, layers, message in (
        ([[]], LAYERS, "Conversation 1 of 1 has no tokens"),
        ([[1], [1] * CONTEXT], LAYERS, f"Conversation 2 of 2 has {CONTEXT} tokens; the engine reads {CONTEXT - 1}"),
        ([[1]], [LAYERS[0], 6], "Layer 6 is not streamed; these are: 5, 15, 29"),
    ):
        with pytest.raises(ModelError, match=message):
            engine.read(bad, layers)
    with pytest.raises(ModelError, match=f"the engine reads {CONTEXT - 8} at most"):
        engine.respond([[1] * (CONTEXT - 7)], 8)
    assert_same(engine.read(conversations[:1], LAYERS), expected[:1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.mark.parametrize(("layers", "named"), [([0, 4], "0, 4"), ([-1], "-1"), ([], "none")])
def test_a_layer_that_the_model_does_not_have_is_refused(tiny, layers, named):
    with pytest.raises(ModelError, match=f"has layers 0 to 3; asked for: {named}"):
        VllmSource(tiny, layers)


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="transformers cannot load"):
        VllmSource(tmp_path, [0])


def test_an_engine_that_does_not_start_says_why(tiny):
    with (
        pytest.raises(EngineError, match=r"^The reading engine ended before its time: .*SchedulerConfig"),
        VllmSource(tiny, [0], engine={"max_num_batched_tokens": 8}),
    ):
        pass


def test_an_engine_without_the_plugin_is_an_error(tiny, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    refused = pytest.raises(PrerequisiteError, match="VLLM_PLUGINS is 'another' and leaves plumbob out")
    with refused, VllmSource(tiny, [0]):
        pass
