"""A child's output reaches its log to the last byte, and its end is told in its own words."""

import os
import signal
import sys

import pytest

from monitor.errors import EngineError
from monitor.service.config import MonitorConfig
from monitor.supervisor.checks import Checked
from monitor.supervisor.child import Child
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.serving import Serving
from monitor.supervisor.vllm_arguments import Said


@pytest.fixture
def run(tmp_path):
    """Run a script as a child to its end; the child, and what its log has."""

    def start(script):
        path = tmp_path / "log"
        with path.open("wb") as log:
            child = Child([sys.executable, "-c", script], os.environ, log)
            child.process.wait(30)
            reason = child.reason
            child.stop(0.1)
        return child, reason, path.read_text()

    return start


def test_all_of_its_output_is_passed_on(run):
    child, reason, log = run(
        "import sys\nfor n in range(30000): print('line', n)\nprint('bad', file=sys.stderr)\nexit(3)"
    )
    assert log.count("\n") == 30001 and "line 29999\n" in log
    assert (child.code, reason) == (3, "bad")


def test_it_is_told_why_it_ended(run):
    assert run("raise ValueError('no room')")[1] == "ValueError: no room"
    assert run("exit(4)")[1] == "ended with code 4 and said nothing"
    killed = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert killed[1] == "ended by SIGKILL; it may have run out of memory"
    assert killed[0].code == -signal.SIGKILL


def test_a_signal_to_one_that_has_ended_is_nothing(run):
    run("")[0].signal(signal.SIGTERM)


@pytest.mark.parametrize("logged", [True, False])
def test_a_server_that_does_not_start_is_told_by_its_own_reason(tmp_path, monkeypatch, capfd, logged):
    """And not by where its output is, but where that is a file."""
    config = ServeConfig(model="demo", monitor=MonitorConfig(bundle=tmp_path))
    log = tmp_path / "log" if logged else None
    script = "import sys; print('loading', flush=True); sys.exit('x.py: error: no such option: --fast')"
    monkeypatch.setattr("monitor.supervisor.serving.check_serve", lambda config: Checked(tmp_path, Said(), ""))
    monkeypatch.setattr("monitor.supervisor.serving.engine_command", lambda *_: [sys.executable, "-c", script])
    monkeypatch.setattr(Serving, "start_monitor", lambda self: None)
    with pytest.raises(EngineError) as caught, Serving(config, log):
        pass
    where = f" Its output is in {log}." if logged else ""
    assert str(caught.value) == f"vLLM did not start: no such option: --fast.{where}"
    assert "loading\n" in (log.read_text() if log else capfd.readouterr().err)


def test_a_monitor_that_does_not_start_is_told_by_its_own_reason(tmp_path, capfd):
    config = ServeConfig(model="demo", monitor=MonitorConfig(bundle=tmp_path / "gone", audit=None))
    with pytest.raises(EngineError, match=rf"The monitor did not start: {tmp_path / 'gone'} is not a bundle"):
        Serving(config).start_monitor()
