"""``plumbob monitor`` itself, with nobody to read: it looks like that, everywhere that anybody looks."""

import shutil
import subprocess
from typing import get_args

import pytest
import zmq
from grpc_health.v1 import health_pb2

from monitor.api.server import READY, SERVICE
from monitor.cli import doctor
from monitor.telemetry.stats import EngineState
from monitor.wire.codec import encode_frame
from tests.harness.frames import make_frame
from tests.harness.watched import SERVING, until, watched

pytestmark = pytest.mark.timeout(120)

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
QUICK = ("hello_seconds: 1.0, silence_seconds: 1.0, forget_seconds: 2.0", "--state", "none", "--audit", "none")


def test_a_monitor_without_an_engine_says_so_everywhere(tmp_path, monkeypatch, capsys):
    with watched(tmp_path, *QUICK) as monitor:
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
    with watched(tmp_path, *QUICK) as monitor, zmq.Context() as context:
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
    with watched(tmp_path, *QUICK) as monitor, zmq.Context() as context:
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
