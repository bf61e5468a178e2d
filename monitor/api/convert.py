"""Values of the monitor as messages of ``proto/monitor/v1``, and events back.

The fields are seen to by :mod:`monitor.api.mirror`; here is what differs in form.
"""

from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final, cast

import msgspec

from monitor import events
from monitor.api.mirror import message_class, timestamp, to_fields, to_message
from monitor.telemetry import stats
from monitor.traces import Point, Trace
from monitor.v1 import event_pb2, probe_pb2, status_pb2, trace_pb2
from probes import bundle

_PAYLOADS: Final[dict[str, Any]] = {
    field.name: field.message_type for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields
}

KINDS: Final = {
    name: cast("event_pb2.EventKind", event_pb2.EventKind.Value(f"EVENT_KIND_{name.upper()}")) for name in _PAYLOADS
}
"""The filter of a watcher, by the name of the type of event."""


def event_message(recorded: events.Recorded) -> event_pb2.Event:
    """An event with its place in the log."""
    name = events.type_name(recorded.event)
    payload: Any = to_message(message_class(_PAYLOADS[name]), recorded.event)
    return event_pb2.Event(sequence=recorded.sequence, time=timestamp(recorded.time), **{name: payload})


def event_of(message: event_pb2.Event) -> events.Recorded | None:
    """The event that a message tells; ``None`` where its monitor is newer, and tells of what is not known here."""
    if (name := message.WhichOneof("payload")) is None:
        return None
    fields = {"type": name, **to_fields(getattr(message, name))}
    try:
        event: events.Event = msgspec.convert(fields, cast("Any", events.Event))
    except msgspec.ValidationError:
        return None
    return events.Recorded(message.sequence, message.time.ToDatetime(UTC), event)


def kind_of(event: events.Event) -> event_pb2.EventKind:
    """The kind that a watcher filters by."""
    return KINDS[events.type_name(event)]


def probe_message(probe: bundle.Probe) -> probe_pb2.Probe:
    """A probe with the evidence for its threshold."""
    low, high = probe.calibration.interval
    calibration = to_message(probe_pb2.Calibration, probe.calibration, interval_low=low, interval_high=high)
    return to_message(probe_pb2.Probe, probe, calibration=calibration)


def vector_message(vector: bundle.Vector) -> probe_pb2.Vector:
    """A steering vector, without its direction."""
    return to_message(probe_pb2.Vector, vector)


def trace_message(trace: Trace, probes: Sequence[str], *, whole: bool) -> trace_pb2.Trace:
    """A trace; ``whole`` with its points and events."""
    return to_message(
        trace_pb2.Trace,
        trace,
        probes=probes,
        points=[_point(point) for point in trace.points] if whole else [],
        events=[event_message(recorded) for recorded in trace.events] if whole else [],
    )


def status_message(status: stats.Status) -> status_pb2.Status:
    """A snapshot of the monitor."""
    return to_message(status_pb2.Status, status)


def _point(point: Point) -> trace_pb2.TracePoint:
    averages = [trace_pb2.TraceAverage(logits=average) for average in point.averages]
    return to_message(trace_pb2.TracePoint, point, averages=averages)
