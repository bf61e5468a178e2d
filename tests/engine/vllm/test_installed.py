"""The plugin as vLLM's process will find it: looked for by the very interpreter, in the very environment."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import monitor
from monitor.engine.vllm import installed
from monitor.engine.vllm.installed import require_plugin
from monitor.errors import PrerequisiteError

ROOT = Path(monitor.__file__).parents[1]

if not entry_points(group="vllm.general_plugins", name="plumbob"):
    pytest.skip("plumbob is not installed, so that its entry point is not there", allow_module_level=True)


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_it_is_there(environment):
    assert require_plugin(environment) == ROOT / "monitor" / "engine" / "vllm" / "plugin.py"
    for allowed in ("plumbob", "lora,plumbob"):
        require_plugin({**environment, "VLLM_PLUGINS": allowed})


@pytest.mark.parametrize("allowed", ["", "lora", "lora, plumbob", "plumbob2"])
def test_a_list_of_plugins_that_leaves_it_out(environment, allowed):
    with pytest.raises(PrerequisiteError, match=rf"VLLM_PLUGINS is '{allowed}' and leaves plumbob out\. Add plumbob"):
        require_plugin({**environment, "VLLM_PLUGINS": allowed})


def test_another_environment_does_not_see_it(environment, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    monkeypatch.setattr(installed.sys, "executable", str(tmp_path / "other" / "bin" / "python"))
    with pytest.raises(PrerequisiteError, match=r"^vLLM does not see the plugin\. Run: pip install plumbob"):
        require_plugin(environment)


def test_files_of_the_working_directory_are_not_ours(environment, tmp_path, monkeypatch):
    for name in ("monitor", "probes", "json", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    require_plugin(environment)


def test_a_namesake_that_stands_before_it(environment, tmp_path):
    (tmp_path / "monitor.py").write_text("")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with pytest.raises(PrerequisiteError, match=r"cannot be loaded: ModuleNotFoundError: .*'monitor' is not a package"):
        require_plugin({**environment, "PYTHONPATH": path})


def test_an_error_inside_it(environment, tmp_path):
    _copy(tmp_path)
    plugin = tmp_path / "monitor" / "engine" / "vllm" / "plugin.py"
    plugin.write_text(f"import no_such_module\n{plugin.read_text()}")
    with pytest.raises(PrerequisiteError, match=r"cannot be loaded: ModuleNotFoundError: No module named 'no_such_mod"):
        require_plugin({**environment, "PYTHONPATH": str(tmp_path)})


def test_another_installation(environment, tmp_path):
    _copy(tmp_path)
    with pytest.raises(
        PrerequisiteError, match=rf"would load the plugin from {tmp_path}/monitor/.* and this is {ROOT}"
    ):
        require_plugin({**environment, "PYTHONPATH": str(tmp_path)})


def _copy(target: Path) -> None:
    for package in ("monitor", "probes"):
        shutil.copytree(ROOT / package, target / package, ignore=lambda _, names: [n for n in names if _other(n)])


def _other(name: str) -> bool:
    return ("." in name and not name.endswith((".py", ".pyi"))) or name in ("__pycache__", "data")
