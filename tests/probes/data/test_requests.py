"""Files of requests: read as they are meant, or refused by line."""

import json

import pytest

from probes.data.requests import Request, RequestError, Skipped, read_requests
from probes.models.chat import Message

GOOD = '{"id": 0, "prompt": "x"}'
USER = {"role": "user", "content": "x"}


def write(path, *lines, end=b"\n"):
    """Lines, given as text, bytes or what is to be JSON."""
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(encoded) + end)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "in.jsonl"


@pytest.mark.parametrize("end", [b"\n", b"", b"\r\n"])
def test_what_is_written_is_what_is_read(file, end):
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "é\u2028\r\n\x00 \ud83d\ude00"}]
    write(
        file,
        {"id": "a", "messages": messages, "metadata": {"any": [1, None]}},
        {"id": 1, "prompt": " ", "labels": {"toxicity": 1, "refusal": 0}, "group": 7, "source": "s", "slice": "x"},
        {"id": "1", "prompt": "p", "slices": {"language": "de", "tools": True, "turn": 2}, "group": "g"},
        end=end,
    )
    assert read_requests(file, ["toxicity", "refusal"]) == [
        Request("a", messages=(Message("system", ""), Message("user", "é\u2028\r\n\x00 😀"))),
        Request(
            1,
            prompt=" ",
            labels={"toxicity": True, "refusal": False},
            group="7",
            source="s",
            slices={"slice": "x"},
        ),
        Request("1", prompt="p", group="g", slices={"language": "de", "tools": "true", "turn": "2"}),
    ]


BAD = {
    "text": ("nope", "not JSON"),
    "half": ('{"id": 1, "prompt": "x"', "not JSON"),
    "two": (GOOD + GOOD, "not JSON"),
    "bytes": (b'{"id": 1, "prompt": "\xff"}', "not UTF-8 at byte 21"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8 at byte 0"),
    "a mark in the middle": (b"\xef\xbb\xbf" + GOOD.encode(), "not JSON"),
    "half a character": (
        '{"id": 1, "prompt": "a\\ud800"}',
        "prompt has \\ud800 without its other half, which is no character: the server cannot read it either",
    ),
    "half a character in a part": (
        '{"id": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": "\\udfff"}]}]}',
        "messages[0].content[0].text has \\udfff without its other half",
    ),
    "half a character in an id": ('{"id": "\\udfff", "prompt": "x"}', "id has \\udfff without its other half"),
    "half a character in a slice": (
        '{"id": 1, "prompt": "x", "slices": {"\\udfff": 1}}',
        "slices has \\udfff without its other half",
    ),
    "an array": ("[]", "Expected `object`, got `array`"),
    "a number": ("1", "Expected `object`, got `int`"),
    "no id": ({"prompt": "x"}, "missing required field `id`"),
    "id null": ({"id": None, "prompt": "x"}, "got `null` - at `$.id`"),
    "id true": ({"id": True, "prompt": "x"}, "got `bool` - at `$.id`"),
    "id 1.5": ({"id": 1.5, "prompt": "x"}, "got `float` - at `$.id`"),
    "neither": ({"id": 1}, "has neither of messages and prompt"),
    "both": ({"id": 1, "prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "has both of"),
    "no prompt": ({"id": 1, "prompt": ""}, "its prompt is empty"),
    "prompts": ({"id": 1, "prompt": ["x", "y"]}, "has 2 prompts: write a line for each"),
    "a prompt of tokens": ({"id": 1, "prompt": [1, 2]}, "its prompt is of tokens, and only text is read"),
    "no prompts": ({"id": 1, "prompt": []}, "its prompt is empty"),
    "no messages": ({"id": 1, "messages": []}, "has no messages"),
    "messages of text": ({"id": 1, "messages": "x"}, "its messages are no list"),
    "a message of text": ({"id": 1, "messages": ["x"]}, "messages[0] is no object"),
    "no role": ({"id": 1, "messages": [{"content": "x"}]}, "messages[0] has no role"),
    "an image": (
        {"id": 1, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
        "messages[0].content[0] is of type 'image_url', and only text is read",
    ),
    "a sound without a type": (
        {"id": 1, "messages": [{"role": "user", "content": ["x", {"audio_url": {"url": "data:,x"}}]}]},
        "messages[0].content[1] is of type 'audio_url', and only text is read",
    ),
    "a part of another API": (
        {"id": 1, "messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
        "messages[0].content[0] is of type 'input_text', which the API does not take there",
    ),
    "an unknown part": (
        {"id": 1, "messages": [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}]},
        "messages[0].content[0] has the unknown type ['text']; there are: text, input_text, output_text, refusal, ",
    ),
    "a part without text": (
        {"id": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        "messages[0].content[0] has no 'text' that is a string",
    ),
    "content of a number": ({"id": 1, "messages": [{"role": "user", "content": 1}]}, "neither a string nor a list of"),
    "content null": (
        {"id": 1, "messages": [{"role": "user", "content": None}]},
        "messages[0] is of role 'user', and its content is null",
    ),
    "nothing said": (
        {"id": 1, "messages": [{"role": "assistant", "content": None, "tool_calls": None}]},
        "messages[0] has neither content nor tool_calls: both are null",
    ),
    "a call without id": (
        {"id": 1, "messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}]},
        "messages[0].tool_calls[0] is no object with an id and the type 'function'",
    ),
    "arguments that are no text": (
        {
            "id": 1,
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}],
                }
            ],
        },
        "messages[0].tool_calls[0].function.arguments is no string of JSON, as which the API takes it",
    ),
    "a name of null": (
        {"id": 1, "messages": [{"role": "user", "content": "x", "name": None}]},
        "messages[0] is no message of the API: look at its name",
    ),
    "empty tools": ({"id": 1, "messages": [USER], "tools": []}, "its tools are an empty list, which the API refuses"),
    "a tool without a name": (
        {"id": 1, "messages": [USER], "tools": [{"function": {}}]},
        "tools[0].function.name: field",
    ),
    "a template of its own": ({"id": 1, "messages": [USER], "chat_template": "x"}, "brings a chat template of its own"),
    "both ends": (
        {"id": 1, "messages": [USER], "add_generation_prompt": True, "continue_final_message": True},
        "sets both continue_final_message and add_generation_prompt",
    ),
    "a batch of something else": (
        {"custom_id": "a", "url": "/v1/embeddings", "body": {"input": "x"}},
        "is a request to '/v1/embeddings', and only those to /v1/chat/completions and /v1/completions are read",
    ),
    "a batch without its id": ({"url": "/v1/completions", "body": {"prompt": "x"}}, "got `null` - at `$.id`"),
    "a prompt beside a body": (
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x"}, "prompt": "y"},
        "has prompt beside its body",
    ),
    "a slip beside what is meant": (
        {"id": 1, "prompt": "x", "labels": {"toxicity": 1}, "label": 1},
        "has the key 'label', which is nearly 'labels': write that",
    ),
    "label 2": ({"id": 1, "prompt": "x", "labels": {"toxicity": 2}}, "Invalid enum value 2 - at `$.labels"),
    "label 0.5": ({"id": 1, "prompt": "x", "labels": {"toxicity": 0.5}}, "got `float` - at `$.labels"),
    "label NaN": ({"id": 1, "prompt": "x", "labels": {"toxicity": float("nan")}}, "got `float` - at `$.labels"),
    "a strange probe": (
        {"id": 1, "prompt": "x", "labels": {"toxcity": 1}},
        "has a label for 'toxcity'; the probes are: refusal, toxicity",
    ),
    "a taken slice": ({"id": 1, "prompt": "x", "slices": {"source": "a"}}, "'source'"),
    "slice twice": ({"id": 1, "prompt": "x", "slice": "a", "slices": {"slice": "b"}}, "'slice'"),
    "deep": ('{"id": 1, "prompt": "x", "metadata": ' + "[" * 99_999 + "]" * 99_999 + "}", "nested too deeply"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_line_is_named(file, fault):
    line, said = BAD[fault]
    with pytest.raises(RequestError) as caught:
        read_requests(write(file, GOOD, line, "nope too"), ["toxicity", "refusal"])
    assert caught.value.message.startswith(f"{file}, line 2: ")
    assert said in caught.value.message and caught.value.fix
    assert len(caught.value.message) < 400 + len(str(file)), "a line is not quoted"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("label", "labels"), ("lables", "labels"), ("lable", "labels"), ("Labels", "labels"), ("labels ", "labels"),
        ("message", "messages"), ("mesages", "messages"), ("promt", "prompt"), ("prompts", "prompt"),
        ("groups", "group"), ("gruop", "group"), ("sources", "source"), ("soruce", "source"), ("slcie", "slices"),
    ],
)  # fmt: skip
def test_a_key_that_is_nearly_known_is_refused_with_the_right_name(file, key, meant):
    with pytest.raises(RequestError) as caught:
        read_requests(write(file, {"id": 1, "prompt": "x"}, {"id": 2, "prompt": "x", key: {"toxicity": 1}}))
    assert caught.value.message.startswith(f"{file}, line 2: has the key {key!r}, which is nearly '{meant}': write")


@pytest.mark.parametrize(
    "key",
    ["model", "created", "temperature", "tools", "user", "idx", "uid", "prompt_id", "labeler", "labelled", "group_id",
     "source_url", "score", "language", "text", "tag", ""],
)  # fmt: skip
def test_keys_of_others_are_ignored(file, key):
    assert read_requests(write(file, {"id": 1, "prompt": "x", key: {"any": [1, None]}})) == [Request(1, prompt="x")]


def test_what_a_template_can_show_of_a_message_is_kept(file):
    """The fields that the API knows; its text beside them."""
    call = {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "content": None, "name": "a", "tool_calls": [call], "weight": 0, "label": 1}
    answered = {"role": "tool", "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "5"}]}
    (request,) = read_requests(write(file, {"id": 1, "messages": [called, {**answered, "tool_call_id": "b"}, USER]}))
    assert [(message.role, message.content) for message in request.messages] == [
        ("assistant", ""), ("tool", "4\n5"), ("user", "x"),
    ]  # fmt: skip
    assert [message.given() for message in request.messages] == [
        {"role": "assistant", "content": None, "name": "a", "tool_calls": [call], "weight": 0, "label": 1},
        {**answered, "tool_call_id": "b"},
        USER,
    ]


def test_what_a_template_is_given_beside_messages_is_kept(file):
    tool = {"type": "function", "function": {"name": "f", "description": None, "parameters": {"type": "object"}}}
    given = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "documents": [{"text": "x"}], "chat_template_kwargs": {"enable_thinking": False, "nothing": None},
        "reasoning_effort": "low", "temperature": 0.5, "model": "m", "continue_final_message": False,
    }  # fmt: skip
    (request,) = read_requests(write(file, {"id": 1, "messages": [USER], **given}))
    assert request.template == {
        "tools": [tool], "documents": [{"text": "x"}], "enable_thinking": False, "reasoning_effort": "low",
    }  # fmt: skip


@pytest.mark.parametrize("url", ["/v1/chat/completions", "http://host:8000/v1/chat/completions"])
def test_a_line_of_a_batch_is_the_request_in_its_body(file, url):
    body = {"model": "m", "messages": [USER], "tools": [{"function": {"name": "f"}}], "id": "not this", "max_tokens": 5}
    plain = {**body, "id": "r-1", "labels": {"toxicity": 1}, "source": "s"}
    batch = {"custom_id": "r-1", "method": "POST", "url": url, "body": body, "labels": {"toxicity": 1}, "source": "s"}
    assert read_requests(write(file, batch)) == read_requests(write(file, plain))
    prompt = {"custom_id": "p", "method": "POST", "url": "/v1/completions", "body": {"prompt": ["x"]}}
    assert read_requests(write(file, prompt)) == [Request("p", prompt="x")]


@pytest.mark.parametrize("blank", ["", " ", "\t\r"])
def test_blank_lines_and_a_byte_order_mark_are_passed_over(file, blank):
    lines = [b"\xef\xbb\xbf" + GOOD.encode(), blank, {"id": 1, "prompt": "y"}, blank, blank]
    assert read_requests(write(file, *lines)) == [Request(0, prompt="x"), Request(1, prompt="y")]
    with pytest.raises(RequestError, match="line 4: not JSON"):
        read_requests(write(file, *lines[:3], "nope"))


def test_bad_lines_may_be_left_out_and_are_counted(file):
    skipped = Skipped()
    bad = ["nope", {"id": 1, "prompt": ""}, {"id": 0, "prompt": "again"}, {"id": 2, "messages": [{"role": 1}]}]
    assert read_requests(write(file, GOOD, *bad, {"id": 3, "prompt": "z"}), None, skipped) == [
        Request(0, prompt="x"), Request(3, prompt="z"),
    ]  # fmt: skip
    assert skipped.count == 4
    assert [reason.partition(", line ")[2] for reason in skipped.reasons] == [
        "2: not JSON (Expecting value at character 1).",
        "3: its prompt is empty.",
        "4: id 0 is that of line 1 already.",
    ]
    with pytest.raises(RequestError, match=r"has no line that can be read\. The first: .*line 1: not JSON"):
        read_requests(write(file, *bad[:2]), None, Skipped())


def test_a_second_id_names_both_lines(file):
    with pytest.raises(RequestError, match=r"in\.jsonl, line 3: id 'a' is that of line 1 already"):
        read_requests(write(file, *({"id": name, "prompt": "x"} for name in ("a", "b", "a"))))


def test_labels_may_be_of_any_probe_where_none_are_known(file):
    assert read_requests(write(file, {"id": 1, "prompt": "x", "labels": {"mine": 1}}))[0].labels == {"mine": True}


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_a_file_without_requests_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(RequestError, match="holds no requests"):
        read_requests(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"gone\.jsonl cannot be read: No such file"):
        read_requests(tmp_path / "gone.jsonl")
    with pytest.raises(RequestError, match="cannot be read: Is a directory"):
        read_requests(tmp_path)
