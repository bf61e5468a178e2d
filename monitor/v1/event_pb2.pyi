import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_PROBE_FIRED: _ClassVar[EventKind]
    EVENT_KIND_ALERT: _ClassVar[EventKind]
    EVENT_KIND_INTERVENTION: _ClassVar[EventKind]
    EVENT_KIND_REQUEST_FINISHED: _ClassVar[EventKind]
    EVENT_KIND_ENGINE_CHANGED: _ClassVar[EventKind]
    EVENT_KIND_FRAMES_LOST: _ClassVar[EventKind]
    EVENT_KIND_INTERVENTION_ENDED: _ClassVar[EventKind]
    EVENT_KIND_INTERVENTIONS_LOST: _ClassVar[EventKind]
    EVENT_KIND_ESCALATED: _ClassVar[EventKind]
    EVENT_KIND_ORDERED: _ClassVar[EventKind]
    EVENT_KIND_GUARDED: _ClassVar[EventKind]
    EVENT_KIND_POLICY_CHANGED: _ClassVar[EventKind]
    EVENT_KIND_AUDIT_CHANGED: _ClassVar[EventKind]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_SHADOW: _ClassVar[Mode]
    MODE_ALERT: _ClassVar[Mode]
    MODE_ENFORCE: _ClassVar[Mode]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_WARNING: _ClassVar[Severity]
    SEVERITY_CRITICAL: _ClassVar[Severity]

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_ADD: _ClassVar[Operation]
    OPERATION_ABLATE: _ClassVar[Operation]
    OPERATION_CLAMP: _ClassVar[Operation]
    OPERATION_STOP: _ClassVar[Operation]

class OrderKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_KIND_UNSPECIFIED: _ClassVar[OrderKind]
    ORDER_KIND_STEER: _ClassVar[OrderKind]
    ORDER_KIND_RELEASE: _ClassVar[OrderKind]
    ORDER_KIND_STOP: _ClassVar[OrderKind]
    ORDER_KIND_STREAM: _ClassVar[OrderKind]
    ORDER_KIND_ARM: _ClassVar[OrderKind]
    ORDER_KIND_DISARM: _ClassVar[OrderKind]
    ORDER_KIND_ADMISSION: _ClassVar[OrderKind]

class OrderResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_RESULT_UNSPECIFIED: _ClassVar[OrderResult]
    ORDER_RESULT_SENT: _ClassVar[OrderResult]
    ORDER_RESULT_REFUSED: _ClassVar[OrderResult]
    ORDER_RESULT_EXPIRED: _ClassVar[OrderResult]

class EngineState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_STATE_UNSPECIFIED: _ClassVar[EngineState]
    ENGINE_STATE_PENDING: _ClassVar[EngineState]
    ENGINE_STATE_CONNECTED: _ClassVar[EngineState]
    ENGINE_STATE_LOST: _ClassVar[EngineState]
    ENGINE_STATE_REFUSED: _ClassVar[EngineState]
    ENGINE_STATE_SHADOW: _ClassVar[EngineState]
    ENGINE_STATE_SILENT: _ClassVar[EngineState]

class AuditBeginning(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_BEGINNING_UNSPECIFIED: _ClassVar[AuditBeginning]
    AUDIT_BEGINNING_ROTATED: _ClassVar[AuditBeginning]
    AUDIT_BEGINNING_MOVED: _ClassVar[AuditBeginning]
    AUDIT_BEGINNING_TRUNCATED: _ClassVar[AuditBeginning]
    AUDIT_BEGINNING_SET_ASIDE: _ClassVar[AuditBeginning]
    AUDIT_BEGINNING_MISSING: _ClassVar[AuditBeginning]
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_PROBE_FIRED: EventKind
EVENT_KIND_ALERT: EventKind
EVENT_KIND_INTERVENTION: EventKind
EVENT_KIND_REQUEST_FINISHED: EventKind
EVENT_KIND_ENGINE_CHANGED: EventKind
EVENT_KIND_FRAMES_LOST: EventKind
EVENT_KIND_INTERVENTION_ENDED: EventKind
EVENT_KIND_INTERVENTIONS_LOST: EventKind
EVENT_KIND_ESCALATED: EventKind
EVENT_KIND_ORDERED: EventKind
EVENT_KIND_GUARDED: EventKind
EVENT_KIND_POLICY_CHANGED: EventKind
EVENT_KIND_AUDIT_CHANGED: EventKind
MODE_UNSPECIFIED: Mode
MODE_SHADOW: Mode
MODE_ALERT: Mode
MODE_ENFORCE: Mode
SEVERITY_UNSPECIFIED: Severity
SEVERITY_INFO: Severity
SEVERITY_WARNING: Severity
SEVERITY_CRITICAL: Severity
OPERATION_UNSPECIFIED: Operation
OPERATION_ADD: Operation
OPERATION_ABLATE: Operation
OPERATION_CLAMP: Operation
OPERATION_STOP: Operation
ORDER_KIND_UNSPECIFIED: OrderKind
ORDER_KIND_STEER: OrderKind
ORDER_KIND_RELEASE: OrderKind
ORDER_KIND_STOP: OrderKind
ORDER_KIND_STREAM: OrderKind
ORDER_KIND_ARM: OrderKind
ORDER_KIND_DISARM: OrderKind
ORDER_KIND_ADMISSION: OrderKind
ORDER_RESULT_UNSPECIFIED: OrderResult
ORDER_RESULT_SENT: OrderResult
ORDER_RESULT_REFUSED: OrderResult
ORDER_RESULT_EXPIRED: OrderResult
ENGINE_STATE_UNSPECIFIED: EngineState
ENGINE_STATE_PENDING: EngineState
ENGINE_STATE_CONNECTED: EngineState
ENGINE_STATE_LOST: EngineState
ENGINE_STATE_REFUSED: EngineState
ENGINE_STATE_SHADOW: EngineState
ENGINE_STATE_SILENT: EngineState
AUDIT_BEGINNING_UNSPECIFIED: AuditBeginning
AUDIT_BEGINNING_ROTATED: AuditBeginning
AUDIT_BEGINNING_MOVED: AuditBeginning
AUDIT_BEGINNING_TRUNCATED: AuditBeginning
AUDIT_BEGINNING_SET_ASIDE: AuditBeginning
AUDIT_BEGINNING_MISSING: AuditBeginning

class Event(_message.Message):
    __slots__ = ("sequence", "time", "probe_fired", "alert", "intervention", "request_finished", "engine_changed", "frames_lost", "intervention_ended", "interventions_lost", "escalated", "ordered", "guarded", "policy_changed", "audit_changed")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIRED_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    INTERVENTION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINISHED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_LOST_FIELD_NUMBER: _ClassVar[int]
    INTERVENTION_ENDED_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_LOST_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    GUARDED_FIELD_NUMBER: _ClassVar[int]
    POLICY_CHANGED_FIELD_NUMBER: _ClassVar[int]
    AUDIT_CHANGED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    probe_fired: ProbeFired
    alert: Alert
    intervention: Intervention
    request_finished: RequestFinished
    engine_changed: EngineChanged
    frames_lost: FramesLost
    intervention_ended: InterventionEnded
    interventions_lost: InterventionsLost
    escalated: Escalated
    ordered: Ordered
    guarded: Guarded
    policy_changed: PolicyChanged
    audit_changed: AuditChanged
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., probe_fired: _Optional[_Union[ProbeFired, _Mapping]] = ..., alert: _Optional[_Union[Alert, _Mapping]] = ..., intervention: _Optional[_Union[Intervention, _Mapping]] = ..., request_finished: _Optional[_Union[RequestFinished, _Mapping]] = ..., engine_changed: _Optional[_Union[EngineChanged, _Mapping]] = ..., frames_lost: _Optional[_Union[FramesLost, _Mapping]] = ..., intervention_ended: _Optional[_Union[InterventionEnded, _Mapping]] = ..., interventions_lost: _Optional[_Union[InterventionsLost, _Mapping]] = ..., escalated: _Optional[_Union[Escalated, _Mapping]] = ..., ordered: _Optional[_Union[Ordered, _Mapping]] = ..., guarded: _Optional[_Union[Guarded, _Mapping]] = ..., policy_changed: _Optional[_Union[PolicyChanged, _Mapping]] = ..., audit_changed: _Optional[_Union[AuditChanged, _Mapping]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("engine", "model", "request_id", "engine_request_id", "prompt_tokens", "part")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    engine: str
    model: str
    request_id: str
    engine_request_id: str
    prompt_tokens: int
    part: str
    def __init__(self, engine: _Optional[str] = ..., model: _Optional[str] = ..., request_id: _Optional[str] = ..., engine_request_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., part: _Optional[str] = ...) -> None: ...

class Reading(_message.Message):
    __slots__ = ("probe", "tokens", "peak", "threshold", "fired_at", "unscored")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PEAK_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    FIRED_AT_FIELD_NUMBER: _ClassVar[int]
    UNSCORED_FIELD_NUMBER: _ClassVar[int]
    probe: str
    tokens: int
    peak: float
    threshold: float
    fired_at: int
    unscored: int
    def __init__(self, probe: _Optional[str] = ..., tokens: _Optional[int] = ..., peak: _Optional[float] = ..., threshold: _Optional[float] = ..., fired_at: _Optional[int] = ..., unscored: _Optional[int] = ...) -> None: ...

class Unread(_message.Message):
    __slots__ = ("role", "tokens")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    role: str
    tokens: int
    def __init__(self, role: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class ProbeFired(_message.Message):
    __slots__ = ("request", "probe", "aggregate", "threshold", "position", "role")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    request: Request
    probe: str
    aggregate: float
    threshold: float
    position: int
    role: str
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., probe: _Optional[str] = ..., aggregate: _Optional[float] = ..., threshold: _Optional[float] = ..., position: _Optional[int] = ..., role: _Optional[str] = ...) -> None: ...

class Alert(_message.Message):
    __slots__ = ("request", "rule", "mode", "severity", "probe", "aggregate", "threshold", "position", "reason")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request: Request
    rule: str
    mode: Mode
    severity: Severity
    probe: str
    aggregate: float
    threshold: float
    position: int
    reason: str
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., rule: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., severity: _Optional[_Union[Severity, str]] = ..., probe: _Optional[str] = ..., aggregate: _Optional[float] = ..., threshold: _Optional[float] = ..., position: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Intervention(_message.Message):
    __slots__ = ("request", "rule", "mode", "probe", "aggregate", "threshold", "position", "vector", "dose", "tokens", "sent", "reason", "operation", "low", "high", "gate", "agree", "agree_of", "number", "refusal")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    DOSE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    AGREE_FIELD_NUMBER: _ClassVar[int]
    AGREE_OF_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    request: Request
    rule: str
    mode: Mode
    probe: str
    aggregate: float
    threshold: float
    position: int
    vector: str
    dose: float
    tokens: int
    sent: bool
    reason: str
    operation: Operation
    low: float
    high: float
    gate: str
    agree: int
    agree_of: int
    number: int
    refusal: str
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., rule: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., probe: _Optional[str] = ..., aggregate: _Optional[float] = ..., threshold: _Optional[float] = ..., position: _Optional[int] = ..., vector: _Optional[str] = ..., dose: _Optional[float] = ..., tokens: _Optional[int] = ..., sent: _Optional[bool] = ..., reason: _Optional[str] = ..., operation: _Optional[_Union[Operation, str]] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., gate: _Optional[str] = ..., agree: _Optional[int] = ..., agree_of: _Optional[int] = ..., number: _Optional[int] = ..., refusal: _Optional[str] = ...) -> None: ...

class InterventionEnded(_message.Message):
    __slots__ = ("request", "rule", "gate", "position", "steered", "number")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STEERED_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    request: Request
    rule: str
    gate: str
    position: int
    steered: int
    number: int
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., rule: _Optional[str] = ..., gate: _Optional[str] = ..., position: _Optional[int] = ..., steered: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class InterventionsLost(_message.Message):
    __slots__ = ("engine", "model", "decisions")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    engine: str
    model: str
    decisions: int
    def __init__(self, engine: _Optional[str] = ..., model: _Optional[str] = ..., decisions: _Optional[int] = ...) -> None: ...

class Guarded(_message.Message):
    __slots__ = ("request", "position", "repetition", "threshold", "window", "gates", "number", "reason")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REPETITION_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request: Request
    position: int
    repetition: float
    threshold: float
    window: int
    gates: _containers.RepeatedScalarFieldContainer[str]
    number: int
    reason: str
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., position: _Optional[int] = ..., repetition: _Optional[float] = ..., threshold: _Optional[float] = ..., window: _Optional[int] = ..., gates: _Optional[_Iterable[str]] = ..., number: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Escalated(_message.Message):
    __slots__ = ("request", "rule", "mode", "probe", "aggregate", "threshold", "position", "reason")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request: Request
    rule: str
    mode: Mode
    probe: str
    aggregate: float
    threshold: float
    position: int
    reason: str
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., rule: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., probe: _Optional[str] = ..., aggregate: _Optional[float] = ..., threshold: _Optional[float] = ..., position: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Ordered(_message.Message):
    __slots__ = ("order", "kind", "result", "engine", "model", "request", "who", "lease_seconds", "detail", "reason")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    order: str
    kind: OrderKind
    result: OrderResult
    engine: str
    model: str
    request: Request
    who: str
    lease_seconds: float
    detail: str
    reason: str
    def __init__(self, order: _Optional[str] = ..., kind: _Optional[_Union[OrderKind, str]] = ..., result: _Optional[_Union[OrderResult, str]] = ..., engine: _Optional[str] = ..., model: _Optional[str] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., who: _Optional[str] = ..., lease_seconds: _Optional[float] = ..., detail: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RequestFinished(_message.Message):
    __slots__ = ("request", "tokens", "unscored", "steered", "readings", "unread")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNSCORED_FIELD_NUMBER: _ClassVar[int]
    STEERED_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    request: Request
    tokens: int
    unscored: int
    steered: int
    readings: _containers.RepeatedCompositeFieldContainer[Reading]
    unread: _containers.RepeatedCompositeFieldContainer[Unread]
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., tokens: _Optional[int] = ..., unscored: _Optional[int] = ..., steered: _Optional[int] = ..., readings: _Optional[_Iterable[_Union[Reading, _Mapping]]] = ..., unread: _Optional[_Iterable[_Union[Unread, _Mapping]]] = ...) -> None: ...

class EngineChanged(_message.Message):
    __slots__ = ("engine", "model", "state", "detail")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    engine: str
    model: str
    state: EngineState
    detail: str
    def __init__(self, engine: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[EngineState, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class PolicyChanged(_message.Message):
    __slots__ = ("policy", "digest", "in_force", "before", "reason")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    policy: str
    digest: str
    in_force: bool
    before: str
    reason: str
    def __init__(self, policy: _Optional[str] = ..., digest: _Optional[str] = ..., in_force: _Optional[bool] = ..., before: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class FramesLost(_message.Message):
    __slots__ = ("engine", "model", "frames")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    engine: str
    model: str
    frames: int
    def __init__(self, engine: _Optional[str] = ..., model: _Optional[str] = ..., frames: _Optional[int] = ...) -> None: ...

class AuditChanged(_message.Message):
    __slots__ = ("file", "reason", "before", "detail")
    FILE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    file: str
    reason: AuditBeginning
    before: str
    detail: str
    def __init__(self, file: _Optional[str] = ..., reason: _Optional[_Union[AuditBeginning, str]] = ..., before: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
