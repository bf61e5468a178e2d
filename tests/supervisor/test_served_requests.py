"""Requests as clients make them through a real server: of many parts, with ids without end."""

import urllib.request
from collections import Counter

import msgspec
import pytest

from monitor.cli.listener import Listener
from monitor.events import Intervention, ProbeFired, RequestFinished, request_of
from monitor.wire.bounds import ID_CHARACTERS, bounded_id
from probes.bundle.shipped import DEMO_BUNDLE
from tests.harness.server import KEY, running_server, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

POLICY = """\
version: 1
rules:
  - name: keep-civil
    when: {probe: toxicity}
    mode: enforce
    actions:
      - alert: {severity: warning}
      - steer: {vector: toxicity, dose: -0.3}
"""

TOXIC = "What the hell is wrong with you, you damn idiot? Shut up, you stupid piece of crap."


@pytest.fixture(scope="module")
def server(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests")
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "key").write_text(f"{KEY}\n")
    (folder / "plumbob.yaml").write_text("api_key_file: key\nmonitor: {policy: policy.yaml}\n")
    with running_server(folder, DEMO_BUNDLE, "--config", str(folder / "plumbob.yaml")) as running:
        yield running


@pytest.fixture(scope="module")
def listener(server):
    with Listener(server.grpc_address) as found:
        yield found


def chat(server, content, tokens=2, **more):
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    body = {"ignore_eos": True, **more.pop("extra_body", {})}
    return server.client.chat.completions.create(
        model="demo", messages=messages, max_tokens=tokens, extra_body=body, **more
    )


def about(listener, request_id, kind) -> list:
    return [
        recorded.event
        for recorded in listener.events
        if isinstance(recorded.event, kind)
        and (request := request_of(recorded.event)) is not None
        and request.request_id == request_id
    ]


def ended(listener, request_id, count) -> list[RequestFinished]:
    wait_until(lambda: len(about(listener, request_id, RequestFinished)) >= count, 30)
    return about(listener, request_id, RequestFinished)


def parts(events) -> Counter:
    return Counter(event.request.part for event in events)


def test_the_choices_of_a_request_share_its_id_and_are_told_apart(server, listener):
    answer = chat(server, TOXIC, n=16)
    found = ended(listener, answer.id, 16)
    assert parts(found) == {f"choice {index}": 1 for index in range(16)}
    assert len({event.request.engine_request_id for event in found}) == 16
    assert parts(about(listener, answer.id, ProbeFired)).keys() == parts(found).keys()


def test_the_prompts_of_a_request_and_their_choices_are_told_apart(server, listener):
    answer = server.client.completions.create(model="demo", prompt=["One", "Two", "Three"], max_tokens=2, n=2)
    found = ended(listener, answer.id, 6)
    assert parts(found) == {f"prompt {prompt}, choice {choice}": 1 for prompt in range(3) for choice in range(2)}


def test_the_beams_of_a_request_share_its_id(server, listener):
    answer = chat(server, "Name a river.", 4, n=3, extra_body={"use_beam_search": True})
    # The first token has one beam, each of the others three.
    found = ended(listener, answer.id, 10)
    assert parts(found) == {"beam 0": 4, "beam 1": 3, "beam 2": 3}


def test_the_conversations_of_a_batch_share_its_id(server, listener):
    body = {
        "model": "demo",
        "messages": [[{"role": "user", "content": text}] for text in ("One", "Two")],
        "max_tokens": 2,
    }
    ask = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/chat/completions/batch",
        msgspec.json.encode(body),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(ask, timeout=60) as answer:
        id = msgspec.json.decode(answer.read())["id"]
    assert parts(ended(listener, id, 2)) == {"prompt 0": 1, "prompt 1": 1}


def test_an_id_of_five_megabytes_stops_nobody_and_its_request_is_steered(server, listener):
    long = "a" * 5_000_000
    answer = chat(server, TOXIC, 48, extra_body={"request_id": long})
    assert answer.id == f"chatcmpl-{long}"
    bounded = bounded_id(answer.id)
    (finished,) = ended(listener, bounded, 1)
    assert len(bounded) <= ID_CHARACTERS and len(finished.request.engine_request_id) <= ID_CHARACTERS
    # The order that is addressed to it found it.
    (intervention,) = about(listener, bounded, Intervention)
    assert intervention.sent and finished.steered > 0
    after = chat(server, "Hello.")
    assert ended(listener, after.id, 1)
    assert server.sample("plumbob_frames_lost_total") == 0
