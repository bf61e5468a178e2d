"""Probe workers, as Prometheus and GetStatus show them."""

import asyncio

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from monitor.api.convert import status_message
from monitor.api.service import MonitorService
from monitor.telemetry import MonitorCollector
from monitor.v1.monitor_service_pb2 import ListProbesRequest
from probes.scoring.roles import Role
from tests.harness.bundles import HIDDEN
from tests.workers.conftest import LAYERS, LINEAR, WORKER_PROBES, rows_of

NAMES = [name for name, *_ in WORKER_PROBES]


@pytest.fixture
def sample(house):
    registry = CollectorRegistry()
    monitor = house.monitor
    registry.register(MonitorCollector(monitor.stats, monitor.status, monitor.events, monitor.bundle))
    return lambda name, **labels: registry.get_sample_value(f"plumbob_{name}", labels)


def test_series_are_there_before_anything_happens_and_count_what_does(house, sample):
    engine = house.engine()
    labels = {"model_name": "tiny", "probe": "concealment"}
    assert sample("worker_tokens_scored_total", **labels) == 0
    assert sample("worker_tokens_unscored_total", **labels, reason="overtaken") == 0
    assert sample("probe_fired_total", **labels) == 0
    assert sample("worker_tokens_scored_total", model_name="tiny", probe=LINEAR[0]) is None, "the engine reads it"
    assert sample("worker_restarts_total", reason="stuck") == 0
    engine.start()
    engine.frame(rows_of(0, range(3), Role.USER), np.ones((len(LAYERS), 3, HIDDEN), np.float32))
    engine.frame(rows_of(0, [3], Role.USER))
    house.settle()
    assert sample("worker_tokens_scored_total", **labels) == 3
    assert sample("worker_tokens_unscored_total", **labels, reason="no_states") == 1
    assert (sample("workers"), sample("workers_running")) == (2, 2)
    message = status_message(house.monitor.status())
    assert (message.workers, message.workers_running, message.engines[0].worker_unscored) == (2, 2, 1)


def test_worker_probes_are_listed_with_the_others(house, sample):
    monitor = house.monitor
    service = MonitorService(monitor.events, monitor.status, monitor.bundle, max_watchers=1)
    listed = asyncio.run(service.ListProbes(ListProbesRequest(), None))
    assert [probe.name for probe in listed.probes] == [*LINEAR, *NAMES]
    assert sample("probe_info", probe="sandbagging", layer="3") == 1
