"""The canaries, computed by a worker of vLLM as it computes requests.

Steps of the kind that the scheduler makes go to ``execute_model``, on every tensor-parallel rank at once. They use KV
blocks that are registered nowhere, so that no request can hit them.

The scores of linear probes are read where the taps write them. For the probes that run in processes of their own
(``monitor.workers``), all layers are streamed meanwhile, the states are read out of the rings as these processes read
them, and scored here by the bundle's readers. Where streamed states are not those of the fit, it is found: other
weights, the wrong layer, a graph that does not stream, also at a layer that no linear probe reads. What such a process
itself may do wrong is not tested here: it does not start with a bundle of another digest, and each frame says which
state is whose.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from monitor.engine.batch import Begins
from monitor.engine.guarded import tap_of
from monitor.errors import EngineError
from probes.bundle import Bundle
from probes.bundle.canaries import Canaries

DECODED: Final = 4
"""The last tokens of a canary are computed one at a time, by the graph that computes answers."""


def canaries_of(bundle: Bundle, vllm_config: Any) -> Canaries:
    """A bundle's canaries, as far as the engine can compute them."""
    # Room for the token that the engine generates.
    return bundle.canaries.cut(vllm_config.model_config.max_model_len - 1)


def run_canaries(worker: Any) -> NDArray[np.float64]:
    """Compute the canaries and take what the probes read. The worker scores no request until :func:`trust`.

    To be called while no request is in flight.

    Args:
        worker: vLLM's, its model warm and its KV cache allocated.

    Returns:
        Scores in the order of the canaries' reference, ``(tokens, probes)``; NaN for worker probes in a rank that does
        not stream.

    Raises:
        EngineError: The taps failed.
    """
    tap = tap_of(worker.model_runner)
    if tap is None:
        raise EngineError("The taps failed before any request came.", "Look into the engine's log.")
    canaries = canaries_of(tap.bundle, worker.vllm_config)
    exporter, scores, states = tap.exporter, list[NDArray[np.float32]](), list[dict[int, NDArray[np.float32]]]()
    tap.exporter, faults = cast(Any, _Silence()), tap.faults.count
    tap.resume()
    try:
        # Gates of before the weights were loaded anew are armed still.
        with tap.ungated(), tap.streams.sampled() as read:
            for index, prompt in enumerate(canaries.prompts):
                for rows in _compute(worker, f"plumbob-canary-{index}", prompt.tolist()):
                    # The only request of its step, so that its rows are the first.
                    scores.append(np.array(tap.taps.scores[:rows].cpu()))
                    states.append(read(rows))
    finally:
        tap.suspend()
        tap.exporter = exporter
    if tap_of(worker.model_runner) is None or tap.faults.count > faults:
        raise EngineError("The taps failed while the canaries were computed.", "Look into the engine's log.")
    measured = np.full(canaries.reference.shape, np.nan)
    linear, columns = len(tap.bundle.probes), canaries.reference.shape[1]
    measured[:, :linear] = np.concatenate(scores)
    for column, worker_probe in list(enumerate(tap.bundle.worker_probes, linear))[: columns - linear]:
        layer = worker_probe.probe.layer
        if all(layer in step for step in states):
            of_layer = np.concatenate([step[layer] for step in states])
            measured[:, column] = canaries.read(column, worker_probe.reader, of_layer)
    return measured


def trust(worker: Any) -> None:
    """Let a worker score requests."""
    if (tap := tap_of(worker.model_runner)) is not None:
        tap.resume()


class _Silence:
    """Takes the place of the exporter: the monitor hears nothing of canaries."""

    free = 0
    """Stages."""

    def take(self, leave: int = 0) -> None:
        """No stage to fill."""

    def take_losses(self) -> tuple[bool, list[Begins]]:
        """Nothing that is to be sent again."""
        return False, []

    def announce(self) -> None:
        """Announce nobody."""

    def refuse(self, begins: object = None) -> None:
        """Count nothing."""

    def offer(self, step: object) -> None:
        """Send nothing."""

    def tell(self, decided: object, refused: object = (), guarded: object = ()) -> None:
        """Canaries meet no gate, no order comes with them, and nothing steers them."""

    def close(self) -> None:
        """Nothing to close: the exporter itself comes back."""


def _compute(worker: Any, key: str, prompt: list[int]) -> Iterator[int]:
    """One prompt from its first to its last token; yields the rows of each step when it is computed."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

    groups = worker.model_runner.kv_cache_config.kv_cache_groups
    done = 0
    for count in steps_of(len(prompt), worker.vllm_config.scheduler_config.max_num_batched_tokens):
        step = SchedulerOutput.make_empty()
        if done:
            step.scheduled_cached_reqs = CachedRequestData(
                req_ids=[key],
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=[None],
                num_computed_tokens=[done],
                num_output_tokens=[0],
            )
        else:
            new = NewRequestData(
                req_id=key,
                prompt_token_ids=prompt,
                mm_features=[],
                sampling_params=SamplingParams(temperature=0.0, max_tokens=1),
                pooling_params=None,
                block_ids=blocks_of(worker, groups, len(prompt) + 1),
                num_computed_tokens=0,
                lora_request=None,
                prefill_token_ids=prompt,
            )
            step.scheduled_new_reqs = [new]
        step.num_scheduled_tokens = {key: count}
        step.total_num_scheduled_tokens = count
        step.num_common_prefix_blocks = [0] * len(groups)
        if worker.execute_model(step) is None:
            worker.sample_tokens(None)
        done += count
        yield count
    finished = SchedulerOutput.make_empty()
    finished.finished_req_ids = {key}
    worker.execute_model(finished)


def steps_of(tokens: int, most: int) -> Iterator[int]:
    """Divide a prompt into steps, in tokens: what is prefilled at most ``most`` at a time, then one by one."""
    prefilled = max(tokens - DECODED, 1)
    for begin in range(0, prefilled, most):
        yield min(most, prefilled - begin)
    yield from [1] * (tokens - prefilled)


def blocks_of(worker: Any, groups: Sequence[Any], tokens: int) -> tuple[list[int], ...]:
    """KV blocks for a request of so many tokens, other ones in each group. Block 0 is vLLM's own."""
    from vllm.v1.kv_cache_interface import MambaSpec

    speculative = worker.vllm_config.speculative_config
    tokens += speculative.num_speculative_tokens if speculative is not None else 0
    blocks, begin = list[list[int]](), 1
    for group in groups:
        spec = group.kv_cache_spec
        end = begin - (-tokens // spec.block_size) + (spec.num_speculative_blocks if isinstance(spec, MambaSpec) else 0)
        blocks.append(list(range(begin, end)))
        begin = end
    return tuple(blocks)
