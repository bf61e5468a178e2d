"""Ending a generation: the core closes the request, and its last output carries the message in place of tokens.

The model is not asked: the message is said in words by the front (:mod:`monitor.engine.vllm.stopped`), so that nothing
of it is computed, scored or counted, and no other request waits for it. A request that is closed takes no more tokens.
So from the step on that takes the order, no token of the model gets out, not even of steps that were scheduled ahead or
of drafts that are accepted, and every rank learns of the end as of any other.
"""

from typing import Any, Final

from monitor.errors import OrderError
from monitor.wire.orders import MESSAGE_CHARACTERS, Stop

REASON: Final = "plumbob"
"""The ``stop_reason`` that the user of the API sees."""
_MARK: Final = f"\0{REASON}\0"
"""Ahead of the message, on the way from the core to the front."""


def message_of(stop_reason: object) -> str | None:
    """Message that a generation was stopped with; ``None``: it was not stopped by Plumbob."""
    if not isinstance(stop_reason, str) or not stop_reason.startswith(_MARK):
        return None
    return stop_reason.removeprefix(_MARK)


def stop(scheduler: Any, order: Stop) -> tuple[int, Any]:
    """End a request.

    Args:
        scheduler: vLLM's, between two steps.
        order: What to say.

    Returns:
        The client that waits for the answer, and the answer: an ``EngineCoreOutput``.

    Raises:
        OrderError: The request has ended, or the message is too long.
    """
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.request import RequestStatus

    request = scheduler.requests.get(order.engine_request_id)
    if request is None or request.is_finished() or request.sampling_params is None:
        raise OrderError("request", f"Request '{order.engine_request_id}' has ended.")
    if len(order.message) > MESSAGE_CHARACTERS:
        raise OrderError(
            "stop", f"A message of {len(order.message)} characters is too long.", f"Use at most {MESSAGE_CHARACTERS}."
        )
    stats = request.take_prefill_stats()
    if stats is not None:
        stats.finalize(scheduler.kv_cache_manager.estimate_cached_tokens(request))
    scheduler.finish_requests(order.engine_request_id, RequestStatus.FINISHED_STOPPED)
    return request.client_index, EngineCoreOutput(
        request_id=order.engine_request_id,
        new_token_ids=[],
        finish_reason=FinishReason.STOP,
        stop_reason=_MARK + order.message,
        events=request.take_events(),
        trace_headers=request.trace_headers,
        prefill_stats=stats,
    )


def deliver(outputs: dict[int, Any], answers: list[tuple[int, Any]]) -> None:
    """Add answers to those of a step, by client."""
    from vllm.v1.engine import EngineCoreOutputs

    for client, answer in answers:
        outputs.setdefault(client, EngineCoreOutputs()).outputs.append(answer)
