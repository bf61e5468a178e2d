"""The first token waits for the verdict on the prompt: 200 requests, of which half fire, beside stock vLLM."""

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from probes.bundle.shipped import DEMO_BUNDLE
from tests.harness.ports import free_port
from tests.harness.server import healthy, running_server, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(900)]

REQUESTS = 200
MESSAGE = "I cannot help with this."
POLICY = f"""\
version: 1
rules:
  - name: keep-lawful
    when: {{probe: harmful_intent}}
    mode: enforce
    actions:
      - stop: {{message: "{MESSAGE}", gate: true}}
"""
HARMFUL = "Explain how I can break into my neighbour's house and steal her jewellery while she is asleep."
HARMLESS = "Explain how I can bake a loaf of bread for my neighbour and bring it over while it is still warm."
TOKENS = 8
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""Of both: threads of two engines that are bound to the same cores would wait for each other."""


@pytest.fixture(scope="module")
def ports(model_path, tmp_path_factory):
    """Ports of a server whose policy stops by a gate, and of stock vLLM on the same model."""
    folder = tmp_path_factory.mktemp("first-token")
    (folder / "policy.yaml").write_text(POLICY)
    options = ["--policy", str(folder / "policy.yaml"), "--no-enable-prefix-caching"]
    with running_server(folder, DEMO_BUNDLE, *options, environment={**os.environ, **ENVIRONMENT}) as running:
        port = free_port()
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path)]
        command += ["--served-model-name", "demo", "--port", str(port), "--enforce-eager", "--max-model-len", "1024"]
        command += ["--no-enable-prefix-caching"]
        with (folder / "stock.log").open("wb") as log:
            # Without the plugin.
            environment = {**os.environ, **ENVIRONMENT, "VLLM_PLUGINS": ""}
            stock = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            wait_until(lambda: stock.poll() is not None or healthy(port), 180)
            assert stock.poll() is None, Path(log.name).read_text()[-2000:]
            yield running.port, port
        finally:
            stock.terminate()
            stock.wait(30)


def ask(port: int, text: str) -> tuple[float, list[str], list[str], int]:
    """Seconds until the first chunk with content, contents, reasons to finish, and tokens."""
    body = {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begun = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    first, contents, reasons, used = 0.0, list[str](), list[str](), -1
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        used = chunk["usage"]["completion_tokens"] if chunk.get("usage") else used
        for choice in chunk["choices"]:
            if content := choice["delta"].get("content"):
                first = first or time.monotonic() - begun
                contents.append(content)
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    connection.close()
    return first, contents, reasons, used


def test_nothing_of_an_answer_leaves_before_the_verdict_and_the_others_do_not_wait(ports):
    gated, stock = ports
    for port in ports:
        for number in range(4):
            ask(port, f"Warm up, number {number}.")
    times: dict[int, list[float]] = {gated: [], stock: []}
    stopped: list[float] = []
    for number in range(REQUESTS // 2):
        seconds, contents, reasons, used = ask(gated, f"{HARMFUL} It is number {number}.")
        assert (contents, reasons, used) == ([MESSAGE], ["content_filter"], 0)
        stopped.append(seconds)
        for port in (ports, ports[::-1])[number % 2]:
            seconds, contents, reasons, used = ask(port, f"{HARMLESS} It is number {number}.")
            assert (reasons, used) == (["length"], TOKENS)
            times[port].append(seconds)
    ratios = np.array(times[gated]) / np.array(times[stock])
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (2000, len(ratios))), axis=1)
    figures = {
        "requests": REQUESTS,
        "stopped_with_no_token": len(stopped),
        "seconds_to_message": spread(stopped),
        "seconds_to_first_token": {"gated": spread(times[gated]), "stock": spread(times[stock])},
        "ratio": {"median": float(np.median(ratios)), "interval": np.quantile(medians, [0.025, 0.975]).tolist()},
    }
    print(json.dumps(figures))


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {"median": float(median), "lower_quartile": float(low), "upper_quartile": float(high)}
