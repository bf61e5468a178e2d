"""From the monitor's values to the messages of ``proto/monitor/v1``, field by field.

Both sides name everything alike, so there is nothing to decide here but what a ``None`` and a ``Literal``
become: an absent optional field, and the enum value of that name.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from monitor import events
from monitor.telemetry import stats
from monitor.traces import Point, Trace
from monitor.v1 import event_pb2, probe_pb2, status_pb2, trace_pb2
from probes import bundle

_MODES: dict[events.Mode, event_pb2.Mode] = {
    "shadow": event_pb2.MODE_SHADOW,
    "alert": event_pb2.MODE_ALERT,
    "enforce": event_pb2.MODE_ENFORCE,
}

_SEVERITIES: dict[events.Severity, event_pb2.Severity] = {
    "info": event_pb2.SEVERITY_INFO,
    "warning": event_pb2.SEVERITY_WARNING,
    "critical": event_pb2.SEVERITY_CRITICAL,
}

_OPERATIONS: dict[events.Operation, event_pb2.Operation] = {
    "add": event_pb2.OPERATION_ADD,
    "ablate": event_pb2.OPERATION_ABLATE,
    "clamp": event_pb2.OPERATION_CLAMP,
    "stop": event_pb2.OPERATION_STOP,
}

_ORDER_KINDS: dict[events.OrderKind, event_pb2.OrderKind] = {
    "steer": event_pb2.ORDER_KIND_STEER,
    "release": event_pb2.ORDER_KIND_RELEASE,
    "stop": event_pb2.ORDER_KIND_STOP,
    "stream": event_pb2.ORDER_KIND_STREAM,
    "arm": event_pb2.ORDER_KIND_ARM,
    "disarm": event_pb2.ORDER_KIND_DISARM,
    "admission": event_pb2.ORDER_KIND_ADMISSION,
}

_ORDER_RESULTS: dict[events.OrderResult, event_pb2.OrderResult] = {
    "sent": event_pb2.ORDER_RESULT_SENT,
    "refused": event_pb2.ORDER_RESULT_REFUSED,
    "expired": event_pb2.ORDER_RESULT_EXPIRED,
}


_STATES: dict[stats.EngineState, event_pb2.EngineState] = {
    "pending": event_pb2.ENGINE_STATE_PENDING,
    "connected": event_pb2.ENGINE_STATE_CONNECTED,
    "lost": event_pb2.ENGINE_STATE_LOST,
    "refused": event_pb2.ENGINE_STATE_REFUSED,
    "shadow": event_pb2.ENGINE_STATE_SHADOW,
}

_KINDS: dict[type, event_pb2.EventKind] = {
    events.ProbeFired: event_pb2.EVENT_KIND_PROBE_FIRED,
    events.Alert: event_pb2.EVENT_KIND_ALERT,
    events.Intervention: event_pb2.EVENT_KIND_INTERVENTION,
    events.RequestFinished: event_pb2.EVENT_KIND_REQUEST_FINISHED,
    events.EngineChanged: event_pb2.EVENT_KIND_ENGINE_CHANGED,
    events.FramesLost: event_pb2.EVENT_KIND_FRAMES_LOST,
    events.InterventionEnded: event_pb2.EVENT_KIND_INTERVENTION_ENDED,
    events.InterventionsLost: event_pb2.EVENT_KIND_INTERVENTIONS_LOST,
    events.Guarded: event_pb2.EVENT_KIND_GUARDED,
    events.PolicyChanged: event_pb2.EVENT_KIND_POLICY_CHANGED,
    events.Escalated: event_pb2.EVENT_KIND_ESCALATED,
    events.Ordered: event_pb2.EVENT_KIND_ORDERED,
}


def kind_of(event: events.Event) -> event_pb2.EventKind:
    """The kind that a watcher filters by."""
    return _KINDS[type(event)]


def event_message(recorded: events.Recorded) -> event_pb2.Event:
    """An event with its place in the log."""
    message = event_pb2.Event(sequence=recorded.sequence, time=_timestamp(recorded.time))
    match recorded.event:
        case events.ProbeFired() as event:
            message.probe_fired.CopyFrom(_probe_fired(event))
        case events.Alert() as event:
            message.alert.CopyFrom(_alert(event))
        case events.Intervention() as event:
            message.intervention.CopyFrom(_intervention(event))
        case events.RequestFinished() as event:
            message.request_finished.CopyFrom(_request_finished(event))
        case events.EngineChanged() as event:
            message.engine_changed.CopyFrom(_engine_changed(event))
        case events.FramesLost() as event:
            message.frames_lost.CopyFrom(_frames_lost(event))
        case events.InterventionEnded() as event:
            message.intervention_ended.CopyFrom(_intervention_ended(event))
        case events.InterventionsLost() as event:
            message.interventions_lost.CopyFrom(_interventions_lost(event))
        case events.Guarded() as event:
            message.guarded.CopyFrom(_guarded(event))
        case events.Escalated() as event:
            message.escalated.CopyFrom(_escalated(event))
        case events.Ordered() as event:
            message.ordered.CopyFrom(_ordered(event))
        case events.PolicyChanged() as event:
            message.policy_changed.CopyFrom(_policy_changed(event))
        case _:
            assert_never(recorded.event)
    return message


def probe_message(probe: bundle.Probe) -> probe_pb2.Probe:
    """A probe with the evidence for its threshold."""
    low, high = probe.calibration.interval
    return probe_pb2.Probe(
        name=probe.name,
        layer=probe.layer,
        roles=probe.roles,
        threshold=probe.threshold,
        aggregate=probe_pb2.Aggregate(
            half_life=probe.aggregate.half_life,
            min_tokens=probe.aggregate.min_tokens,
            window=probe.aggregate.window,
            agree=probe.aggregate.agree,
            agree_of=probe.aggregate.agree_of,
        ),
        calibration=probe_pb2.Calibration(
            false_positive_rate=probe.calibration.false_positive_rate,
            benign=probe.calibration.benign,
            fired=probe.calibration.fired,
            interval_low=low,
            interval_high=high,
        ),
        evaluation=probe_pb2.Evaluation(
            positives=probe.evaluation.positives,
            negatives=probe.evaluation.negatives,
            auroc=probe.evaluation.auroc,
            auroc_text=probe.evaluation.auroc_text,
            recall=probe.evaluation.recall,
        ),
    )


def vector_message(vector: bundle.Vector) -> probe_pb2.Vector:
    """A steering vector, without its direction."""
    return probe_pb2.Vector(name=vector.name, layer=vector.layer, hidden_norm=vector.hidden_norm)


def trace_message(trace: Trace, probes: Sequence[str], *, whole: bool) -> trace_pb2.Trace:
    """A trace; ``whole`` with its points and events."""
    return trace_pb2.Trace(
        request=_request(trace.request),
        escalated=_timestamp(trace.escalated),
        finished=trace.finished,
        probes=probes,
        points=[_point(point) for point in trace.points] if whole else [],
        events=[event_message(recorded) for recorded in trace.events] if whole else [],
        events_dropped=trace.events_dropped,
    )


def _point(point: Point) -> trace_pb2.TracePoint:
    averages = [trace_pb2.TraceAverage(logits=average) for average in point.averages]
    return trace_pb2.TracePoint(time=_timestamp(point.time), position=point.position, averages=averages)


def status_message(status: stats.Status) -> status_pb2.Status:
    """A snapshot of the monitor."""
    return status_pb2.Status(
        started=_timestamp(status.started),
        bundle_path=status.bundle_path,
        bundle_digest=status.bundle_digest,
        policy_name=status.policy_name,
        policy_digest=status.policy_digest,
        engines=[_engine_status(engine) for engine in status.engines],
        requests_active=status.requests_active,
        workers=status.workers,
        workers_running=status.workers_running,
    )


def _engine_status(engine: stats.EngineStatus) -> status_pb2.EngineStatus:
    return status_pb2.EngineStatus(
        engine=engine.engine,
        model=engine.model,
        vllm=engine.vllm,
        state=_STATES[engine.state],
        frames=engine.frames,
        lost=engine.lost,
        dropped=engine.dropped,
        requests_active=engine.requests_active,
        last_seen_seconds=engine.last_seen_seconds,
        lag_seconds=engine.lag_seconds,
        drift=engine.drift,
        worker_unscored=engine.worker_unscored,
    )


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _request(request: events.Request) -> event_pb2.Request:
    return event_pb2.Request(
        engine=request.engine,
        model=request.model,
        request_id=request.request_id,
        engine_request_id=request.engine_request_id,
        prompt_tokens=request.prompt_tokens,
    )


def _reading(reading: events.Reading) -> event_pb2.Reading:
    return event_pb2.Reading(
        probe=reading.probe,
        tokens=reading.tokens,
        peak=reading.peak,
        threshold=reading.threshold,
        fired_at=reading.fired_at,
        unscored=reading.unscored,
    )


def _probe_fired(event: events.ProbeFired) -> event_pb2.ProbeFired:
    return event_pb2.ProbeFired(
        request=_request(event.request),
        probe=event.probe,
        aggregate=event.aggregate,
        threshold=event.threshold,
        position=event.position,
        role=event.role,
    )


def _alert(event: events.Alert) -> event_pb2.Alert:
    return event_pb2.Alert(
        request=_request(event.request),
        rule=event.rule,
        mode=_MODES[event.mode],
        severity=_SEVERITIES[event.severity],
        probe=event.probe,
        aggregate=event.aggregate,
        threshold=event.threshold,
        position=event.position,
        reason=event.reason,
    )


def _intervention(event: events.Intervention) -> event_pb2.Intervention:
    return event_pb2.Intervention(
        request=_request(event.request),
        rule=event.rule,
        mode=_MODES[event.mode],
        probe=event.probe,
        aggregate=event.aggregate,
        threshold=event.threshold,
        position=event.position,
        vector=event.vector,
        dose=event.dose,
        tokens=event.tokens,
        sent=event.sent,
        reason=event.reason,
        operation=_OPERATIONS[event.operation],
        low=event.low,
        high=event.high,
        gate=event.gate,
        agree=event.agree,
        agree_of=event.agree_of,
        number=event.number,
        refusal=event.refusal,
    )


def _request_finished(event: events.RequestFinished) -> event_pb2.RequestFinished:
    return event_pb2.RequestFinished(
        request=_request(event.request),
        tokens=event.tokens,
        unscored=event.unscored,
        steered=event.steered,
        readings=[_reading(reading) for reading in event.readings],
    )


def _engine_changed(event: events.EngineChanged) -> event_pb2.EngineChanged:
    return event_pb2.EngineChanged(
        engine=event.engine,
        model=event.model,
        state=_STATES[event.state],
        detail=event.detail,
    )


def _policy_changed(event: events.PolicyChanged) -> event_pb2.PolicyChanged:
    return event_pb2.PolicyChanged(
        policy=event.policy,
        digest=event.digest,
        in_force=event.in_force,
        before=event.before,
        reason=event.reason,
    )


def _frames_lost(event: events.FramesLost) -> event_pb2.FramesLost:
    return event_pb2.FramesLost(engine=event.engine, model=event.model, frames=event.frames)


def _intervention_ended(event: events.InterventionEnded) -> event_pb2.InterventionEnded:
    return event_pb2.InterventionEnded(
        request=_request(event.request),
        rule=event.rule,
        gate=event.gate,
        position=event.position,
        steered=event.steered,
        number=event.number,
    )


def _interventions_lost(event: events.InterventionsLost) -> event_pb2.InterventionsLost:
    return event_pb2.InterventionsLost(engine=event.engine, model=event.model, decisions=event.decisions)


def _guarded(event: events.Guarded) -> event_pb2.Guarded:
    return event_pb2.Guarded(
        request=_request(event.request),
        position=event.position,
        repetition=event.repetition,
        threshold=event.threshold,
        window=event.window,
        gates=event.gates,
        number=event.number,
        reason=event.reason,
    )


def _escalated(event: events.Escalated) -> event_pb2.Escalated:
    return event_pb2.Escalated(
        request=_request(event.request),
        rule=event.rule,
        mode=_MODES[event.mode],
        probe=event.probe,
        aggregate=event.aggregate,
        threshold=event.threshold,
        position=event.position,
        reason=event.reason,
    )


def _ordered(event: events.Ordered) -> event_pb2.Ordered:
    return event_pb2.Ordered(
        order=event.order,
        kind=_ORDER_KINDS[event.kind],
        result=_ORDER_RESULTS[event.result],
        engine=event.engine,
        model=event.model,
        request=None if event.request is None else _request(event.request),
        who=event.who,
        lease_seconds=event.lease_seconds,
        detail=event.detail,
        reason=event.reason,
    )
