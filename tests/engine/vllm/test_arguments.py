"""vLLM's arguments are judged by what its own parser makes of them, however they are written."""

import json
import shutil

import msgspec
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")

from monitor.engine.vllm.arguments import Asked, find
from monitor.engine.vllm.plugin import register
from monitor.errors import EngineError
from probes.bundle import MANIFEST
from probes.models import identify
from tests.harness.bundles import make_bundle

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's directory, as far as parsers and digests look at it."""
    path = tmp_path_factory.mktemp("arguments") / "model"
    path.mkdir()
    configuration = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8}
    configuration |= {
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    (path / "config.json").write_text(json.dumps(configuration))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    save_file({"w": np.zeros(3, np.float32)}, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def bundle(model):
    path = make_bundle(model.parent / "bundle").path
    manifest = msgspec.json.decode((path / MANIFEST).read_bytes())
    manifest["model"]["parts"] = identify(model, "model").parts
    (path / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return path


@pytest.fixture
def read(model, bundle):
    """Read what comes after the arguments that ``plumbob serve`` gives."""
    own = ["--model", str(model), "--served-model-name", "model", "--host", "127.0.0.1", "--port", "8000"]
    own += ["--additional-config", json.dumps({"plumbob": {"bundle": str(bundle), "endpoint": "ipc:///x"}})]
    return lambda *further: find(Asked(own, [str(part) for part in further], str(bundle)))


@pytest.fixture
def refused(read):
    def run(*further) -> str:
        found = read(*further)
        assert found.refused is not None, found
        return " ".join(found.refused)

    return run


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (["--additional-config", "{}"], "--additional-config"),
        (["--additional-conf", "{}"], "--additional-conf"),
        (["--additional_config={}"], "--additional_config"),
        (["--addit={}"], "--addit"),
        (["--additional-config.plumbob.gates", "0"], "--additional-config.plumbob.gates"),
        (["--model", "other"], "--model"),
        (["--served_model_name", "a", "b"], "--served_model_name"),
        (["--uds", "/run/x"], "--uds"),
        (["--ssl-keyfile=x"], "--ssl-keyfile"),
        (["--ssl_certf", "x"], "--ssl_certf"),
        (["--enable-ssl-refresh"], "--enable-ssl-refresh"),
    ],
)
def test_what_serve_gives_itself_is_not_passed_on_however_it_is_written(refused, given, option):
    said = refused("--max-model-len", "64", *given)
    assert said.startswith(f"plumbob serve does not pass {option} on to vLLM. Run vllm serve with it yourself")


def test_an_address_has_one_name(refused):
    assert refused("--por=9").endswith("are two names for one thing. Set port.")
    assert refused("--host", "0.0.0.0").startswith("--host among vLLM's arguments and host are two names")


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (["--headless"], "--headless"),
        (["--grpc"], "--grpc"),
        (["--api-server-count", "2"], "--api-server-count"),
        (["-asc", "4"], "-asc"),
        (["--api_server_c=0"], "--api_server_c"),
        (["--grpc-port", "5"], "--grpc-port"),
    ],
)
def test_what_its_server_would_ignore_is_refused(refused, given, option):
    assert f"plumbob serve starts one server that speaks HTTP, which would ignore {option}. Run" in refused(*given)


def test_the_last_of_several_counts(read, refused):
    assert read("--api-server-count", "2", "--api-server-count", "1").refused is None
    assert "would ignore --api-server-c." in refused("--api-server-count", "1", "--api-server-c", "2")


def test_a_file_is_read_as_well(read, refused, tmp_path):
    file = tmp_path / "engine.yaml"

    def write(**said):
        file.write_text(yaml.safe_dump({name.replace("_", "-"): value for name, value in said.items()}))

    write(hf_overrides={"rope_parameters": {"rope_theta": 7.0}}, max_model_len=64)
    assert refused("--config", file).startswith(f"hf-overrides of {file} makes another model of it")
    write(tokenizer="/elsewhere", enforce_eager=True)
    assert refused("--max-num-seqs", 4, "--config", file).startswith(f"tokenizer of {file} gives another tokenizer")
    write(headless=True)
    assert f"would ignore headless of {file}." in refused("--config", file)
    # What serve gives outweighs it, so that it says nothing.
    write(model="other", port=9, additional_config={})
    assert read("--config", file).refused is None
    write(gpu_memory_utilization=0.92, enforce_eager=True)
    found = read("--config", file)
    assert (found.refused, found.eager, found.memory) == (None, True, True)
    assert "vLLM does not take its arguments" in refused("--config", tmp_path / "gone.yaml")


def test_another_tokenizer_is_refused_and_a_copy_is_none(read, refused, model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert read("--tokenizer", copy).refused is None and read("--tokenizer", model).refused is None
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert refused("--tokenizer", copy).startswith("--tokenizer gives another tokenizer than the one that the bundle")
    shutil.copy(model / "tokenizer_config.json", copy)
    (copy / "tokenizer.json").write_text('{"model": {}}')
    assert "--tokenizer gives another" in refused(f"--tokenizer={copy}")
    assert "another tokenizer" in refused("--tokenizer", "org/other")
    assert "--tokenizer-mode has text read by another tokenizer (mistral)" in refused("--tokenizer-mode", "mistral")
    assert read("--tokenizer-mode", "hf").refused is None


def test_another_chat_template_is_refused_and_the_same_is_none(read, refused, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    assert read("--chat-template", file).refused is None and read(f"--chat-template={TEMPLATE}").refused is None
    (other := tmp_path / "other.jinja").write_text(f"{TEMPLATE}!")
    said = refused("--chat_template", other)
    assert said.startswith("--chat_template gives another chat template than the one that the bundle was fitted with.")
    assert "--trust-request-c lets requests bring" in refused("--trust-request-c")


def test_overrides_that_change_the_model_are_refused(read, refused):
    assert read("--hf-overrides", '{"hidden_size": 8}').refused is None
    assert read("--hf-overrides.rope_parameters.rope_type", "default").refused is None
    for given in (['--hf-overrides={"hidden_size": 9}'], ["--hf_over.rope_parameters.rope_theta", "1e6"]):
        assert "makes another model of it than the one that the bundle was fitted to." in refused(*given)
    assert "--hf-config-path gives another configuration" in refused("--hf-config-path", "/tmp")


@pytest.mark.parametrize("option", ["--revision", "--tokenizer-revision", "--code-revision"])
def test_a_revision_of_a_directory_is_refused(refused, option):
    assert f"does not pass {option} on to vLLM, which is given the model's directory" in refused(option, "abc")


def test_what_does_not_change_what_is_read_is_passed_on(read):
    given = ["--max-model-len", "1k", "--config-format", "hf", "-O3", "--dtype=float32", "--model-impl", "transformers"]
    given += ["--api-server-count", "1", "--enable-prefix-caching", "-tp", "1", "--max_num_seqs=4"]
    found = read(*given)
    assert (found.refused, found.eager, found.memory) == (None, False, False)
    assert read("--enforce-e").eager
    for memory in (["--gpu-mem", "0.5"], ["--gpu_memory_utilization=0.92"], ["--kv-cache-memory-bytes", "1G"]):
        assert read(*memory).memory


def test_what_vllm_does_not_take_is_said_before_it_is_started(refused):
    assert "vLLM does not take its arguments: unrecognized arguments: --no-such-thing" in refused("--no-such-thing")
    assert "does not take its arguments: argument --max-num-seqs" in refused("--max-num-seqs", "many")
    assert "ambiguous option: --enable-pr" in refused("--enable-pr")
    assert "--tool-call-parser" in refused("--enable-auto-tool-choice")
    assert "would ignore 'other'" in refused("--enforce-eager", "other")
    assert "they ask for help" in refused("--help")


def test_vllm_itself_refuses_them_where_it_is_started_by_others(model, bundle, tmp_path):
    """As vllm serve does, whose front also has what no configuration of an engine has."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    register()
    parser = make_arg_parser(FlexibleArgumentParser())
    tap = json.dumps({"plumbob": {"bundle": str(bundle), "allow_untested": True}})

    def start(*further):
        given = parser.parse_args(["--model", str(model), "--additional-config", tap, *further])
        AsyncEngineArgs.from_cli_args(given).create_engine_config()

    (tmp_path / "other").mkdir()
    for option, value in (
        ("--chat-template", "{{ messages }}"),
        ("--tokenizer", str(tmp_path / "other")),
        ("--hf-overrides", '{"hidden_size": 9}'),
    ):
        with pytest.raises(EngineError, match=rf"^{option} .* that the bundle was fitted"):
            start(option, value)
