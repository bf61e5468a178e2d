from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Probe(_message.Message):
    __slots__ = ("name", "layer", "roles", "threshold", "aggregate", "calibration", "evaluation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    layer: int
    roles: _containers.RepeatedScalarFieldContainer[str]
    threshold: float
    aggregate: Aggregate
    calibration: Calibration
    evaluation: Evaluation
    def __init__(self, name: _Optional[str] = ..., layer: _Optional[int] = ..., roles: _Optional[_Iterable[str]] = ..., threshold: _Optional[float] = ..., aggregate: _Optional[_Union[Aggregate, _Mapping]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class Aggregate(_message.Message):
    __slots__ = ("half_life", "min_tokens", "window", "agree", "agree_of")
    HALF_LIFE_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    AGREE_FIELD_NUMBER: _ClassVar[int]
    AGREE_OF_FIELD_NUMBER: _ClassVar[int]
    half_life: float
    min_tokens: int
    window: int
    agree: int
    agree_of: int
    def __init__(self, half_life: _Optional[float] = ..., min_tokens: _Optional[int] = ..., window: _Optional[int] = ..., agree: _Optional[int] = ..., agree_of: _Optional[int] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("false_positive_rate", "benign", "fired", "interval_low", "interval_high")
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    BENIGN_FIELD_NUMBER: _ClassVar[int]
    FIRED_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_LOW_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_HIGH_FIELD_NUMBER: _ClassVar[int]
    false_positive_rate: float
    benign: int
    fired: int
    interval_low: float
    interval_high: float
    def __init__(self, false_positive_rate: _Optional[float] = ..., benign: _Optional[int] = ..., fired: _Optional[int] = ..., interval_low: _Optional[float] = ..., interval_high: _Optional[float] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("positives", "negatives", "auroc", "auroc_text", "recall")
    POSITIVES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    AUROC_FIELD_NUMBER: _ClassVar[int]
    AUROC_TEXT_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    positives: int
    negatives: int
    auroc: float
    auroc_text: float
    recall: float
    def __init__(self, positives: _Optional[int] = ..., negatives: _Optional[int] = ..., auroc: _Optional[float] = ..., auroc_text: _Optional[float] = ..., recall: _Optional[float] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("name", "layer", "hidden_norm")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_NORM_FIELD_NUMBER: _ClassVar[int]
    name: str
    layer: int
    hidden_norm: float
    def __init__(self, name: _Optional[str] = ..., layer: _Optional[int] = ..., hidden_norm: _Optional[float] = ...) -> None: ...
