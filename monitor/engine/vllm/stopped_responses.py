"""Stopped answers in ``/v1/responses``: incomplete for their content, with the message as text of the answer.

The API reads reasoning and calls out of the text by a parser of the context that a response has. From the output on
that ends a stopped answer, another stands before it, which keeps the message from it (:class:`_Saying`).
"""

from typing import Any, Final

from monitor.engine.settings import switched_on
from monitor.engine.vllm.stopped import APART, FINISH, Stopped
from monitor.engine.vllm.wrap import Method, require_fields, wrap_once

INCOMPLETE: Final = "incomplete"
"""``status`` of the response."""


def install() -> None:
    """Wrap the contexts of responses and what makes responses of them, once."""
    from vllm.entrypoints.openai.responses.context import SimpleContext
    from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    require_fields(ResponsesResponse, "status", "incomplete_details")
    wrap_once(SimpleContext, "append_output", _append_output)
    wrap_once(OpenAIServingResponses, "responses_full_generator", _full)


class _Saying:
    """A parser that puts the message behind what another makes of the text without it.

    Args:
        parser: The other.
        stopped: Has the message.
    """

    def __init__(self, parser: Any, stopped: Stopped) -> None:
        self._parser, self._stopped = parser, stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def parse(self, text: str, *args: Any, **kwargs: Any) -> tuple[str | None, str | None, list[Any]]:
        """Reasoning, content and calls of a whole answer: none, since they may be cut."""
        reasoning, content, _ = self._parser.parse(text.removesuffix(self._stopped.said), *args, **kwargs)
        message = self._stopped.message
        return reasoning, f"{content}{APART if message else ''}{message}" if content else message or None, []

    def parse_delta(self, delta_text: str, **kwargs: Any) -> Any:
        """The last piece of an answer, with the message in its content."""
        from vllm.entrypoints.generate.base.protocol import DeltaMessage

        # Not finished: what was begun, as a call, is not to be completed.
        given = kwargs | {"finished": False}
        delta = self._parser.parse_delta(delta_text=delta_text.removesuffix(self._stopped.said), **given)
        delta = delta or DeltaMessage()
        delta.content = f"{delta.content or ''}{self._stopped.said}"
        return delta


def _append_output(method: Method) -> Method:
    def append_output(self: Any, output: Any) -> Any:
        # Only Plumbob's own outputs have such a reason.
        stopped = output.outputs[0].stop_reason if getattr(output, "outputs", None) else None
        if isinstance(stopped, Stopped) and self.response_parser is not None:
            self.response_parser = _Saying(self.response_parser, stopped)
        return method(self, output)

    return append_output


def _full(method: Method) -> Method:
    async def full(
        self: Any, request: Any, sampling_params: Any, result_generator: Any, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        response = await method(self, request, sampling_params, result_generator, context, *args, **kwargs)
        if switched_on(self.engine_client.vllm_config) and hasattr(response, "incomplete_details"):
            outputs = getattr(getattr(context, "last_output", None), "outputs", None)
            if outputs and isinstance(outputs[0].stop_reason, Stopped):
                from openai.types.responses.response import IncompleteDetails

                response.status, response.incomplete_details = INCOMPLETE, IncompleteDetails(reason=FINISH)
        return response

    return full
