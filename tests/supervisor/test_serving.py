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


def test_files_of_the_working_directory_are_not_ours(serve, tmp_path, monkeypatch):
    for name in ("monitor", "probes", "yaml"):
        (tmp_path / "cwd").mkdir(exist_ok=True)
        (tmp_path / "cwd" / f"{name}.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path / "cwd")
    # Its monitor, and a server that would find them.
    run = serve("import sys, time; print(sys.path); import probes.bundle; time.sleep(100)", 2)
    assert run.process.poll() is None


def test_python_m_finds_ours_where_something_else_is_called_probes(tmp_path, monkeypatch):
    """But for a monitor.py, which is what Python runs: the command plumbob has no working directory in its path."""
    (tmp_path / "probes.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "yaml.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    assert Running("--version").finish().code == 0


UNHEARD = SCRIPT.replace("serving.Serving._heard = lambda self: True", "serving.HELLO_SECONDS = 3")
ANOTHER = """
import time, zmq
from pathlib import Path
from monitor.wire.codec import encode_hello
from monitor.wire.frames import VERSION, Hello
from probes.bundle import load_bundle

socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.IDENTITY, b"another/core")
socket.connect("ENDPOINT")
while True:
    socket.send_multipart(encode_hello(Hello(VERSION, "another", "tiny", load_bundle(Path("BUNDLE")).digest, "0.32.0")))
    print("said hello", flush=True)
    time.sleep(0.5)
"""


def test_a_server_that_nobody_hears_is_stopped(world, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        UNHEARD.format(server="import time; print('ValueError: no such plugin', flush=True); time.sleep(100)")
    )
    run = Running(*world.serve("--eager"), script=script, PYTHONPATH=os.pathsep.join(sys.path))
    result = run.finish()
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: vLLM serves unread, and is stopped: 3 s after it was ready, its engine has not said")
    assert "its last error: ValueError: no such plugin. plumbob doctor says" in last
    assert result.code == 2 and run.alive() == []


def test_another_engine_at_the_same_place_is_not_its_engine(world, tmp_path):
    script = tmp_path / "script.py"
    server = ANOTHER.replace("ENDPOINT", world.endpoint).replace("BUNDLE", str(world.bundle))
    script.write_text(UNHEARD.format(server=server))
    run = Running(*world.serve("--eager"), script=script, PYTHONPATH=os.pathsep.join(sys.path))
    result = run.finish()
    assert '"another"' in result.err and '"connected"' in result.err
    assert "error: vLLM serves unread, and is stopped" in result.err.strip().splitlines()[-1] and result.code == 2


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
    monitor = MonitorConfig(bundle=Path("bundle"), metrics_host=host, grpc_host=host)
    config = ServeConfig(model="demo", host=host, monitor=monitor)
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
