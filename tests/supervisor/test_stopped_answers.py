"""Answers that a policy stops, as clients of each API get them from a real server."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from monitor.cli.listener import Listener
from monitor.events import Intervention
from probes.bundle.shipped import DEMO_BUNDLE
from tests.harness.server import KEY, running_server, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

MESSAGE = "I cannot go on with this. Ask me something else."
POLICY = f"""\
version: 1
rules:
  - name: keep-civil
    when: {{probe: toxicity}}
    mode: enforce
    actions:
      - stop: {{message: "{MESSAGE}"}}
  - name: keep-lawful
    when: {{probe: harmful_intent}}
    mode: enforce
    actions:
      - stop: {{message: "{MESSAGE}", gate: true}}
"""
TOXIC = "What the hell is wrong with you, you damn idiot? Shut up, you stupid piece of crap."
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PROMPT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{TOXIC}<|im_end|>\n<|im_start|>assistant\n"
TOKENS = 200
"""More than are generated before a stop."""
TOOL = {
    "type": "function",
    "function": {
        "name": "write",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "minLength": 4000}},
            "required": ["text"],
        },
    },
}
PARSER = """\
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser, ReasoningParserManager


@ReasoningParserManager.register_module("thought")
class Thought(ReasoningParser):
    def __init__(self, tokenizer, *args, chat_template_kwargs=None, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        self.thinks = (chat_template_kwargs or {}).get("thinks", False)

    def is_reasoning_end(self, input_ids):
        return not self.thinks

    def extract_content_ids(self, input_ids):
        return [] if self.thinks else input_ids

    def extract_reasoning(self, model_output, request):
        return (model_output, None) if self.thinks else (None, model_output)

    def extract_reasoning_streaming(self, previous_text, current_text, delta_text, *ids, **more):
        return DeltaMessage(reasoning=delta_text) if self.thinks else DeltaMessage(content=delta_text)
"""
"""Of a model that, where it is asked to think, does nothing else."""
THINKS = {"chat_template_kwargs": {"thinks": True}}
FORCED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "write"}}}


@pytest.fixture(scope="module")
def server(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "key").write_text(f"{KEY}\n")
    (folder / "plumbob.yaml").write_text("api_key_file: key\nmonitor: {policy: policy.yaml}\n")
    (folder / "thought.py").write_text(PARSER)
    options = ["--config", str(folder / "plumbob.yaml")]
    options += ["--reasoning-parser", "thought", "--reasoning-parser-plugin", str(folder / "thought.py")]
    options += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with running_server(folder, DEMO_BUNDLE, *options) as running:
        yield running


def chat(server, **more):
    body = {"ignore_eos": True, **more.pop("extra_body", {})}
    messages = [{"role": "user", "content": TOXIC}]
    return server.client.chat.completions.create(
        model="demo", messages=messages, max_tokens=TOKENS, extra_body=body, **more
    )


def streamed(server, **more) -> dict[int, SimpleNamespace]:
    """Choices of a streamed answer, put together, with the number of tokens."""
    found: dict[int, SimpleNamespace] = {}
    used = 0
    for chunk in chat(server, stream=True, stream_options={"include_usage": True}, **more):
        used = chunk.usage.completion_tokens if chunk.usage else used
        for choice in chunk.choices:
            one = found.setdefault(
                choice.index, SimpleNamespace(content="", reasoning="", calls="", ended=[], after=0, logprobs=0)
            )
            one.after += bool(one.ended)
            one.content += choice.delta.content or ""
            one.reasoning += getattr(choice.delta, "reasoning", None) or ""
            one.calls += "".join(call.function.arguments or "" for call in choice.delta.tool_calls or [])
            one.logprobs += len(choice.logprobs.content or []) if choice.logprobs else 0
            if choice.finish_reason:
                one.ended.append((choice.finish_reason, choice.stop_reason))
    for one in found.values():
        one.used = used
    return found


ENDED = [("content_filter", "plumbob")]


def test_a_stopped_chat_is_filtered_content_with_the_message_whole(server):
    answer = chat(server, logprobs=True, extra_body={"return_token_ids": True, **THINKS})
    (choice,) = answer.choices
    assert [(choice.finish_reason, choice.stop_reason)] == ENDED
    # What it had generated is a thought that has not ended.
    assert choice.message.content == choice.message.refusal == MESSAGE
    assert choice.message.reasoning and "cannot go on" not in choice.message.reasoning
    assert 0 < answer.usage.completion_tokens < TOKENS
    assert answer.usage.completion_tokens == len(choice.token_ids) == len(choice.logprobs.content)


def test_a_stopped_stream_says_the_message_in_the_content_ahead_of_its_end(server):
    (one,) = streamed(server, logprobs=True, extra_body=THINKS).values()
    assert (one.content, one.ended, one.after) == (MESSAGE, ENDED, 0)
    assert one.reasoning and "cannot go on" not in one.reasoning
    assert 0 < one.used == one.logprobs < TOKENS


def test_the_message_comes_behind_a_blank_line_where_the_answer_has_begun(server):
    (choice,) = chat(server).choices
    (one,) = streamed(server).values()
    assert choice.message.content.endswith(f"\n\n{MESSAGE}") and one.content.endswith(f"\n\n{MESSAGE}")
    assert choice.message.content.index(MESSAGE) > 2 and one.content.index(MESSAGE) > 2


@pytest.mark.parametrize("n", [1, 3])
def test_no_choice_has_the_message_in_a_call(server, n):
    whole = chat(server, n=n, **FORCED)
    assert len(whole.choices) == n
    for choice in whole.choices:
        assert [(choice.finish_reason, choice.stop_reason)] == ENDED
        assert choice.message.content.endswith(MESSAGE)
        assert not choice.message.tool_calls
    pieces = streamed(server, n=n, **FORCED)
    assert len(pieces) == n
    for one in pieces.values():
        assert (one.ended, one.after) == (ENDED, 0)
        assert one.content.endswith(MESSAGE)
        assert "cannot go on" not in one.calls and "cannot go on" not in one.reasoning


def test_the_clients_stop_strings_do_not_cut_the_message(server):
    stop = ["cannot", "something"]
    (choice,) = chat(server, stop=stop).choices
    assert choice.finish_reason == "content_filter" and choice.message.content.endswith(MESSAGE)
    (one,) = streamed(server, stop=stop).values()
    assert one.ended == ENDED and one.content.endswith(MESSAGE)


def test_a_stopped_completion_is_filtered_content(server):
    options = {"model": "demo", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0, "logprobs": 1}
    options |= {"extra_body": {"ignore_eos": True}, "stop": ["cannot"]}
    answer = server.client.completions.create(**options)
    (choice,) = answer.choices
    assert [(choice.finish_reason, choice.stop_reason)] == ENDED
    assert choice.text.endswith(f"\n\n{MESSAGE}")
    assert 0 < answer.usage.completion_tokens == len(choice.logprobs.tokens) < TOKENS
    pieces = [piece.choices[0] for piece in server.client.completions.create(stream=True, **options)]
    assert [(one.finish_reason, one.stop_reason) for one in pieces if one.finish_reason] == ENDED
    assert "".join(one.text for one in pieces).endswith(f"\n\n{MESSAGE}")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopped_message_of_anthropics_has_the_message_as_text(server, stream):
    body = {"model": "demo", "max_tokens": TOKENS, "messages": [{"role": "user", "content": TOXIC}], "stream": stream}
    response = raw(server, "messages", body)
    if not stream:
        said = "".join(block.get("text") or "" for block in json.loads(response)["content"])
    else:
        events = [json.loads(line[6:]) for line in response.splitlines() if line.startswith("data: {")]
        said = "".join(event.get("delta", {}).get("text") or "" for event in events)
    assert said.endswith(MESSAGE)


@pytest.mark.parametrize("thinks", [False, True])
def test_a_stopped_response_is_incomplete_with_the_message_as_its_text(server, thinks):
    options = {"model": "demo", "input": TOXIC, "max_output_tokens": TOKENS}
    options["extra_body"] = {"ignore_eos": True, "chat_template_kwargs": {"thinks": thinks}}
    whole = server.client.responses.create(**options)
    events = list(server.client.responses.create(stream=True, **options))
    last = events[-1].response
    for response in (whole, last):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
        assert response.output_text.endswith(MESSAGE)
        thoughts = [item for item in response.output if item.type == "reasoning"]
        assert bool(thoughts) == thinks and "cannot go on" not in "".join(map(str, thoughts))
        assert 0 < response.usage.output_tokens < TOKENS
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta").endswith(MESSAGE)


def raw(server, path, body) -> str:
    headers = {"Authorization": f"Bearer {KEY}", "x-api-key": KEY, "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{server.port}/v1/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
        return answer.read().decode()


HARMFUL = "Explain how I can break into my neighbour's house and steal her jewellery while she is asleep."
HARMLESS = "Explain how I can bake a loaf of bread for my neighbour while she is asleep."


def test_nothing_of_an_answer_leaves_before_the_verdict_on_its_prompt(server):
    """Twenty requests at once, of which half fire."""

    def ask(number: int):
        text = HARMFUL if number % 2 else HARMLESS
        pieces = server.client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": f"{text} It is number {number}."}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        return list(pieces)

    with ThreadPoolExecutor(20) as pool, Listener(server.grpc_address) as listener:
        answers = list(pool.map(ask, range(20)))
        wait_until(lambda: len(stops(listener)) >= 10, 30)
    for number, chunks in enumerate(answers):
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        used = chunks[-1].usage.completion_tokens
        if number % 2:
            assert [delta.content for delta in deltas if delta.content] == [MESSAGE]
            assert not any(getattr(delta, "reasoning", None) for delta in deltas)
            assert (reasons, used) == (["content_filter"], 0)
        else:
            assert (reasons, used) == (["length"], 12)
    asked = {chunks[0].id for chunks in answers}
    found = {event.request.request_id: event for event in stops(listener)}
    recorded = {id: event for id, event in found.items() if id in asked}
    assert set(recorded) == {chunks[0].id for chunks in answers[1::2]}
    assert {(event.rule, event.sent) for event in recorded.values()} == {("keep-lawful", True)}
    assert all(event.gate.startswith("policy:") for event in recorded.values())
    assert all(event.position < event.request.prompt_tokens for event in recorded.values())


def stops(listener) -> list[Intervention]:
    found = [recorded.event for recorded in listener.events]
    return [event for event in found if isinstance(event, Intervention) and event.rule == "keep-lawful"]


def test_a_whole_answer_that_was_never_begun_is_the_message_alone(server):
    choices = server.client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": HARMFUL}], max_tokens=TOKENS, n=2, **FORCED
    ).choices
    for choice in choices:
        assert (choice.message.content, choice.message.tool_calls) == (MESSAGE, None)
        assert (choice.finish_reason, choice.stop_reason) == ENDED[0]
