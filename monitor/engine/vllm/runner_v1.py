"""The V1 model runner: the only module that touches it.

Methods are wrapped on every class that defines them (the CPU runner overrides some):

* ``load_model``: puts the taps into the model once its weights are there, before anything is compiled;
* ``initialize_kv_cache``: how large the KV cache is;
* ``_update_states``: finished and new requests, and the orders that ride with the step. It runs even when nothing is
  scheduled, which is how the last request of a burst is seen to end. Before it, the blocks of who ends are known;
* ``_prepare_inputs``: which request each row belongs to, in the order of the batch;
* ``execute_model``: when it returns, the scores are computed. With speculative decoding they are final only behind
  ``_sample``, which tells which drafts were accepted;
* ``sample_tokens``: what it returns takes along which requests gates have stopped, with the tokens sampled for them.

Dummy and warm-up runs come through neither ``_update_states`` nor ``_prepare_inputs``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monitor.engine.guarded import close_step, guarded
from monitor.engine.intake import STOPPED_FIELD
from monitor.engine.kv_scores import Blocks
from monitor.engine.tapped import RunnerTap
from monitor.engine.vllm.runners import initialize_kv_cache, load_model
from monitor.engine.vllm.wrap import Method, wrap_once


def install() -> None:
    """Wrap the V1 model runners of this process, once."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for runner_class in (GPUModelRunner, CPUModelRunner):
        wrap_once(runner_class, "load_model", load_model)
        wrap_once(runner_class, "initialize_kv_cache", initialize_kv_cache)
        wrap_once(runner_class, "_update_states", _update_states)
        wrap_once(runner_class, "_prepare_inputs", _prepare_inputs)
        wrap_once(runner_class, "execute_model", _execute_model)
        wrap_once(runner_class, "_sample", _sample)
        wrap_once(runner_class, "sample_tokens", _sample_tokens)


def _update_states(method: Method) -> Method:
    def update_states(self: Any, scheduler_output: Any) -> Any:
        # Before the runner forgets who has ended.
        guarded(self, "meet", lambda tap: tap.meet(scheduler_output, _blocks(self)))
        result = method(self, scheduler_output)
        guarded(self, "update", lambda tap: tap.update(scheduler_output), missed=scheduler_output)
        return result

    return update_states


def _prepare_inputs(method: Method) -> Method:
    def prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = method(self, scheduler_output, num_scheduled_tokens)
        # Looked up each time: the runner replaces its batch when the KV cache has been sized.
        batch = self.input_batch
        keys = batch.req_ids
        first = batch.num_computed_tokens_cpu[: len(keys)]
        guarded(
            self,
            "map rows",
            lambda tap: tap.begin(
                keys,
                num_scheduled_tokens,
                first,
                self.query_start_loc.gpu,
                None,
                _blocks(self),
                lambda group: _kv_slots(self, group),
            ),
        )
        return result

    return prepare_inputs


def _execute_model(method: Method) -> Method:
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, scheduler_output, *args, **kwargs)
        if not scheduler_output.scheduled_spec_decode_tokens:
            rows = scheduler_output.total_num_scheduled_tokens
            close_step(self, rows, lambda group: _kv_slots(self, group))
        return result

    return execute_model


def _sample(method: Method) -> Method:
    def sample(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        result = method(self, logits, spec_decode_metadata)
        if spec_decode_metadata is not None:
            rejected = _rejected(self, spec_decode_metadata, result.sampled_token_ids)
            close_step(self, len(rejected), lambda group: _kv_slots(self, group), rejected)
        return result

    return sample


def _blocks(runner: Any) -> Blocks:
    def blocks(engine_request_id: str, group: int) -> Sequence[int]:
        return runner.requests[engine_request_id].block_ids[group]

    return blocks


def _sample_tokens(method: Method) -> Method:
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = method(self, *args, **kwargs)

        def tell(tap: RunnerTap) -> None:
            if stopped := tap.take_stopped():
                setattr(output, STOPPED_FIELD, stopped)

        guarded(self, "stop", tell)
        return output

    return sample_tokens


def _kv_slots(runner: Any, group: int) -> Tensor:
    return runner.input_batch.block_table[group].slot_mapping.gpu


def _rejected(runner: Any, spec_decode_metadata: Any, sampled: Tensor) -> Tensor:
    """Rows of drafts that were not accepted.

    A request with ``d`` drafts has ``d + 1`` rows, and a token was sampled for each that stays; −1 stands for the rest.
    """
    drafts = np.asarray(spec_decode_metadata.num_draft_tokens)
    starts = runner.query_start_loc.np[: len(drafts) + 1]
    rows = np.diff(starts)
    valid = torch.where(
        torch.from_numpy(drafts > 0).to(sampled.device),
        (sampled >= 0).sum(dim=1),
        torch.from_numpy(rows).to(sampled.device),
    )
    within = torch.from_numpy(np.arange(starts[-1]) - np.repeat(starts[:-1], rows)).to(sampled.device)
    request = torch.from_numpy(np.repeat(np.arange(len(drafts)), rows)).to(sampled.device)
    return within >= valid[request]
