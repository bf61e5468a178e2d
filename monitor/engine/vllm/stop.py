"""Ending a generation: the core closes the request, and its last answer is the message and the end of sequence.

The model is not asked: no step computes the message's tokens, so that nothing of them is scored, and no other request
waits for them. A request that is closed takes no more tokens. So from the step on that takes the order, no token of the
model gets out, not even of steps that were scheduled ahead or of drafts that are accepted, and every rank learns of the
end as of any other.
"""

import logging
from typing import Any, Final

import numpy as np

from monitor.errors import OrderError
from monitor.wire.orders import Stop

MESSAGE_CHARACTERS: Final = 4096
"""The longest message."""
REASON: Final = "plumbob"
"""The ``stop_reason`` that the user of the API sees; ``finish_reason`` is ``stop``."""

logger = logging.getLogger("vllm.plumbob")


def tokenizer_of(scheduler: Any) -> Any | None:
    """The tokenizer that messages are said with; ``None``: this engine loads none.

    Raises:
        AttributeError: vLLM keeps it elsewhere. To be called at start, since an error at a stop would end the engine.
    """
    if scheduler.vllm_config.model_config.skip_tokenizer_init:
        return None
    return scheduler.structured_output_manager.tokenizer


def stop(scheduler: Any, tokenizer: Any | None, order: Stop) -> tuple[int, Any]:
    """End a request.

    Args:
        scheduler: vLLM's, between two steps.
        tokenizer: Of the model.
        order: What to say.

    Returns:
        The client that waits for the answer, and the answer: an ``EngineCoreOutput``.

    Raises:
        OrderError: The request has ended, or the message cannot be said.
    """
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.request import RequestStatus

    request = scheduler.requests.get(order.engine_request_id)
    if request is None or request.is_finished() or request.sampling_params is None:
        raise OrderError("request", f"Request '{order.engine_request_id}' has ended.")
    tokens = _tokens(tokenizer, order.message)
    tokens.append(_ending(tokenizer, request.sampling_params))
    stats = request.take_prefill_stats()
    if stats is not None:
        stats.finalize(scheduler.kv_cache_manager.estimate_cached_tokens(request))
    scheduler.finish_requests(order.engine_request_id, RequestStatus.FINISHED_STOPPED)
    return request.client_index, EngineCoreOutput(
        request_id=order.engine_request_id,
        new_token_ids=tokens,
        new_logprobs=None if request.sampling_params.num_logprobs is None else _certain(tokens),
        finish_reason=FinishReason.STOP,
        stop_reason=REASON,
        events=request.take_events(),
        trace_headers=request.trace_headers,
        prefill_stats=stats,
    )


def deliver(outputs: dict[int, Any], answers: list[tuple[int, Any]]) -> None:
    """Add answers to those of a step, by client."""
    from vllm.v1.engine import EngineCoreOutputs

    for client, answer in answers:
        outputs.setdefault(client, EngineCoreOutputs()).outputs.append(answer)


def _ending(tokenizer: Any, sampling: Any) -> int:
    """The end of sequence, or, where a model has none, any token in its place.

    The front takes the last token for what ended the answer, and does not show it.
    """
    # A request that is to ignore the end of sequence does not know it.
    ends = (sampling.eos_token_id, None if tokenizer is None else tokenizer.eos_token_id)
    return next((end for end in ends if end is not None), 0)


def _tokens(tokenizer: Any, message: str) -> list[int]:
    if not message:
        return []
    if len(message) > MESSAGE_CHARACTERS:
        raise OrderError(
            "stop", f"A message of {len(message)} characters is too long.", f"Use at most {MESSAGE_CHARACTERS}."
        )
    if tokenizer is None:
        # To end matters more than what is said.
        logger.warning("Plumbob stops a generation without a message: this engine has no tokenizer to say one with")
        return []
    return list(tokenizer.encode(message, add_special_tokens=False))


def _certain(tokens: list[int]) -> Any:
    """Log-probabilities of tokens that nobody had a choice about."""
    from vllm.v1.outputs import LogprobsLists

    ids = np.array(tokens, np.int32)[:, None]
    return LogprobsLists(ids, np.zeros(ids.shape, np.float32), np.ones(len(tokens), np.int32), None)
