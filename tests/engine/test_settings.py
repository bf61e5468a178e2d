"""What is hashed into compiled artefacts, and what is handed down."""

from types import SimpleNamespace

import msgspec
import pytest

from monitor.engine import compat
from monitor.engine.settings import ENVIRONMENT, KEY, Wanted, inherited, read_wanted, switched_on, take_over
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
    """A configuration of vLLM that can be tapped, but for ``more``."""
    parallel = SimpleNamespace(pipeline_parallel_size=1, tensor_parallel_size=1, data_parallel_size=1)
    fields = {
        "device_config": SimpleNamespace(device_type="cpu"),
        "use_v2_model_runner": False,
        "parallel_config": parallel,
        "speculative_config": None,
        "cache_config": SimpleNamespace(kv_sharing_fast_prefill=False),
        "kv_transfer_config": None,
        "model_config": SimpleNamespace(runner_type="generate"),
    }
    return SimpleNamespace(**{**fields, **more})


def test_features_that_break_the_row_map_are_refused_by_name():
    compat.require_features(configuration())
    with pytest.raises(EngineError, match="a GPU"):
        compat.require_features(configuration(device_config=SimpleNamespace(device_type="cuda")))
    with pytest.raises(EngineError, match="Model Runner V2"):
        compat.require_features(configuration(use_v2_model_runner=True))
    with pytest.raises(EngineError, match="speculative decoding"):
        compat.require_features(configuration(speculative_config=object()))
    parallel = SimpleNamespace(pipeline_parallel_size=2, tensor_parallel_size=1, data_parallel_size=1)
    with pytest.raises(EngineError, match="pipeline parallelism"):
        compat.require_features(configuration(parallel_config=parallel))


def test_untested_versions_start_only_when_allowed(monkeypatch):
    monkeypatch.setattr(compat, "version", lambda name: "0.99.0")
    with pytest.raises(PrerequisiteError, match=r"vLLM 0\.99\.0 is installed.*allow_untested"):
        compat.require_version(allow_untested=False)
    assert compat.require_version(allow_untested=True) == "0.99.0"
    monkeypatch.setattr(compat, "version", lambda name: "0.32.0+cpu")
    assert compat.require_version(allow_untested=False) == "0.32.0+cpu"


def test_the_key_is_plain_json(tiny_bundle, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "")
    bundle = tiny_bundle()
    assert msgspec.json.decode(msgspec.json.encode(take_over(Wanted("b"), bundle)))["op"] == 1
