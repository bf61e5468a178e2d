"""A server and its monitor live and die together, whatever ends them. The server here only pretends; the monitor is
real."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from monitor.service.config import MonitorConfig
from monitor.supervisor.child import Child
from monitor.supervisor.config import ServeConfig
from monitor.supervisor.serving import _listening
from tests.harness.command_line import Running
from tests.harness.pretended_server import SCRIPT, STUBBORN, until

OBEDIENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)'])"


@pytest.fixture
def serve(world, tmp_path):
    """Start ``plumbob serve`` with a pretended server, and wait until it serves."""
    running: list[Running] = []

    def start(server: str, children: int) -> Running:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(server=server))
        run = Running(*world.serve("--eager"), script=script, PYTHONPATH=os.pathsep.join(sys.path))
        running.append(run)
        assert run.process.stderr is not None
        for line in run.process.stderr:
            if "metrics http://" in line:
                break
        until(lambda: len(run.alive()) == 1 + children)
        return run

    yield start
    for run in running:
        run.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_of_it(serve, number, code):
    # The monitor, the server, and the server's child.
    run = serve(OBEDIENT, 3)
    run.process.send_signal(number)
    assert run.process.wait(20) == code
    assert run.alive() == []
    assert "Traceback" not in run.process.stderr.read().split("stopping")[-1]


def test_a_second_signal_does_not_wait_and_leaves_nothing_behind(serve):
    run = serve(STUBBORN, 2)
    # Until it ignores the signal, which takes it as long as Python takes to start.
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.process.poll() is None, "it waits for the server to end"
    begin = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    run.process.wait(15)
    assert time.monotonic() - begin < 10
    assert run.alive() == []


def test_a_server_that_ends_takes_its_monitor_along(serve):
    run = serve("import time; time.sleep(2); raise SystemExit(7)", 2)
    assert run.process.wait(20) == 7
    assert run.alive() == []


def test_a_monitor_that_dies_is_started_again(serve):
    run = serve(STUBBORN, 2)
    monitors = [pid for pid in run.alive() if b"\0monitor\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(monitors) == 1
    os.kill(monitors[0], signal.SIGKILL)
    until(lambda: monitors[0] not in run.alive() and len(run.alive()) == 3)
    assert run.process.poll() is None


def test_stopping_kills_what_does_not_end():
    child = Child([sys.executable, "-c", STUBBORN], os.environ)
    time.sleep(0.3)
    child.stop(0.2)
    assert child.code == -signal.SIGKILL
    child.stop(0.2)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000"), ("h", "http://h:8000")]
)
def test_addresses_have_brackets_where_they_need_them(host, url):
    config = ServeConfig(model="demo", host=host, monitor=MonitorConfig(bundle=Path("bundle"), host=host))
    assert config.url == url
    assert config.monitor.metrics_url == url.replace("8000", "9400") + "/metrics"
    assert config.monitor.grpc_address == url.replace("8000", "9401").removeprefix("http://")


def test_whether_somebody_listens(taken_port):
    assert _listening("127.0.0.1", taken_port)
    assert not _listening("127.0.0.1", 1)
    for host in ("::1", "no-such-host.invalid"):
        assert not _listening(host, taken_port)


def test_the_name_that_clients_write(tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")

    def served_name(model):
        return ServeConfig(model=model, monitor=MonitorConfig(bundle=Path("bundle"))).served_name

    names = [served_name(name) for name in (".", str(tmp_path / "my-model"), "demo", "a/b")]
    assert names == ["my-model", "my-model", "demo", "a/b"]
    (tmp_path / "my-model" / "demo").mkdir()
    assert served_name("demo") == "demo"
