"""``plumbob config``, ``--config`` and the environment, as a user meets them."""

import json
import re

import pytest
import yaml

from monitor.configuration import settings_of
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.serving import Serving
from probes.bundle import load_bundle
from probes.bundle.keys import generate_key, load_private_key
from probes.bundle.shipped import DEMO_BUNDLE
from probes.bundle.signing import sign_bundle
from tests.harness.command_line import assert_one_error

WITH_FLAGS = {setting.flag: setting for setting in reversed(list(settings_of(ServeConfig))) if setting.flag}
VALUES = {
    "--socket-mode": "0600",
    "--host": "h",
    "--metrics-host": "h",
    "--grpc-host": "h",
    "--on-drift": "shadow",
    "--port": "8001",
    "--metrics-port": "9",
    "--grpc-port": "8",
}


@pytest.fixture
def file(world):
    path = world.root / "plumbob.yaml"
    path.write_text(f"model: {world.model}\nport: 8001\nmonitor: {{bundle: bundle, audit: none}}\n")
    return path


def test_the_effective_configuration_has_the_source_of_each_value(plumbob, world, file, monkeypatch):
    monkeypatch.setenv("PLUMBOB_MONITOR__GRPC_PORT", "9500")
    monkeypatch.setenv("PLUMBOB_API_KEY", "s3cret")
    result = plumbob("config", "show", "--config", file, "--metrics-port", 9600, "--host", "::1")
    assert (result.code, result.err) == (0, "")
    shown = dict(re.findall(r"^ *#? ?(\w+): .*# (.*)$", result.out, re.MULTILINE))
    assert shown["port"] == f"file {file}" and shown["bundle"] == f"file {file}"
    assert shown["grpc_port"] == "environment variable PLUMBOB_MONITOR__GRPC_PORT"
    assert shown["metrics_port"] == "flag --metrics-port" and shown["host"] == "flag --host"
    assert shown["max_requests"] == "default"
    assert "s3cret" not in result.out and "# api_key: a secret, not shown  # environment variable" in result.out


def test_what_is_shown_is_a_file_that_configures_the_same(plumbob, world, file):
    first = plumbob("config", "show", "--config", file, "--allow-steering", "a: b", "--host", "::1").out
    again = world.root / "again.yaml"
    again.write_text(first)
    second = plumbob("config", "show", "--config", again).out
    assert yaml.safe_load(first) == yaml.safe_load(second)
    assert yaml.safe_load(first)["allow_steering"] == ["a: b"]
    assert yaml.safe_load(first)["monitor"]["bundle"] == str(world.bundle)


def test_what_is_missing_is_shown_too(plumbob, monkeypatch):
    result = plumbob("config", "show")
    assert result.code == 0
    assert "# model: not set, and needed\n" in result.out
    monkeypatch.setenv("PLUMBOB_MODEL", "other")
    result = plumbob("config", "show")
    assert "  # bundle: not set, and needed\n" in result.out


def test_the_demo_models_bundle_is_that_which_ships(plumbob, tmp_path):
    file = tmp_path / "plumbob.yaml"
    for text in ("model: demo", "monitor: {}", ""):
        file.write_text(text)
        shown = plumbob("config", "show", "--config", file).out
        # Sources stand in a column, whatever the length of the path.
        assert re.search(rf"^  bundle: {re.escape(str(DEMO_BUNDLE))} +# package plumbob$", shown, re.MULTILINE)
    assert "  bundle: x " in plumbob("config", "show", "--config", file, "--bundle", "x").out


@pytest.mark.parametrize("flag", WITH_FLAGS)
def test_every_flag_sets_its_setting(plumbob, flag):
    setting = WITH_FLAGS[flag]
    default = setting.field.get_default(call_default_factory=True)
    if isinstance(default, bool):
        given, read = (f"--no-{flag[2:]}" if default else flag,), not default
    else:
        given, read = (flag, VALUES.get(flag, "/7" if setting.is_path else "7")), VALUES.get(flag, "7")
    result = plumbob("config", "show", *given)
    assert (result.code, result.err) == (0, "")
    line = next(line for line in result.out.splitlines() if re.match(rf" *{setting.path[-1]}: ", line))
    assert line.endswith(f"# flag {flag}") and str(read).lower() in line


def test_a_file_is_checked_with_the_files_that_it_names(plumbob, world, file):
    result = plumbob("config", "check", file)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith(f"valid: {file}\n")
    assert f"bundle {world.bundle} (" in result.out and "policy default: 3 rules" in result.out
    # The monitor alone needs no model.
    file.write_text("monitor: {bundle: bundle}\n")
    assert "model not set: for plumbob monitor alone" in plumbob("config", "check", file).out


def test_a_file_that_names_what_is_not_there_is_refused(plumbob, world, file, monkeypatch):
    def refused(text, *parts):
        file.write_text(text)
        assert_one_error(plumbob("config", "check", file), *parts)

    refused("monitor: {bundle: gone}", f"{world.root / 'gone'} is not a bundle")
    refused("monitor: {bundle: bundle, policy: gone}", f"{world.root / 'gone'}: cannot be read")
    refused("monitor: {bundle: bundle, trust: [gone.pub]}", f"{world.root / 'gone.pub'}")
    refused("api_key_file: gone\nmonitor: {bundle: bundle}", f"{world.root / 'gone'}: cannot be read")
    refused("allow_steering: [gone]\nmonitor: {bundle: bundle}", "no steering vector 'gone'")
    refused("vllm_arguments: [--uds=x]\nmonitor: {bundle: bundle}", "plumbob serve does not pass --uds on to vLLM")
    refused(
        "monitor: {bundle: bundle, allow_control: true, grpc_host: 0.0.0.0}",
        "there are no credentials yet",
        "--grpc-host",
    )
    refused("model: other", "monitor.bundle is not set", "--bundle, PLUMBOB_MONITOR__BUNDLE or monitor.bundle in")
    refused("monitr: {}", f"{file}: monitr: unknown key. Did you mean 'monitor'?")
    (world.root / "key").write_text("two words")
    refused("api_key_file: key\nmonitor: {bundle: bundle}", f"{world.root / 'key'}: must hold one key")
    generate_key(world.runtime / "key")
    sign_bundle(load_bundle(world.bundle), load_private_key(world.runtime / "key", lambda: b""))
    file.write_text(f"monitor: {{bundle: bundle, trust: [{world.runtime / 'key.pub'}]}}")
    assert "signed by one of 1 trusted keys" in plumbob("config", "check", file).out


def test_the_schema_describes_every_setting(plumbob):
    schema = json.loads(plumbob("config", "schema").out)
    monitor = schema["$defs"]["MonitorConfig"]["properties"]
    assert schema["properties"].keys() >= {"model", "port", "monitor"} and "grpc_port" in monitor
    assert monitor["grpc_port"]["description"] == "TCP port of gRPC events and status."
    assert schema["additionalProperties"] is False


@pytest.fixture
def configs(monkeypatch):
    """Configurations that were served, none of which is."""
    served = []

    def enter(self):
        served.append(self.config)
        raise SystemExit(0)

    monkeypatch.setattr(Serving, "__enter__", enter)
    return served


def test_what_is_for_vllm_comes_after_what_the_file_has_for_it(plumbob, file, configs):
    with file.open("a") as more:
        more.write("vllm_arguments: [--max-model-len, '1024']\n")
    plumbob("serve", "--config", file, "--dtype=float32", "--enable-chunked-prefill")
    (config,) = configs
    assert config.vllm_arguments == ("--max-model-len", "1024", "--dtype=float32", "--enable-chunked-prefill")
    assert config.port == 8001


def test_a_model_on_the_command_line_replaces_that_of_the_file(plumbob, world, file, configs):
    plumbob("serve", "other", "--config", file)
    plumbob("serve", "other", "--config", file, "--max-model-len=7")
    assert [config.model for config in configs] == ["other", "other"]
    plumbob("serve", "--config", file, "--max-model-len", "2048")
    assert configs[-1].model == str(world.model) and configs[-1].vllm_arguments == ("--max-model-len", "2048")


@pytest.mark.parametrize(
    "given", [["--api-key", "s3cret"], ["--api-key=s3cret"], ["--api_key=s3cret"], ["--api-k=s3cret"]]
)
def test_a_secret_in_a_flag_is_refused(plumbob, world, given):
    result = plumbob(*world.serve(*given))
    assert_one_error(result, "--api-key would show in the process list", "VLLM_API_KEY", "--api-key-file")
    assert "s3cret" not in result.err


def test_nobody_needs_to_write_a_token_of_a_hub_on_a_command_line(plumbob, world):
    assert_one_error(plumbob(*world.serve("--hf-token", "s3cret")), "--hf-token would show", "Set HF_TOKEN.")


@pytest.mark.parametrize("command", ["serve", "monitor", "config show"])
def test_a_variable_that_is_wrong_stops_every_command_that_reads_it(plumbob, world, monkeypatch, command):
    arguments = ["config", "show"] if command == "config show" else getattr(world, command)()
    for name, value, said in (
        ("PLUMBOB_MONITOR__PROBE_WORKERS", "many", "PLUMBOB_MONITOR__PROBE_WORKERS: must be a valid integer"),
        ("PLUMBOB_POLICY", "p.yaml", "PLUMBOB_POLICY: is no setting. Did you mean 'PLUMBOB_MONITOR__POLICY'?"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            # A flag outweighs the first, but only where it is given.
            assert_one_error(plumbob(*arguments), said)


@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_what_is_needed_and_not_given_is_one_line(plumbob, command, monkeypatch):
    arguments = {"serve": ["other"], "monitor": []}[command]
    monkeypatch.setenv("PLUMBOB_MODEL", "other")
    assert_one_error(plumbob(command, *arguments), "monitor.bundle is not set", "--bundle")
    monkeypatch.delenv("PLUMBOB_MODEL")
    assert_one_error(plumbob("serve"), "is not set", "Give it with")


def test_help_groups_the_commands(plumbob):
    said = plumbob("--help").out
    panels = re.findall(r"─ (\w+) ─", said)
    assert panels == ["Options", "Run", "Observe", "Probes", "Steering", "Policy", "Trust", "Develop"]
