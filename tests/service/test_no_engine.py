"""``plumbob monitor`` itself, with nobody to read: it looks like that, everywhere that anybody looks."""

import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import grpc
import pytest
import zmq
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from monitor.api.server import READY, SERVICE
from monitor.cli import doctor
from monitor.telemetry.stats import EngineState
from monitor.wire.codec import encode_frame, encode_hello
from monitor.wire.frames import VERSION, Hello
from tests.harness.bundles import make_bundle
from tests.harness.command_line import MonitorProcess
from tests.harness.frames import make_frame
from tests.harness.ports import free_port

pytestmark = pytest.mark.timeout(120)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Watched:
    """A monitor's process, as those look at it who run it."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.bundle = make_bundle(folder / "bundle")
        self.endpoint = f"ipc://{runtime / 'engine.sock'}"
        self.http, self.grpc = free_port(), free_port()
        config = folder / "plumbob.yaml"
        config.write_text("monitor: {limits: {hello_seconds: 1.0, silence_seconds: 1.0, forget_seconds: 2.0}}\n")
        options = ["--config", config, "--bundle", self.bundle.path, "--endpoint", self.endpoint]
        options += ["--state", "none", "--audit", "none", "--metrics-port", self.http, "--grpc-port", self.grpc]
        self.process = MonitorProcess(*options)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self, service: str) -> int:
        return health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(service=service)).status

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if sample.name == name
        }

    def said(self, text: str) -> bool:
        return any(text in line for line in list(self.process._lines))

    def hello(self, context: zmq.Context, digest: str | None = None) -> zmq.Socket:
        """An engine of this bundle introduces itself."""
        core = context.socket(zmq.DEALER)
        core.setsockopt(zmq.IDENTITY, b"engine/core")
        core.connect(self.endpoint)
        core.send_multipart(encode_hello(Hello(VERSION, "engine", "tiny", digest or self.bundle.digest, "0.32.0")))
        return core


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError, grpc.RpcError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def watched(folder: Path):
    # A socket file's path has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as runtime:
        monitor = Watched(folder, Path(runtime))
        try:
            until(lambda: monitor.health("") == SERVING)
            yield monitor
        finally:
            monitor.channel.close()
            monitor.process.running.kill()


def test_a_monitor_without_an_engine_says_so_everywhere(tmp_path, monkeypatch, capsys):
    with watched(tmp_path) as monitor:
        assert monitor.health(SERVICE) == SERVING and monitor.health(READY) == NOT_SERVING
        assert monitor.get("/healthz") == (200, "ok\n")
        assert monitor.get("/readyz") == (503, "no engine is connected\n")
        # A rule needs no absent(): what it asks for is there, and is zero.
        assert monitor.samples("plumbob_engine_scoring") == {(): 0}
        engines = monitor.samples("plumbob_engines")
        assert {state for _, state in engines} == set(get_args(EngineState)) and set(engines.values()) == {0}
        for counter in ("frames_received", "frames_lost", "engine_frames_dropped", "tokens_unscored", "resyncs"):
            assert monitor.samples(f"plumbob_{counter}_total") == {("",): 0}
        alerts = monitor.samples("plumbob_alerts_total")
        assert alerts == dict.fromkeys(
            [("alert", "", f"default-{probe}", "warning") for probe in ("harmful_intent", "toxicity", "sycophancy")], 0
        )
        assert set(monitor.samples("plumbob_sink_errors_total")) >= {("LogSink",)}
        assert set(monitor.samples("plumbob_sink_stalls_total")) == {("store",)}

        metrics = monitor.get("/metrics")[1]
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not installed")
        check = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, text=True)
        assert (check.returncode, check.stdout, check.stderr) == (0, "", "")

        monkeypatch.setattr(doctor, "GRPC_PORT", monitor.grpc)
        found = {finding.what: finding for finding in doctor.examine()}["monitor"]
        assert (found.state, found.found) == ("missing", "No engine has connected to this monitor.")
        until(lambda: monitor.said("WARNING plumbob no engine has connected for"))
        assert monitor.said(f"listens at {monitor.endpoint}")


def test_an_engine_is_scored_from_its_hello_on_until_it_is_lost_and_its_series_stay(tmp_path):
    with watched(tmp_path) as monitor, zmq.Context() as context:
        core = monitor.hello(context)
        until(lambda: monitor.get("/readyz") == (200, "ok\n"))
        until(lambda: monitor.health(READY) == SERVING)
        assert monitor.samples("plumbob_engines")["tiny", "connected"] == 1
        assert monitor.samples("plumbob_engine_scoring") == {(): 1}
        core.close(linger=0)
        until(lambda: monitor.get("/readyz") == (503, "no engine is scored: 1 lost\n"))
        until(lambda: monitor.health(READY) == NOT_SERVING)
        # Forgotten, it is still missing.
        until(lambda: monitor.get("/readyz") == (503, "no engine is connected\n"))
        assert monitor.samples("plumbob_engines")["tiny", "connected"] == 0
        assert monitor.samples("plumbob_frames_received_total") == {("tiny",): 0}


def test_an_engine_that_is_refused_or_whose_frames_are_skipped_is_not_scored(tmp_path):
    with watched(tmp_path) as monitor, zmq.Context() as context:
        refused = monitor.hello(context, "another")
        until(lambda: monitor.get("/readyz") == (503, "no engine is scored: 1 refused\n"))
        refused.close(linger=0)
        core = monitor.hello(context)
        rank = context.socket(zmq.DEALER)
        rank.setsockopt(zmq.IDENTITY, b"engine/rank0")
        rank.connect(monitor.endpoint)
        until(lambda: monitor.get("/readyz")[0] == 200)
        wrong = make_frame(0, [(0, 0, 2, 0)], probes=1)
        rank.send_multipart(encode_frame(wrong.header, wrong.rows, wrong.scores))
        until(lambda: monitor.get("/readyz") == (503, "no engine is scored: 1 unread\n"), 5.0)
        core.close(linger=0)
        rank.close(linger=0)
