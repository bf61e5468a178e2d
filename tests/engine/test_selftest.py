"""The self-test: what it finds, when it runs, and that no request or monitor notices it."""

import json
import os
import queue
import re
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import zmq

pytest.importorskip("torch")

from monitor.engine import canary_run, selftest
from monitor.engine.settings import ENVIRONMENT, KEY, Settings
from monitor.engine.vllm.wrap import wrap_once
from monitor.errors import EngineError
from monitor.wire.codec import decode, encode_order
from monitor.wire.frames import VERSION, Hello
from monitor.wire.orders import Stream
from probes.bundle import Bundle, WorkerProbe
from probes.bundle.canaries import TOLERANCE, Canaries
from probes.fit.bundle_fit import record_canaries
from tests.harness.canaries import with_canaries
from tests.harness.networks import random_worker_probe

# What is compared, and with what.


@pytest.fixture
def tested(tiny_bundle, tmp_path) -> Bundle:
    """The bundle of three probes, with canaries of scores that are random."""
    scores = np.random.default_rng(3).normal(size=(9, 3)).astype(np.float32)
    scores[0] = np.nan
    return with_canaries(tiny_bundle(), tmp_path / "tested", Canaries((np.arange(4), np.arange(5)), scores))


@pytest.fixture
def outside(tested, tmp_path) -> Bundle:
    """The same with two probes that workers read, at layers 0 and 3."""
    scores = np.random.default_rng(4).normal(size=(9, 2)).astype(np.float32)
    reference = np.hstack([tested.canaries.reference, scores])
    workers = [random_worker_probe(tested.probes[0], f"worker-{layer}", layer, 8) for layer in (0, 3)]
    return with_canaries(tested, tmp_path / "outside", Canaries(tested.canaries.prompts, reference), workers)


def measured(bundle: Bundle) -> np.ndarray:
    return np.nan_to_num(bundle.canaries.reference)


def test_the_worst_probe_of_the_worst_rank_is_named(tested):
    apart = measured(tested)
    apart[:, 1] += 0.009 * apart[1:, 1].std()
    drift, probe = selftest.judge(tested.probes, tested.canaries, [measured(tested), apart])
    assert drift == pytest.approx(0.009, rel=1e-3) and probe == "toxicity"


def test_ranks_that_do_not_agree_are_refused(tested):
    apart = measured(tested)
    apart[:, 2] += 0.05 * apart[1:, 2].std()
    with pytest.raises(EngineError, match=r"Ranks 0 and 2 .* 'sycophancy' by a drift of 0\.050"):
        selftest.judge(tested.probes, tested.canaries, [measured(tested), measured(tested), apart])


def test_ranks_that_fail_alike_have_drifted(tested):
    broken = np.zeros((9, 3))
    broken[4, 2] = np.nan
    drift, probe = selftest.judge(tested.probes, tested.canaries, [broken, broken])
    assert np.isinf(drift) and probe == "sycophancy"


@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6, 60])
@pytest.mark.parametrize("most", [1, 7, 2048])
def test_every_token_is_computed_once_and_the_last_ones_singly(tokens, most):
    steps = list(canary_run.steps_of(tokens, most))
    assert sum(steps) == tokens and max(steps) <= most
    decoded = min(canary_run.DECODED, tokens - 1)
    assert steps[len(steps) - decoded :] == [1] * decoded
    assert len(steps) == decoded + -(-(tokens - decoded) // most), "as few as can be"


def test_blocks_are_nobody_elses(tested):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    import torch
    from vllm.v1.kv_cache_interface import MambaSpec

    groups = [SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=size)) for size in (16, 128, 16)]
    worker = SimpleNamespace(vllm_config=SimpleNamespace(speculative_config=None))
    assert canary_run.blocks_of(worker, groups, 33) == ([1, 2, 3], [4], [5, 6, 7])
    worker.vllm_config.speculative_config = SimpleNamespace(num_speculative_tokens=16)
    assert canary_run.blocks_of(worker, groups, 33) == ([1, 2, 3, 4], [5], [6, 7, 8, 9])
    state = MambaSpec(block_size=64, shapes=((1,),), dtypes=(torch.float32,), num_speculative_blocks=2)
    assert canary_run.blocks_of(worker, [SimpleNamespace(kv_cache_spec=state), groups[0]], 33)[0] == [1, 2, 3]


# When it runs: an engine core without an engine.


class Core:
    """The parts of an engine core that the self-test takes hold of."""

    def __init__(self, bundle: Bundle, *, off_by: float = 0.0) -> None:
        self.off_by = off_by
        self.scores = measured(bundle)
        self.other_ranks: list[np.ndarray] = []
        self.vllm_config = SimpleNamespace(
            additional_config={KEY: {}}, model_config=SimpleNamespace(max_model_len=1024)
        )
        self.calls: list[str] = []
        self.batch_queue = None
        self.in_flight = self.blocks_used = False
        self.model_executor = SimpleNamespace(is_sleeping=False, collective_rpc=self.rpc)
        hello = Hello(VERSION, "engine", "tiny", bundle.digest, "0.32.0")
        self.scheduler = SimpleNamespace(
            has_requests=lambda: self.in_flight,
            reset_prefix_cache=lambda: not self.blocks_used,
            plumbob_inbox=SimpleNamespace(hello=hello),
        )

    def rpc(self, method, timeout=None, args=(), kwargs=None):
        self.calls.append(method)
        if method == "plumbob_self_test":
            return [self.scores * (1 + self.off_by), *self.other_ranks]
        return [None]

    def _initialize_kv_caches(self, vllm_config):
        self.calls.append("initialize")
        return "kv"

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        return self.rpc(method, timeout, args, kwargs)

    def wake_up(self, tags=None):
        self.calls.append("wake_up")
        self.model_executor.is_sleeping = False

    def add_request(self, request):
        self.calls.append("add_request")

    def called(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls

    @property
    def told(self):
        hello = self.scheduler.plumbob_inbox.hello
        return hello.drift, hello.shadow


for name in ("_initialize_kv_caches", "collective_rpc", "wake_up", "add_request"):
    wrap_once(Core, name, getattr(selftest, f"_{name.lstrip('_')}"))

TEST = ["plumbob_self_test", "plumbob_trust"]


@pytest.fixture
def inherit(monkeypatch):
    def inherit(bundle: Bundle, drift="refuse"):
        settings = Settings(str(bundle.path), None, f"e-{drift}", drift, stream=[], stream_rows=0)
        monkeypatch.setenv(ENVIRONMENT, msgspec.json.encode(settings).decode())

    return inherit


def test_an_engine_is_tested_before_it_serves(tested, inherit):
    inherit(tested)
    core = Core(tested, off_by=0.05)
    assert core._initialize_kv_caches(core.vllm_config) == "kv"
    assert core.called() == ["initialize", *TEST]
    outcome = selftest.outcome_of("e-refuse")
    assert 0.04 < outcome.drift < 0.06 and not outcome.shadow
    assert selftest.outcome_of("another") == selftest.Outcome(None, shadow=False)


def test_an_engine_without_the_flag_is_left_alone(tested):
    core = Core(tested)
    core.vllm_config.additional_config = {}
    core._initialize_kv_caches(core.vllm_config)
    core.collective_rpc("reload_weights")
    core.add_request("request")
    assert core.called() == ["initialize", "reload_weights", "add_request"]


def test_drift_beyond_tolerance_is_refused(tested, inherit):
    inherit(tested)
    with pytest.raises(EngineError, match=r"drift of 0\.\d+; 0\.2 is tolerated.*set drift to shadow"):
        (core := Core(tested, off_by=0.5))._initialize_kv_caches(core.vllm_config)
    assert core.called() == ["initialize", "plumbob_self_test"], "the workers are not trusted"


def test_drift_beyond_tolerance_is_told_where_the_operator_wants_shadow(tested, inherit, caplog):
    inherit(tested, "shadow")
    core = Core(tested, off_by=0.5)
    core._initialize_kv_caches(core.vllm_config)
    assert core.called() == ["initialize", *TEST]
    outcome = selftest.outcome_of("e-shadow")
    assert outcome.drift > TOLERANCE and outcome.shadow
    assert "self-test failed" in caplog.text


def test_a_bundle_without_canaries_is_served_with_a_warning(tiny_bundle, inherit, caplog):
    bundle = tiny_bundle()
    inherit(bundle)
    core = Core(bundle)
    core._initialize_kv_caches(core.vllm_config)
    assert core.called() == ["initialize", "plumbob_trust"]
    assert selftest.outcome_of("e-refuse") == selftest.Outcome(None, shadow=False)
    assert "has no canaries" in caplog.text


def test_a_worker_probe_is_tested_like_any_other(outside, inherit):
    inherit(outside)
    core = Core(outside)
    # Of the other ranks, nothing is streamed.
    core.other_ranks = [np.hstack([core.scores[:, :3], np.full((9, 2), np.nan)])]
    core._initialize_kv_caches(core.vllm_config)
    assert core.called() == ["initialize", *TEST]
    core.scores[:, 4] = np.roll(core.scores[:, 4], 1)
    with pytest.raises(EngineError, match=r"probe 'worker-3' .* has a drift of [1-9]"):
        core._initialize_kv_caches(core.vllm_config)


def test_a_layer_of_which_nothing_is_streamed_is_refused(outside, inherit):
    inherit(outside)
    core = Core(outside)
    core.scores[:, 3] = np.nan
    with pytest.raises(EngineError, match=r"probe 'worker-0' .* has a drift of inf"):
        core._initialize_kv_caches(core.vllm_config)


def test_a_bundle_of_before_tests_its_linear_probes(outside, inherit, tmp_path, caplog):
    linear = Canaries(outside.canaries.prompts, outside.canaries.reference[:, :3])
    before = with_canaries(outside, tmp_path / "before", linear)
    inherit(before)
    core = Core(before, off_by=0.05)
    core._initialize_kv_caches(core.vllm_config)
    assert 0.04 < selftest.outcome_of("e-refuse").drift < 0.06
    assert f"cannot test this engine with worker-0, worker-3: bundle {before.path} has no canaries" in caplog.text


def test_weights_that_were_changed_are_tested_at_once_when_nothing_is_in_flight(tested, inherit):
    inherit(tested)
    core = Core(tested)
    core.collective_rpc("reload_weights", kwargs={"weights_path": "x"})
    assert core.called() == ["reload_weights", *TEST] and core.told == (pytest.approx(0, abs=1e-6), False)
    core.collective_rpc("anything")
    core.add_request("request")
    assert core.called() == ["anything", "add_request"], "once is enough"


def test_weights_are_not_tested_while_they_are_incomplete(tested, inherit):
    inherit(tested)
    core = Core(tested)
    for method in ("start_weight_update", "update_weights", "update_weights"):
        core.collective_rpc(method)
        assert core.called() == [method] and core.told == (None, True)
    core.add_request("request")
    assert core.called() == ["add_request"]
    core.collective_rpc("finish_weight_update")
    assert core.called() == ["finish_weight_update", *TEST] and core.told[1] is False


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(lambda core, on: setattr(core, "in_flight", on), id="requests in flight"),
        pytest.param(lambda core, on: setattr(core, "batch_queue", ["step"] if on else []), id="steps in flight"),
        pytest.param(lambda core, on: setattr(core, "blocks_used", on), id="blocks in use"),
        pytest.param(lambda core, on: setattr(core.model_executor, "is_sleeping", on), id="asleep"),
    ],
)
def test_the_test_waits_until_the_engine_is_idle(tested, inherit, busy):
    inherit(tested)
    core = Core(tested)
    busy(core, True)
    core.collective_rpc(method="reload_weights")
    core.add_request("request")
    assert core.called() == ["reload_weights", "add_request"] and core.told == (None, True)
    busy(core, False)
    core.add_request("request")
    assert core.called() == [*TEST, "add_request"] and core.told[1] is False


def test_an_engine_that_was_asleep_is_tested(tested, inherit):
    inherit(tested)
    core = Core(tested)
    core.wake_up()
    assert core.called() == ["wake_up"], "it was awake"
    core.model_executor.is_sleeping = True
    core.wake_up(["weights"])
    assert core.called() == ["wake_up", *TEST]


def test_changed_weights_that_drift_are_never_scored_with(tested, inherit, caplog):
    inherit(tested)
    core = Core(tested, off_by=0.5)
    core.collective_rpc("reload_weights")
    assert core.called() == ["reload_weights", "plumbob_self_test"]
    assert core.told[0] > TOLERANCE and core.told[1] is True
    assert "self-test failed" in caplog.text
    core.off_by = 0.0
    core.collective_rpc("reload_weights")
    assert core.called() == ["reload_weights", *TEST] and core.told[1] is False


def test_a_test_that_cannot_run_again_fails_no_request(tested, inherit, caplog):
    inherit(tested)
    core = Core(tested)
    core.in_flight = True
    core.collective_rpc("reload_weights")
    core.in_flight = False
    core.scores = None
    core.add_request("request")
    assert core.called() == ["reload_weights", "plumbob_self_test", "add_request"] and core.told == (None, True)
    assert "could not test" in caplog.text


def test_a_worker_scores_nothing_while_its_weights_change():
    order: list[str] = []

    class Worker:
        def __init__(self) -> None:
            tap = SimpleNamespace(suspend=lambda: order.append("suspend"))
            self.model_runner = SimpleNamespace(plumbob_tap=tap)

        def reload_weights(self, path):
            order.append(path)
            return "done"

    wrap_once(Worker, "reload_weights", selftest._changing)
    worker = Worker()
    assert worker.reload_weights("path") == "done" and order == ["suspend", "path"]
    worker.model_runner.plumbob_tap = None
    assert worker.reload_weights("path") == "done"


# How large drift is: the demo model, read by transformers.


@pytest.fixture(scope="module")
def canary_bundle(bundle, source, tmp_path_factory) -> Bundle:
    """Random probes of the demo model, with canaries recorded in float32."""
    probes = list(zip(bundle.probes, bundle.weight, bundle.bias.tolist(), strict=True))
    return with_canaries(bundle, tmp_path_factory.mktemp("canaries") / "bundle", record_canaries(source, probes))


STREAMED = 20
"""A layer that a worker probe reads, and no linear one."""


@pytest.fixture(scope="module")
def outside_probe(bundle, source) -> WorkerProbe:
    (reading,) = source.read([list(range(100, 120))], [STREAMED])
    norm = float(np.median(np.linalg.norm(reading.states[0], axis=-1)))
    return random_worker_probe(bundle.probes[0], f"worker-{STREAMED}", STREAMED, source.hidden, norm=norm)


@pytest.fixture(scope="module")
def served_bundle(canary_bundle, outside_probe, source, tmp_path_factory) -> Bundle:
    """The same, and a random network that workers read at a layer of its own."""
    probes = list(zip(canary_bundle.probes, canary_bundle.weight, canary_bundle.bias.tolist(), strict=True))
    canaries = record_canaries(source, probes, workers=[outside_probe])
    return with_canaries(canary_bundle, tmp_path_factory.mktemp("canaries") / "served", canaries, [outside_probe])


@pytest.fixture(scope="module")
def changeable(model_path):
    """The demo model once more, in float32, to be changed and put back."""
    from probes.models.activations import TransformersSource

    return TransformersSource(model_path, dtype="float32")


def read(source, bundle: Bundle, offset: int = 0) -> np.ndarray:
    """The probes' scores for the canaries; with ``offset``, at layers so many further."""
    layers = sorted({probe.layer + offset for probe in bundle.probes})
    prompts = bundle.canaries.prompts
    states = np.concatenate([reading.states for reading in source.read(prompts, layers)], axis=1)
    at = [layers.index(probe.layer + offset) for probe in bundle.probes]
    return np.einsum("pth,ph->tp", states[at], bundle.weight) + bundle.bias


def changed(source, bundle: Bundle, change) -> np.ndarray:
    """The scores with every matrix of the blocks changed."""
    import torch

    kept = {name: value for name, value in source.model.named_parameters() if value.ndim == 2 and "layers" in name}
    before = {name: value.detach().clone() for name, value in kept.items()}
    with torch.no_grad():
        for value in kept.values():
            value.copy_(change(value))
        try:
            return read(source, bundle)
        finally:
            for name, value in kept.items():
                value.copy_(before[name])


def noise(share):
    import torch

    generator = torch.Generator().manual_seed(5)
    return lambda weight: weight + share * weight.std() * torch.randn(weight.shape, generator=generator)


def to_fp8(weight):
    """Load-time FP8: E4M3, one scale an output channel."""
    import torch

    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def to_int4(weight):
    groups = weight.reshape(len(weight), -1, 64)
    scale = groups.abs().amax(dim=-1, keepdim=True) / 7
    return ((groups / scale).round() * scale).reshape(weight.shape)


def test_what_serves_the_same_model_passes_by_a_wide_margin(model_path, canary_bundle, changeable, capsys):
    from probes.models.activations import TransformersSource

    drift = canary_bundle.canaries.drift
    in_bfloat16 = drift(read(TransformersSource(model_path, dtype="bfloat16"), canary_bundle)).max()
    in_fp8 = drift(changed(changeable, canary_bundle, to_fp8)).max()
    with capsys.disabled():
        print(f"largest drift: {in_bfloat16:.3f} in bfloat16, {in_fp8:.3f} with weights in FP8")
    assert 0 < in_bfloat16 < TOLERANCE / 4
    assert in_bfloat16 < in_fp8 < TOLERANCE
    assert drift(read(changeable, canary_bundle)).max() < 1e-4, "it was put back"


def test_what_does_not_serve_the_model_fails_by_a_wide_margin(canary_bundle, source, changeable, capsys):
    scores = read(source, canary_bundle)
    found = {
        "the layer before": read(source, canary_bundle, -1),
        "weights with 10% noise": changed(changeable, canary_bundle, noise(0.1)),
        "weights in int4": changed(changeable, canary_bundle, to_int4),
        "the row before": np.roll(scores, 1, axis=0),
        "the probe before": np.roll(scores, 1, axis=1),
        "no taps": np.zeros_like(scores),
    }
    drift = {name: canary_bundle.canaries.drift(wrong).max() for name, wrong in found.items()}
    with capsys.disabled():
        print("largest drift: " + ", ".join(f"{figure:.2f} {name}" for name, figure in drift.items()))
    assert min(drift.values()) > 2 * TOLERANCE
    assert canary_bundle.canaries.drift(scores).max() < 1e-4


# Real engines.

DRIVER = textwrap.dedent(
    """
    import json, os, sys


    def main():
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        from vllm import LLM, SamplingParams

        llm = LLM(**json.loads(sys.argv[1]))
        sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        prompt = {"prompt_token_ids": list(range(100, 120))}
        print("ready", file=answers)
        for number, line in enumerate(sys.stdin):
            what, path = json.loads(line)
            if what == "generate":
                llm.generate([prompt], sampling, use_tqdm=False)
            elif what == "reload":
                llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
            else:
                long = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
                llm.llm_engine.add_request(f"long-{number}", prompt, long)
                llm.llm_engine.step()
                llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
                while llm.llm_engine.has_unfinished_requests():
                    llm.llm_engine.step()
            print(what, file=answers)


    if __name__ == "__main__":
        main()
    """
)


class Engine:
    """An engine driven line by line, and the monitor's end of its sockets."""

    def __init__(self, folder, model_path, bundle: Bundle, drift: str) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        endpoint = f"ipc://{folder}/{drift}.sock"
        self._router.bind(endpoint)
        self.hello: Hello | None = None
        self.frames = []
        self.log = folder / f"{drift}.log"
        driver = folder / "driver.py"
        driver.write_text(DRIVER)
        tap = {"bundle": str(bundle.path), "endpoint": endpoint, "drift": drift}
        settings = {
            "model": str(model_path),
            "max_model_len": 256,
            "max_num_seqs": 4,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 1 << 28,
            "additional_config": {"plumbob": tap},
        }
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(driver), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", **os.environ},
                start_new_session=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")

    def answer(self) -> str:
        """The next line of the driver, empty at its end; what the engine sends meanwhile is read."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            self.listen(0.05)
            if not self._lines.empty():
                return self._lines.get()
        raise AssertionError("the engine does not answer")

    def listen(self, seconds: float) -> None:
        while self._router.poll(int(seconds * 1000)):
            _, *parts = self._router.recv_multipart()
            message = decode(parts)
            if isinstance(message, Hello):
                self.hello = message
            else:
                self.frames.append(message)

    def do(self, what: str, path: object = None) -> list:
        """Carry something out, wait for the HELLO behind it, and return the frames that came."""
        self.frames = []
        self._process.stdin.write(json.dumps([what, str(path)]) + "\n")
        self._process.stdin.flush()
        assert self.answer() == what
        self.hello, deadline = None, time.monotonic() + 10
        # The one that is on its way may be from before.
        for _ in range(2):
            self.hello = None
            while self.hello is None and time.monotonic() < deadline:
                self.listen(0.1)
        return self.frames

    def stream(self, rows) -> None:
        """Order it to stream, from one of the next steps on."""
        self._router.send_multipart([f"{self.hello.engine}/core".encode(), *encode_order(Stream(STREAMED, rows))])

    def close(self) -> int:
        self._process.stdin.close()
        try:
            code = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process.stdout.close()
        self._router.close(linger=0)
        self._context.term()
        return code


def scored(frames) -> list[int]:
    """Positions that frames carry scores of."""
    return [int(position) for frame in frames for position in frame.rows["position"]]


def streamed(frames) -> int:
    """Rows whose activations came with the frames."""
    return sum(block.rows for frame in frames for block in frame.header.states)


@pytest.fixture
def engine(model_path, tmp_path):
    engines = []

    def start(bundle: Bundle, drift: str) -> Engine:
        engines.append(Engine(tmp_path, model_path, bundle, drift))
        return engines[-1]

    yield start
    for one in engines:
        one.close()


@pytest.fixture
def falsified(served_bundle, tmp_path) -> Bundle:
    """Canaries that say of the fourth probe what no engine would measure."""
    reference = served_bundle.canaries.reference.copy()
    reference[:, 3] += 0.7 * np.nanstd(reference[:, 3])
    return with_canaries(served_bundle, tmp_path / "falsified", Canaries(served_bundle.canaries.prompts, reference))


@pytest.fixture
def misplaced(served_bundle, outside_probe, source, tmp_path) -> Bundle:
    """Its worker probe was recorded one layer further than it is read."""
    states = np.concatenate(
        [reading.states[0] for reading in source.read(served_bundle.canaries.prompts, [STREAMED + 1])]
    )
    reference, column = served_bundle.canaries.reference.copy(), len(served_bundle.probes)
    reference[:, column] = served_bundle.canaries.read(column, outside_probe.reader, states)
    return with_canaries(served_bundle, tmp_path / "misplaced", Canaries(served_bundle.canaries.prompts, reference))


@pytest.fixture
def noisy_model(model_path, tmp_path):
    """The demo model with other weights."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "noisy"
    folder.mkdir()
    for file in model_path.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).symlink_to(file)
    change = noise(0.2)
    for file in model_path.glob("*.safetensors"):
        weights = {
            name: change(value.float()).to(value.dtype) if value.ndim == 2 and "layers" in name else value
            for name, value in load_file(file).items()
        }
        save_file(weights, folder / file.name, {"format": "pt"})
    return folder


@pytest.mark.vllm
def test_an_engine_is_tested_at_its_start_and_when_its_weights_change(engine, served_bundle, model_path, noisy_model):
    tapped = engine(served_bundle, "refuse")
    assert tapped.answer() == "ready"
    frames = tapped.do("generate")
    print(f"the engine's drift is {tapped.hello.drift:.4f}")
    assert 0 < tapped.hello.drift < TOLERANCE / 4 and not tapped.hello.shadow
    assert [started.prompt_tokens for frame in frames for started in frame.header.started] == [20], "no canary"
    assert scored(frames) == list(range(27))
    assert frames[0].header.sequence == 0 and frames[-1].header.unscored == 0
    assert streamed(frames) == 0, "what was streamed of the canaries ended with them"
    scores = np.concatenate([frame.scores for frame in frames])
    tapped.stream("all")
    tapped.do("generate")

    assert not tapped.do("reload", model_path)
    assert 0 < tapped.hello.drift < TOLERANCE / 4 and not tapped.hello.shadow
    frames = tapped.do("generate")
    assert scored(frames) == list(range(27)), "nothing from a prefix cache of before"
    assert streamed(frames) == 27, "what was streamed before is streamed again"
    np.testing.assert_array_equal(np.concatenate([frame.scores for frame in frames]), scores)

    tapped.do("reload", noisy_model)
    assert tapped.hello.drift > 2 * TOLERANCE and tapped.hello.shadow
    frames = tapped.do("generate")
    assert scored(frames) == [] and frames[-1].header.unscored == 27

    # With a request in flight, the test waits for the next one.
    tapped.do("reload", model_path)
    assert not tapped.hello.shadow
    frames = tapped.do("reload in flight", model_path)
    assert tapped.hello.drift is None and tapped.hello.shadow
    positions = scored(frames)
    assert positions == list(range(len(positions))) and 20 <= len(positions) < 219
    assert frames[-1].header.unscored == 27 + 219 - len(positions)
    frames = tapped.do("generate")
    assert scored(frames) == list(range(27))
    assert tapped.hello.drift < TOLERANCE / 4 and not tapped.hello.shadow
    assert tapped.close() == 0


@pytest.mark.long
@pytest.mark.vllm
def test_a_worker_probe_of_another_layer_is_refused_with_the_figure(engine, misplaced):
    """No linear probe reads the layer: what is streamed of it tells."""
    assert STREAMED not in {probe.layer for probe in misplaced.probes}
    refused = engine(misplaced, "refuse")
    assert refused.answer() == ""
    assert refused.close() != 0
    log = refused.log.read_text()
    told = re.search(rf"probe 'worker-{STREAMED}' of bundle {misplaced.path} has a drift of (\S+); 0\.2 is", log)
    assert told is not None and float(told[1]) > TOLERANCE
    assert "set drift to shadow" in log
    assert refused.hello is None, "no monitor ever hears of it"


@pytest.mark.long
@pytest.mark.vllm
def test_the_same_bundle_serves_in_shadow(engine, falsified):
    tapped = engine(falsified, "shadow")
    assert tapped.answer() == "ready"
    frames = tapped.do("generate")
    assert tapped.hello.shadow and 0.65 < tapped.hello.drift < 0.75
    assert scored(frames) == list(range(27)), "scored all the same"
