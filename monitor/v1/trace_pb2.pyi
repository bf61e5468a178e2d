import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from monitor.v1 import event_pb2 as _event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Trace(_message.Message):
    __slots__ = ("request", "escalated", "finished", "probes", "points", "events", "events_dropped")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    request: _event_pb2.Request
    escalated: _timestamp_pb2.Timestamp
    finished: bool
    probes: _containers.RepeatedScalarFieldContainer[str]
    points: _containers.RepeatedCompositeFieldContainer[TracePoint]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    events_dropped: int
    def __init__(self, request: _Optional[_Union[_event_pb2.Request, _Mapping]] = ..., escalated: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished: _Optional[bool] = ..., probes: _Optional[_Iterable[str]] = ..., points: _Optional[_Iterable[_Union[TracePoint, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ..., events_dropped: _Optional[int] = ...) -> None: ...

class TracePoint(_message.Message):
    __slots__ = ("time", "position", "averages")
    TIME_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    position: int
    averages: _containers.RepeatedCompositeFieldContainer[TraceAverage]
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., position: _Optional[int] = ..., averages: _Optional[_Iterable[_Union[TraceAverage, _Mapping]]] = ...) -> None: ...

class TraceAverage(_message.Message):
    __slots__ = ("logits",)
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    logits: float
    def __init__(self, logits: _Optional[float] = ...) -> None: ...
