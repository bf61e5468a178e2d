"""Tensor parallelism: every rank computes the same scores and steers the same rows at the same step; one tells."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.engine.vllm.ranks import TOKENS
from tests.harness.canaries import with_canaries
from tests.harness.engines import random_bundle, settings
from tests.harness.models import tiny_model
from tests.harness.networks import random_worker_probe

pytestmark = pytest.mark.vllm

RANKS = 2
LAYERS = (0, 1, 3)
TOLERANCE = 1e-4
"""Of a score, relative to the state's norm: float32, sums in the order of two ranks."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    return tiny_model(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="module")
def source(path):
    from probes.models.activations import TransformersSource

    return TransformersSource(path, dtype="float32")


@pytest.fixture(scope="module")
def bundle(path, source, tmp_path_factory):
    """Tested by canaries; a worker probe reads the layer that no other does."""
    from probes.fit.bundle_fit import record_canaries

    folder = tmp_path_factory.mktemp("bundle")
    plain = random_bundle(folder / "random", path, source.markers, threshold=1e9, layers=LAYERS)
    probes = list(zip(plain.probes, plain.weight, plain.bias.tolist(), strict=True))
    workers = [random_worker_probe(plain.probes[0], "worker", 2, source.hidden)]
    canaries = record_canaries(source, probes, workers=workers)
    return with_canaries(plain, folder / "tested", canaries, workers)


@pytest.fixture(scope="module")
def run(path, source, bundle, tmp_path_factory):
    """What two ranks saw of three requests, the last of which was steered under way."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, len(source.tokenizer), size).tolist() for size in (5, 40, 17)]
    folder = tmp_path_factory.mktemp("ranks")
    endpoint = f"ipc://{folder}/engine.sock"
    tap = {"plumbob": {"bundle": str(bundle.path), "endpoint": endpoint}}
    more = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 2**27}
    engine = settings(path, tensor_parallel_size=RANKS, additional_config=tap, **more)
    out = folder / "seen.json"
    command = [
        sys.executable,
        "-m",
        "tests.engine.vllm.ranks",
        json.dumps(engine),
        endpoint,
        json.dumps(prompts),
        str(out),
    ]
    # Ranks would ask for a NUMA node each.
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return prompts, json.loads(out.read_text())


def test_ranks_agree_on_every_score_and_every_steered_row(run):
    _, seen = run
    first, second = seen["ranks"]
    assert len(first) == len(second) >= TOKENS
    steered = 0
    for (scores, entries, _), (others, theirs, _) in zip(first, second, strict=True):
        assert np.array_equal(scores, others)
        assert entries == theirs
        steered += sum(entry >= 0 for entry in entries)
    assert steered > 0


def test_both_ranks_were_tested_by_canaries_and_one_by_what_it_streams(run):
    """Either is refused where it drifts; no layer is without a probe that tells."""
    _, seen = run
    assert 0 < seen["drift"] < TOLERANCE


def test_the_first_rank_alone_tells_the_monitor(run):
    _, seen = run
    assert [all(exports for *_, exports in rank) for rank in seen["ranks"]] == [True, False]
    assert not any(exports for *_, exports in seen["ranks"][1])
    assert seen["sequences"] == sorted(set(seen["sequences"]))


def test_scores_are_those_of_transformers(run, source, bundle):
    prompts, seen = run
    told = seen["frames"]
    assert sorted(told) == ["0", "1", "2"]
    assert any(told["2"]["steered"])
    for index in (0, 1):
        sequence = [*prompts[index], *seen["tokens"][str(index)][:-1]]
        assert told[str(index)]["positions"] == list(range(len(sequence)))
        (reading,) = source.read([sequence], LAYERS)
        states = np.repeat(reading.states, 2, axis=0)
        reference = np.einsum("pth,ph->tp", states, bundle.weight) + bundle.bias
        error = np.abs(np.array(told[str(index)]["scores"]) - reference) / np.linalg.norm(states, axis=-1).T
        assert error.max() <= TOLERANCE
