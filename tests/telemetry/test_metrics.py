"""The metrics, as Prometheus reads them."""

import shutil
import subprocess
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitor.errors import PortError
from monitor.events import Reading
from monitor.telemetry import MetricsExporter, MonitorCollector
from monitor.telemetry.families import COUNTERS
from monitor.telemetry.stats import MARGIN_EDGES, EngineStatus

LABELS = {
    *(
        "model_name",
        "probe",
        "rule",
        "vector",
        "severity",
        "mode",
        "reason",
        "sent",
        "sink",
        "state",
        "layer",
        "by",
        "order",
        "result",
        "decision",
        "what",
        "role",
    ),
    *("version", "digest", "le"),
}


@pytest.fixture
def registry(monitor):
    registry = CollectorRegistry()
    registry.register(MonitorCollector(monitor.stats, monitor.status, monitor.events, monitor.bundle))
    return registry


def engine(name, state, *, model="tiny", lag=None, active=0, drift=None):
    return EngineStatus(name, model, "0.32.0", state, 10, 2, 1, active, 0.5, lag, drift)


def fill(monitor):
    """Something of everything."""
    stats = monitor.stats
    for family in COUNTERS:
        known = {"probe": "toxicity", "sent": True}
        family.counter(stats)[tuple(known.get(label, f"a-{label}") for label in family.labels)] = 3
    stats.observe_margins("tiny", [Reading(name, 9, 1.25, 1.0, None) for name in stats.probes])
    monitor.engines = [engine("one", "connected", lag=0.002, active=4, drift=0.01), engine("two", "lost")]
    monitor.publish_alert()


def test_promtool_finds_nothing_to_complain_about(monitor, registry):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    fill(monitor)
    check = subprocess.run([promtool, "check", "metrics"], input=generate_latest(registry), capture_output=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_every_family_has_the_prefix_help_and_known_labels(monitor, registry):
    fill(monitor)
    families = list(registry.collect())
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.name.startswith("plumbob_")
        assert family.documentation
        assert family.samples, family.name
        for sample in family.samples:
            assert set(sample.labels) <= LABELS


def test_every_counter_is_a_family():
    """A counter that is added to Stats must be shown."""
    from monitor.telemetry.stats import Stats

    stats = Stats(["probe"])
    counters = {name for name, value in vars(stats).items() if type(value).__name__ == "Counter"}
    shown = {name for name in counters for family in COUNTERS if family.counter(stats) is getattr(stats, name)}
    assert shown == counters


def test_values_come_from_the_counters_at_every_scrape(monitor, registry):
    name, labels = "plumbob_probe_fired_total", {"model_name": "tiny", "probe": "toxicity"}
    assert registry.get_sample_value(name, labels) is None
    # A model that serves has its series before anything happened.
    monitor.engines = [engine("one", "connected")]
    assert registry.get_sample_value(name, labels) == 0
    monitor.stats.probe_fired["tiny", "toxicity"] += 1
    assert registry.get_sample_value(name, labels) == 1
    monitor.stats.interventions["tiny", "rule", "harm", "enforce", False] += 2
    assert registry.get_sample_value(
        "plumbob_interventions_total",
        {"model_name": "tiny", "rule": "rule", "vector": "harm", "mode": "enforce", "sent": "false"},
    ) == 2  # fmt: skip


def test_margins_are_a_cumulative_histogram(monitor, registry):
    for peak in (0.5, 1.0, 1.5, 100.0):
        monitor.stats.observe_margins("tiny", [Reading(n, 9, peak, 1.0, None) for n in monitor.stats.probes])
    monitor.stats.observe_margins("tiny", [Reading(n, 1, None, 1.0, None) for n in monitor.stats.probes])

    def bucket(edge):
        labels = {"model_name": "tiny", "probe": "toxicity", "le": edge}
        return registry.get_sample_value("plumbob_request_margin_logits_bucket", labels)

    assert [bucket(str(edge)) for edge in (-1.0, -0.5, 0.0, 0.5, 8.0)] == [0, 1, 2, 3, 3]
    assert bucket("+Inf") == 4
    assert 0.0 in MARGIN_EDGES, "firing must be a bucket's edge"


def test_engines_are_counted_and_never_named(monitor, registry):
    monitor.engines = [
        engine("one", "connected", lag=0.002, active=3),
        engine("two", "connected", lag=0.5, active=4),
        engine("three", "lost", lag=9.0),
        engine("four", "pending", model=""),
    ]

    def sample(name, **labels):
        return registry.get_sample_value(f"plumbob_{name}", labels)

    assert sample("engines", model_name="tiny", state="connected") == 2
    assert sample("engines", model_name="tiny", state="refused") == 0
    assert sample("engines", model_name="", state="pending") == 1
    assert sample("requests_active", model_name="tiny") == 7
    # An engine that is gone does not lag.
    assert sample("frame_lag_seconds", model_name="tiny") == 0.5
    assert b"three" not in generate_latest(registry)


def test_an_engine_in_shadow_is_one_that_serves(monitor, registry):
    monitor.engines = [
        engine("one", "shadow", lag=0.5, drift=0.75),
        engine("two", "connected", lag=0.002, drift=0.02),
        engine("three", "lost", lag=9.0, drift=3.0),
        engine("four", "shadow", model="untested"),
    ]

    def sample(name, model="tiny", **labels):
        return registry.get_sample_value(f"plumbob_{name}", {"model_name": model, **labels})

    assert sample("engines", state="shadow") == sample("engines", state="connected") == 1
    assert sample("frame_lag_seconds") == 0.5
    assert sample("self_test_drift_ratio") == 0.75, "the largest of those that serve"
    assert sample("self_test_drift_ratio", "untested") is None


def test_configuration(monitor, registry):
    assert registry.get_sample_value("plumbob_bundle_info", {"digest": monitor.bundle.digest}) == 1
    assert registry.get_sample_value("plumbob_probe_info", {"probe": "toxicity", "layer": "1"}) == 1
    assert registry.get_sample_value("plumbob_probe_threshold_logits", {"probe": "toxicity"}) == 1.0
    assert registry.get_sample_value("plumbob_probe_false_positive_target_ratio", {"probe": "toxicity"}) == 0.01


def test_watchers(monitor, registry):
    subscription = monitor.events.subscribe()
    assert registry.get_sample_value("plumbob_watchers") == 1
    for _ in range(65):
        monitor.publish_loss()
    assert registry.get_sample_value("plumbob_watch_events_dropped_total") == 1
    assert registry.get_sample_value("plumbob_events_total") == 65
    monitor.events.unsubscribe(subscription)


def test_exporter_serves_and_frees_its_port(monitor, registry):
    exporter = MetricsExporter(registry, lambda: monitor.status().unready)
    port = int(exporter.address.rpartition(":")[2])
    with pytest.raises(PortError, match=rf"127\.0\.0\.1:{port}: Address already in use\. .*another port"):
        MetricsExporter(registry, lambda: "", port=port)
    with urllib.request.urlopen(f"http://{exporter.address}/metrics") as response:
        names = {family.name for family in text_string_to_metric_families(response.read().decode())}
    assert {"plumbob_build_info", "plumbob_events"} <= names
    exporter.close()
    MetricsExporter(registry, lambda: "", port=port).close()
