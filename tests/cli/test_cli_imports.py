"""What the commands import: the monitor's process has no torch and no vLLM, and none is loaded to print an error."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.harness.command_line import Running

HEAVY = ("torch", "vllm", "transformers", "sklearn", "scipy")

BLOCKED = f"""\
import sys
for name in {HEAVY!r}:
    # An import of what is None here is an ImportError.
    sys.modules[name] = None
"""


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    "module", ["monitor.cli.app", "monitor.service.process", "monitor.cli.doctor", "monitor.cli.watch"]
)
def test_nothing_heavy_is_imported(module):
    loaded = python(f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded == "[]"


def test_the_check_would_see_one():
    assert python("import sys, scipy.stats; print('scipy' in sys.modules)") == "True"


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_monitor_runs_where_torch_and_vllm_are_not_installed(world, tmp_path, number):
    script = tmp_path / "blocked.py"
    script.write_text(BLOCKED + "from monitor.cli import main\nmain()\n")
    command = world.monitor()
    ports = [int(command[command.index(name) + 1]) for name in ("--metrics-port", "--grpc-port")]
    running = Running(*command, script=script, PYTHONPATH=os.pathsep.join(sys.path))
    try:
        deadline = time.monotonic() + 30
        while not all(map(listening, ports)):
            assert running.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        running.process.send_signal(number)
        running.process.wait(20)
    finally:
        result = running.finish()
    assert result.code == 0
    assert "reading 3 probes for engines at" in result.err
    # Nothing after it but how the audit log ends.
    assert re.search(r"stopping\n[^\n]* audit log [^\n]* head [0-9a-f]{64}\Z", result.err.rstrip())
    assert not any(map(listening, ports))


def test_a_policy_is_refused_where_torch_and_vllm_are_not_installed(world, tmp_path):
    script = tmp_path / "blocked.py"
    script.write_text(BLOCKED + "from monitor.cli import main\nmain()\n")
    result = Running(*world.monitor("--policy", "gone"), script=script, PYTHONPATH=os.pathsep.join(sys.path)).finish()
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_fitting_without_torch_says_what_to_install(world, tmp_path):
    script = tmp_path / "blocked.py"
    script.write_text(BLOCKED + "from monitor.cli import main\nmain()\n")
    running = Running(
        *("fit", world.model, "--out", world.root / "out"), script=script, PYTHONPATH=os.pathsep.join(sys.path)
    )
    result = running.finish()
    assert result.err == "error: Reading a model needs torch. Run: pip install 'plumbob[fit]'\n"
    assert result.code == 2
    assert not (world.root / "out").exists()
