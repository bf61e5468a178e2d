"""Scores that are no numbers, through a monitor's own process: unscored, counted, and told."""

import tempfile
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from monitor.v1.monitor_service_pb2 import WatchEventsRequest
from monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from monitor.wire.frames import Started
from probes.scoring.roles import Role
from tests.harness.bundles import make_bundle
from tests.harness.command_line import MonitorProcess
from tests.harness.fake_engine import FakeEngine
from tests.harness.ports import free_port

SECONDS = 30.0
INF = float("inf")


def rows(slot, positions, role=Role.USER):
    return [(slot, position, int(role), 0) for position in positions]


@pytest.fixture
def house(tmp_path):
    """A monitor's process, an engine that is connected to it, and the ports of its metrics and of its API."""
    bundle = make_bundle(tmp_path / "bundle")
    metrics, api = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="plumbob") as runtime:
        endpoint = f"ipc://{Path(runtime) / 'engine.sock'}"
        options = ["--bundle", bundle.path, "--endpoint", endpoint, "--audit", "none"]
        monitor = MonitorProcess(*options, "--metrics-port", metrics, "--grpc-port", api)
        try:
            with FakeEngine(bundle, endpoint) as engine:
                engine.hello()
                until(lambda: [event for event in monitor.events if event["type"] == "engine_changed"])
                yield monitor, engine, metrics, api
        finally:
            monitor.running.kill()


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def finished(api, count):
    """The final verdicts of so many requests, by id."""
    found = {}
    with grpc.insecure_channel(f"127.0.0.1:{api}") as channel:
        for response in MonitorServiceStub(channel).WatchEvents(WatchEventsRequest(after_sequence=0), timeout=SECONDS):
            if response.event.HasField("request_finished"):
                ended = response.event.request_finished
                found[ended.request.request_id] = ended
            if len(found) == count:
                break
    return found


def samples(metrics):
    text = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics").read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("plumbob_")]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_what_cannot_be_read_is_not_passed_off_as_read(house, bad):
    monitor, engine, metrics, api = house
    engine.request(0, "chatcmpl-bad", "k0", score=bad)
    # Of the second, one probe is broken for two tokens, and reads on.
    scores = [[0.25, 0.25, 0.25], [bad, 0.25, 0.25], [bad, 0.25, 0.25], [50.0, 0.25, 0.25]]
    engine.frame([Started(1, "k1", "chatcmpl-half", 4)], rows=rows(1, range(4)), score=scores)
    engine.frame(finished=[0, 1])
    ended = finished(api, 2)

    whole, half = ended["chatcmpl-bad"], ended["chatcmpl-half"]
    assert (whole.tokens, whole.unscored) == (0, 4)
    assert {one.probe: (one.tokens, one.unscored) for one in whole.readings} == {
        "harmful_intent": (0, 4),
        "toxicity": (0, 4),
        # It does not read the user.
        "sycophancy": (0, 0),
    }
    assert not any(one.HasField("peak") for one in whole.readings)
    assert (half.tokens, half.unscored) == (2, 2)
    harm = next(one for one in half.readings if one.probe == "harmful_intent")
    assert (harm.tokens, harm.unscored, harm.fired_at) == (2, 2, 3), "the average is not frozen"

    told = until(lambda: [e for e in monitor.events if e["type"] == "engine_changed" and "no finite" in e["detail"]])
    assert [event["state"] for event in told] == ["connected"]
    assert told[0]["detail"].endswith("; these tokens are unscored") and "harmful_intent" in told[0]["detail"]
    found = samples(metrics)
    assert found['plumbob_tokens_scored_total{model_name="tiny"}'] == 2
    assert found['plumbob_tokens_unscored_total{model_name="tiny"}'] == 6
    assert found['plumbob_scores_invalid_total{model_name="tiny",probe="harmful_intent"}'] == 6
    assert found['plumbob_scores_invalid_total{model_name="tiny",probe="toxicity"}'] == 4
    assert 'plumbob_scores_invalid_total{model_name="tiny",probe="sycophancy"}' not in found or (
        found['plumbob_scores_invalid_total{model_name="tiny",probe="sycophancy"}'] == 0
    )
