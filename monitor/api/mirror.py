"""Values as protobuf messages and back, by the messages' descriptors.

Both sides name everything alike, so that a field is written twice only, in its type and in the ``.proto``:

====================  ======================================================
value                 message
====================  ======================================================
a struct, dataclass   a message; the value has an attribute for each field
``None``              an absent optional field
a value of a Literal  the enum value of that name: ``"shadow"``, ``MODE_SHADOW``
a tuple               a repeated field
a datetime, UTC       a ``Timestamp``
====================  ======================================================
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

_M = TypeVar("_M", bound=Message)


def to_message(kind: type[_M], value: object, **given: object) -> _M:
    """A value as a message.

    Args:
        kind: Of the message.
        value: Has an attribute for each field that is not given.
        given: Fields that the value does not have in this form.

    Raises:
        AttributeError: The value lacks a field of the message.
        KeyError: An enum lacks a value.
    """
    for name, convert in _plan(kind):
        if name not in given and (found := getattr(value, name)) is not None:
            given[name] = found if convert is None else convert(found)
    return kind(**given)


def to_fields(message: Message) -> dict[str, Any]:
    """A message as the fields of a struct; an enum value that is unspecified, or unknown here, is left out."""
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        found = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            fields[field.name] = None
        elif field.is_repeated:
            fields[field.name] = [_plain(field, one) for one in found]
        elif field.enum_type is None or found in enum_numbers(field.enum_type).values():
            fields[field.name] = _plain(field, found)
    return fields


def timestamp(time: datetime) -> Timestamp:
    """A moment, UTC."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


@cache
def message_class(descriptor: Any) -> type[Message]:
    """The class of a message."""
    return GetMessageClass(descriptor)


@cache
def enum_numbers(enum: Any) -> dict[str, int]:
    """The values of an enum by their names, ``shadow`` for ``MODE_SHADOW``; without the one that stands for none."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in enum.values if value.number}


@cache
def _plan(kind: type[Message]) -> list[tuple[str, Callable[[Any], Any] | None]]:
    """The fields of a message, each with what converts the attribute of that name; ``None``: it is taken as it is."""
    return [(field.name, _converter(field)) for field in kind.DESCRIPTOR.fields]


def _converter(field: Any) -> Callable[[Any], Any] | None:
    if field.enum_type is not None:
        convert = enum_numbers(field.enum_type).__getitem__
    elif field.message_type is None:
        return None
    elif field.message_type is Timestamp.DESCRIPTOR:
        convert = timestamp
    else:
        convert = partial(to_message, message_class(field.message_type))
    return (lambda values: [convert(value) for value in values]) if field.is_repeated else convert


def _plain(field: Any, found: Any) -> Any:
    if field.enum_type is not None:
        return next((name for name, number in enum_numbers(field.enum_type).items() if number == found), None)
    if isinstance(found, Timestamp):
        return found.ToDatetime(UTC)
    return to_fields(found) if isinstance(found, Message) else found
