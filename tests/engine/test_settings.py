"""What is hashed into compiled artefacts, and what is handed down."""

from types import SimpleNamespace

import msgspec
import pytest

from monitor.engine.ops.tap import OP_VERSION
from monitor.engine.settings import ENVIRONMENT, KEY, Wanted, inherited, read_wanted, switched_on, take_over
from monitor.errors import EngineError


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
