"""Answers that were stopped, as clients get them: filtered content, with what the operator has to say behind it.

The core (:mod:`monitor.engine.vllm.stop`) sends no tokens, but the message in words, in place of the reason to stop.
The front's process of requests makes of it ``finish_reason: content_filter`` and ``stop_reason: plumbob``, and writes
the message behind the text: after the detokenizer, so that no stop string cuts it and it counts for no token. Whatever
has no more to do with an answer than to pass it on, such as the completions API and ``vllm.LLM``, is done with that.

The chat API reads reasoning and tool calls out of the text. So it gets the text without the message
(:class:`Stops`), and the message is put where it belongs: into the content, and never into a call or a thought.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Final

from monitor.engine.settings import switched_on
from monitor.engine.vllm.stop import REASON, message_of
from monitor.engine.vllm.wrap import Method, require_fields, wrap_once

FINISH: Final = "content_filter"
"""``finish_reason``, as the OpenAI API has it for content that was left out."""
APART: Final = "\n\n"
"""Between what was generated and the message."""


class Stopped(str):
    """The ``stop_reason`` of a stopped answer; it stays with the answer where outputs are merged."""

    __slots__ = ("message", "said")

    message: str
    said: str
    """The end of the output's text, which is the message, and what keeps it apart."""

    def __new__(cls, message: str, said: str) -> "Stopped":
        """Keep what is said beside the reason."""
        reason = super().__new__(cls, REASON)
        reason.message, reason.said = message, said
        return reason

    def __reduce__(self) -> tuple[type["Stopped"], tuple[str, str]]:
        """Rebuild it with its fields: ``str`` alone would copy and pickle the bare text."""
        return Stopped, (self.message, self.said)


class _Nothing(str):
    """An empty text that counts as one: the front takes an empty piece without tokens for a prompt still being read."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def install() -> None:
    """Wrap the front's outputs and the chat API's generators, once."""
    from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
    from vllm.entrypoints.openai.chat_completion.protocol import ChatMessage
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.output_processor import RequestState

    require_fields(CompletionOutput, "index", "text", "token_ids", "finish_reason", "stop_reason")
    require_fields(ChatMessage, "content", "refusal", "tool_calls")
    wrap_once(RequestState, "_new_completion_output", _new_completion_output)
    wrap_once(OpenAIServingChat, "chat_completion_full_generator", _full)
    wrap_once(OpenAIServingChat, "chat_completion_stream_generator", _stream)
    wrap_once(OpenAIServingChatBatch, "chat_completion_full_generator_batch", _batch)


def _new_completion_output(method: Method) -> Method:
    def new_completion_output(self: Any, token_ids: list[int], finish_reason: Any, stop_reason: Any) -> Any:
        output = method(self, token_ids, finish_reason, stop_reason)
        if (message := message_of(stop_reason)) is not None:
            # The class without a tokenizer has no text.
            apart = APART if message and getattr(self.detokenizer, "output_text", "") else ""
            output.text = output.text + apart + message or _Nothing()
            output.finish_reason, output.stop_reason = FINISH, Stopped(message, apart + message)
        return output

    return new_completion_output


class Stops:
    """The stopped choices of one request, as its outputs pass by.

    Args:
        streaming: The outputs go on without their reason to finish: whoever asked is told by :meth:`chunks`.
    """

    def __init__(self, *, streaming: bool = False) -> None:
        self.messages: dict[int, str] = {}
        """What is to be said, by choice."""
        self._streaming = streaming
        self._passed: list[int] = []
        """Choices whose last output was taken in by the API."""
        self._tokens: dict[int, int] = {}
        self._prompt_tokens = 0

    async def without_messages(self, results: AsyncIterator[Any], index: int | None = None) -> AsyncIterator[Any]:
        """The results, without what is said in stopped answers.

        Args:
            results: ``RequestOutput`` objects.
            index: Of the choice; ``None``: each output's own.
        """
        told = 0
        async for result in results:
            kept: list[Any] = []
            for output in result.outputs:
                choice = output.index if index is None else index
                if self._streaming:
                    self._tokens[choice] = self._tokens.get(choice, 0) + len(output.token_ids)
                    self._prompt_tokens = len(result.prompt_token_ids or ()) or self._prompt_tokens
                if isinstance(stopped := output.stop_reason, Stopped):
                    self.messages[choice] = stopped.message
                    output.text = output.text[: len(output.text) - len(stopped.said)]
                    output.stop_reason = REASON
                    if self._streaming:
                        output.finish_reason = output.stop_reason = None
                        if not output.token_ids and not output.text:
                            continue
                kept.append(output)
            result.outputs = kept
            yield result
            # The API has come back for more, so that everything so far was sent.
            self._passed += list(self.messages)[told:]
            told = len(self.messages)

    def finish(self, response: Any) -> Any:
        """Say it in a whole response; a call that may be cut is none, and what was filtered is not to be acted upon."""
        for choice in getattr(response, "choices", ()):
            if (message := self.messages.get(choice.index)) is not None:
                content = choice.message.content or ""
                choice.message.content = f"{content}{APART if content and message else ''}{message}"
                choice.message.refusal = message or None
                choice.message.tool_calls = []
                choice.finish_reason = FINISH
        return response

    def chunks(self, first: dict[str, Any], spoken: set[int], fingerprint: str | None, usage: bool) -> list[str]:
        """Take the rest of choices that were stopped, as lines of the stream.

        Args:
            first: A chunk of the stream.
            spoken: Choices with content.
            fingerprint: Goes with the last chunk of a choice; ``None``: does not.
            usage: Each chunk says what was used so far.
        """
        lines: list[str] = []
        for index in self._passed:
            message, tokens = self.messages[index], self._tokens.get(index, 0)
            said = f"{APART if index in spoken and message else ''}{message}"
            endings: list[dict[str, Any]] = [{"delta": {"content": said}, "finish_reason": None}] if said else []
            endings.append({"delta": {}, "finish_reason": FINISH, "stop_reason": REASON})
            for ending in endings:
                chunk = {name: first[name] for name in ("id", "object", "created", "model")}
                chunk["choices"] = [{"index": index, **ending}]
                if fingerprint is not None and ending["finish_reason"]:
                    chunk["system_fingerprint"] = fingerprint
                if usage:
                    counts = {"prompt_tokens": self._prompt_tokens, "completion_tokens": tokens}
                    chunk["usage"] = {**counts, "total_tokens": self._prompt_tokens + tokens}
                lines.append(f"data: {json.dumps(chunk)}\n\n")
        self._passed = []
        return lines


def _full(method: Method) -> Method:
    async def full(self: Any, request: Any, result_generator: AsyncIterator[Any], *args: Any, **kwargs: Any) -> Any:
        if not _on(self):
            return await method(self, request, result_generator, *args, **kwargs)
        stops = Stops()
        return stops.finish(await method(self, request, stops.without_messages(result_generator), *args, **kwargs))

    return full


def _batch(method: Method) -> Method:
    async def batch(self: Any, request: Any, generators: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if not _on(self):
            return await method(self, request, generators, *args, **kwargs)
        stops = Stops()
        cleared = [stops.without_messages(one, index) for index, one in enumerate(generators)]
        return stops.finish(await method(self, request, cleared, *args, **kwargs))

    return batch


def _stream(method: Method) -> Method:
    async def stream(
        self: Any, request: Any, result_generator: AsyncIterator[Any], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        if not _on(self):
            async for line in method(self, request, result_generator, *args, **kwargs):
                yield line
            return
        stops, first, spoken, choices = Stops(streaming=True), dict[str, Any](), set[int](), request.n or 1
        include, continuous = _usage(self, request)
        fingerprint = None if include else self.system_fingerprint
        async for line in method(self, request, stops.without_messages(result_generator), *args, **kwargs):
            if first and stops.messages:
                for last in stops.chunks(first, spoken, fingerprint, continuous):
                    yield last
            # Read only until each choice has content: a stop says its own behind a blank line then.
            if len(spoken) < choices and '"content":"' in line and line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                first = first or chunk
                spoken |= {one["index"] for one in chunk.get("choices", ()) if one.get("delta", {}).get("content")}
            yield line

    return stream


def _usage(serving: Any, request: Any) -> tuple[bool, bool]:
    from vllm.entrypoints.serve.utils.api_utils import should_include_usage

    return should_include_usage(request.stream_options, serving.enable_force_include_usage)


def _on(serving: Any) -> bool:
    return switched_on(serving.engine_client.vllm_config)
