"""Rendering of conversations: token for token what vLLM's server makes of the same JSON, or refused by both."""

import copy
import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.data.requests import RequestError, encode_request, read_requests
from probes.models.rendering import PART_FIELDS, _content_format
from tests.harness.chat_server import ChatServer
from tests.harness.chat_shapes import ACCEPTED, CALL, LOOKUP, TOOLS, USER, call, text
from tests.harness.models import tiny_model
from tests.harness.tokenizers import CHATML

PARTS = """\
{%- set loop_messages = messages %}
{%- for message in loop_messages %}<|im_start|>{{ message['role'] }}
{%- if message['content'] is string %}S{{ message['content'] }}{% else %}
{%- for content in message['content'] %}{% if content['type'] == 'text' %}P{{ content['text'] }}{{ content | tojson }}
{%- else %}R{{ content['type'] }}{{ content['name'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Takes content in parts."""

MACRO = """\
{%- macro show(pieces) %}{% if pieces is string %}{{ pieces }}{% else %}
{%- for piece in pieces %}[{{ piece.text }}]{% endfor %}{% endif %}{% endmacro %}
{%- for message in messages[0:] %}<|im_start|>{{ message.role }}
{{ show(message.content) }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Takes content in parts, by way of a macro."""

DEVELOPER = """\
{%- for message in messages %}{% if message.role == "developer" %}<dev {{ message.tools | tojson }}>{% endif %}
{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
"""Knows the role developer."""

STRICT = """\
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% set rest = messages[1:] %}{% else %}
{%- set rest = messages %}{% endif %}
{%- for message in rest %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate') }}{% endif %}[{{ message.role }}] {{ message.content | trim }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
"""Refuses what is not user and assistant in turns."""

TEMPLATES = {
    "chatml": CHATML, "tools": TOOLS, "parts": PARTS, "macro": MACRO, "developer": DEVELOPER, "strict": STRICT,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return ChatServer(tiny_model(tmp_path_factory.mktemp("served") / "tiny", "llama"))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """vLLM says a line for each request that its template refuses."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("requests") / "in.jsonl"


def offline(server, file, template, request):
    """Our tokens of a request, from a file; ``None``: it is refused."""
    tokenizer = copy.copy(server.tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    file.write_text(json.dumps({"id": 1, **request}) + "\n")
    try:
        (read,) = read_requests(file)
        return encode_request(tokenizer, read)
    except RequestError:
        return None


def served(server, template, request):
    """vLLM's tokens of a request; ``None``: it is refused."""
    try:
        return (server if template is None else server.with_template(template)).tokens(json.dumps(request))
    except Exception:
        return None


def compare(server, file, template, request):
    """Assert that both give the same; returns it."""
    # Where a request does not say it, a file whose last message is an answer is scored with that answer.
    request = {"add_generation_prompt": not request.get("continue_final_message"), **request}
    ours, theirs = offline(server, file, template, request), served(server, template, request)
    assert ours == theirs, (template, json.dumps(request))
    return ours


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("shape", ACCEPTED)
def test_what_the_server_takes_is_read_the_same(server, file, shape, name):
    found = compare(server, file, TEMPLATES[name], ACCEPTED[shape])
    # A template may refuse; of this one, nothing is.
    assert found or name != "chatml"


REFUSED = {
    "no messages": {"messages": []},
    "a user without content": {"messages": [{"role": "user", "content": None}]},
    "a result without content": {"messages": [{"role": "tool", "content": None, "tool_call_id": "c"}]},
    "an answer without anything": {"messages": [{"role": "assistant", "content": None, "tool_calls": None}]},
    "no role": {"messages": [{"content": "x"}]},
    "a role of a number": {"messages": [{"role": 1, "content": "x"}]},
    "content of a number": {"messages": [{"role": "user", "content": 1}]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
    "a sound": {
        "messages": [
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}
        ]
    },
    "a part without type": {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
    "a part of another API": {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
    "a part without text": {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
    "arguments that are an object": {"messages": [call({"q": 1})]},
    "a call without id": {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "id": None}]}]},
    "a custom call": {
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "a", "input": "b"}}]}
        ]
    },
    "a name of null": {"messages": [{**USER, "name": None}]},
    "half a character": {"messages": [{"role": "user", "content": "a\ud800b"}]},
    "half a character in a part": {"messages": [{"role": "user", "content": text("\udfff")}]},
    "empty tools": {"messages": [USER], "tools": []},
    "tools without name": {"messages": [USER], "tools": [{"type": "function", "function": {}}]},
    "a strange effort": {"messages": [USER], "reasoning_effort": "some"},
    "its own template": {"messages": [USER], "chat_template": "x"},
    "its own template among arguments": {"messages": [USER], "chat_template_kwargs": {"chat_template": "x"}},
    "both ends": {"messages": [USER], "add_generation_prompt": True, "continue_final_message": True},
}  # fmt: skip


@pytest.mark.parametrize("shape", REFUSED)
def test_what_the_server_refuses_is_refused(server, file, shape):
    assert compare(server, file, CHATML, REFUSED[shape]) is None


def test_the_demos_own_template(model_path, file):
    server = ChatServer(model_path)
    for request in ACCEPTED.values():
        assert compare(server, file, None, request)


def test_without_a_word_an_answer_at_the_end_is_scored_as_it_is(server, file):
    conversation = [USER, {"role": "assistant", "content": "no"}]
    ours = offline(server, file, CHATML, {"messages": conversation})
    assert ours == served(server, CHATML, {"messages": conversation, "add_generation_prompt": False})
    asked = offline(server, file, CHATML, {"messages": conversation[:1]})
    assert asked == served(server, CHATML, {"messages": conversation[:1]})


WORDS = st.sampled_from(
    ["", " ", "a", "it is warm", "x-anthropic-billing-header: a", "é\n\u2028", "<|im_end|>", "\ud800"]
)
TYPES = ["text", "text", "refusal", "thinking", "tool_reference", "input_text", "output_text", "image_url", "x", None]
PART = st.one_of(
    WORDS,
    st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES)},
        optional={
            "text": st.one_of(WORDS, st.none()),
            "refusal": st.one_of(WORDS, st.none()),
            "thinking": WORDS,
            "name": WORDS,
            "closed": st.booleans(),
            "cache_control": st.just({"type": "ephemeral"}),
            "uuid": st.sampled_from([None, "u"]),
        },
    ),
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.just("c1"),
            "type": st.sampled_from(["function", "function", "function", "custom"]),
            "function": st.fixed_dictionaries(
                {"name": st.just("f"), "arguments": st.sampled_from(["", "{}", '{"a": {"b": [1]}}', "nope", "[]"])}
            ),
        }
    ),
    max_size=2,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "function", "critic"])},
    optional={
        "content": st.one_of(st.none(), WORDS, WORDS, st.lists(PART, max_size=3)),
        "tool_calls": st.one_of(st.none(), CALLS),
        "tool_call_id": st.one_of(st.none(), st.just("c1")),
        "name": st.one_of(st.none(), WORDS),
        "reasoning": st.one_of(st.none(), WORDS),
        "reasoning_content": WORDS,
        "refusal": st.one_of(st.none(), WORDS),
        "audio": st.sampled_from([None, {"id": "a"}, {}]),
        "function_call": st.sampled_from([None, {"name": "f", "arguments": "{}"}, {"name": "f"}]),
        "tools": st.sampled_from([None, [], [LOOKUP], [{}]]),
        "task": st.one_of(st.none(), st.just("t")),
        "weight": st.just(1),
    },
)
REQUEST = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, min_size=1, max_size=4)},
    optional={
        "tools": st.sampled_from([None, [LOOKUP], [{"function": {"name": "a", "strict": None}}], [{}]]),
        "tool_choice": st.just("none"),
        "add_generation_prompt": st.booleans(),
        "documents": st.sampled_from([None, [], [{"title": "t", "text": "x"}], [{"text": 1}]]),
        "chat_template_kwargs": st.sampled_from([None, {}, {"enable_thinking": True, "a": None}]),
        "reasoning_effort": st.sampled_from([None, "none", "high"]),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=REQUEST, name=st.sampled_from(sorted(TEMPLATES)))
def test_shapes_that_nobody_thought_of(server, file, request, name):
    compare(server, file, TEMPLATES[name], request)


def test_what_content_a_template_takes_is_found_as_vllm_finds_it():
    """On all templates that come with vLLM, and on ours."""
    from pathlib import Path

    import vllm
    from vllm.renderers import chat_utils
    from vllm.renderers.hf import _detect_content_format

    shipped = sorted(Path(vllm.__file__).parent.rglob("*.jinja"))
    assert PART_FIELDS == chat_utils._KNOWN_CONTENT_PART_FIELDS
    templates = [*TEMPLATES.values(), "{% for", *(path.read_text() for path in shipped)]
    expected = [_detect_content_format(template, default="string") for template in templates]
    assert [_content_format(template) for template in templates] == expected
    assert len(shipped) > 3 and {"string", "openai"} == set(expected)
