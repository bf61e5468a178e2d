"""Rendering of conversations by a chat template, as vLLM's server does it.

1. Messages are normalised (``vllm/renderers/chat_utils.py``): of content in parts, a template that loops over parts is
   given parts, another one their texts joined by newlines; content that is ``null`` is empty; arguments of tool calls
   become objects, and what is none becomes an empty one.
2. Where a template does not know the role ``developer``, it is ``system``, and all system messages become the first one
   (``vllm/renderers/hf.py``).
3. The template is rendered to text, and that is tokenised, without special tokens beside the template's own.

All of vllm 0.32; ``tests/probes/models/test_rendering.py`` compares with it. Models that vLLM renders without their
template (Mistral's tokenizer, gpt-oss, DeepSeek V3.2 and V4, Kimi K3, Command A) are rendered by it here.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

ContentFormat = Literal["string", "openai"]
"""The content of messages that a template takes: a string, or a list of parts."""

TEXTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "tool_reference": "name",
}
"""Types of parts of content that are text, and the key of it in each."""
# fmt: off
PART_FIELDS: Final = frozenset({
    "audio_embeds", "audio_url", "closed", "data", "file", "image_embeds", "image_pil", "image_url", "input_audio",
    "name", "prompt_cache_breakpoint", "refusal", "text", "thinking", "type", "uuid", "video_embeds", "video_url",
})
# fmt: on
"""Keys of parts that the API knows, of any type; others are the client's own."""

_BILLING: Final = "x-anthropic-billing-header"
"""A line of a coding client that changes from request to request; the server drops it from system messages."""
_NOT_THE_TEMPLATES: Final = ("chat_template", "tokenize", "return_dict", "conversation", "tools")
"""Arguments of transformers' method that no request may set."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], template: Mapping[str, Any]) -> str:
    """The text that a conversation is for the model.

    Args:
        tokenizer: Of transformers, with a chat template.
        messages: As the chat API takes them.
        template: What the template is given beside them: ``add_generation_prompt``, ``tools`` and others.

    Raises:
        ValueError: The text has half of a surrogate pair.
        Exception: Of jinja2 or transformers, where the template refuses the conversation.
    """
    tools = template.get("tools")
    source: str = tokenizer.get_chat_template(None, tools=tools)
    conversation = normalised(source, messages)
    if "'developer'" not in source and '"developer"' not in source:
        conversation = _without_developers(conversation)
    given = {name: value for name, value in template.items() if name not in _NOT_THE_TEMPLATES}
    text: str = tokenizer.apply_chat_template(conversation, tools=tools, chat_template=source, tokenize=False, **given)
    require_whole(text)
    return text


def normalised(source: str, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them.

    Args:
        source: Of the template.
        messages: As the chat API takes them.
    """
    content_format = _content_format(source)
    return [_normalised(message, content_format) for message in messages]


def require_whole(text: str) -> None:
    """Check that a text has no half of a surrogate pair, which JSON can write and no tokenizer can read.

    Raises:
        ValueError: It has; the message begins with a verb.
    """
    if half := re.search("[\ud800-\udfff]", text):
        raise ValueError(
            f"has \\u{ord(half[0]):04x} without its other half, which is no character: the server cannot read it either"
        )


def _normalised(message: Mapping[str, Any], content_format: ContentFormat) -> dict[str, Any]:
    """A message as templates take it."""
    role, content = message["role"], message.get("content")
    parts = [content] if isinstance(content, str) else list(content or [])
    if role == "system":
        parts = list(_without_billing(parts))
    found: dict[str, Any] = {"role": role}
    if content_format == "openai":
        found["content"] = [taken for part in parts if (taken := _part(part)) is not None]
        if role == "tool" and all(part["type"] == "text" for part in found["content"]):
            # Few templates take a tool's result in parts.
            found["content"] = "\n".join(part["text"] for part in found["content"])
    else:
        found["content"] = join_parts(parts)
    if role == "assistant":
        if calls := message.get("tool_calls"):
            found["tool_calls"] = [_call(call) for call in calls]
        if (reasoning := message.get("reasoning")) is not None:
            found["reasoning"] = found["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in message:
        found["tool_call_id"] = message["tool_call_id"]
    for name in ("name", "task"):
        if isinstance(message.get(name), str):
            found[name] = message[name]
    if role == "developer":
        found["tools"] = message.get("tools")
    return found


def join_parts(parts: Sequence[str | Mapping[str, Any]]) -> str:
    """The text of parts of content, as templates are given it that take none; without those that are empty."""
    texts = (part if isinstance(part, str) else part.get(TEXTS[part["type"]]) for part in parts)
    return "\n".join(text for text in texts if text)


def _part(part: str | Mapping[str, Any]) -> dict[str, Any] | None:
    """A part as templates take it: of the type ``text``, or a reference to a tool; ``None``: it is left out."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    text = part.get(TEXTS[part["type"]])
    if part["type"] == "tool_reference":
        return {"type": "tool_reference", "name": text}
    if text is None and part["type"] in ("text", "refusal"):
        return None
    # What clients add, such as cache_control, templates may show.
    added = {name: value for name, value in part.items() if name not in PART_FIELDS}
    return {"type": "text", "text": text, **added}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object."""
    function: Mapping[str, Any] = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except json.JSONDecodeError:
        arguments = None
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


def _without_billing(parts: Sequence[str | Mapping[str, Any]]) -> Iterator[str | Mapping[str, Any]]:
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if part["type"] == "text" else None
        if text is None or not text.startswith(_BILLING):
            yield part
        elif rest := text.partition("\n")[2]:
            yield rest if isinstance(part, str) else {**part, "text": rest}


def _without_developers(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Developers' messages as the system's, all of which are the first message."""
    if not any(message["role"] == "developer" for message in conversation):
        return conversation
    converted = [
        {**{name: value for name, value in message.items() if name != "tools"}, "role": "system"}
        if message["role"] == "developer"
        else message
        for message in conversation
    ]
    if not any(message["role"] == "system" for message in converted[1:]):
        return converted
    texts = [
        message["content"]
        if isinstance(message["content"], str)
        else "\n".join(part["text"] for part in message["content"] if "text" in part)
        for message in converted
        if message["role"] == "system"
    ]
    others = [message for message in converted if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(text for text in texts if text)}, *others]


@lru_cache(maxsize=32)
def _content_format(template: str) -> ContentFormat:
    """Tell what content a template takes, by whether it loops over that of messages.

    The same as vLLM's ``_detect_content_format``, which looks for loops over ``message.content``, over a variable named
    ``content``, and over a macro's parameter that is given a message's content.
    """
    # Comes with transformers.
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block that marks what the model says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    try:
        root = environment.parse(template)
    except TemplateError:
        return "string"
    try:
        return "openai" if _loops_over_content(root) else "string"
    except AssertionError:
        # Of a loop or an assignment that unpacks: vLLM stops there, too.
        return "string"


def _loops_over_content(root: Any) -> bool:
    from jinja2 import nodes

    messages = list(_message_names(root))
    passed: dict[int, set[str]] = {}
    inside: set[int] = set()
    for macro in root.find_all(nodes.Macro):
        parameters = [parameter.name for parameter in macro.args]
        contents = set[str]()
        for call in root.find_all(nodes.Call):
            if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
                continue
            given = [
                *zip(parameters, call.args, strict=False),
                *((keyword.key, keyword.value) for keyword in call.kwargs if keyword.key in parameters),
            ]
            contents |= {name for name, value in given if any(_is(value, of, "content") for of in messages)}
        for loop in macro.find_all(nodes.For):
            inside.add(id(loop))
            if contents:
                passed[id(loop)] = contents
    for loop in root.find_all(nodes.For):
        over = loop.iter
        if any(_is(over, name, "content") for name in messages):
            found = True
        else:
            name = over.name if isinstance(over, nodes.Name) else None
            found = name is not None and (
                name in passed.get(id(loop), ()) or (name == "content" and id(loop) not in inside)
            )
        if found:
            assert isinstance(loop.target, nodes.Name)
            return True
    return False


def _message_names(root: Any) -> Iterator[str]:
    """Names of variables that loops over the messages set."""
    from jinja2 import nodes

    lists, queue = ["messages"], ["messages"]
    while queue:
        name = queue.pop(0)
        for assigned in root.find_all(nodes.Assign):
            if _is(assigned.node, name):
                assert isinstance(assigned.target, nodes.Name)
                if assigned.target.name not in lists:
                    lists.append(assigned.target.name)
                    queue.append(assigned.target.name)
    for loop in root.find_all(nodes.For):
        if any(_is(loop.iter, name) for name in lists):
            assert isinstance(loop.target, nodes.Name)
            yield loop.target.name


def _is(node: Any, name: str, key: str | None = None) -> bool:
    """Tell whether an expression is a variable, or one key of it; filtered, tested or sliced as it may be."""
    from jinja2 import nodes

    if isinstance(node, nodes.Filter):
        return node.node is not None and _is(node.node, name, key)
    if isinstance(node, nodes.Test) or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)):
        return _is(node.node, name, key)
    if key is not None:
        if isinstance(node, nodes.Getitem):
            found = isinstance(node.arg, nodes.Const) and node.arg.value == key
        else:
            found = isinstance(node, nodes.Getattr) and node.attr == key
        if not found:
            return False
        node = node.node
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
