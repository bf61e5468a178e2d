"""Requests of the chat API, of every shape that its clients give them, and a template that shows all of it."""

from typing import Any

TOOLS = """\
{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant
{{ message.content or '' }}{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{%- for call in message.tool_calls %}<tool_call>{{ call | tojson }}</tool_call>
{%- for name, value in call.function.arguments.items() %}[{{ name }}={{ value | tojson }}]{% endfor %}{% endfor -%}
<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response {{ message.tool_call_id }}>{{ message.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}{{ ' ' + message.name if message.name is defined and message.name }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}
{%- for document in documents or [] %}<doc {{ document.title }}>{{ document.text }}</doc>{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{{- reasoning_effort or '' }}{% endif %}"""
"""Shows whatever a request may have, and in which order its keys are."""


def text(*texts: str) -> list[dict[str, str]]:
    """Parts of content."""
    return [{"type": "text", "text": each} for each in texts]


CALL = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"q": "weather", "n": [1, 2.0]}'}}
LOOKUP = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"q": {}}}}}
USER = {"role": "user", "content": "look it up"}


def call(arguments: Any) -> dict[str, Any]:
    """An answer that calls a tool."""
    return {"role": "assistant", "tool_calls": [{**CALL, "function": {"arguments": arguments, "name": "f"}}]}


ACCEPTED: dict[str, dict[str, Any]] = {
    "a question": {"messages": [USER]},
    "an answer at the end": {"messages": [USER, {"role": "assistant", "content": "no"}]},
    "an answer without header": {"messages": [USER], "add_generation_prompt": False},
    "an answer that goes on": {
        "messages": [USER, {"role": "assistant", "content": "The weather is "}],
        "continue_final_message": True, "add_generation_prompt": False,
    },
    "parts": {"messages": [{"role": "user", "content": text("first part. ", "second part.")}]},
    "parts with an empty one": {"messages": [{"role": "user", "content": text("", "a", "")}]},
    "parts of strings": {"messages": [{"role": "user", "content": ["a", *text("b")]}]},
    "parts of a system": {"messages": [{"role": "system", "content": text("be", "good")}, USER]},
    "parts with more keys": {
        "messages": [{"role": "user", "content": [{**text("a")[0], "cache_control": {"type": "ephemeral"}}]}]
    },
    "a part that says nothing": {"messages": [{"role": "critic", "content": [{"type": "text"}, *text("a")]}]},
    "a part of another API": {"messages": [{"role": "critic", "content": [{"type": "input_text", "text": "a"}]}]},
    "no parts": {"messages": [{"role": "user", "content": []}]},
    "a missing content": {"messages": [{"role": "user"}]},
    "thinking": {
        "messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "h", "closed": True}]}]
    },
    "a refusal": {"messages": [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
    "a reference to a tool": {
        "messages": [{"role": "tool", "content": [{"type": "tool_reference", "name": "f"}], "tool_call_id": "c"}]
    },
    "tool calls": {
        "messages": [
            USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "4 degrees"}, {"role": "assistant", "content": "Cold."},
        ],
        "tools": [LOOKUP],
    },
    "tool calls without content": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL, CALL]}]},
    "tool calls beside content": {"messages": [{"role": "assistant", "content": "Well.", "tool_calls": [CALL]}]},
    "a result in parts": {"messages": [{"role": "tool", "tool_call_id": "c1", "content": text("a", "", "b")}]},
    "a result with a name": {"messages": [{"role": "tool", "tool_call_id": "c1", "content": "a", "name": "f"}]},
    "no tool calls": {"messages": [{"role": "assistant", "content": "x", "tool_calls": []}]},
    "tool calls that are null": {"messages": [{"role": "assistant", "content": "x", "tool_calls": None}]},
    **{
        f"arguments {each}": {"messages": [call(each)]} for each in ("", "{}", "nope", "[1]", "null", " ", '{"a": NaN}')
    },
    "reasoning": {"messages": [{"role": "assistant", "content": "x", "reasoning": "r", "tool_calls": [CALL]}]},
    "reasoning by its old name": {
        "messages": [{"role": "assistant", "content": "x", "reasoning_content": "r", "tool_calls": [CALL]}]
    },
    "reasoning beside null": {
        "messages": [{"role": "assistant", "content": None, "reasoning": "r", "tool_calls": [CALL]}]
    },
    "a developer": {"messages": [{"role": "developer", "content": "be good"}, USER]},
    "a developer after a system": {
        "messages": [
            {"role": "system", "content": "a", "name": "x"}, {"role": "developer", "content": text("b", "c")}, USER
        ]
    },
    "a developer in the middle": {"messages": [USER, {"role": "developer", "content": "b", "tools": [LOOKUP]}]},
    "an empty developer": {"messages": [USER, {"role": "developer", "content": ""}]},
    "two systems": {"messages": [USER, {"role": "system", "content": "a"}, {"role": "system", "content": "b"}]},
    "a role of one's own": {"messages": [{"role": "critic", "content": "bad", "task": "t"}]},
    "a function": {"messages": [{"role": "function", "content": None, "name": "f"}]},
    "names": {"messages": [{**USER, "name": "bob"}]},
    "a line of a coding client": {
        "messages": [{"role": "system", "content": "x-anthropic-billing-header: cch=1\nbe good"}, USER]
    },
    "tools": {"messages": [USER], "tools": [LOOKUP]},
    "tools of all sorts": {
        "messages": [USER],
        "tools": [
            {"function": {"name": "a", "description": "d", "strict": True, "more": 1}, "more": 2},
            {"type": "function", "function": {"name": "b", "parameters": None}, "defer_loading": True},
        ],
        "tool_choice": "none",
    },
    "documents": {"messages": [USER], "documents": [{"title": "t", "text": "x"}]},
    "a template's own": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False, "other": [1]}},
    "an effort": {"messages": [USER], "reasoning_effort": "low"},
    "no effort": {"messages": [USER], "reasoning_effort": "none"},
    "both": {"messages": [USER], "reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
    "a header that two fields set": {"messages": [USER], "chat_template_kwargs": {"add_generation_prompt": False}},
    "special tokens": {"messages": [USER], "add_special_tokens": True},
    "sampling": {"messages": [USER], "model": "m", "temperature": 0.5, "max_tokens": 5, "stream": True, "user": "u"},
}  # fmt: skip
