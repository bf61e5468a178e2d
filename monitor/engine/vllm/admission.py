"""Requests that ask to be steered from their first token on: ``vllm_xargs.plumbob``, a JSON string.

They may ask for no more than the operator allows: vectors that ``additional_config.plumbob.admission`` names, within
the bundle's cap. What goes beyond is refused by the server before the request is scheduled, as a bad request (400).
"""

from collections import defaultdict
from functools import cache
from typing import Any, Final

import msgspec

from monitor.engine.settings import inherited
from monitor.engine.steering.acts import compose, entry_of, require_composed
from monitor.errors import OrderError
from monitor.wire.orders import Admission
from probes.bundle import Bundle, load_bundle
from probes.steering import Entry

FIELD: Final = "plumbob"
"""Key of ``vllm_xargs``, which is ``SamplingParams.extra_args``."""
CHARACTERS: Final = 4096
"""The longest string that is read."""


def require_admissible(params: Any) -> None:
    """Refuse a request that asks for more than the operator allows, as a bad request.

    Args:
        params: Its ``SamplingParams``; requests to pool have other parameters, and are refused elsewhere.

    Raises:
        VLLMValidationError: It is malformed, or more than the operator allows.
    """
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    arguments = params.extra_args if isinstance(params, SamplingParams) else None
    if arguments is not None and (written := arguments.get(FIELD)) is not None:
        try:
            read_admission(written)
        except OrderError as error:
            raise VLLMValidationError(str(error), parameter=f"vllm_xargs.{FIELD}") from error


def read_admission(written: object) -> Admission:
    """Read what a request asks for, if this engine's settings allow it.

    Args:
        written: The value of ``vllm_xargs.plumbob``.

    Raises:
        OrderError: It is malformed, or more than the operator allows.
    """
    settings = inherited()
    return parse_admission(written, settings.admission, _bundle(settings.bundle))


def parse_admission(written: object, allowed: list[str], bundle: Bundle) -> Admission:
    """Parse what a request asks for, if it may.

    Args:
        written: The value of ``vllm_xargs.plumbob``.
        allowed: Names of vectors.
        bundle: Has them.

    Raises:
        OrderError: It is malformed, names a vector that is not allowed, or is beyond a cap.
    """
    if not allowed:
        raise OrderError(
            "admission",
            "Requests may not ask to be steered here.",
            "Leave vllm_xargs.plumbob out, or have the server started with --allow-steering VECTOR.",
        )
    if not isinstance(written, str) or len(written) > CHARACTERS:
        raise OrderError(
            "admission",
            "vllm_xargs.plumbob is no string of JSON, or too long.",
            f"Send at most {CHARACTERS} characters.",
        )
    try:
        admission = msgspec.json.decode(written, type=Admission)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise OrderError(
            "admission",
            f"vllm_xargs.plumbob is malformed: {error}.",
            'Write it as {"acts": [{"vector": "NAME", "add": 0.1}], "tokens": 50, "prompt": false}.',
        ) from error
    entries = defaultdict[int, list[Entry]](list)
    for act in admission.acts:
        if act.vector not in allowed:
            raise OrderError(
                "admission",
                f"Requests may not ask to be steered by vector '{act.vector}' here.",
                f"They may by: {', '.join(allowed)}.",
            )
        row, entry = entry_of(bundle, act)
        entries[row].append(entry)
    for row, parts in entries.items():
        require_composed(bundle.manifest.vectors[row], compose(parts))
    return admission


@cache
def _bundle(path: str) -> Bundle:
    return load_bundle(path)
