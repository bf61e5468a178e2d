"""Model Runner V2: the only module that touches it.

Methods are wrapped that have been the same from 0.26 to 0.33, but for arguments that are passed through:

* ``load_model``: puts the taps into the model once its weights are there, before anything is compiled or captured;
* ``initialize_kv_cache``: how large the KV cache is;
* ``finish_requests``: before it, blocks of those who end or are preempted are still known;
* ``add_requests``: who has come and gone, and the orders that ride with the step. It runs even when nothing is
  scheduled, which is how the last request of a burst is seen to end;
* ``prepare_inputs``: which request each row belongs to, in the order of the batch;
* ``execute_model``: when it returns, the scores are computed. With speculative decoding they are final only behind
  ``sample``, which tells how many drafts were rejected.

Dummy runs, those that capture graphs among them, come through neither ``add_requests`` nor ``prepare_inputs``.
"""

from typing import Any

import torch
from torch import Tensor

from monitor.engine.guarded import close_step, guarded
from monitor.engine.kv_scores import Blocks
from monitor.engine.tapped import RunnerTap
from monitor.engine.vllm.runners import initialize_kv_cache, load_model
from monitor.engine.vllm.wrap import Method, wrap_once


def install() -> None:
    """Wrap Model Runner V2 of this process, once."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    wrap_once(GPUModelRunner, "load_model", load_model)
    wrap_once(GPUModelRunner, "initialize_kv_cache", initialize_kv_cache)
    wrap_once(GPUModelRunner, "finish_requests", _finish_requests)
    wrap_once(GPUModelRunner, "add_requests", _add_requests)
    wrap_once(GPUModelRunner, "prepare_inputs", _prepare_inputs)
    wrap_once(GPUModelRunner, "execute_model", _execute_model)
    wrap_once(GPUModelRunner, "sample", _sample)


def _finish_requests(method: Method) -> Method:
    def finish_requests(self: Any, scheduler_output: Any) -> Any:
        guarded(self, "meet", lambda tap: tap.meet(scheduler_output, _blocks(self)))
        return method(self, scheduler_output)

    return finish_requests


def _add_requests(method: Method) -> Method:
    def add_requests(self: Any, scheduler_output: Any) -> Any:
        result = method(self, scheduler_output)
        guarded(self, "update", lambda tap: tap.update(scheduler_output), missed=scheduler_output)
        return result

    return add_requests


def _prepare_inputs(method: Method) -> Method:
    def prepare_inputs(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        batch = method(self, scheduler_output, *args, **kwargs)

        def kv_slots(group: int) -> Tensor:
            # As the runner is about to do, with the same outcome: it has the step's block tables and positions by now.
            _, mappings = self.prepare_attn(batch)
            return mappings[group]

        def begin(tap: RunnerTap) -> None:
            first = self.req_states.num_computed_tokens.gpu[batch.idx_mapping]
            tap.begin(
                batch.req_ids,
                batch.num_scheduled_tokens,
                batch.num_computed_tokens_np,
                batch.query_start_loc,
                first,
                _blocks(self),
                kv_slots,
            )

        guarded(self, "map rows", begin)
        return batch

    return prepare_inputs


def _execute_model(method: Method) -> Method:
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, scheduler_output, *args, **kwargs)
        state = self.execute_model_state
        if state is None or not state.input_batch.num_draft_tokens:
            rows = scheduler_output.total_num_scheduled_tokens
            close_step(self, rows, lambda group: _kv_slots(self, group))
        return result

    return execute_model


def _sample(method: Method) -> Method:
    def sample(self: Any, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        result = method(self, hidden_states, input_batch, grammar_output)
        if input_batch.num_draft_tokens:
            _, _, num_rejected = result
            rejected = _rejected(input_batch, num_rejected)
            close_step(self, input_batch.num_tokens, lambda group: _kv_slots(self, group), rejected)
        return result

    return sample


def _blocks(runner: Any) -> Blocks:
    def blocks(engine_request_id: str, group: int) -> Tensor:
        # The runner keeps them on the device only, and has written those of the step by the time that they are asked.
        return runner.block_tables.block_tables[group].gpu[runner.req_states.req_id_to_index[engine_request_id]]

    return blocks


def _kv_slots(runner: Any, group: int) -> Tensor:
    return runner.block_tables.slot_mappings[group]


def _rejected(batch: Any, num_rejected: Tensor) -> Tensor:
    """Rows of drafts that were not accepted: the last ``num_rejected`` of each request, known to the device alone.

    Returns:
        Bool, ``(rows,)``.
    """
    ends = batch.query_start_loc[1 : batch.num_reqs + 1]
    row = torch.arange(batch.num_tokens, dtype=ends.dtype, device=ends.device)
    request = torch.searchsorted(ends, row, right=True)
    return row >= (ends - num_rejected)[request]
