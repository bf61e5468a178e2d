"""Every event, and every field of it, arrives on the wire and comes back."""

from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import UTC
from typing import Literal, get_args, get_origin

import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor

from monitor import events
from monitor.api.convert import KINDS as PAYLOADS
from monitor.api.convert import event_message, event_of, kind_of, probe_message, status_message, vector_message
from monitor.telemetry.stats import EngineState, EngineStatus
from monitor.v1 import event_pb2
from tests.events.samples import KINDS, TIME, optional, recorded, sample

SCALARS = {
    str: {FieldDescriptor.TYPE_STRING},
    bool: {FieldDescriptor.TYPE_BOOL},
    int: {FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64},
    float: {FieldDescriptor.TYPE_DOUBLE},
}


def names_of(enum) -> list[str]:
    """The names of an enum's values without their prefix, but for the first."""
    prefix = "".join(f"_{char}" if char.isupper() else char.upper() for char in enum.name).removeprefix("_")
    first, *rest = [value.name for value in enum.values]
    assert first == f"{prefix}_UNSPECIFIED" and all(name.startswith(f"{prefix}_") for name in rest)
    return [name.removeprefix(f"{prefix}_").lower() for name in rest]


def assert_same_fields(kind, descriptor):
    """The message has the struct's fields and no others, each of the type, and optional where it may be None."""
    assert descriptor.name == kind.__name__
    assert set(descriptor.fields_by_name) == {field.name for field in msgspec.structs.fields(kind)}
    for field in msgspec.structs.fields(kind):
        found = descriptor.fields_by_name[field.name]
        annotation, may_be_none = optional(field.type)
        if get_origin(annotation) is tuple:
            assert found.is_repeated
            annotation = get_args(annotation)[0]
        elif not (isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)):
            assert found.has_presence == may_be_none, f"{kind.__name__}.{field.name}"
        if get_origin(annotation) is Literal:
            assert set(get_args(annotation)) <= set(names_of(found.enum_type))
        elif annotation in SCALARS:
            assert found.type in SCALARS[annotation], f"{kind.__name__}.{field.name}"
        else:
            assert_same_fields(annotation, found.message_type)


def assert_same_values(value, message):
    """Every field of the message is what the value says; enums by name."""
    for field in message.DESCRIPTOR.fields:
        expected, found = getattr(value, field.name), getattr(message, field.name)
        if expected is None:
            assert not message.HasField(field.name)
        elif field.enum_type is not None:
            assert ["unspecified", *names_of(field.enum_type)][found] == expected
        elif field.is_repeated and field.message_type is not None:
            assert len(expected) == len(found)
            for one, other in zip(expected, found, strict=True):
                assert_same_values(one, other)
        elif field.message_type is not None:
            assert_same_values(expected, found)
        else:
            assert (list(found) if field.is_repeated else found) == (list(expected) if field.is_repeated else expected)
            assert expected, f"{field.name} is at its default: the sample proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_mirrored(kind):
    payload = event_pb2.Event.DESCRIPTOR.fields_by_name[events.type_name(kind)]
    assert_same_fields(kind, payload.message_type)
    event = sample(kind)
    message = event_message(recorded(event))
    assert message.sequence == 7 and message.time.ToDatetime(UTC) == TIME
    assert message.WhichOneof("payload") == payload.name
    assert_same_values(event, getattr(message, payload.name))
    assert event_pb2.EventKind.Name(kind_of(event)) == f"EVENT_KIND_{payload.name.upper()}"


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_event_comes_back(kind, bare):
    told = recorded(sample(kind, bare=bare))
    sent = event_message(told).SerializeToString()
    assert event_of(event_pb2.Event.FromString(sent)) == told


def test_there_is_a_kind_for_every_event_and_no_other():
    payloads = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]
    assert sorted(payloads) == sorted(map(events.type_name, KINDS))
    assert [name.upper() for name in payloads] == [
        name.removeprefix("EVENT_KIND_") for name in event_pb2.EventKind.keys()[1:]
    ]
    assert list(PAYLOADS) == payloads
    assert list(PAYLOADS.values()) == event_pb2.EventKind.values()[1:]


def test_what_is_none_is_absent():
    event = events.Intervention(
        events.Request("engine-1", "tiny", "chat-1", "chat-1-a", 12),
        *("r", "alert", "harm", 2.5, 1.5, 17, "harm", 0.5, None, False, "why"),
    )
    message = event_message(recorded(event)).intervention
    assert not message.HasField("tokens")
    assert not message.sent


def test_what_a_newer_monitor_tells_is_no_event_here():
    """A payload that this release does not have arrives as none, and so does a value of an enum."""
    assert event_of(event_pb2.Event(sequence=1)) is None
    message = event_message(recorded(sample(events.Alert)))
    message.alert.severity = 9
    assert event_of(event_pb2.Event.FromString(message.SerializeToString())) is None


def test_what_an_older_monitor_does_not_tell_is_the_default():
    message = event_message(recorded(sample(events.Intervention)))
    message.intervention.ClearField("operation")
    told = event_of(message)
    assert told is not None and told.event.operation == "add"


@pytest.mark.parametrize(
    ("literal", "enum"),
    [
        (events.Mode, event_pb2.Mode),
        (events.Severity, event_pb2.Severity),
        (EngineState, event_pb2.EngineState),
        (events.Operation, event_pb2.Operation),
        (events.OrderKind, event_pb2.OrderKind),
        (events.OrderResult, event_pb2.OrderResult),
    ],
)
def test_every_literal_has_its_enum_value(literal, enum):
    assert names_of(enum.DESCRIPTOR) == list(get_args(literal))


def test_status_mirrors_its_engines(monitor):
    monitor.engines = [EngineStatus("engine-1", "tiny", "0.32.0", "lost", 5, 4, 3, 2, 1.5, 0.25, 0.125, 6, True)]
    status = monitor.status()
    message = status_message(status)
    assert message.started.ToDatetime(UTC) == status.started
    assert (message.bundle_digest, message.policy_name) == (monitor.bundle.digest, "policy.yaml")
    assert message.requests_active == 2
    (engine,), (told,) = monitor.engines, message.engines
    assert is_dataclass(engine)
    assert {field.name for field in dataclass_fields(engine)} == set(told.DESCRIPTOR.fields_by_name)
    assert_same_values(engine, told)


def test_an_engine_that_was_never_heard_has_neither_lag_nor_drift(monitor):
    monitor.engines = [EngineStatus("engine-1", "", "", "pending", 0, 0, 0, 0, 0.0, None, None, 0)]
    (told,) = status_message(monitor.status()).engines
    assert not told.HasField("lag_seconds") and not told.HasField("drift")


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
