from monitor.v1 import event_pb2 as _event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Act(_message.Message):
    __slots__ = ("vector", "operation", "dose", "low", "high")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    DOSE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    vector: str
    operation: _event_pb2.Operation
    dose: float
    low: float
    high: float
    def __init__(self, vector: _Optional[str] = ..., operation: _Optional[_Union[_event_pb2.Operation, str]] = ..., dose: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("id", "kind", "detail", "remaining_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REMAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: _event_pb2.OrderKind
    detail: str
    remaining_seconds: float
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[_event_pb2.OrderKind, str]] = ..., detail: _Optional[str] = ..., remaining_seconds: _Optional[float] = ...) -> None: ...

class SteerRequest(_message.Message):
    __slots__ = ("request_id", "act", "lease_seconds", "tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACT_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    act: Act
    lease_seconds: float
    tokens: int
    def __init__(self, request_id: _Optional[str] = ..., act: _Optional[_Union[Act, _Mapping]] = ..., lease_seconds: _Optional[float] = ..., tokens: _Optional[int] = ...) -> None: ...

class SteerResponse(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: Order
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ArmRequest(_message.Message):
    __slots__ = ("probe", "act", "lease_seconds", "threshold", "release", "hold", "tokens")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    ACT_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    probe: str
    act: Act
    lease_seconds: float
    threshold: float
    release: float
    hold: int
    tokens: int
    def __init__(self, probe: _Optional[str] = ..., act: _Optional[_Union[Act, _Mapping]] = ..., lease_seconds: _Optional[float] = ..., threshold: _Optional[float] = ..., release: _Optional[float] = ..., hold: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class ArmResponse(_message.Message):
    __slots__ = ("order", "engines")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    order: Order
    engines: int
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ..., engines: _Optional[int] = ...) -> None: ...

class DisarmRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DisarmResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOrdersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOrdersResponse(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[Order]
    def __init__(self, orders: _Optional[_Iterable[_Union[Order, _Mapping]]] = ...) -> None: ...
