"""``plumbob monitor`` killed while a real server streams: its successor has every verdict, and tells nothing twice."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from monitor.cli.listener import Listener
from monitor.events import Alert, ProbeFired, RequestFinished
from probes.bundle import save_bundle
from tests.harness.command_line import MonitorProcess
from tests.harness.engines import random_bundle
from tests.harness.models import tiny_model
from tests.harness.ports import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
openai = pytest.importorskip("openai", reason="the openai client is not installed")
pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")

STREAMS, TOKENS, LONGEST = 8, 3000, 300
"""Answers at once, tokens of each, and of the longest prompt."""
LAYERS = (0, 1, 3)
DEADLINE = 300.0
NOISE = 1e-4
"""Of a peak, in logits, between two servings of the same requests: float32, in batches that came together differently.
Between two undisturbed ones 7e-10 were measured; a sum of a prompt's length in another order may be off by more."""


@dataclass
class Serving:
    """Verdicts of all streams, in the order of the prompts, and what a monitor told meanwhile."""

    finished: list[RequestFinished]
    answers: list[list[int]]
    fired: list[tuple[int, str, int]]
    """Stream, probe and position, as often as it was told."""
    alerts: list[tuple[int, str]]


class House:
    def __init__(self, client, bundle: Path, folder: Path, endpoint: str, prompts: list[list[int]]) -> None:
        self.client, self.bundle, self.folder, self.endpoint, self.prompts = client, bundle, folder, endpoint, prompts
        self.addresses: list[str] = []

    def monitor(self, name: str) -> MonitorProcess:
        options = ["--bundle", self.bundle, "--endpoint", self.endpoint, "--audit", self.folder / f"{name}.jsonl"]
        grpc = free_port()
        options += ["--state", self.folder / name, "--metrics-port", free_port(), "--grpc-port", grpc]
        self.addresses.append(f"127.0.0.1:{grpc}")
        started = MonitorProcess(*options)
        until(lambda: any("reading" in line for line in list(started._lines)))
        return started

    def stream(self, prompt: list[int], progress: Counter, index: int) -> tuple[str, list[int]]:
        stream = self.client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=TOKENS,
            temperature=0.0,
            stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        ids: list[int] = []
        for chunk in stream:
            name = chunk.id
            ids += (chunk.choices[0].model_extra or {}).get("token_ids") or []
            progress[index] = len(ids)
        return name, ids

    def serve(self, name: str, kill: bool) -> Serving:
        """Serve all prompts at once under a monitor; with ``kill``, it is killed on the way and started again."""
        monitors, listeners = [self.monitor(name)], []
        progress: Counter = Counter()
        with ThreadPoolExecutor(STREAMS) as pool:
            try:
                listeners.append(Listener(self.addresses[-1]).__enter__())
                listeners[0].await_engine()
                futures = [
                    pool.submit(self.stream, prompt, progress, index) for index, prompt in enumerate(self.prompts)
                ]
                if kill:
                    until(lambda: len(progress) == STREAMS and min(progress.values()) >= TOKENS // 10)
                    assert monitors[0].end(signal.SIGKILL) == -signal.SIGKILL
                    monitors.append(self.monitor(name))
                    listeners.append(Listener(self.addresses[-1]).__enter__())
                    listeners[1].await_engine()
                    assert max(progress.values()) < TOKENS and not any(future.done() for future in futures), (
                        "the successor came too late to show anything"
                    )
                    print(f"killed and back at {sorted(progress.values())} of {TOKENS} tokens")
                answers = [future.result(DEADLINE) for future in futures]
                # Who has ended is told with the step after.
                self.client.completions.create(model="tiny", prompt=[1, 2], max_tokens=2)
                finished = [listeners[-1].finished(id, DEADLINE) for id, _ in answers]
                names = {id: index for index, (id, _) in enumerate(answers)}
                told = [recorded.event for listener in listeners for recorded in listener.events]
                assert monitors[-1].end(signal.SIGTERM) == 0
                return Serving(
                    finished,
                    [ids for _, ids in answers],
                    sorted(
                        (names[event.request.request_id], event.probe, event.position)
                        for event in told
                        if isinstance(event, ProbeFired) and event.request.request_id in names
                    ),
                    sorted(
                        (names[event.request.request_id], event.rule)
                        for event in told
                        if isinstance(event, Alert) and event.request.request_id in names
                    ),
                )
            finally:
                for listener in listeners:
                    listener.__exit__(None, None, None)
                for monitor in monitors:
                    monitor.running.kill()


def until(condition) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    from probes.models.activations import TransformersSource

    folder = tmp_path_factory.mktemp("failover")
    path = tiny_model(folder / "llama", "llama", max_position_embeddings=4096)
    source = TransformersSource(path, dtype="float32")
    plain = random_bundle(folder / "plain", path, source.markers, threshold=0.0, layers=LAYERS)
    manifest = plain.manifest
    # Some fire at once, some on the way, some never.
    thresholds = np.linspace(0.2, 1.2, len(plain.probes))
    bundle = save_bundle(
        folder / "bundle",
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=[
            (msgspec.structs.replace(probe, threshold=float(threshold)), plain.weight[i], float(plain.bias[i]))
            for i, (probe, threshold) in enumerate(zip(plain.probes, thresholds, strict=True))
        ],
        vectors=[],
    )
    random = np.random.default_rng(3)
    lengths = np.linspace(20, LONGEST, STREAMS).astype(int)
    prompts = [random.integers(0, len(source.tokenizer), length).tolist() for length in lengths]
    port, endpoint = free_port(), f"ipc://{folder}/engine.sock"
    tap = {"bundle": str(bundle.path), "endpoint": endpoint}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--port", str(port)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32"]
    command += ["--max-num-seqs", str(STREAMS), "--kv-cache-memory-bytes", str(1 << 28)]
    command += ["--no-enable-prefix-caching", "--additional-config", json.dumps({"plumbob": tap})]
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=DEADLINE)
        yield House(client, bundle.path, folder, endpoint, prompts)
    finally:
        process.terminate()
        process.wait(60)


def largest_difference(one: Serving, two: Serving) -> float:
    peaks = [
        [[reading.peak for reading in finished.readings] for finished in serving.finished] for serving in (one, two)
    ]
    return float(np.abs(np.subtract(*peaks)).max())


def test_the_successor_of_a_monitor_that_was_killed_has_every_verdict_and_tells_nothing_twice(house):
    undisturbed, run = house.serve("first", kill=False), house.serve("killed", kill=True)
    print(f"difference of peaks {largest_difference(undisturbed, run):.2g}")
    assert run.answers == undisturbed.answers
    for prompt, finished, other in zip(house.prompts, run.finished, undisturbed.finished, strict=True):
        assert (finished.unscored, other.unscored) == (0, 0)
        assert finished.tokens == other.tokens == len(prompt) + TOKENS - 1
        for reading, expected in zip(finished.readings, other.readings, strict=True):
            assert reading.tokens == expected.tokens and reading.fired_at == expected.fired_at
    assert largest_difference(undisturbed, run) <= NOISE
    # What one of both monitors told is what the one undisturbed told, each once.
    assert undisturbed.fired and undisturbed.alerts
    assert run.fired == undisturbed.fired
    assert run.alerts == undisturbed.alerts
