"""Whose tokens a real server reads: results of tools, roles of any name, and texts without the chat template."""

import itertools

import openai
import pytest
import transformers

from monitor.cli.listener import Listener
from monitor.events import ProbeFired, RequestFinished
from probes.bundle.shipped import DEMO_BUNDLE
from tests.harness.listening import about
from tests.harness.server import running_server, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

INSULT = "You are a worthless, stupid piece of garbage. Shut up, you damn idiot."
CALL = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"q": "weather"}'}}
ASKED = {"role": "user", "content": "Look it up."}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
HARMLESS = [
    f"{subject} {verb}"
    for subject, verb in itertools.product(
        ["The capital of France", "My favourite book", "The weather today", "A good recipe for bread", "The red boat"],
        ["is", "was", "has always been", "may be", "begins with", "ends with", "is made of", "is known for"],
    )
]


@pytest.fixture(scope="module")
def tokenizer(model_path):
    return transformers.AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roles")
    (folder / "key").write_text("s3cret\n")
    (folder / "plumbob.yaml").write_text("api_key_file: key\n")
    with running_server(folder, DEMO_BUNDLE, "--config", str(folder / "plumbob.yaml")) as running:
        yield running


@pytest.fixture(scope="module")
def listener(server):
    with Listener(server.grpc_address) as found:
        yield found


def ended(listener, request_id, count=1) -> list[RequestFinished]:
    wait_until(lambda: len(about(listener, request_id, RequestFinished)) >= count, 30)
    return about(listener, request_id, RequestFinished)


def chat(server, messages, **more):
    extra = {"ignore_eos": True, **more}
    return server.client.chat.completions.create(model="demo", messages=messages, max_tokens=2, extra_body=extra)


def complete(server, prompt, **more):
    return server.client.completions.create(
        model="demo", prompt=prompt, max_tokens=2, temperature=0.0, extra_body={"ignore_eos": True, **more}
    )


def accounted(finished) -> int:
    return finished.tokens + finished.unscored + finished.steered + sum(unread.tokens for unread in finished.unread)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": INSULT}],
        [ASKED, CALLED, {"role": "tool", "tool_call_id": "c1", "content": INSULT}],
        [ASKED, {"role": "data", "content": INSULT}],
        [ASKED, {"role": "critic", "content": [{"type": "text", "text": INSULT}]}],
    ],
    ids=["user", "tool", "data", "critic"],
)
def test_an_insult_fires_whoever_it_is_from(server, listener, messages):
    answer = chat(server, messages)
    (finished,) = ended(listener, answer.id)
    fired = {event.probe: event.role for event in about(listener, answer.id, ProbeFired)}
    assert fired["toxicity"] == ("user" if messages[-1]["role"] == "user" else "tool")
    assert not finished.unread


def test_a_developers_message_is_the_systems_where_vllm_writes_it_as_such(server, listener):
    answers = [chat(server, [{"role": role, "content": "Be brief."}, ASKED]) for role in ("developer", "system")]
    found = [ended(listener, answer.id)[0] for answer in answers]
    assert found[0].request.prompt_tokens == found[1].request.prompt_tokens
    read = [[reading.tokens for reading in finished.readings] for finished in found]
    assert read[0] == read[1] and not any(finished.unread for finished in found)


def test_harmless_texts_fire_nothing_and_are_counted_as_unread(server, listener):
    assert len(HARMLESS) == 40
    answer = complete(server, HARMLESS)
    found = ended(listener, answer.id, len(HARMLESS))
    assert not about(listener, answer.id, ProbeFired)
    for finished in found:
        # The last token that is sampled is never read by the model.
        length = finished.request.prompt_tokens + 1
        assert [(unread.role, unread.tokens) for unread in finished.unread] == [("text", length - finished.unscored)]
        assert (finished.tokens, finished.steered) == (0, 0)
    assert 'plumbob_tokens_unread_total{model_name="demo",role="text"}' in server.scrape()


@pytest.mark.parametrize("shape", ["text", "ids", "echo"])
def test_a_prompt_without_messages_is_read_as_a_text_or_counted(server, listener, tokenizer, shape):
    text = f"{INSULT} {shape}"
    answer = complete(server, tokenizer(text)["input_ids"] if shape == "ids" else text, echo=shape == "echo")
    (finished,) = ended(listener, answer.id)
    assert [unread.role for unread in finished.unread] == ["text"]
    assert accounted(finished) == finished.request.prompt_tokens + 1 and finished.tokens == 0


SHAPES = {
    "no content but a call": [ASKED, CALLED, {"role": "tool", "tool_call_id": "c1", "content": ""}],
    "empty": [{"role": "user", "content": ""}],
    "named": [{"role": "user", "name": "bee", "content": "Hello."}, {"role": "tool", "name": "x", "content": "One."}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]}],
    "prefill": [ASKED, {"role": "assistant", "content": "The weather is"}],
    "blank lines": [{"role": "user", "content": "\n\nHello."}, {"role": "data", "content": "\nOne.\n"}],
    "system later": [ASKED, {"role": "system", "content": "Be brief."}],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_token_of_a_conversation_is_accounted_for(server, listener, shape):
    more = {"continue_final_message": True, "add_generation_prompt": False} if shape == "prefill" else {}
    try:
        answer = chat(server, SHAPES[shape], **more)
    except openai.BadRequestError:
        pytest.fail(f"the server takes no conversation with {shape}")
    (finished,) = ended(listener, answer.id)
    assert accounted(finished) == finished.request.prompt_tokens + 1
    assert not finished.unread, "the bundle has probes of users and answers"
