"""Teacher forcing: the same as asking the model for one whole text after the other."""

import numpy as np
import pytest

from probes.errors import ModelError
from probes.models.activations import TransformersSource
from probes.models.teacher_forcing import Prompt, log_likelihoods
from probes.steering.edit import Edit
from tests.harness.models import tiny_model as model_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LAYER = 2
RANDOM = np.random.default_rng(0)
UNIT = RANDOM.normal(size=32)
UNIT /= np.linalg.norm(UNIT)
EDITS = [None, Edit.ablating(LAYER, UNIT), Edit.adding(LAYER, 3 * UNIT), Edit.adding(0, -3 * UNIT)]


def tokens(count):
    return RANDOM.integers(5, 290, count).tolist()


AFTER = [
    Prompt(tokens(length), [tokens(size)], skipped, range(length, length + size))
    for length, size, skipped in ((9, 6, 3), (30, 2, 1), (4, 14, 5), (0, 7, 1), (17, 9, 8))
]
"""What is pushed is the text."""
WITHIN = [
    Prompt(tokens(length), [tokens(size) for size in (2, 5, 3)], 1, range(start, stop))
    for length, start, stop in ((9, 3, 7), (24, 0, 24), (12, 12, 13), (5, 2, 9))
]
"""What is pushed is in the prompt; of the last two, rows of each text are pushed, too."""


@pytest.fixture(scope="module")
def source(tiny_model) -> TransformersSource:
    return TransformersSource(tiny_model, dtype="float32")


def one_by_one(source, prompts, edit):
    """The reference: whole texts, alone, without a cache, a batch or padding."""
    expected = []
    for prompt in prompts:
        for text in prompt.texts:
            ids = torch.tensor([[*prompt.ids, *text]])
            first = len(prompt.ids) + prompt.skipped

            def rewrite(_module, _arguments, states, prompt=prompt):
                states = states.clone()
                unit = torch.tensor(edit.vectors[0], dtype=states.dtype)
                if edit.everywhere:
                    return states - (states @ unit)[..., None] * unit
                for row in range(states.shape[1]):
                    if row in prompt.pushed:
                        states[:, row] += edit.table[0, 0] * unit
                return states

            handle = source.hooked.blocks[edit.layer].register_forward_hook(rewrite) if edit else None
            with torch.inference_mode():
                logs = source.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            if handle:
                handle.remove()
            expected.append(np.mean([logs[at - 1, ids[0, at]].item() for at in range(first, ids.shape[1])]))
    return np.reshape(expected, (len(prompts), -1))


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
@pytest.mark.parametrize("prompts", [AFTER, WITHIN], ids=["texts pushed", "prompts pushed"])
def test_neither_cache_nor_padding_nor_batches_change_a_probability(tiny_model, source, prompts, batch_tokens):
    batched = TransformersSource(tiny_model, dtype="float32", batch_tokens=batch_tokens)
    found = log_likelihoods(batched.hooked, prompts, EDITS)
    expected = np.stack([one_by_one(source, prompts, edit) for edit in EDITS])
    assert found.shape == (len(EDITS), len(prompts), len(prompts[0].texts))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for edited in found[1:]:
        assert np.abs(edited - found[0]).max() > 1e-2, "the edits matter"


@pytest.mark.parametrize("family", ["gemma3", "gemma2", "phi"])
def test_families_with_windows_caps_and_other_blocks(tmp_path, family):
    """Attention windows reach over the cached prompt, capped logits are capped, and positions are those of the text."""
    source = TransformersSource(model_of(tmp_path, family), dtype="float32")
    vector = RANDOM.normal(size=64)
    edits = [None, Edit.adding(1, vector), Edit.ablating(1, vector / np.linalg.norm(vector))]
    for prompts in (AFTER, WITHIN):
        expected = np.stack([one_by_one(source, prompts, edit) for edit in edits])
        np.testing.assert_allclose(log_likelihoods(source.hooked, prompts, edits), expected, rtol=1e-3, atol=1e-3)


def test_ablating_twice_is_ablating_once(source):
    once = log_likelihoods(source.hooked, WITHIN, [EDITS[1]])
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    handle = source.hooked.blocks[LAYER].register_forward_hook(lambda _m, _a, states: EDITS[1](states, everywhere))
    try:
        twice = log_likelihoods(source.hooked, WITHIN, [EDITS[1]])
        alone = log_likelihoods(source.hooked, WITHIN, [None])
    finally:
        handle.remove()
    np.testing.assert_allclose(twice, once, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone, once, rtol=1e-5, atol=1e-5)


def test_nothing_is_left_of_what_is_ablated():
    states = torch.from_numpy(RANDOM.normal(size=(3, 4, 32))).float()
    left = EDITS[1](states, torch.zeros(3, 4, dtype=torch.bool))
    np.testing.assert_allclose(left @ torch.from_numpy(UNIT).float(), 0, atol=1e-6)
    other = torch.linalg.qr(torch.from_numpy(np.stack([UNIT, RANDOM.normal(size=32)], 1)).float())[0][:, 1]
    np.testing.assert_allclose(left @ other, states @ other, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pushing_by_nothing_changes_nothing(tiny_model, dtype):
    source = TransformersSource(tiny_model, dtype=dtype)
    for prompts in (AFTER, WITHIN):
        clean, pushed = log_likelihoods(source.hooked, prompts, [None, Edit.adding(LAYER, 0 * UNIT)])
        assert np.array_equal(clean, pushed)


def test_logits_are_computed_of_scored_tokens_only(source):
    rows = []
    head = source.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _a, logits: rows.append(logits.numel() // logits.shape[-1]))
    try:
        log_likelihoods(source.hooked, WITHIN, [None])
    finally:
        handle.remove()
    assert sum(rows) == sum(len(text) - prompt.skipped for prompt in WITHIN for text in prompt.texts)


def test_nothing_stays_hooked_to_the_model(source):
    modules = [*source.hooked.blocks, source.model.get_output_embeddings()]
    before = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules]
    log_likelihoods(source.hooked, AFTER, EDITS)
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules] == before


def test_a_model_that_is_not_finite_is_refused(tiny_model):
    source = TransformersSource(tiny_model, dtype="float32")
    with torch.no_grad():
        source.model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(ModelError, match=r"Log-probabilities of .* in torch\.float32 are not finite"):
        log_likelihoods(source.hooked, AFTER, [None])


def test_a_model_without_a_head_is_refused(source, monkeypatch):
    monkeypatch.setattr(source.model, "get_output_embeddings", lambda: None)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no head"):
        log_likelihoods(source.hooked, AFTER, [None])


@pytest.mark.parametrize(("texts", "skipped"), [([], 1), ([[1, 2]], 0), ([[1, 2], [3]], 1)])
def test_a_prompt_has_something_to_score(texts, skipped):
    with pytest.raises(ValueError, match="one that is scored"):
        Prompt([1], texts, skipped, range(0))


def test_progress_ends_at_the_whole(source):
    told = []
    log_likelihoods(source.hooked, AFTER, [None], lambda what, done, total: told.append((what, done, total)))
    assert told[-1] == ("steering", len(AFTER), len(AFTER))
