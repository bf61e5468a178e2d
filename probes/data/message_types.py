"""The types of a chat request's messages, as vLLM's API declares them (``vllm/renderers/chat_utils.py``, 0.32).

vLLM validates a message against the union of OpenAI's types and one of its own, and takes the one that matches best.
What comes out depends on it: whether a part of content that is not quite as OpenAI declares it passes, and the order
of a tool call's keys, which templates show. So the types are declared here again, for the same library to match. Fields
that a type does not know are kept, as in vLLM.
"""

from collections.abc import Iterable
from typing import Any, Literal, Required, cast

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict


class _Text(TypedDict, total=False):
    text: Required[str]
    type: Required[Literal["text"]]


class _Refusal(TypedDict, total=False):
    refusal: Required[str]
    type: Required[Literal["refusal"]]


class _Thinking(TypedDict, total=False):
    thinking: Required[str]
    closed: bool
    type: Required[Literal["thinking"]]


class _Part(TypedDict, total=False):
    """What vLLM's types of media without required fields come to: any object."""

    image_url: str | None
    uuid: str | None


class _ToolReference(TypedDict, total=False):
    name: str
    type: Literal["tool_reference"]


class _Function(TypedDict, total=False):
    arguments: Required[str]
    name: Required[str]


class _FunctionCall(TypedDict, total=False):
    id: Required[str]
    function: Required[_Function]
    type: Required[Literal["function"]]


class _Custom(TypedDict, total=False):
    input: Required[str]
    name: Required[str]


class _CustomCall(TypedDict, total=False):
    id: Required[str]
    custom: Required[_Custom]
    type: Required[Literal["custom"]]


class _Definition(TypedDict, total=False):
    name: Required[str]
    description: str
    parameters: dict[str, object]
    strict: bool | None


class _Tool(TypedDict, total=False):
    function: Required[_Definition]
    type: Required[Literal["function"]]


class _Audio(TypedDict, total=False):
    id: Required[str]


class _Developer(TypedDict, total=False):
    content: Required[str | Iterable[_Text]]
    role: Required[Literal["developer"]]
    name: str


class _System(TypedDict, total=False):
    content: Required[str | Iterable[_Text]]
    role: Required[Literal["system"]]
    name: str


class _User(TypedDict, total=False):
    content: Required[str | Iterable[_Text]]
    role: Required[Literal["user"]]
    name: str


class _Assistant(TypedDict, total=False):
    role: Required[Literal["assistant"]]
    audio: _Audio | None
    content: str | Iterable[_Text | _Refusal] | None
    function_call: _Function | None
    name: str
    refusal: str | None
    tool_calls: Iterable[_FunctionCall | _CustomCall]


class _ToolResult(TypedDict, total=False):
    content: Required[str | Iterable[_Text]]
    role: Required[Literal["tool"]]
    tool_call_id: Required[str]


class _FunctionResult(TypedDict, total=False):
    content: Required[str | None]
    name: Required[str]
    role: Required[Literal["function"]]


class _Any(TypedDict, total=False):
    """vLLM's own: any role, and more fields."""

    role: Required[str]
    content: str | list[_Text | _Refusal | _Part | _ToolReference | str | _Thinking]
    name: str
    tool_call_id: str | None
    tool_calls: list[_FunctionCall] | None
    reasoning: str | None
    tools: list[_Tool] | None
    task: str | None


class _Message(BaseModel):
    # Goes for the types inside, too.
    model_config = ConfigDict(extra="allow")

    # The order decides between types that match equally well.
    message: _Developer | _System | _User | _Assistant | _ToolResult | _FunctionResult | _Any


def match(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the type that it matches best has it.

    Raises:
        ValueError: It matches none.
    """
    # Typed dictionaries are dictionaries, which their types do not say.
    found = cast(dict[str, Any], _Message(message=cast(Any, message)).message)
    # Iterables are validated as they are read.
    return {
        name: list(value) if name in ("content", "tool_calls") and not isinstance(value, str | None) else value
        for name, value in found.items()
    }
