"""The monitor as Prometheus families.

Nothing is counted here: :class:`MonitorCollector` reads the monitor's own counters when it is scraped, so
that a frame costs no metric objects and no locks. States of engines are counted a model; GetStatus names
engines one by one (:mod:`monitor.telemetry.families` says why).

Series whose labels are known beforehand are there from the first scrape on, with 0: ``increase()`` does not
see the first event of a series that begins with it. Before the first engine has said which model it serves, they are
there with an empty ``model_name``: a rule sees that nothing is connected without ``absent()``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, product
from typing import Any, Final, get_args

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from monitor import __version__
from monitor.events import EventLog
from monitor.telemetry.families import COUNTERS, MODEL, Family
from monitor.telemetry.stats import MARGIN_EDGES, SCORING, EngineState, MarginHistogram, Stats, Status
from probes.bundle import Bundle

PREFIX: Final = "plumbob_"

Expected = dict[str, list[tuple[Any, ...]]]
"""Labels of counters without the model, which is the first of them, by the counter's name without prefix."""


class MonitorCollector(Collector):
    """Reads the monitor when it is scraped; register it with a registry.

    Scrapes come from another thread than the monitor's event loop: see :class:`Stats` for what that means.

    Args:
        stats: The monitor's counters.
        status: Takes a snapshot of the monitor; called on the scraping thread.
        events: The monitor's log.
        bundle: What the monitor reads with.
        expected: Series that rules will count in; called on the scraping thread.
    """

    def __init__(
        self,
        stats: Stats,
        status: Callable[[], Status],
        events: EventLog,
        bundle: Bundle,
        expected: Callable[[], Expected] = dict,
    ) -> None:
        self._expected = expected
        self._stats = stats
        self._status = status
        self._events = events
        self._bundle = bundle

    def collect(self) -> Iterator[Metric]:
        """All families, each complete."""
        status = self._status()
        margins = list(self._stats.margins.items())
        # "" is what engines are called until they have said who they are.
        known = {engine.model for engine in status.engines} | {model for model, _ in margins} | set(self._stats.models)
        models = sorted(known - {""}) or [""]
        expected = self._expected()
        for family in COUNTERS:
            yield _counter(family, self._stats, models, expected.get(family.name, ()))
        yield _margins(margins)
        yield from self._of_watching()
        yield from _of_engines(status, models)
        yield GaugeMetricFamily(
            f"{PREFIX}workers", "Probe workers that there are to be; 0: no probe needs one.", value=status.workers
        )
        yield GaugeMetricFamily(
            f"{PREFIX}workers_running", "Probe workers that take work now.", value=status.workers_running
        )
        yield from self._of_configuration(status)

    def _of_watching(self) -> Iterator[Metric]:
        yield CounterMetricFamily(f"{PREFIX}events", "Events recorded in the log.", value=self._events.last_sequence)
        yield CounterMetricFamily(
            f"{PREFIX}watch_events_dropped",
            "Events that a watcher was too slow for.",
            value=self._stats.events_dropped,
        )
        yield GaugeMetricFamily(f"{PREFIX}watchers", "Watchers of the event log.", value=self._events.subscribers)

    def _of_configuration(self, status: Status) -> Iterator[Metric]:
        probes = self._bundle.all_probes
        yield _gauge(
            "probe_info",
            "A probe of the bundle and the decoder layer that it reads.",
            ("probe", "layer"),
            (((probe.name, str(probe.layer)), 1) for probe in probes),
        )
        yield _gauge(
            "probe_threshold_logits",
            "Running aggregate at which the probe fires.",
            ("probe",),
            (((probe.name,), probe.threshold) for probe in probes),
        )
        yield _gauge(
            "probe_false_positive_target_ratio",
            "Share of benign requests that the threshold was set to fire on.",
            ("probe",),
            (((probe.name,), probe.calibration.false_positive_rate) for probe in probes),
        )
        yield InfoMetricFamily(f"{PREFIX}build", "Version of plumbob.", {"version": __version__})
        yield InfoMetricFamily(f"{PREFIX}bundle", "The bundle read with.", {"digest": status.bundle_digest})
        yield InfoMetricFamily(f"{PREFIX}policy", "The policy in force.", {"digest": status.policy_digest})
        yield GaugeMetricFamily(
            f"{PREFIX}start_time_seconds",
            "When the monitor started, in Unix time.",
            value=status.started.timestamp(),
        )


def _counter(
    family: Family, stats: Stats, models: list[str], expected: Iterable[tuple[Any, ...]]
) -> CounterMetricFamily:
    metric = CounterMetricFamily(f"{PREFIX}{family.name}", family.help, labels=family.labels)
    reasons = list(family.reasons)
    known = {"model_name": models, "probe": list(family.probes(stats))}
    known |= dict.fromkeys(("reason", "decision", "what"), reasons)
    counts: dict[tuple[Any, ...], int] = {}
    if all(known.get(label) for label in family.labels):
        counts = dict.fromkeys(product(*(known[label] for label in family.labels)), 0)
    counts.update(((model, *labels), 0) for model in models for labels in expected)
    counts.update(list(family.counter(stats).items()))
    for labels, count in counts.items():
        metric.add_metric([_label(value) for value in labels], count)
    return metric


def _margins(margins: list[tuple[str, MarginHistogram]]) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(
        f"{PREFIX}request_margin_logits",
        "Peak of a finished request above the threshold of a probe; 0 or more has fired.",
        labels=("model_name", "probe"),
    )
    edges = [*map(str, MARGIN_EDGES), "+Inf"]
    for model, histogram in margins:
        for probe, counts in zip(histogram.probes, histogram.counts.tolist(), strict=True):
            # No sum: with negative buckets it may fall, and rate() would take that for a restart.
            metric.add_metric((model, probe), list(zip(edges, accumulate(counts), strict=True)), None)
    return metric


def _of_engines(status: Status, models: list[str]) -> Iterator[Metric]:
    states = Counter(dict.fromkeys(product(models, get_args(EngineState)), 0))
    active = Counter(dict.fromkeys(models, 0))
    lag: dict[str, float] = {}
    drift: dict[str, float] = {}
    for engine in status.engines:
        states[engine.model, engine.state] += 1
        active[engine.model] += engine.requests_active
        if engine.state not in SCORING:
            continue
        if engine.lag_seconds is not None:
            lag[engine.model] = max(lag.get(engine.model, 0.0), engine.lag_seconds)
        if engine.drift is not None:
            drift[engine.model] = max(drift.get(engine.model, 0.0), engine.drift)
    yield _gauge("engines", "Engines that the monitor knows.", ("model_name", "state"), states.items())
    yield GaugeMetricFamily(
        f"{PREFIX}engine_scoring",
        "1: at least one engine is connected and its frames are read; 0: nothing is scored.",
        value=float(status.scoring),
    )
    yield _gauge(
        "requests_active",
        "Requests in flight that the monitor follows.",
        MODEL,
        (((model,), count) for model, count in active.items()),
    )
    yield _gauge(
        "frame_lag_seconds",
        "From a step computed to its frame read, of the latest frame; of the slowest connected engine.",
        MODEL,
        (((model,), seconds) for model, seconds in lag.items()),
    )
    yield _gauge(
        "self_test_drift_ratio",
        "Largest difference between a probe's scores in the engine and at fit, in units of their own spread.",
        MODEL,
        (((model,), largest) for model, largest in drift.items()),
    )


def _gauge(
    name: str, documentation: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    metric = GaugeMetricFamily(f"{PREFIX}{name}", documentation, labels=labels)
    for values, value in samples:
        metric.add_metric(values, value)
    return metric


def _label(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
