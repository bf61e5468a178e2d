"""Files of requests: read as they are meant, or refused by line."""

import json

import pytest

from probes.data.requests import Request, RequestError, read_requests
from probes.models.chat import Message

GOOD = '{"id": 0, "prompt": "x"}'


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
    "empty": ("", "is empty"),
    "white": ("  ", "is empty"),
    "bytes": (b'{"id": 1, "prompt": "\xff"}', "not UTF-8 at byte 21"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8 at byte 0"),
    "mark": (b"\xef\xbb\xbf" + GOOD.encode(), "not JSON"),
    "half a character": ('{"id": 1, "prompt": "\\ud800"}', "not JSON"),
    "an array": ("[]", "Expected `object`, got `array`"),
    "a number": ("1", "Expected `object`, got `int`"),
    "no id": ({"prompt": "x"}, "missing required field `id`"),
    "id null": ({"id": None, "prompt": "x"}, "got `null` - at `$.id`"),
    "id true": ({"id": True, "prompt": "x"}, "got `bool` - at `$.id`"),
    "id 1.5": ({"id": 1.5, "prompt": "x"}, "got `float` - at `$.id`"),
    "neither": ({"id": 1}, "has neither of messages and prompt"),
    "both": ({"id": 1, "prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "has both of"),
    "no prompt": ({"id": 1, "prompt": ""}, "its prompt is empty"),
    "prompts": ({"id": 1, "prompt": ["x"]}, "got `array` - at `$.prompt`"),
    "no messages": ({"id": 1, "messages": []}, "has no messages"),
    "messages of text": ({"id": 1, "messages": "x"}, "got `str` - at `$.messages`"),
    "no role": ({"id": 1, "messages": [{"content": "x"}]}, "missing required field `role` - at `$.messages[0]`"),
    "a strange role": (
        {"id": 1, "messages": [{"role": "user", "content": "x"}, {"role": "User", "content": "x"}]},
        "messages[1] has the unknown role 'User'; there are: system, user, assistant, tool",
    ),
    "content in parts": (
        {"id": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        "got `array` - at `$.messages[0].content`",
    ),
    "no content": ({"id": 1, "messages": [{"role": "assistant"}]}, "missing required field `content`"),
    "content null": (
        {"id": 1, "messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
        "messages[0] is no text: its content is null.",
    ),
    "tool calls": (
        {"id": 1, "messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "call"}]}]},
        "messages[0] is no text: its content is null, only tool_calls, which are not read.",
    ),
    "a slip beside what is meant": (
        {"id": 1, "prompt": "x", "labels": {"toxicity": 1}, "label": 1},
        "has the key 'label', which is nearly 'labels': write that",
    ),
    "label 2": ({"id": 1, "prompt": "x", "labels": {"toxicity": 2}}, "Invalid enum value 2 - at `$.labels"),
    "label 0.5": ({"id": 1, "prompt": "x", "labels": {"toxicity": 0.5}}, "got `float` - at `$.labels"),
    "label NaN": ({"id": 1, "prompt": "x", "labels": {"toxicity": float("nan")}}, "NaN"),
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


def test_of_a_message_only_role_and_text_are_read(file):
    called = {"role": "assistant", "content": "", "name": "a", "tool_calls": [{"id": "b"}], "weight": 0, "label": 1}
    answered = {"role": "tool", "content": "4", "tool_call_id": "b"}
    (request,) = read_requests(write(file, {"id": 1, "messages": [called, answered]}))
    assert request.messages == (Message("assistant", ""), Message("tool", "4"))


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
