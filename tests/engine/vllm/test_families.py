"""Families of models in real engines: a layer is the output of its block, as transformers reads it, in each of them.

One process serves one tiny model after the other, in float32, so that differences are those of an order of summation.
"""

import gc
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.bundle import Bundle, Calibration, Evaluation, Probe, save_bundle
from probes.models import identify
from probes.models.activations import TransformersSource
from probes.scoring.aggregate import Aggregate
from tests.harness import warm
from tests.harness.models import FAMILIES, LAYERS, tiny_model
from tests.harness.wire import Wire

pytestmark = pytest.mark.vllm

TAPPED = (0, LAYERS // 2, LAYERS - 1)
"""First, middle, and last."""
USUAL = ("llama", "gemma3")
"""Tested with every change: the plainest, and one with sliding windows and norms behind its blocks."""
PROMPTS = (1, 2, 7, 33, 90)
"""Lengths; longer than a page of KV cache, and than the sliding window where there is one."""
ANSWER = 6
"""Tokens generated for each prompt."""

# float32 rounds to 2**-24. A sum of n products errs by about sqrt(n) * 2**-24 of their norm, which is 7e-7 for the 128
# of the widest sum here. A block has eight such sums one after the other (two norms, six projections or products of
# attention), so the 32 of four blocks add up to sqrt(32) * 7e-7 = 4e-6 of the state's norm; more than twice that covers
# the tokens on which norms differ most. A probe of unit weight turns it into a difference of the score that is no
# larger.
LARGEST = 1e-5
"""Largest difference of a score, relative to the norm of the state."""


class Engines:
    """A process of its own that serves one model after the other."""

    def __init__(self) -> None:
        context = warm.context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        self._settings: dict[str, Any] = {}
        self._answer: Any = None

    def select(self, settings: dict[str, Any]) -> None:
        """Which engine the next prompts are for: arguments of ``vllm.LLM``."""
        self._settings = settings

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self._pipe.send((self._settings, prompts, tokens))
        self._answer = None

    def check(self, *_: object) -> None:
        """Fail with the engine, instead of waiting for its frames."""
        if self._answer is None and self._pipe.poll():
            self._answer = self._pipe.recv()
        assert not isinstance(self._answer, str), self._answer

    def answer(self) -> list[list[int]]:
        """The tokens generated for each prompt."""
        while self._answer is None:
            self._pipe.poll(None)
            self.check()
        return self._answer

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(30)
        self._process.kill()


def _serve(pipe: Any) -> None:
    # The engine core in this process as well: a process for each would spend most of its time importing.
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING")
    import torch
    from vllm.distributed import cleanup_dist_env_and_memory

    torch.set_num_threads(1)
    while (order := pipe.recv()) is not None:
        try:
            pipe.send(_generate(*order))
        except Exception:
            pipe.send(traceback.format_exc())
        gc.collect()
        cleanup_dist_env_and_memory()


def _generate(settings: dict[str, Any], prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    from vllm import LLM, SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    llm = LLM(**settings)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    # Which requests have finished is told to the model runner with the next step; an engine core of its own takes one.
    llm.llm_engine.step()
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    engines = Engines()
    yield engines
    engines.close()


def random_bundle(path: Path, model: Path, source: TransformersSource) -> Bundle:
    """A random probe of unit weight at each tapped layer."""
    identity = identify(model, model.name)
    weights = np.random.default_rng(7).normal(size=(len(TAPPED), identity.hidden))
    probes = [
        Probe(
            name=f"random-{layer}",
            layer=layer,
            roles=["user", "assistant", "text"],
            threshold=1e9,
            aggregate=Aggregate(),
            calibration=Calibration(0.01, 100, 0, (0.0, 0.04)),
            evaluation=Evaluation(10, 10, 0.5, 0.5, 0.5),
        )
        for layer in TAPPED
    ]
    return save_bundle(
        path,
        version="0",
        created="2026-01-01T00:00:00Z",
        model=identity,
        markers=source.markers,
        probes=[(probe, w / np.linalg.norm(w), 0.5) for probe, w in zip(probes, weights, strict=True)],
        vectors=[],
    )


@pytest.mark.parametrize(
    "family", [family if family in USUAL else pytest.param(family, marks=pytest.mark.long) for family in FAMILIES]
)
def test_a_layer_is_the_output_of_its_block(family, engines, wire: Wire, tmp_path):
    model = tiny_model(tmp_path / family, family)
    source = TransformersSource(model, dtype="float32")
    bundle = random_bundle(tmp_path / "bundle", model, source)
    random = np.random.default_rng(1)
    prompts = [random.integers(5, len(source.tokenizer), size).tolist() for size in PROMPTS]
    engines.select(
        {
            "model": str(model),
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_seqs": 8,
            "additional_config": {"plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint}},
        }
    )
    answers, seen = wire.run(engines, prompts, ANSWER, engines.check)
    sequences = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    right, others = [], []
    for request, reading, sequence in zip(seen, source.read(sequences, range(LAYERS)), sequences, strict=True):
        # Every token that was read, once each, in order: the last one generated never is.
        assert request.positions == list(range(len(sequence)))
        # What each probe makes of each layer's state, shape (probes, layers, tokens).
        reference = np.einsum("lth,ph->plt", reading.states, bundle.weight) + bundle.bias[:, None, None]
        error = np.abs(np.array(request.scores).T[:, None] - reference) / np.linalg.norm(reading.states, axis=-1)
        right += [error[probe, layer] for probe, layer in enumerate(TAPPED)]
        others += [np.delete(error[probe], layer, axis=0).min(axis=0) for probe, layer in enumerate(TAPPED)]
    largest = np.concatenate(right).max()
    print(f"{family}: largest difference of a score, relative to the state's norm: {largest:.1e}")
    assert largest <= LARGEST
    # The outputs of other blocks are told apart from the right one: they are a thousand times further off.
    assert np.median(np.concatenate(others)) > 1000 * LARGEST
