"""Speculative decoding on Model Runner V1: rows of drafts that were rejected are nobody's."""

import numpy as np
import pytest

from tests.harness.engines import random_bundle, settings, start
from tests.harness.models import tiny_model

pytestmark = pytest.mark.vllm

TOKENS = 40
DRAFTS = 3
LAYERS = (0, 1, 3)
TOLERANCE = 1e-4
"""Of a score, relative to the state's norm: float32, sums in another order."""


def test_each_token_is_scored_once_whatever_was_drafted(wire, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    from probes.models.activations import TransformersSource

    path = tiny_model(tmp_path / "llama", "llama")
    source = TransformersSource(path, dtype="float32")
    bundle = random_bundle(tmp_path / "bundle", path, source.markers, threshold=1e9, layers=LAYERS)
    random = np.random.default_rng(0)
    prompts = [(random.integers(0, len(source.tokenizer), 6).tolist() * 4)[:size] for size in (9, 24, 17)]
    engine = settings(
        path,
        dtype="float32",
        max_model_len=256,
        additional_config={"plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint}},
        async_scheduling=False,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": DRAFTS,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        },
    )
    with start("speculating", tmp_path, **engine) as arm:
        wire.pump(5.0)
        answer, seen = wire.run(arm, prompts, TOKENS)
        steps = []
        for prompt in prompts:
            frames = len(wire.sequences)
            wire.run(arm, [prompt], TOKENS, fresh=True)
            steps.append(len(wire.sequences) - frames)
    # Some drafts were accepted: fewer steps than tokens. Some were not: more than if each had been.
    assert TOKENS / (DRAFTS + 1) + 2 < min(steps) < TOKENS, steps
    for request, prompt, tokens in zip(seen, prompts, answer.tokens, strict=True):
        sequence = [*prompt, *tokens[:-1]]
        assert request.positions == list(range(len(sequence)))
        (reading,) = source.read([sequence], LAYERS)
        states = np.repeat(reading.states, 2, axis=0)
        reference = np.einsum("pth,ph->tp", states, bundle.weight) + bundle.bias
        error = np.abs(np.array(request.scores) - reference) / np.linalg.norm(states, axis=-1).T
        assert error.max() <= TOLERANCE
