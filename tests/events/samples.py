"""Events of every kind, made from their types, so that a new kind needs no sample of its own."""

from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from monitor.events import Event, Recorded

KINDS = get_args(Event)
TIME = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


def sample(kind: type, *, bare: bool = False) -> Any:
    """A struct, none of whose fields has a value that is empty or that another field of it has.

    Args:
        kind: Of struct.
        bare: With ``None`` where that may be.
    """
    fields = msgspec.structs.fields(kind)
    return kind(**{field.name: _value(field.name, field.type, number, bare) for number, field in enumerate(fields, 2)})


def recorded(event: Event) -> Recorded:
    return Recorded(7, TIME, event)


def optional(annotation: Any) -> tuple[Any, bool]:
    """An annotation without ``None``, and whether it had that."""
    arguments = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    (rest,) = (argument for argument in arguments if argument is not NoneType)
    return rest, NoneType in arguments


def _value(name: str, annotation: Any, number: int, bare: bool) -> Any:
    annotation, may_be_none = optional(annotation)
    if may_be_none and bare:
        return None
    if get_origin(annotation) is Literal:
        return get_args(annotation)[-1]
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return tuple(_value(f"{name}-{index}", inner, number + index, bare) for index in range(2))
    if annotation is str:
        return f"{name} \N{MULTIPLICATION SIGN}{number}"
    if annotation in (bool, int, float):
        return True if annotation is bool else annotation(number) + (0.25 if annotation is float else 0)
    return sample(annotation, bare=bare)
