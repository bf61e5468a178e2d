"""A real server over HTTP: requests that ask to be steered, and gates that outlive their monitor."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from monitor.wire.orders import Act, Admission, Arm, Disarm
from probes.bundle import save_bundle
from tests.harness.command_line import MonitorProcess, Running
from tests.harness.engines import random_bundle
from tests.harness.models import tiny_model
from tests.harness.ports import free_port
from tests.harness.wire import ConfirmingWire, Seen

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

openai = pytest.importorskip("openai", reason="the openai client is not installed")

LAYERS = (0, 1, 3)
CAP = 2.0
BLOCK = 32
NOISE = 1e-4
"""Of a log-probability: float32, and a prompt read in other pieces is summed in another order."""
MESSAGE = "\nI stop here."
DEADLINE = 300.0
"""Seconds until what was asked for must have come, on a machine that does other things beside."""


class House:
    """The server, a client, and the monitor's end."""

    def __init__(self, client, monitor: ConfirmingWire, tokenizer, bundle: Path) -> None:
        self.client, self.monitor, self.end, self.bundle = client, monitor, tokenizer.eos_token_id, bundle
        self._random, self._vocabulary = np.random.default_rng(3), len(tokenizer)
        self._pool = ThreadPoolExecutor(8)

    def prompt(self, tokens: int) -> list[int]:
        return self._random.integers(0, self._vocabulary, tokens).tolist()

    def ask(self, prompt: list[int], tokens: int, asked: dict | None = None, *, salt: str = "", **more) -> Future:
        body: dict = {"ignore_eos": True, "return_token_ids": True}
        if salt:
            body["cache_salt"] = salt
        if asked is not None:
            body["vllm_xargs"] = {"plumbob": json.dumps(asked)}
        create = self.client.completions.create
        return self._pool.submit(
            create, model="tiny", prompt=prompt, max_tokens=tokens, temperature=0.0, extra_body=body, **more
        )

    def answers(self, *futures: Future, act=lambda seen: None) -> tuple[list, list[Seen]]:
        """Answers in order, and what was seen of the requests, by their id."""
        before, deadline = len(self.monitor.requests), time.monotonic() + DEADLINE
        self.monitor.act = lambda: act(self.monitor.requests[before:])
        while not all(future.done() for future in futures):
            assert time.monotonic() < deadline
            self.monitor.pump(0.01)
        self.monitor.act = lambda: None
        answers = [future.result() for future in futures]

        def found() -> list[Seen | None]:
            by_id = {seen.started.request_id: seen for seen in self.monitor.requests[before:]}
            return [by_id.get(answer.id) for answer in answers]

        self.until(lambda: all(seen is not None and seen.finished for seen in found()))
        return answers, found()

    def until(self, condition) -> None:
        """Have steps computed until it holds: much is told with the next one."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline
            self.client.completions.create(model="tiny", prompt=[1, 2], max_tokens=1)
            self.monitor.pump(0.1)

    def one(self, prompt: list[int], tokens: int, asked: dict | None = None, **more):
        """Token ids and log-probabilities of an answer, and what was seen."""
        (answer,), (seen,) = self.answers(self.ask(prompt, tokens, asked, logprobs=1, **more))
        (choice,) = answer.choices
        return SimpleNamespace(ids=choice.token_ids, logprobs=choice.logprobs.token_logprobs, seen=seen)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    from probes.models.activations import TransformersSource

    folder = tmp_path_factory.mktemp("steered")
    path = tiny_model(folder / "llama", "llama", max_position_embeddings=4096)
    source = TransformersSource(path, dtype="float32")
    plain = random_bundle(folder / "plain", path, source.markers, threshold=1e9, layers=LAYERS)
    manifest = plain.manifest
    bundle = save_bundle(
        folder / "bundle",
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=[(probe, plain.weight[i], float(plain.bias[i])) for i, probe in enumerate(plain.probes)],
        vectors=[
            (msgspec.structs.replace(vector, hidden_norm=8.0, max_dose=CAP), plain.vectors[row])
            for row, vector in enumerate(manifest.vectors)
        ],
    )
    monitor = ConfirmingWire(f"ipc://{folder}/engine.sock")
    port = free_port()
    tap = {"bundle": str(bundle.path), "endpoint": monitor.endpoint, "admission": ["random-0"], "gates": 1}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--port", str(port)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32"]
    command += ["--max-num-seqs", "8", "--block-size", str(BLOCK), "--kv-cache-memory-bytes", str(1 << 28)]
    command += ["--additional-config", json.dumps({"plumbob": tap})]
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
        while not monitor.engine:
            monitor.pump(1.0)
        yield House(client, monitor, source.tokenizer, bundle.path)
    finally:
        process.terminate()
        process.wait(30)
        monitor.close()


def steered(*acts: dict, **more) -> dict:
    return {"acts": list(acts), **more}


UP, DOWN = {"vector": "random-0", "add": 1.5}, {"vector": "random-0", "add": -1.5}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (steered({"vector": "random-1", "add": 0.1}), "They may by: random-0"),
        (steered({"vector": "random-0", "add": 2.5}), "over the bundle's cap of 2"),
        (steered({"vector": "random-0", "dose": 1}), "vllm_xargs.plumbob is malformed"),
    ],
)
def test_what_a_request_may_not_ask_for_is_a_bad_request(house, asked, named, stream):
    with pytest.raises(openai.APIError, match=named) as refused:
        answer = house.ask([1, 2, 3], 4, asked, stream=stream).result()
        list(answer)
    if not stream:
        assert refused.value.status_code == 400


def test_a_request_is_steered_as_it_asks_and_its_batchmates_are_not(house):
    prompt = house.prompt(20)
    plain = house.one(prompt, 24)
    (theirs, mine), (seen, steered_seen) = house.answers(
        house.ask(prompt, 24), house.ask(prompt, 24, steered(UP, tokens=6))
    )
    assert theirs.choices[0].token_ids == plain.ids != mine.choices[0].token_ids
    assert not any(seen.steered) and seen.started.admitted is None
    assert steered_seen.started.admitted == Admission([Act("random-0", add=1.5)], tokens=6)
    first = dict(zip(steered_seen.positions, steered_seen.steered, strict=True))
    assert [first[position] for position in (18, 19, 20)] == [0, 1, 1]


@pytest.mark.parametrize(
    "acts",
    [
        pytest.param([{"vector": "random-0", "add": 0.0}], id="dose 0"),
        pytest.param([UP, DOWN], id="v - v"),
        pytest.param([{"vector": "random-0", "low": -2.0, "high": 2.0, "scale": 1.0}], id="a range that holds all"),
    ],
)
def test_steering_by_nothing_changes_nothing(house, acts):
    prompt = house.prompt(20)
    plain, nothing = house.one(prompt, 16), house.one(prompt, 16, steered(*acts))
    assert nothing.ids == plain.ids
    assert nothing.logprobs == plain.logprobs


def test_the_order_of_acts_does_not_matter(house):
    prompt = house.prompt(20)
    acts = [
        {"vector": "random-0", "add": 0.7},
        {"vector": "random-0", "scale": 0.0},
        {"vector": "random-0", "add": 0.3},
    ]
    one, other = house.one(prompt, 16, steered(*acts)), house.one(prompt, 16, steered(*acts[::-1]))
    assert (one.ids, one.logprobs) == (other.ids, other.logprobs)
    assert one.ids != house.one(prompt, 16).ids


@pytest.mark.parametrize("prompt_too", [False, True])
def test_whoever_continues_a_steered_conversation_unsteered_reads_nothing_of_it(house, prompt_too):
    prompt = house.prompt(4 * BLOCK)
    steered_answer = house.one(prompt, 3 * BLOCK, steered(UP, prompt=prompt_too))
    assert steered_answer.seen.steered[0] == prompt_too
    longer = [*prompt, *steered_answer.ids]
    after = house.one(longer, 8)
    assert not any(after.seen.steered)
    # Nobody else's blocks are found under a salt.
    alone = house.one(longer, 8, salt=str(prompt_too))
    assert after.ids == alone.ids
    assert after.logprobs == pytest.approx(alone.logprobs, abs=NOISE)
    # And the other way round: a steered prompt does not find the unsteered one's blocks.
    again = house.one(prompt, 3 * BLOCK, steered(UP, prompt=prompt_too))
    assert again.ids == steered_answer.ids


def test_the_engine_says_which_gates_are_armed(house):
    monitor, refused = house.monitor, len(house.monitor.refused)
    never = [Arm(gate, "random-0-0", [Act("random-0", add=0.1)], threshold=1e9) for gate in "gh"]
    assert (monitor.hello.gates, monitor.hello.armed) == (1, [])
    monitor.order(never[0])
    house.until(lambda: monitor.hello.armed == ["g"])
    monitor.order(never[1])
    house.until(lambda: len(monitor.refused) == refused + 1)
    assert monitor.refused[refused].cause == "gate"
    assert "All 1 gates are in use" in monitor.refused[refused].reason
    assert monitor.hello.armed == ["g"]
    monitor.order(Disarm("g"))
    house.until(lambda: monitor.hello.armed == [])


POLICY = """\
version: 1
rules:
  - name: at-once
    when: {probe: random-0-0}
    mode: enforce
    actions:
      - steer: {vector: random-0, dose: 1.0, gate: true, threshold: -1.0e+6}
"""


@pytest.fixture(scope="module")
def plain(house):
    """A prompt and its unsteered answer; from here on, monitors of their own take the endpoint."""
    prompt = house.prompt(20)
    answer = house.one(prompt, 16)
    house.monitor.close()
    return prompt, answer.ids


@pytest.mark.parametrize("audited", [True, False], ids=["audited", "--audit none"])
def test_a_gate_outlives_its_monitor_and_the_next_one_records_what_it_decided(house, plain, tmp_path, audited):
    """With ``plumbob monitor`` itself, killed while answers stream, and started again."""
    policy, audit, state = tmp_path / "policy.yaml", tmp_path / "audit.jsonl", tmp_path / "state"
    policy.write_text(POLICY)
    prompt, unsteered = plain
    monitors: list[MonitorProcess] = []

    def start() -> MonitorProcess:
        options = ["--bundle", house.bundle, "--policy", policy, "--endpoint", house.monitor.endpoint]
        options += ["--audit", audit if audited else "none", "--state", state]
        ports = ["--metrics-port", free_port(), "--grpc-port", free_port()]
        monitors.append(MonitorProcess(*options, *ports))
        return monitors[-1]

    def answer():
        return house.ask(prompt, 16).result()

    def until(condition) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def records() -> list[dict]:
        """Of the audit log, or events of the monitors' own logs where there is none."""
        if not audited:
            return [event for monitor in monitors for event in monitor.events]
        # The last line may be one that is just being written.
        return [json.loads(line)["record"] for line in audit.read_text().rpartition("\n")[0].splitlines()]

    def decisions() -> list[dict]:
        return [record for record in records() if record["type"] in ("intervention", "intervention_ended")]

    def about(request: str) -> list[dict]:
        # What gates decided comes with the frames of other requests.
        answer()
        return [record for record in decisions() if record["request"]["request_id"] == request]

    try:
        first = start()
        # Orders ride with a step.
        until(lambda: answer().choices[0].token_ids != unsteered)
        # Asked again and again: a gate that is armed already may have decided before this monitor was heard.
        until(lambda: answer() and decisions())
        streaming = [house.ask(prompt, 600) for _ in range(4)]
        seen = len(decisions())
        until(lambda: len(decisions()) > seen or all(future.done() for future in streaming))
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        for future in streaming:
            future.result()
        before = decisions()

        alone = answer()
        assert alone.choices[0].token_ids != unsteered
        assert decisions() == before and alone.id not in json.dumps(before)

        second = start()
        until(lambda: len(about(alone.id)) == 2)
        assert second.end(signal.SIGTERM) == 0
    finally:
        for monitor in monitors:
            monitor.running.kill()
    opened, closed = about(alone.id)
    assert (opened["type"], closed["type"]) == ("intervention", "intervention_ended")
    decided = [opened[name] for name in ("rule", "vector", "dose", "sent")]
    assert decided == ["at-once", "random-0", 1.0, True]
    assert opened["gate"].startswith("policy:") and opened["gate"] == closed["gate"]
    assert closed["steered"] > 0
    # Every decision is on record, once: of requests that are followed first.
    numbers = sorted(record["number"] for record in decisions())
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert [path.stat().st_mode & 0o777 for path in (state / "journal").iterdir()] == [0o600, 0o600]
    if audited:
        assert numbers[0] == 0, "since the engine's start"
        kinds = [record["type"] for record in records()]
        assert (kinds.count("monitor_started"), kinds.count("monitor_stopped")) == (2, 1)
        verified = Running("audit", "verify", audit).finish()
        assert (verified.code, verified.err) == (0, "")
    else:
        assert not audit.exists()
