"""What a benchmark runs: its arms, workloads and engines."""

import pytest

from monitor.bench import engines as lab
from monitor.bench.arms import SETUPS, Subject
from monitor.bench.bundle import synthetic_bundle
from monitor.bench.engine import DEFAULT_ARMS, Plan
from monitor.bench.engines import EnginePool
from monitor.bench.serve import ServePlan, _commands
from monitor.bench.shapes import write_shape
from monitor.errors import EngineError
from monitor.offline.engine_process import last_error
from probes.bundle import save_bundle
from probes.errors import PlumbobError
from probes.models import identify, no_progress


def test_stock_is_always_among_the_arms_and_first():
    assert [setup.name for setup in Plan(Subject(), arms=["steering", "scoring"]).setups] == [
        "stock",
        "steering",
        "scoring",
    ]
    assert [setup.name for setup in Plan(Subject(), arms=["scoring", "stock", "scoring"]).setups] == [
        "stock",
        "scoring",
    ]


def test_the_arms_are_those_of_the_documentation():
    assert set(DEFAULT_ARMS) < set(SETUPS)
    untapped = {name for name, setup in SETUPS.items() if setup.mode is None}
    assert untapped == {"stock", "stock-again", "loaded-idle"}
    assert {name: SETUPS[name].engine for name in untapped} == {
        "stock": "stock",
        "stock-again": "stock",
        "loaded-idle": "idle",
    }


def test_each_round_runs_every_batch_once_and_a_prefill():
    workloads = Plan(Subject(), batches=[1, 32, 1], tokens=16, prefill_tokens=512).workloads
    assert [(work.requests, work.prompt_tokens, work.tokens) for work in workloads] == [
        (1, 64, 16),
        (32, 64, 16),
        (4, 512, 1),
    ]


def test_both_servers_are_given_the_same_options(tmp_path):
    model = write_shape("llama-tiny", tmp_path / "model")
    bundle = synthetic_bundle(tmp_path / "bundle", identify(model, "tiny"), [1], 4, trigger=False)
    plan = ServePlan(Subject(), vllm_arguments=["--max-model-len", "512"], eager=True)
    stock, served = _commands(plan, model, bundle, tmp_path).values()
    common = stock[stock.index("--max-num-seqs") :]
    assert common == served[served.index("--max-num-seqs") :]
    # What the caller says comes after what is set otherwise.
    lengths = [common[index + 1] for index, option in enumerate(common) if option == "--max-model-len"]
    assert int(lengths[0]) >= plan.prompt_tokens + plan.tokens and lengths[1:] == ["512"]
    assert "--enforce-eager" in stock and "--eager" in served
    # The names by which the load asks for the model are those that the servers have for it.
    assert stock[stock.index("--served-model-name") + 1] == model.name


def test_an_engine_that_ends_before_it_is_ready_is_told_with_its_reason(monkeypatch, tmp_path):
    """And what was started before it is ended."""
    ended: list[str] = []

    class Stub:
        def __init__(self, name, log, settings, environment=None):
            self.name = name

        def __enter__(self):
            if self.name == "tapped":
                raise EngineError("The tapped engine ended before its time: no reason")
            return self

        def __exit__(self, *_):
            ended.append(self.name)

    monkeypatch.setattr(lab, "Arm", Stub)
    plan = Plan(Subject(shape="llama-tiny"), arms=["scoring"])
    laboratory = EnginePool(plan.subject, plan.setups, plan.workloads, eager=True, profile=False, progress=no_progress)
    with pytest.raises(EngineError, match="tapped engine ended"), laboratory:
        pass
    assert ended == ["stock"]


def test_steering_without_a_vector_is_refused_before_an_engine_starts(monkeypatch, tmp_path, tiny_bundle):
    monkeypatch.setattr(lab, "Arm", None)
    monkeypatch.setattr(lab, "resolve_model", lambda *_: tmp_path)
    original = tiny_bundle()
    bare = original.manifest.model
    monkeypatch.setattr(lab, "identify", lambda *_: bare)
    bundle = save_bundle(
        tmp_path / "bare",
        version="0",
        created="2026-01-01T00:00:00Z",
        model=bare,
        markers=original.manifest.markers,
        probes=[(probe, original.weight[column], 0.0) for column, probe in enumerate(original.probes)],
        vectors=[],
    )
    plan = Plan(Subject(bundle=bundle.path), arms=["steering"])
    laboratory = EnginePool(plan.subject, plan.setups, plan.workloads, eager=True, profile=False, progress=no_progress)
    with pytest.raises(PlumbobError, match="no steering vector"), laboratory:
        pass


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "ready\nERROR worker: ValueError: too long\nTraceback\nRuntimeError: failed. See root cause above.\n",
            "too long",
        ),
        ("starting\n  killed\n\n", "killed"),
        ("", "no output"),
    ],
)
def test_the_reason_is_the_last_error_that_is_no_echo(tmp_path, written, said):
    (tmp_path / "log").write_text(written)
    assert last_error(tmp_path / "log").endswith(said)
