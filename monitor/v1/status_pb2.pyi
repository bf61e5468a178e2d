import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from monitor.v1 import event_pb2 as _event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(_message.Message):
    __slots__ = ("started", "bundle_path", "bundle_digest", "policy_name", "policy_digest", "engines", "requests_active", "workers", "workers_running")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_PATH_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    started: _timestamp_pb2.Timestamp
    bundle_path: str
    bundle_digest: str
    policy_name: str
    policy_digest: str
    engines: _containers.RepeatedCompositeFieldContainer[EngineStatus]
    requests_active: int
    workers: int
    workers_running: int
    def __init__(self, started: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., bundle_path: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., policy_name: _Optional[str] = ..., policy_digest: _Optional[str] = ..., engines: _Optional[_Iterable[_Union[EngineStatus, _Mapping]]] = ..., requests_active: _Optional[int] = ..., workers: _Optional[int] = ..., workers_running: _Optional[int] = ...) -> None: ...

class EngineStatus(_message.Message):
    __slots__ = ("engine", "model", "vllm", "state", "frames", "lost", "dropped", "requests_active", "last_seen_seconds", "lag_seconds", "drift", "worker_unscored", "unread")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VLLM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAG_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    WORKER_UNSCORED_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    engine: str
    model: str
    vllm: str
    state: _event_pb2.EngineState
    frames: int
    lost: int
    dropped: int
    requests_active: int
    last_seen_seconds: float
    lag_seconds: float
    drift: float
    worker_unscored: int
    unread: bool
    def __init__(self, engine: _Optional[str] = ..., model: _Optional[str] = ..., vllm: _Optional[str] = ..., state: _Optional[_Union[_event_pb2.EngineState, str]] = ..., frames: _Optional[int] = ..., lost: _Optional[int] = ..., dropped: _Optional[int] = ..., requests_active: _Optional[int] = ..., last_seen_seconds: _Optional[float] = ..., lag_seconds: _Optional[float] = ..., drift: _Optional[float] = ..., worker_unscored: _Optional[int] = ..., unread: _Optional[bool] = ...) -> None: ...
