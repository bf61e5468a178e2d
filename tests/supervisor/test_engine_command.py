"""vLLM's command line and environment: what is for it, and nothing that the process list should not show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from monitor.errors import ConfigError, EngineError
from monitor.service.config import MonitorConfig
from monitor.supervisor import engine_command as commands
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.engine_command import engine_command, engine_environment, own_arguments
from monitor.supervisor.vllm_arguments import Said, read_arguments, secret_in
from tests.harness.bundles import make_bundle

NOTHING = Said()


@pytest.fixture
def config(tmp_path):
    make_bundle(tmp_path / "bundle")
    return lambda **given: ServeConfig(model="demo", monitor=MonitorConfig(bundle=tmp_path / "bundle"), **given)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A vLLM for CPU, on a machine where 0.37 of the memory fits."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr("monitor.engine.vllm.versions.installed_platform", lambda: "cpu")
    monkeypatch.setattr(commands, "fitting_share", lambda: 0.37)


def share(config, said=NOTHING):
    command = engine_command(config, Path("/model"), said, "0" * 12)
    at = [n for n, part in enumerate(command) if part == "--gpu-memory-utilization"]
    return [command[n + 1] for n in at]


def test_a_share_of_memory_that_fits_is_chosen(config, monkeypatch):
    assert share(config()) == ["0.37"]
    monkeypatch.setattr(commands, "fitting_share", lambda: None)
    assert share(config()) == []


def test_but_not_where_something_says_how_much(config, monkeypatch):
    assert share(config(), Said(memory=True)) == []
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert share(config()) == []


def test_nor_on_a_gpu(config, monkeypatch):
    monkeypatch.setattr("monitor.engine.vllm.versions.installed_platform", lambda: "cuda")
    assert share(config()) == []


def test_what_is_for_vllm_comes_last(config):
    command = engine_command(
        config(eager=True, vllm_arguments=("--dtype", "float32")), Path("/model"), NOTHING, "0" * 12
    )
    assert command[:5] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "/model"]
    assert "--enforce-eager" in command and command[-2:] == ["--dtype", "float32"]


@pytest.mark.parametrize("way", ["a value", "a file"])
def test_the_key_of_the_api_is_in_the_environment_and_nowhere_else(config, tmp_path, monkeypatch, way):
    (tmp_path / "key").write_text("s3cret\n")
    monkeypatch.setenv("PLUMBOB_API_KEY", "s3cret")
    given = {"api_key": SecretStr("s3cret")} if way == "a value" else {"api_key_file": tmp_path / "key"}
    serving = config(**given)
    environment = engine_environment(serving)
    assert environment["VLLM_API_KEY"] == "s3cret" and "PLUMBOB_API_KEY" not in environment
    assert "s3cret" not in " ".join(engine_command(serving, Path("/model"), NOTHING, "0" * 12)) + repr(serving)


def test_without_a_key_the_environment_has_its_own(config, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    assert engine_environment(config())["VLLM_API_KEY"] == "theirs"


def test_two_keys_of_the_api_disagree(config, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    with pytest.raises(ConfigError, match="VLLM_API_KEY and the configuration give two keys of the API"):
        engine_environment(config(api_key=SecretStr("ours")))
    assert engine_environment(config(api_key=SecretStr("theirs")))["VLLM_API_KEY"] == "theirs"


@pytest.mark.parametrize(
    ("content", "said"), [("", "must hold one key"), ("a b", "must hold one key"), (None, "cannot be read")]
)
def test_a_file_of_a_key_that_is_none(config, tmp_path, content, said):
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match=said):
        engine_environment(config(api_key_file=tmp_path / "key"))


def test_secrets_are_told_however_they_are_written():
    for given in ("--api-key=x", "--api_key", "--api-k", "--hf-token", "--hf_tok=x"):
        assert secret_in([given]) is not None
    assert secret_in(["--api-server-count", "2", "api-key", "-api-key"]) is None


def test_vllms_parser_reads_what_is_for_it_in_a_process_of_its_own(config, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")

    def read(*further):
        serving = config()
        own = own_arguments(serving, "/model")
        return read_arguments(own, further, serving.monitor.bundle, os.environ)

    assert read("--gpu-mem=0.5", "--enforce-eager") == Said(eager=True, memory=True)
    with pytest.raises(
        EngineError, match=r"^plumbob serve does not pass --additional-conf on to vLLM\. Run vllm serve"
    ):
        read("--max-model-len", "64", "--additional-conf", "{}")


def test_without_further_arguments_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    assert read_arguments(["--model", "x"], (), tmp_path, {}) == Said()


def test_a_parser_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "vllm.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with pytest.raises(
        EngineError, match=r"^vLLM's arguments cannot be read: ImportError: libcuda.so.1: .* file\. plumbob"
    ):
        read_arguments(["--model", "x"], ["--dtype", "auto"], tmp_path, {**os.environ, "PYTHONPATH": path})
