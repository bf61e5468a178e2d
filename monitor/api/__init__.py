"""The gRPC API.

``convert``   events, probes and status as protobuf messages
``service``   the calls of ``monitor.v1.MonitorService``
``control``   the calls of ``monitor.v1.ControlService``: operators' orders
``server``    both with health and reflection, on one port
``client``    a watcher that does not lose its place

It reads; only ``control`` changes what an engine does, and it is not there unless the operator allowed it.
"""

from monitor.api.server import ApiServer

__all__ = ["ApiServer"]
