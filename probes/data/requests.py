"""Requests to score: conversations or prompts as JSON lines, checked whole before any model is loaded.

A line is one object, ``{"id", "messages": [{"role", "content"}, …]}`` or ``{"id", "prompt"}``. It may also have:

* ``labels``: probe to 0 or 1, what the request is known to show;
* ``group``: requests of one group are alike, and resampled together;
* ``source``: where the request comes from;
* ``slices``: name to value, kinds of traffic that are looked at on their own; ``slice`` is one without a name;
* ``metadata``: anything, which nobody reads.

Other keys are ignored, in a line as in a message: logs and data sets have their own. One that looks like a slip of the
hand, such as ``label`` or ``lables``, is an error: it would otherwise be a request without labels.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from probes.errors import PlumbobError
from probes.models.chat import Message

ROLES: Final = ("system", "user", "assistant", "tool")
"""Whose messages a request may have."""

_RESERVED: Final = ("source", "length")
"""Slices that calibration makes itself."""

_MEANT: Final = {name.removesuffix("s"): name for name in ("messages", "prompt", "labels", "group", "source", "slices")}
"""Keys that are easily misspelt, by their singular. ``id`` is none: it is missed anyway, and near to many others."""
_ALIKE: Final = 0.8
"""Similarity (difflib's ratio) of a slip to what was meant: two letters of five exchanged are still one."""


class RequestError(PlumbobError):
    """A file of requests that cannot be used; the message names the line."""


class Request(msgspec.Struct, frozen=True):
    """One request: a conversation, or a prompt."""

    id: str | int
    """As it is in the file, and unique there."""
    messages: tuple[Message, ...] = ()
    """The conversation; empty where there is a prompt."""
    prompt: str = ""
    """A text without a chat template, as completions have it; empty where there is a conversation."""
    labels: dict[str, bool] = {}
    """Probe to whether the request shows what it is named after; only the probes that are known."""
    group: str | None = None
    """The group that stays whole when requests are resampled."""
    source: str | None = None
    """The data set or service it comes from."""
    slices: dict[str, str] = {}
    """Name to value: what kinds of traffic it belongs to."""


class _Message(msgspec.Struct):
    """A message as it may be written; only its text is read."""

    role: str
    content: str | None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct):
    """A line as it may be written."""

    id: str | int
    messages: list[_Message] | None = None
    prompt: str | None = None
    labels: dict[str, Literal[0, 1]] = {}
    group: str | int | None = None
    source: str | None = None
    slice: str | None = None
    slices: dict[str, str | int | bool] = {}
    metadata: msgspec.Raw = msgspec.Raw()


def read_requests(path: Path, probes: Collection[str] | None = None) -> list[Request]:
    """The requests of a file, in its order.

    Args:
        path: A file of JSON lines, UTF-8.
        probes: Names that labels may have; ``None`` for any.

    Raises:
        RequestError: It is missing, empty, or malformed; the message names the first bad line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.", "Name a file of JSON lines.") from error
    # Not splitlines: a lone carriage return is white space to JSON.
    lines = content.removesuffix(b"\n").split(b"\n") if content.strip() else []
    if not lines:
        raise RequestError(f"{path} holds no requests.", 'Write lines such as {"id": 1, "prompt": "…"}.')
    requests: list[Request] = []
    seen: dict[str | int, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            request = _request(line, probes)
        except ValueError as error:
            raise RequestError(f"{path}, line {number}: {str(error).rstrip('.')}.", "Correct the line.") from error
        if (first := seen.setdefault(request.id, number)) != number:
            raise RequestError(
                f"{path}, line {number}: id {request.id!r} is that of line {first} already.", "Give each its own."
            )
        requests.append(request)
    return requests


def _request(line: bytes, probes: Collection[str] | None) -> Request:
    """One line.

    Raises:
        ValueError: What is wrong with it.
    """
    if not line.strip():
        raise ValueError("is empty")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    try:
        _require_no_slip(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
        raw = msgspec.json.decode(line, type=_Line)
    except msgspec.ValidationError:
        raise
    except msgspec.MsgspecError as error:
        raise ValueError(f"not JSON ({error}; NaN is none either)") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if (raw.messages is None) == (raw.prompt is None):
        raise ValueError(f"has {'neither' if raw.prompt is None else 'both'} of messages and prompt, and needs one")
    if raw.prompt == "":
        raise ValueError("its prompt is empty")
    if raw.messages is not None and not raw.messages:
        raise ValueError("has no messages")
    messages = [_message(index, message) for index, message in enumerate(raw.messages or ())]
    if unknown := sorted(set(raw.labels) - set(raw.labels if probes is None else probes)):
        raise ValueError(f"has a label for '{unknown[0]}'; the probes are: {', '.join(sorted(probes or ()))}")
    if taken := sorted(set(raw.slices) & {*_RESERVED, *(["slice"] if raw.slice is not None else [])}):
        raise ValueError(f"a slice cannot be named '{taken[0]}': that name is taken")
    named = {} if raw.slice is None else {"slice": raw.slice}
    return Request(
        id=raw.id,
        messages=tuple(messages),
        prompt=raw.prompt or "",
        labels={probe: bool(label) for probe, label in raw.labels.items()},
        group=None if raw.group is None else str(raw.group),
        source=raw.source,
        slices=named | {name: _text(value) for name, value in raw.slices.items()},
    )


def _require_no_slip(line: Mapping[str, Any]) -> None:
    """Raise ValueError where a key is nearly one that is known."""
    for key in sorted(line.keys() - set(_Line.__struct_fields__)):
        singular = key.strip().lower().removesuffix("s")
        near = get_close_matches(singular, _MEANT, 1, _ALIKE)
        # A longer one is a name of its own: prompt_id, labeler.
        if near and (singular == near[0] or not singular.startswith(near[0])):
            raise ValueError(f"has the key {key!r}, which is nearly '{_MEANT[near[0]]}': write that, or another name")


def _message(index: int, message: _Message) -> Message:
    """One message.

    Raises:
        ValueError: Its role is unknown, or it has no text.
    """
    if message.role not in ROLES:
        raise ValueError(f"messages[{index}] has the unknown role '{message.role}'; there are: {', '.join(ROLES)}")
    if message.content is None:
        calls = (
            ", only tool_calls, which are not read" if bytes(message.tool_calls) not in (b"", b"null", b"[]") else ""
        )
        raise ValueError(f"messages[{index}] is no text: its content is null{calls}")
    return Message(message.role, message.content)


def _text(value: str | int | bool) -> str:
    """As JSON would show it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)
