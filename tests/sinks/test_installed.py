"""A new sink is one module and one entry point; nothing else of the product names it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from monitor.errors import ConfigError
from monitor.sinks import LogSink, open_sinks
from tests.harness.bundles import make_bundle
from tests.harness.command_line import Running
from tests.harness.ports import free_port

ROOT = Path(__file__).parents[2]

MODULE = """
import json, time, threading
from pathlib import Path
from monitor.events import words

class LineSink:
    def __init__(self):
        self.file = Path(__file__).with_name("lines.jsonl")

    def emit(self, recorded):
        line = json.dumps({"said": str(words.wording(recorded.event)), "thread": threading.current_thread().name})
        with self.file.open("a") as file:
            file.write(line + chr(10))

class Refuses:
    def __init__(self):
        raise OSError("no such host")
"""


@pytest.fixture
def package(tmp_path):
    """A package that is installed, with two sinks."""
    (tmp_path / "team_sinks.py").write_text(MODULE)
    metadata = tmp_path / "team_sinks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: team-sinks\nVersion: 1.0\n")
    points = "[plumbob.sinks]\nlines = team_sinks:LineSink\nrefuses = team_sinks:Refuses\n"
    (metadata / "entry_points.txt").write_text(points)
    return tmp_path


def test_a_sink_of_another_package_takes_events_of_the_monitors_process(package):
    bundle = make_bundle(package / "bundle")
    fake = "from monitor.sinks import open_sinks; print([type(sink).__name__ for sink in open_sinks(['lines'])])"
    environment = {**os.environ, "PYTHONPATH": f"{package}:{ROOT}"}
    assert "LineSink" in subprocess.check_output([sys.executable, "-c", fake], env=environment, text=True)
    # A socket file's path has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as runtime:
        options = ["--bundle", bundle.path, "--endpoint", f"ipc://{runtime}/engine.sock", "--audit", "none"]
        options += ["--state", "none", "--metrics-port", free_port(), "--grpc-port", free_port()]
        policy = package / "policy.yaml"
        policy.write_text(
            "version: 1\nrules: [{name: a, when: {probe: toxicity}, mode: alert, actions: [alert: {}]}]\n"
        )
        options += ["--policy", policy, "--sinks", "log", "--sinks", "lines"]
        monitor = Running("monitor", *options, PYTHONPATH=f"{package}:{ROOT}")
        try:
            _reload_until(monitor, package / "lines.jsonl")
        finally:
            monitor.kill()
    (line,) = {json.dumps(json.loads(text)) for text in (package / "lines.jsonl").read_text().splitlines()}
    assert "POLICY" in line and json.loads(line)["thread"] == "plumbob-LineSink"


def _reload_until(monitor, file) -> None:
    deadline = time.monotonic() + 60
    for line in monitor.process.stderr:
        if "reading" in line:
            break
    while not file.exists():
        assert time.monotonic() < deadline and monitor.process.poll() is None
        monitor.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)


def test_the_sink_that_ships_is_an_entry_point_like_any_other():
    assert entry_points(group="plumbob.sinks")["log"].load() is LogSink
    (sink,) = open_sinks(["log"])
    assert isinstance(sink, LogSink)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["lgo"], "No sink 'lgo' is installed. Did you mean 'log'?"),
        (["log", "log"], "Sink 'log' is named twice"),
        (["refuses"], "Sink 'refuses' (team_sinks:Refuses) cannot be made: no such host"),
    ],
)
def test_sinks_that_cannot_be_had_are_refused(package, names, said, monkeypatch):
    monkeypatch.syspath_prepend(package)
    with pytest.raises(ConfigError) as caught:
        open_sinks(names)
    assert said in str(caught.value)


def test_a_file_with_an_unknown_sink_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    result = Running("monitor", "--bundle", bundle.path, "--sinks", "kafak", "--audit", "none").finish()
    assert result.code == 2 and "No sink 'kafak' is installed" in result.err and "Traceback" not in result.err
