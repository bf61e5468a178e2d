"""Requests of every shape that clients give them: read offline as they were served.

What a client sends goes to a real server, and as a line of a batch into a file: tokens, roles and peaks are the same,
of content in parts, of tool definitions, of tool calls beside ``null`` and of their results.
"""

import json
import urllib.request

import numpy as np
import pytest

from monitor.cli.listener import Listener
from probes.data.requests import read_requests
from probes.evaluation.offline_scores import Scorer
from probes.models.activations import TransformersSource
from tests.harness.chat_shapes import ACCEPTED, TOOLS
from tests.harness.models import tiny_model
from tests.harness.offline_bundles import bundle_for
from tests.harness.server import KEY, running_server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SERVED = {
    # Its answer is one token, which is never read: the verdict is of the prompt.
    # Without a name, it is for the one model that is served.
    name: {"add_generation_prompt": not request.get("continue_final_message"), **request, "model": None}
    | {"max_tokens": 1, "temperature": 0.0, "return_token_ids": True, "stream": False}
    for name, request in ACCEPTED.items()
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama", max_position_embeddings=1024)
    (path / "chat_template.jinja").write_text(TOOLS)
    return path


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    return bundle_for(model, tmp_path_factory.mktemp("bundles") / "bundle", threshold=5.0)


@pytest.fixture(scope="module")
def served(model, bundle, tmp_path_factory):
    """By name, the tokens of each prompt, and the monitor's verdict."""
    folder = tmp_path_factory.mktemp("served")
    options = ["--dtype", "float32", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    held = {}
    with (
        running_server(folder, bundle.path, *options, model=model) as server,
        Listener(server.grpc_address) as listener,
    ):
        for name, body in SERVED.items():
            request = urllib.request.Request(
                f"http://127.0.0.1:{server.port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = json.load(answer)
            finished = listener.finished(said["id"], 20)
            assert finished is not None, name
            held[name] = said["prompt_token_ids"], finished
    return held


@pytest.fixture(scope="module")
def offline(model, bundle, tmp_path_factory):
    """By name, what is read of the same requests in a file, and its verdict."""
    file = tmp_path_factory.mktemp("file") / "batch.jsonl"
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in SERVED.items()
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    source = TransformersSource(model, dtype="float32")
    scorer = Scorer(bundle, source, source.tokenizer)
    requests = read_requests(file)
    encoded = scorer.encode(requests)
    rows = [(chunk, row) for chunk in scorer.score(encoded) for row in range(len(chunk))]
    return {
        request.id: (one.token_ids.tolist(), chunk.peak[row], chunk.tokens[row])
        for request, one, (chunk, row) in zip(requests, encoded, rows, strict=True)
    }


@pytest.mark.parametrize("name", SERVED)
def test_offline_is_live(served, offline, name):
    prompt, finished = served[name]
    tokens, peaks, read = offline[name]
    assert tokens == prompt
    # No probe of the bundle reads thoughts, nor a text without the template's headers.
    unread = sum(one.tokens for one in finished.unread if one.role in ("reasoning", "text"))
    assert (finished.tokens + unread, finished.unscored) == (len(prompt), 0)
    assert [reading.tokens for reading in finished.readings] == read.tolist()
    live = np.array([-np.inf if reading.peak is None else reading.peak for reading in finished.readings])
    np.testing.assert_allclose(live, peaks, rtol=1e-3, atol=1e-3)


def test_the_verdicts_are_not_all_alike(served):
    """Otherwise the test above would show less than it says."""
    peaks = {
        round(reading.peak, 2) for _, one in served.values() for reading in one.readings if reading.peak is not None
    }
    assert len(peaks) > len(SERVED) / 2
    assert served["tools"][0] != served["a question"][0], "the template shows tools"
