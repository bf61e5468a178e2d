"""``plumbob serve`` as an operator runs it: a real server, its monitor, a client, a kill, and Ctrl-C."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from monitor.cli.listener import Listener
from monitor.events import Intervention
from tests.harness.engines import random_bundle
from tests.harness.ports import free_port
from tests.harness.server import KEY, descendants, openai, running_server, unlimited, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


ROOT = Path(__file__).parents[2]

POLICY = """\
version: 1
rules:
  - name: always
    when: {probe: random-5-0}
    mode: enforce
    actions:
      - alert: {severity: critical}
      - steer: {vector: random-0, dose: 0.3, tokens: 3}
"""


@pytest.fixture(scope="module")
def server(model_path, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    firing = random_bundle(folder / "bundle", model_path, source.markers, threshold=-1e9)
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "key").write_text(f"{KEY}\n")
    (folder / "plumbob.yaml").write_text("api_key_file: key\nmonitor: {policy: policy.yaml}\n")
    # Nothing says how much memory: it is given a share that fits. And no proxy lies between a machine and itself.
    environment = unlimited() | dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    with running_server(
        folder, firing.path, "--config", str(folder / "plumbob.yaml"), environment=environment
    ) as running:
        yield running


def test_an_alert_reaches_a_client_written_from_the_proto_alone(server, tmp_path):
    tools = pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    protos = sorted(str(path) for path in (ROOT / "proto" / "monitor" / "v1").glob("*.proto"))
    include = ["-I", str(ROOT / "proto"), "-I", str(Path(tools.__file__).parent / "_proto")]
    generate = ["-m", "grpc_tools.protoc", *include, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([sys.executable, *generate, *protos], check=True)
    (tmp_path / "client.py").write_text(
        """
import json, sys, grpc
from monitor.v1 import monitor_service_pb2 as pb, monitor_service_pb2_grpc as rpc
import monitor
assert "site-packages" not in str(monitor.__path__), monitor.__path__
stub = rpc.MonitorServiceStub(grpc.insecure_channel(sys.argv[1]))
call = stub.WatchEvents(pb.WatchEventsRequest())
call.initial_metadata()
print("ready", flush=True)
for response in call:
    if response.event.WhichOneof("payload") == "alert":
        alert = response.event.alert
        print(json.dumps([alert.request.request_id, alert.rule, alert.probe, alert.position]), flush=True)
        break
"""
    )
    client = subprocess.Popen(
        [sys.executable, "client.py", server.grpc_address], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    request_id, _ = server.chat("Name three rivers in Europe.", 8)
    heard, rule, probe, position = json.loads(client.communicate(timeout=30)[0])
    assert heard == request_id
    assert (rule, probe) == ("always", "random-5-0")
    assert position >= 0


def test_a_policy_that_enforces_steers_the_request(server):
    with Listener(server.grpc_address) as listener:
        request_id, _ = server.chat("What do bees eat?", 16)
        finished = listener.finished(request_id, 10)
        assert finished is not None
        interventions = [
            recorded.event
            for recorded in listener.events
            if isinstance(recorded.event, Intervention) and recorded.event.request.request_id == request_id
        ]
    assert [(event.vector, event.sent) for event in interventions] == [("random-0", True)]
    assert finished.steered > 0
    assert len(finished.readings) == 6


def test_metrics_have_help_and_satisfy_promtool(server):
    server.chat("Hello there.", 4)
    page = server.scrape()
    families = [line.split()[2] for line in page.splitlines() if line.startswith("# HELP plumbob_")]
    assert "plumbob_tokens_scored_total" in families
    assert server.sample("plumbob_alerts_total") > 0
    assert server.sample("plumbob_frame_lag_seconds") < 1.0
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; the page itself was checked")
    check = subprocess.run([promtool, "check", "metrics"], input=page.encode(), capture_output=True)
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")


def test_a_killed_monitor_costs_no_request_and_its_successor_takes_them_over(server):
    requests, tokens = 4, 250
    done: list[tuple[str, int]] = []

    def talk(index: int) -> None:
        done.append(server.chat(f"Tell me a long story about the number {index}.", tokens))

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(requests)]
    for thread in threads:
        thread.start()
    active = server.sample("plumbob_requests_active")
    wait_until(lambda: server.sample("plumbob_requests_active") == requests, 30)
    time.sleep(0.5)
    assert active <= requests
    killed = server.monitor_pid()
    os.kill(killed, signal.SIGKILL)
    for thread in threads:
        thread.join(120)
    # Every request went on to its last token.
    assert len(done) == requests
    assert all(pieces > tokens // 2 for _, pieces in done)
    assert server.monitor_pid() != killed
    # The successor was sent what its predecessor had read, and all that was computed between the two.
    with Listener(server.grpc_address) as listener:
        finished = [listener.finished(request_id, 10) for request_id, _ in done]
    assert all(verdict is not None and verdict.unscored == 0 for verdict in finished)
    assert all(verdict.tokens + verdict.steered > tokens for verdict in finished)
    assert server.sample("plumbob_engine_frames_dropped_total") > 0


def test_a_client_needs_the_key_that_no_process_list_shows(server):
    with pytest.raises(openai.AuthenticationError):
        server.client.copy(api_key="another").models.list()
    assert server.client.models.list().data[0].id == "demo"
    for pid in (server.process.pid, *descendants(server.process.pid)):
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert KEY.encode() not in Path(f"/proc/{server.monitor_pid()}/environ").read_bytes()


@pytest.mark.long
def test_an_engine_that_does_not_start_is_told_by_its_own_reason(server, tmp_path):
    """It is asked for more memory than there is."""
    bundle_path = server.log.parent / "bundle"
    command = [sys.executable, "-m", "monitor.cli", "serve", "demo", "--bundle", str(bundle_path), "--eager"]
    command += ["--endpoint", f"ipc://{tmp_path}/engine.sock", "--audit", "none", "--state", "none"]
    command += ["--gpu-memory-utilization", "1.0"]
    ports = zip(("--port", "--metrics-port", "--grpc-port"), (free_port() for _ in range(3)), strict=True)
    command += [str(part) for pair in ports for part in pair]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=unlimited())
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2
    assert last.startswith("error: vLLM did not start: ValueError: Available memory on node "), last
    assert "--gpu-memory-utilization" in last and "output" not in last


def test_ctrl_c_stops_everything(server):
    group = {server.process.pid, *descendants(server.process.pid)}
    assert len(group) >= 3
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 130
    assert not [pid for pid in group if alive(pid)]
    for port in (server.port, server.metrics_port, server.grpc_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert "Traceback" not in server.log.read_text().split("plumbob stopped")[-1]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
