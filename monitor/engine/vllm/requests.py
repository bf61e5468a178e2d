"""Requests in the front, and their names: the user's, which part of the user's request it is, and the engine's own.

What a request asks for is checked (:mod:`monitor.engine.vllm.admission`), and whether markers were typed into it is
passed on (:mod:`monitor.engine.vllm.typed`). vLLM makes the engine's id of the user's, ``<id>-<8 hex>``, and several
requests of one of the user's::

    n > 1                       engine id i_<id>-<8 hex>          part "choice i"
    prompts of a completion     id <cmpl-id>-i                    part "prompt i"
    a beam search               id <id>-<16 hex>-beam-i           part "beam i", a new request for each token
    a batch of conversations    id <chatcmpl-16 hex>_i            part "prompt i", where the server made the id

A client may choose an id of any length, of any characters. The engine's own is made of its bounded form
(:func:`monitor.wire.bounds.bounded_id`) before anything is keyed by it, so that all that follows, orders included,
knows the request by the same id; the answer has the client's.
"""

import re
from typing import Any, Final

from monitor.engine.settings import switched_on
from monitor.engine.vllm.admission import require_admissible
from monitor.engine.vllm.typed import pass_on
from monitor.engine.vllm.wrap import Method, require_fields, wrap_once
from monitor.wire.bounds import bounded_id

_BEAM: Final = re.compile(r"(.+)-[0-9a-f]{16}-beam-(\d+)", re.DOTALL)
_PROMPT: Final = re.compile(r"(cmpl-.+)-(\d+)", re.DOTALL)
_CONVERSATION: Final = re.compile(r"(chatcmpl-[0-9a-f]{16})_(\d+)")
_SUFFIX: Final = len("-01234567")
"""Characters that vLLM adds to an id, unless it is told not to."""


def install() -> None:
    """Wrap the front's processor of requests, once."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.input_processor import InputProcessor

    require_fields(SamplingParams, "extra_args")
    require_fields(EngineCoreRequest, "request_id", "external_req_id", "sampling_params")
    wrap_once(InputProcessor, "process_inputs", _process_inputs)
    wrap_once(InputProcessor, "assign_request_id", _assign_request_id)


def _process_inputs(method: Method) -> Method:
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if not switched_on(self.vllm_config):
            return method(self, request_id, prompt, params, *args, **kwargs)
        require_admissible(params)
        return pass_on(prompt, method(self, request_id, prompt, params, *args, **kwargs))

    return process_inputs


def _assign_request_id(method: Method) -> Method:
    # It is a static method that is called on an instance only: as a method, it has the instance's configuration.
    def assign_request_id(self: Any, request: Any) -> None:
        method(request)
        external = request.external_req_id
        if switched_on(self.vllm_config) and (bounded := bounded_id(external)) != external:
            request.request_id = bounded + request.request_id.removeprefix(external)

    return assign_request_id


def named(request_id: str, external: str | None) -> tuple[str, str]:
    """The id that the user sees, bounded, and which part of the user's request it is.

    Args:
        request_id: The engine's own.
        external: What it was made of; ``None``: the request came by another way, and has but one.

    Returns:
        The id; the part, empty where the request is all of it.
    """
    own = request_id if external is None else external
    parts: list[str] = []
    index, _, rest = request_id.partition("_")
    bounded = bounded_id(own)
    if index.isdecimal() and rest.startswith(bounded) and len(rest) - len(bounded) in (0, _SUFFIX):
        parts.append(f"choice {index}")
    if beam := _BEAM.fullmatch(own):
        own = beam[1]
        parts.append(f"beam {beam[2]}")
    for pattern in (_PROMPT, _CONVERSATION):
        if prompt := pattern.fullmatch(own):
            own = prompt[1]
            parts.insert(0, f"prompt {prompt[2]}")
    return bounded_id(own), ", ".join(parts)
