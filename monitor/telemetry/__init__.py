"""Telemetry: what the monitor counts, and how Prometheus reads it.

``stats``      the counters, and snapshots of the monitor
``families``   their names, labels and help
``collector``  the monitor as Prometheus families
``http``       those, over HTTP
"""

from monitor.telemetry.collector import MonitorCollector
from monitor.telemetry.http import MetricsExporter

__all__ = ["MetricsExporter", "MonitorCollector"]
