"""Requests of the chat API in files: read as vLLM's server reads them, or refused with the reason.

Of a request, what the chat template is given is kept: the messages, and ``tools``, ``documents``,
``chat_template_kwargs``, ``reasoning_effort``, ``add_generation_prompt`` and ``continue_final_message`` beside them.
They are merged as vLLM does it (``ChatCompletionRequest.build_chat_params`` in
``vllm/entrypoints/openai/chat_completion/protocol.py``, 0.32). Everything else is of sampling, and ignored.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError

from probes.data.message_types import match
from probes.models.chat import Message
from probes.models.rendering import TEXTS, join_parts, require_whole

_MEDIA: Final = (
    "image_url", "image_pil", "image_embeds", "input_image", "audio_url", "audio_embeds", "input_audio", "video_url",
    "video_embeds", "prompt_embeds", "file",
)  # fmt: skip
"""Keys and types of parts that are not."""
_ABSENT: Final = (None, "auto")
"""Values that leave an argument of the template to its default."""


class _Function(BaseModel):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class _Tool(BaseModel):
    type: Literal["function"] = "function"
    function: _Function
    defer_loading: bool | None = None

    def given(self) -> dict[str, Any]:
        """As templates are given it: optional fields that came late are left out where they are not set."""
        function = self.function.model_dump()
        if function["defer_loading"] is None:
            function["defer_loading"] = self.defer_loading
        late = ("strict", "defer_loading")
        function = {name: value for name, value in function.items() if value is not None or name not in late}
        tool: dict[str, Any] = {"type": self.type, "function": function}
        return tool if self.defer_loading is None else {**tool, "defer_loading": self.defer_loading}


class _Chat(BaseModel):
    """The fields of a chat request that are read, beside its messages."""

    tools: list[_Tool] | None = None
    documents: list[dict[str, str]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


FIELDS: Final = frozenset(_Chat.model_fields)
"""Names of the fields that are read beside ``messages``."""


def chat_of(request: Mapping[str, Any]) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """A request's messages, and what the chat template is given beside them.

    Args:
        request: As JSON has it, with ``messages``.

    Raises:
        ValueError: vLLM's server would refuse it, or it holds more than text; the message says where.
    """
    messages = request["messages"]
    if not isinstance(messages, list):
        raise ValueError("its messages are no list")
    if not messages:
        raise ValueError("has no messages")
    return tuple(_message(f"messages[{at}]", message) for at, message in enumerate(messages)), _template(request)


def _template(request: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the template; without ``add_generation_prompt`` where the request does not set it."""
    try:
        chat = _Chat.model_validate({name: request[name] for name in FIELDS & request.keys()})
    except ValidationError as error:
        raise ValueError(_words(error)) from error
    given = chat.chat_template_kwargs or {}
    if chat.chat_template is not None or given.get("chat_template") is not None:
        raise ValueError("brings a chat template of its own, and a bundle is bound to the model's")
    if chat.tools == []:
        raise ValueError("its tools are an empty list, which the API refuses: leave them out")
    if chat.continue_final_message and chat.add_generation_prompt:
        raise ValueError("sets both continue_final_message and add_generation_prompt")
    own: dict[str, Any] = {
        "add_generation_prompt": chat.add_generation_prompt,
        "continue_final_message": chat.continue_final_message or None,
        "documents": chat.documents,
        "reasoning_effort": chat.reasoning_effort,
    }
    if chat.reasoning_effort is not None and "enable_thinking" not in given:
        own["enable_thinking"] = chat.reasoning_effort != "none"
    # The request's own field decides, set or not.
    merged = {name: value for name, value in given.items() if name not in ("add_generation_prompt", "tokenize")}
    merged |= {name: value for name, value in own.items() if value not in _ABSENT}
    tools = {} if chat.tools is None else {"tools": [tool.given() for tool in chat.tools]}
    return tools | {name: value for name, value in merged.items() if value not in _ABSENT}


def _message(where: str, message: Any) -> Message:
    """One message.

    Raises:
        ValueError: What is wrong with it.
    """
    if not isinstance(message, dict):
        raise ValueError(f"{where} is no object")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{where} has no role")
    if not isinstance(message.get("tool_calls"), list | None):
        raise ValueError(f"{where}.tool_calls are no list")
    parts = message.get("content")
    if isinstance(parts, str):
        _require_whole(f"{where}.content", parts)
    elif isinstance(parts, list):
        for at, part in enumerate(parts):
            _require_text(f"{where}.content[{at}]", part)
    # The deprecated name.
    named = {name: value for name, value in message.items() if name != "reasoning_content"}
    if named.get("reasoning") is None and message.get("reasoning_content") is not None:
        named["reasoning"] = message["reasoning_content"]
    try:
        found = match(named)
    except ValueError as error:
        raise ValueError(_fault(where, named)) from error
    content = found.get("content")
    more = {name: value for name, value in found.items() if name not in ("role", "content")}
    if "content" not in found or not isinstance(content, str):
        more["content"] = content
    for at, call in enumerate((more.get("tool_calls") or ()) if found["role"] == "assistant" else ()):
        if call["type"] != "function":
            raise ValueError(f"{where}.tool_calls[{at}] is of type '{call['type']}', and the API takes 'function' only")
    return Message(found["role"], content if isinstance(content, str) else join_parts(content or []), more)


def _require_whole(where: str, text: str) -> None:
    """Raise ValueError where a text that every template writes has half of a surrogate pair."""
    try:
        require_whole(text)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def _require_text(where: str, part: Any) -> None:
    """Raise ValueError where a part of content is no text."""
    if isinstance(part, str):
        return _require_whole(where, part)
    if not isinstance(part, dict):
        raise ValueError(f"{where} is neither text nor an object")
    kind = part.get("type")
    if kind is None and (media := next((name for name in _MEDIA if name in part), None)):
        kind = media
    if kind in _MEDIA:
        raise ValueError(f"{where} is of type '{kind}', and only text is read")
    if not isinstance(kind, str) or kind not in TEXTS:
        said = "no type" if kind is None else f"the unknown type {kind!r}"
        raise ValueError(f"{where} has {said}; there are: {', '.join(TEXTS)}")
    if not isinstance(part.get(TEXTS[kind]), str | None):
        raise ValueError(f"{where} has '{TEXTS[kind]}' that is no string")
    # With one, the server looks for media.
    if part.get("uuid") is not None:
        raise ValueError(f"{where} has a uuid, as media have, and only text is read")
    if kind == "text" and isinstance(part.get("text"), str):
        _require_whole(f"{where}.text", part["text"])
    return None


def _fault(where: str, message: Mapping[str, Any]) -> str:
    """Say why a message matches no type."""
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if "content" in message and content is None and role not in ("assistant", "function"):
        return f"{where} is of role '{role}', and its content is null"
    if content is not None and not isinstance(content, str | list):
        return f"{where}.content is neither a string nor a list of parts"
    if calls is None and "tool_calls" in message and content is None:
        return f"{where} has neither content nor tool_calls: both are null"
    if calls is not None:
        for at, call in enumerate(calls):
            here = f"{where}.tool_calls[{at}]"
            if not isinstance(call, dict) or not isinstance(call.get("id"), str) or call.get("type") != "function":
                return f"{here} is no object with an id and the type 'function'"
            function = call.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                return f"{here}.function is no object with a name"
            if not isinstance(function.get("arguments"), str):
                return f"{here}.function.arguments is no string of JSON, as which the API takes it"
    parts: list[Any] = content if isinstance(content, list) else []
    for at, part in enumerate(parts):
        if isinstance(part, dict) and not isinstance(part.get(key := TEXTS[part["type"]]), str):
            return f"{where}.content[{at}] has no '{key}' that is a string"
        if isinstance(part, dict) and part["type"] != "text":
            return f"{where}.content[{at}] is of type '{part['type']}', which the API does not take there"
    wrong = [
        name
        for name in ("name", "tool_call_id", "reasoning", "task", "refusal")
        if name in message and not isinstance(message[name], str)
    ]
    return f"{where} is no message of the API{f': look at its {wrong[0]}' if wrong else ''}"


def _words(error: ValidationError) -> str:
    """The first fault of several, with its place and without what was found there."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
