"""``plumbob doctor``: a line for each thing, the exact fix in it, and an exit code that scripts can use."""

import sys
from importlib.metadata import entry_points

import pytest

from monitor.cli import doctor
from tests.harness.command_line import vllm_is
from tests.harness.ports import free_port


@pytest.fixture(autouse=True)
def healthy(world, monkeypatch):
    """A machine on which nothing is missing: the tests break one thing each."""
    versions = {"torch": "2.9.0+cpu", "plumbob": "0.1.0"}

    def version(distribution):
        if distribution.startswith("torch") and distribution != "torch":
            raise doctor.PackageNotFoundError(distribution)
        return versions.get(distribution, "1.0")

    monkeypatch.setattr(doctor, "version", version)
    for name in ("API_PORT", "METRICS_PORT", "GRPC_PORT"):
        monkeypatch.setattr(doctor, name, free_port())
    if not entry_points(group="vllm.general_plugins", name="plumbob"):
        pytest.skip("plumbob is not installed, so that its entry point is not there")


def line(result, what):
    """The line of one check."""
    found = [text for text in result.out.splitlines() if text.startswith(what)]
    assert len(found) == 1, result.out
    return " ".join(found[0].split())


def test_a_healthy_machine(plumbob, world):
    result = plumbob("doctor", world.model, "--bundle", world.bundle)
    assert (result.code, result.err) == (0, "")
    assert "missing" not in result.out and "optional" not in result.out
    assert "for tiny: harmful_intent, toxicity, sycophancy" in line(result, "bundle")
    assert line(result, "policy") == "policy ok default: alert on every probe"


@pytest.mark.parametrize(
    ("what", "state", "fix"),
    [
        ("vLLM", "optional", "Run: pip install 'plumbob[cpu]', or install vllm for your GPU."),
        ("C++ compiler", "optional", "Install it (on Debian: apt-get install g++), or serve with --eager."),
        ("API port", "optional", "Stop what listens there, or choose another port."),
        ("fitting", "optional", "Run: pip install 'plumbob[fit]'"),
        ("plugin", "missing", "Add plumbob to it, or unset it."),
        ("torch libraries", "missing", "Run: pip uninstall -y torchvision torchaudio"),
    ],
)
def test_what_is_not_there_has_its_fix_in_one_line(plumbob, monkeypatch, taken_port, what, state, fix):
    match what:
        case "vLLM":
            vllm_is(monkeypatch, None)
        case "C++ compiler":
            monkeypatch.setenv("CXX", "/nonexistent/g++")
        case "API port":
            monkeypatch.setattr(doctor, "API_PORT", taken_port)
        case "plugin":
            monkeypatch.setenv("VLLM_PLUGINS", "lora,other")
        case "torch libraries":
            versions = {"torch": "2.9.0+cpu", "torchvision": "0.24.0", "torchaudio": "2.9.0"}
            monkeypatch.setattr(doctor, "version", lambda name: versions.get(name, "1.0+cpu"))
        case "fitting":

            def version(distribution):
                if distribution in ("gguf", "torchvision", "torchaudio", "torchcodec"):
                    raise doctor.PackageNotFoundError(distribution)
                return "1.0"

            monkeypatch.setattr(doctor, "version", version)
    result = plumbob("doctor")
    assert line(result, what).startswith(f"{what} {state} ")
    assert line(result, what).endswith(fix)
    # What only some commands need does not fail a machine.
    assert result.code == (2 if state == "missing" else 0)
    others = [text for text in result.out.splitlines()[1:] if not text.startswith(what)]
    assert all(" ok " in text for text in others), result.out


def test_an_old_python_is_named(plumbob, monkeypatch):
    monkeypatch.setattr(doctor, "sys", type("old", (), {"version_info": (3, 9, 1)}))
    result = plumbob("doctor")
    assert result.code == 2 and "Use Python 3.11 to 3.13." in line(result, "Python")


def test_a_model_a_bundle_and_a_policy_that_are_wrong(plumbob, world):
    world.policy.write_text("version: 1\nrules: []\n")
    result = plumbob("doctor", "nosuch", "--bundle", world.bundle, "--policy", world.policy)
    assert result.code == 2 and "Traceback" not in result.err
    assert line(result, "model").endswith("Name a Hugging Face id (owner/name), a local directory, or: demo")
    assert "There is no model 'nosuch'." in line(result, "bundle")
    assert f"{world.policy}: rules: must have at least one item." in line(result, "policy")


def test_a_bundle_of_another_model(plumbob, world):
    (world.model / "config.json").write_text('{"hidden_size": 8, "num_hidden_layers": 4, "rope_theta": 7}')
    result = plumbob("doctor", world.model, "--bundle", world.bundle)
    assert result.code == 2
    assert "config differ" in line(result, "bundle") and f"plumbob fit {world.model}" in line(result, "bundle")


def test_a_policy_is_not_passed_over(plumbob, world):
    result = plumbob("doctor", "--policy", world.policy)
    assert result.code == 2
    assert line(result, "policy").endswith("Add --bundle BUNDLE.")


def test_names_are_shown_as_they_are(plumbob, tmp_path):
    path = tmp_path / "[bold]x[/] [/y] :bomb:"
    assert f"{path} is not a bundle" in line(plumbob("doctor", "--bundle", path), "bundle")


def test_the_doctor_of_this_machine_says_something_of_everything(plumbob, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["plumbob", "doctor"])
    findings = doctor.examine()
    assert [finding.what for finding in findings][:3] == ["Python", "vLLM", "plugin"]
    assert all(finding.fix for finding in findings if finding.state != "ok")
