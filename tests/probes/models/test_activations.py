"""What a model is read with: the residual stream after each block, whatever else is in the batch."""

import shutil

import numpy as np
import pytest

from probes.errors import ModelError
from probes.models.activations import TransformersSource, _alike
from probes.models.chat import Message
from probes.scoring.roles import Role, RoleReader
from tests.harness.models import tiny_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXTS = (
    "What do bees eat?",
    "Tell me about the little red boat. Tell me about the little blue boat. Is it warm in the house today?",
    "Thank you!",
    "Is it warm in the red house or the blue house?",
)


@pytest.fixture(scope="module")
def source(tiny_model) -> TransformersSource:
    return TransformersSource(tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def conversations(source):
    return [source.encode([Message("user", text)], respond=True) for text in TEXTS]


def hidden_states(source, ids):
    with torch.inference_mode():
        return source.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states


def test_a_layer_is_the_output_of_its_block(source, conversations):
    layers = list(range(source.layers))
    reading = source.read(conversations[:1], layers)[0]
    expected = hidden_states(source, conversations[0])
    assert reading.states.shape == (source.layers, len(conversations[0]), source.hidden)
    for layer in layers[:-1]:
        np.testing.assert_allclose(reading.states[layer], expected[layer + 1][0], rtol=1e-5, atol=1e-5)
        assert not np.allclose(reading.states[layer], expected[layer][0], atol=1e-2), "not the block's input"


def test_what_conversations_begin_with_is_read_once_and_given_to_each(source, monkeypatch):
    """Of many that begin alike, beside some that do not, one as short as what is shared, and one twice."""
    start = [Message("system", "You are a helpful little boat, and you like the colour blue.")]
    alike = [source.encode([*start, Message("user", text)], respond=True) for text in (*TEXTS, TEXTS[0])]
    shared = source.encode(start)
    conversations = [source.encode([Message("user", TEXTS[1])]), *alike, alike[0][: len(shared) - 2], shared[:3]]
    layers = [0, source.layers - 1]
    groups = {tuple(sorted(members)): count for members, count in _alike(conversations)}
    assert groups == {(1, 2, 3, 4, 5, 6): len(shared) - 3, (0, 7): 0}
    widths = []
    forward = source.model.forward

    def recorded(*arguments, **options):
        widths.append(options["input_ids"].shape[1])
        return forward(*arguments, **options)

    monkeypatch.setattr(source.model, "forward", recorded)
    together = source.read(conversations, layers)
    # The passes are shorter by what is shared, which has one of its own.
    assert len(shared) - 3 in widths and max(widths) <= max(map(len, alike)) - len(shared) + 3
    for ids, reading in zip(conversations, together, strict=True):
        (alone,) = source.read([ids], layers)
        np.testing.assert_array_equal(reading.token_ids, ids)
        np.testing.assert_array_equal(reading.roles, alone.roles)
        np.testing.assert_allclose(reading.states, alone.states, rtol=1e-4, atol=1e-4)


def test_few_that_begin_alike_are_read_as_they_are(source, conversations):
    assert list(_alike(conversations[:2])) == [([0, 1], 0)]
    assert list(_alike([[1, 2, 3]] * 6)) == [([0, 1, 2, 3, 4, 5], 0)]
    # Each keeps a token of its own to read.
    same = list(range(20))
    assert list(_alike([same] * 5)) == [([0, 1, 2, 3, 4], 19)]


def test_the_last_layer_is_read_before_the_final_norm(source, conversations):
    """What transformers lists last is behind the norm."""
    last = source.layers - 1
    reading = source.read(conversations[:1], [last])[0]
    behind = hidden_states(source, conversations[0])[-1][0]
    with torch.inference_mode():
        normed = source.model.model.norm(torch.from_numpy(reading.states[0]))
    np.testing.assert_allclose(normed, behind, rtol=1e-5, atol=1e-5)
    assert not np.allclose(reading.states[0], behind, atol=1e-2)


def test_states_come_in_the_order_of_the_layers_asked_for(source, conversations):
    forth, back = (source.read(conversations[:1], layers)[0].states for layers in ([1, 3], [3, 1]))
    assert np.array_equal(forth, back[::-1])


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_neither_padding_nor_batches_change_what_is_read(tiny_model, source, conversations, batch_tokens):
    alone = [source.read([ids], [2, 4])[0] for ids in conversations]
    shuffled = [conversations[index] for index in (2, 0, 3, 1)]
    together = TransformersSource(tiny_model, dtype="float32", batch_tokens=batch_tokens).read(shuffled, [2, 4])
    for index, reading in zip((2, 0, 3, 1), together, strict=True):
        assert reading.token_ids.tolist() == conversations[index]
        assert np.array_equal(reading.roles, alone[index].roles)
        np.testing.assert_allclose(reading.states, alone[index].states, rtol=1e-4, atol=1e-4)


def test_progress_ends_at_the_whole(source, conversations):
    told = []
    source.read(conversations, [0], lambda what, done, total: told.append((what, done, total)))
    assert told[-1] == ("reading activations", *[sum(map(len, conversations))] * 2)


def test_nothing_stays_hooked_to_the_model(source, conversations):
    before = hidden_states(source, conversations[0])[-1]
    # Transformers itself keeps some.
    hooks = [len(block._forward_hooks) for block in source.hooked.blocks]
    source.read(conversations, [0, 1])
    assert [len(block._forward_hooks) for block in source.hooked.blocks] == hooks
    assert torch.equal(hidden_states(source, conversations[0])[-1], before)


def test_roles_are_those_that_the_engine_will_see(source, conversations):
    reading = source.read(conversations[:1], [0])[0]
    assert np.array_equal(reading.roles, RoleReader(source.markers).prompt(conversations[0]))
    users = [token for token, role in zip(conversations[0], reading.roles, strict=True) if role == Role.USER]
    assert source.tokenizer.decode(users) == TEXTS[0]


def greedy(source, prompt, tokens):
    """The reference: one token after the other, without a cache, a batch or padding."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.inference_mode():
            ids.append(int(source.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_answers_are_the_models_own_greedy_ones(source, conversations, monkeypatch):
    monkeypatch.setattr(source.model.generation_config, "eos_token_id", None)
    answered = source.respond(conversations, 5)
    for prompt, ids in zip(conversations, answered, strict=True):
        assert ids[: len(prompt)] == prompt
        assert ids[len(prompt) :] == greedy(source, prompt, 5)


@pytest.mark.parametrize("several", [False, True])
def test_an_answer_stops_before_the_token_that_ends_it(source, conversations, monkeypatch, several):
    whole = [greedy(source, prompt, 6) for prompt in conversations]
    # A token of the first answer that is not its first: from there on it is the end.
    at = next(at for at in range(1, 6) if whole[0][at] not in whole[0][:at])
    stop = whole[0][at]
    unused = next(token for token in range(500) if all(token not in answer for answer in whole))
    monkeypatch.setattr(source.model.generation_config, "eos_token_id", [unused, stop] if several else stop)
    answered = source.respond(conversations, 6)
    for prompt, answer, ids in zip(conversations, whole, answered, strict=True):
        end = answer.index(stop) if stop in answer else 6
        assert ids == [*prompt, *answer[:end]]
    assert len(answered[0]) == len(conversations[0]) + at


def test_weights_that_are_missing_are_not_made_up(tiny_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    path = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack model\.layers\.2\.mlp\.up_proj\.weight"):
        TransformersSource(path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"garbage"),
        ("tokenizer.json", b"{nope"),
        ("config.json", b'{"model_type": "nosuch"}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": 9, "num_attention_heads": 4}'),
    ],
)
def test_a_damaged_file_is_one_line_with_the_directory(tiny_model, tmp_path, file, content):
    path = shutil.copytree(tiny_model, tmp_path / "model")
    (path / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        TransformersSource(path)
    assert caught.value.message.startswith(f"transformers cannot load {path}: ")
    assert "\n" not in str(caught.value) and len(caught.value.message) < 500


def gemma2(path, **config):
    """A tiny Gemma 2, whose attention scores are capped, and its reader."""
    tiny_model(path, "gemma2", **config)
    return TransformersSource(path, dtype="float32")


def test_capped_attention_is_read_with_its_cap(tmp_path):
    """transformers' default attention would read it as if there were none."""
    ids = list(range(5, 95))
    read = {
        cap: gemma2(tmp_path / str(cap), attn_logit_softcapping=cap).read([ids], [3])[0].states for cap in (1.0, None)
    }
    assert not np.allclose(read[1.0], read[None], rtol=1e-2)


@pytest.mark.parametrize(
    ("joined", "shape"),
    [(torch.stack, r"\(4, 1, \d+, 32\)"), (lambda states: torch.cat(states, -1), r"\(1, \d+, 128\)")],
    ids=["stacked", "side by side"],
)
def test_a_block_that_returns_several_states_a_token_is_refused(source, conversations, monkeypatch, joined, shape):
    """Some families keep several residual streams, one above or beside the other."""
    block = source.hooked.blocks[1]
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda *args, **kwargs: joined([forward(*args, **kwargs)] * 4))
    with pytest.raises(ModelError, match=f"Block 1 of LlamaForCausalLM returns states of shape {shape}"):
        source.read(conversations[:1], [1])
