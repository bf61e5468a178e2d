"""Every event, and every field of it, arrives on the wire."""

from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import UTC, datetime
from typing import get_args

import msgspec
import pytest

from monitor import events
from monitor.api.convert import event_message, kind_of, probe_message, status_message, vector_message
from monitor.cli.watch import KINDS
from monitor.telemetry.stats import EngineState, EngineStatus
from monitor.v1 import event_pb2

REQUEST = events.Request("engine-1", "tiny", "chat-1", "chat-1-a", 12)

# One of each, with no field at its default, so that a field forgotten shows as a difference.
SAMPLES: dict[type, events.Event] = {
    events.ProbeFired: events.ProbeFired(REQUEST, "harm", 2.5, 1.5, 17, "assistant"),
    events.Alert: events.Alert(REQUEST, "rule", "enforce", "warning", "harm", 2.5, 1.5, 17, "why"),
    events.Intervention: events.Intervention(
        REQUEST,
        "rule",
        "shadow",
        "harm",
        2.5,
        1.5,
        17,
        "harm",
        -0.25,
        64,
        True,
        "why",
        operation="clamp",
        low=-0.5,
        high=0.25,
        gate="policy:abc:rule:0",
        agree=2,
        agree_of=3,
        number=7,
        refusal="the engine could not be reached",
    ),
    events.InterventionEnded: events.InterventionEnded(REQUEST, "rule", "policy:abc:rule:0", 30, 13, 8),
    events.InterventionsLost: events.InterventionsLost("engine-1", "tiny", 3),
    events.Guarded: events.Guarded(REQUEST, 80, 0.9, 0.7, 64, ("policy:abc:rule:0",), 3, "why"),
    events.Escalated: events.Escalated(REQUEST, "rule", "alert", "harm", 2.5, 1.5, 17, "why"),
    events.Ordered: events.Ordered(
        "order:1", "arm", "refused", "engine-1", "tiny", REQUEST, "operator ipv4:1", 60.0, "arm it", "no such vector"
    ),
    events.RequestFinished: events.RequestFinished(
        REQUEST,
        40,
        3,
        2,
        (events.Reading("harm", 30, 2.5, 1.5, 17, 3), events.Reading("lies", 1, None, 1.0, None, 2)),
    ),
    events.EngineChanged: events.EngineChanged("engine-1", "tiny", "refused", "another bundle"),
    events.PolicyChanged: events.PolicyChanged("policy.yaml", "d" * 64, True, "c" * 64, "2 rules decide"),
    events.FramesLost: events.FramesLost("engine-1", "tiny", 9),
}

NAMES = {
    "mode": event_pb2.Mode,
    "severity": event_pb2.Severity,
    "state": event_pb2.EngineState,
    "operation": event_pb2.Operation,
    "kind": event_pb2.OrderKind,
    "result": event_pb2.OrderResult,
}


def value_fields(value: object):
    return dataclass_fields(value) if is_dataclass(value) else msgspec.structs.fields(value)


def assert_mirrors(value: object, message: object) -> None:
    """Every field of the value is in the message, equal, and the message has no other."""
    assert {field.name for field in message.DESCRIPTOR.fields} == {field.name for field in value_fields(value)}
    for field in value_fields(value):
        expected, found = getattr(value, field.name), getattr(message, field.name)
        if expected is None:
            assert not message.HasField(field.name)
        elif isinstance(expected, msgspec.Struct):
            assert_mirrors(expected, found)
        elif isinstance(expected, tuple):
            assert len(expected) == len(found)
            for one, other in zip(expected, found, strict=True):
                assert one == other if isinstance(one, str) else assert_mirrors(one, other) is None
        elif field.name in NAMES:
            assert NAMES[field.name].Name(found) == f"{_prefix(field.name)}_{expected.upper()}"
        else:
            assert found == expected
            assert expected, f"{field.name} is at its default: the sample proves nothing"


def _prefix(name: str) -> str:
    return {"state": "ENGINE_STATE", "kind": "ORDER_KIND", "result": "ORDER_RESULT"}.get(name, name.upper())


@pytest.mark.parametrize("kind", get_args(events.Event))
def test_every_event_is_mirrored(kind):
    event = SAMPLES[kind]
    message = event_message(events.Recorded(7, datetime(2026, 1, 2, 3, 4, 5, 678000, UTC), event))
    assert message.sequence == 7
    assert message.time.ToDatetime(UTC) == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    payload = message.WhichOneof("payload")
    assert_mirrors(event, getattr(message, payload))
    assert event_pb2.EventKind.Name(kind_of(event)) == f"EVENT_KIND_{payload.upper()}"


def test_there_is_a_kind_for_every_event_and_no_other():
    payloads = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]
    assert len(payloads) == len(get_args(events.Event))
    assert [name.upper() for name in payloads] == [
        name.removeprefix("EVENT_KIND_") for name in event_pb2.EventKind.keys()[1:]
    ]
    assert list(KINDS) == payloads
    assert list(KINDS.values()) == event_pb2.EventKind.values()[1:]


def test_what_is_none_is_absent():
    event = events.Intervention(REQUEST, "r", "alert", "harm", 2.5, 1.5, 17, "harm", 0.5, None, False, "why")
    message = event_message(events.Recorded(1, datetime.now(UTC), event)).intervention
    assert not message.HasField("tokens")
    assert not message.sent


@pytest.mark.parametrize("literal", [events.Mode, events.Severity, EngineState, events.Operation, events.OrderKind])
def test_every_literal_has_its_enum_value(literal):
    enum, prefix = {
        events.Mode: (event_pb2.Mode, "MODE"),
        events.Severity: (event_pb2.Severity, "SEVERITY"),
        EngineState: (event_pb2.EngineState, "ENGINE_STATE"),
        events.Operation: (event_pb2.Operation, "OPERATION"),
        events.OrderKind: (event_pb2.OrderKind, "ORDER_KIND"),
    }[literal]
    assert enum.keys() == [
        f"{prefix}_UNSPECIFIED",
        *(f"{prefix}_{name.upper()}" for name in get_args(literal)),
    ]


def test_status_mirrors_its_engines(monitor):
    monitor.engines = [EngineStatus("engine-1", "tiny", "0.32.0", "lost", 5, 4, 3, 2, 1.5, 0.25, 0.125, 6)]
    message = status_message(monitor.status())
    assert message.started.ToDatetime(UTC) == monitor.status().started
    assert (message.bundle_digest, message.policy_name) == (monitor.bundle.digest, "policy.yaml")
    assert message.requests_active == 2
    assert_mirrors(monitor.engines[0], message.engines[0])


def test_probes_carry_the_evidence_for_their_threshold(monitor):
    probe = monitor.bundle.manifest.probes[0]
    message = probe_message(probe)
    assert (message.name, message.layer, list(message.roles)) == (probe.name, probe.layer, probe.roles)
    assert message.threshold == probe.threshold
    for field in message.aggregate.DESCRIPTOR.fields:
        assert getattr(message.aggregate, field.name) == getattr(probe.aggregate, field.name)
    calibration = message.calibration
    assert (calibration.interval_low, calibration.interval_high) == probe.calibration.interval
    for name in ("false_positive_rate", "benign", "fired"):
        assert getattr(calibration, name) == getattr(probe.calibration, name)
    for field in message.evaluation.DESCRIPTOR.fields:
        assert getattr(message.evaluation, field.name) == getattr(probe.evaluation, field.name)
    vector = monitor.bundle.manifest.vectors[0]
    assert vector_message(vector).hidden_norm == vector.hidden_norm
