"""What the monitor serves: gRPC for its events and state, Prometheus for its metrics.

========  =====================================================================
convert   events, probes and status as protobuf messages
service   the calls of ``monitor.v1.MonitorService``
control   the calls of ``monitor.v1.ControlService``: operators' orders
server    that service with health and reflection, on one port
metrics   the monitor as Prometheus families
families  its counters: names, labels and help
exporter  those metrics, over HTTP
client    a watcher that does not lose its place
address   addresses to listen on, and what to say of one that cannot be had
========  =====================================================================

It reads; only ``control`` changes what an engine does, and it is not there unless the operator allowed it.
"""

from monitor.api.exporter import MetricsExporter
from monitor.api.metrics import MonitorCollector
from monitor.api.server import ApiServer

__all__ = ["ApiServer", "MetricsExporter", "MonitorCollector"]
