"""The gate on Model Runner V2, scheduled asynchronously, as GPUs have it: all that is shown of it on V1 holds there.

The tests are those of :mod:`tests.engine.gates.test_gate_engine`, run on another engine. As in
:mod:`tests.engine.vllm.test_runner_v2`, the runner's kernels run in Triton's interpreter, and the model is tiny.
"""
# ruff: noqa: F401  What is imported is collected here as well.

import pytest

from probes.data.concepts import load_benign
from tests.engine.gates.test_gate_engine import (
    House,
    Listener,
    crowd,
    gated_bundle,
    plain,
    test_a_gate_that_was_disarmed_steers_nobody,
    test_a_prompt_from_the_cache_opens_the_gate_where_it_did_when_it_was_computed,
    test_an_engine_with_gates_and_none_armed_is_as_it_was,
    test_an_unsteered_continuation_finds_no_steered_block,
    test_each_row_is_that_of_a_forward_pass_that_steers_from_the_very_token_on,
    test_events_are_sent_until_they_are_confirmed,
    test_rows_downstream_are_marked,
    test_the_engine_decides_as_the_rules_say,
    test_the_first_changed_token_is_the_one_that_the_opening_row_yields,
    test_the_gate_works_with_no_monitor_and_a_later_one_learns_of_it,
)
from tests.engine.vllm import test_runner_v2
from tests.engine.vllm.test_accounting import BLOCK, CHUNK
from tests.harness import models

pytestmark = [pytest.mark.vllm, pytest.mark.long]

BLOCKS = 13
"""Of the KV cache: too few for what runs at once, so that some requests are preempted."""
REQUESTS = 10


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    from probes.models.activations import TransformersSource

    folder = tmp_path_factory.mktemp("gate")
    path = models.tiny_model(folder / "llama", "llama")
    source = TransformersSource(path, dtype="float32")
    bundle = gated_bundle(folder, path, source, test_runner_v2.LAYERS)
    encoded = [source.encode(request.messages, respond=True) for request in load_benign()]
    # Each needs a fourth block in the middle of its answer, so that steered rows are among those computed again: by
    # length, since it is the last to come that is preempted.
    prompts = [prompt for prompt in encoded if 2.5 * BLOCK <= len(prompt) < 2.9 * BLOCK]
    wire = Listener(f"ipc://{folder}/engine.sock")
    engine = {
        "model": str(path),
        "dtype": "float32",
        "max_model_len": 384,
        "max_num_seqs": 16,
        "max_num_batched_tokens": CHUNK,
        "block_size": BLOCK,
        "num_gpu_blocks_override": BLOCKS,
        "enforce_eager": True,
        "additional_config": {"plumbob": {"bundle": str(bundle.path), "endpoint": wire.endpoint, "gates": 2}},
    }
    with test_runner_v2.start("gated", folder, engine) as arm:
        wire.pump(5.0)
        house = House(arm, wire, bundle, source, sorted(prompts, key=len)[:REQUESTS])
        yield house
    house.wire.close()
