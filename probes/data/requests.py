"""Requests to score: conversations or prompts as JSON lines, checked whole before any model is loaded.

A line is one object, ``{"id", "messages": [{"role", "content"}, …]}`` or ``{"id", "prompt"}``. Beside ``messages`` it
may have what a request of the chat API has (:mod:`probes.data.chat_requests`): messages with content in parts, with
``tool_calls`` and no content, of any role that the model's chat template takes; ``tools``, ``chat_template_kwargs`` and
so on. A line of OpenAI's batch format, ``{"custom_id", "url", "body"}``, is the request in its ``body``.

The answer's header is appended, as a server does it, unless the last message is the assistant's: that is then the
answer, and scored as it is given. ``add_generation_prompt`` and ``continue_final_message`` decide where they are there.

A line may also have:

* ``labels``: probe to 0 or 1, what the request is known to show;
* ``group``: requests of one group are alike, and resampled together;
* ``source``: where the request comes from;
* ``slices``: name to value, kinds of traffic that are looked at on their own; ``slice`` is one without a name;
* ``metadata``: anything, which nobody reads.

Other keys are ignored, in a line as in a message: logs and data sets have their own. One that looks like a slip of the
hand, such as ``label`` or ``lables``, is an error: it would otherwise be a request without labels. Blank lines are not
counted as requests, and a byte order mark is skipped.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from probes.data.chat_requests import FIELDS, chat_of
from probes.errors import PlumbobError, reason
from probes.models.chat import Message, encode, encode_chat
from probes.models.rendering import normalised, require_whole

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
    template: dict[str, Any] = {}
    """What the chat template is given beside the messages: ``tools``, ``add_generation_prompt`` and others."""
    special_tokens: bool | None = None
    """Add the tokenizer's special tokens to the text; ``None``: to a prompt, not to what a template renders."""


@dataclass(slots=True)
class Skipped:
    """Lines that were left out since they cannot be read, or the model cannot."""

    count: int = 0
    reasons: list[str] = field(default_factory=list[str])
    """Of the first :data:`REASONS`."""

    def add(self, error: PlumbobError) -> None:
        """Count one."""
        self.count += 1
        if len(self.reasons) < REASONS:
            self.reasons.append(error.message)


REASONS: Final = 3
"""Reasons that are kept of those why lines were skipped."""


class _Line(msgspec.Struct):
    """A line as it may be written."""

    id: str | int
    messages: Any = None
    prompt: str | list[Any] | None = None
    add_special_tokens: bool | None = None
    labels: dict[str, Literal[0, 1]] = {}
    group: str | int | None = None
    source: str | None = None
    slice: str | None = None
    slices: dict[str, str | int | bool] = {}
    metadata: Any = None


_OURS: Final = frozenset(_Line.__struct_fields__) - {"metadata", "messages"}
"""Keys of a line that are read, those of a chat excepted."""
_BATCH: Final = ("custom_id", "method", "url", "body")
"""Keys of OpenAI's batch format; ours may be beside them."""
_MARK: Final = b"\xef\xbb\xbf"


def read_requests(path: Path, probes: Collection[str] | None = None, skipped: Skipped | None = None) -> list[Request]:
    """The requests of a file, in its order.

    Args:
        path: A file of JSON lines, UTF-8.
        probes: Names that labels may have; ``None`` for any.
        skipped: Told of bad lines, which are left out; ``None``: the first one is an error.

    Raises:
        RequestError: It is missing, has no good line, or is malformed; the message names the first bad line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.", "Name a file of JSON lines.") from error
    # Not splitlines: a lone carriage return is white space to JSON.
    lines = content.removeprefix(_MARK).split(b"\n")
    if not any(line.strip() for line in lines):
        raise RequestError(f"{path} holds no requests.", 'Write lines such as {"id": 1, "prompt": "…"}.')
    requests: list[Request] = []
    seen: dict[str | int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = _request(line, probes)
            if (first := seen.setdefault(request.id, number)) != number:
                raise RequestError(
                    f"{path}, line {number}: id {request.id!r} is that of line {first} already.", "Give each its own."
                )
        except (ValueError, RequestError) as error:
            if isinstance(error, ValueError):
                error = RequestError(
                    f"{path}, line {number}: {str(error).rstrip('.')}.",
                    "Correct the line, or leave it out (--skip-invalid).",
                )
            if skipped is None:
                raise error from None
            skipped.add(error)
        else:
            requests.append(request)
    if not requests:
        first = f" The first: {skipped.reasons[0]}" if skipped is not None else ""
        raise RequestError(f"{path} has no line that can be read.{first}", "Correct its lines.")
    return requests


def encode_request(tokenizer: Any, request: Request) -> list[int]:
    """A request's tokens, as the server reads them.

    Args:
        tokenizer: Of transformers, of the model.
        request: To encode.

    Raises:
        RequestError: The chat template refuses it; the message names its id.
    """
    try:
        if not request.messages:
            return tokenizer(request.prompt, add_special_tokens=request.special_tokens is not False)["input_ids"]
        respond = request.messages[-1].role != "assistant" and not request.template.get("continue_final_message")
        if not tokenizer.chat_template:
            return encode(tokenizer, request.messages, respond=respond)
        template = {"add_generation_prompt": respond, **request.template}
        return encode_chat(tokenizer, request.messages, template, special_tokens=request.special_tokens is True)
    except Exception as error:
        # Templates raise what they like of roles that they do not know, or do not expect in this order.
        raise RequestError(
            f"Request {request.id!r} cannot be encoded for the model: {reason(error)}.",
            "Write it as its chat template takes it, leave it out, or pass --skip-invalid.",
        ) from error


def rendered_with(tokenizer: Any, request: Request) -> object:
    """All that the chat template is rendered with: a conversation as the template takes it, and what is beside it."""
    given = [message.given() for message in request.messages]
    if not tokenizer.chat_template:
        return given
    source = tokenizer.get_chat_template(None, tools=request.template.get("tools"))
    return [normalised(source, given), request.template]


def _request(line: bytes, probes: Collection[str] | None) -> Request:
    """One line.

    Raises:
        ValueError: What is wrong with it.
    """
    written = _flat(_decoded(line))
    for name in sorted(_OURS & written.keys()):
        _require_whole(name, written[name])
    raw = msgspec.convert(written, _Line)
    if (raw.messages is None) == (raw.prompt is None):
        raise ValueError(f"has {'neither' if raw.prompt is None else 'both'} of messages and prompt, and needs one")
    messages, template = chat_of(written) if raw.messages is not None else ((), {})
    if unknown := sorted(set(raw.labels) - set(raw.labels if probes is None else probes)):
        raise ValueError(f"has a label for '{unknown[0]}'; the probes are: {', '.join(sorted(probes or ()))}")
    if taken := sorted(set(raw.slices) & {*_RESERVED, *(["slice"] if raw.slice is not None else [])}):
        raise ValueError(f"a slice cannot be named '{taken[0]}': that name is taken")
    named = {} if raw.slice is None else {"slice": raw.slice}
    return Request(
        id=raw.id,
        messages=messages,
        prompt=_prompt(raw.prompt),
        labels={probe: bool(label) for probe, label in raw.labels.items()},
        group=None if raw.group is None else str(raw.group),
        source=raw.source,
        slices=named | {name: _text(value) for name, value in raw.slices.items()},
        template=template,
        special_tokens=raw.add_special_tokens,
    )


def _decoded(line: bytes) -> dict[str, Any]:
    """A line's object, by the parser that the server has.

    Raises:
        ValueError: It is none.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return msgspec.convert(found, dict[str, Any])


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """A line with the request at its top, that of OpenAI's batch format too.

    Raises:
        ValueError: A key is nearly one that is known, or the batch's request is of something else.
    """
    body = line.get("body")
    if not isinstance(body, dict) or not line.keys() & {"custom_id", "url"}:
        _require_no_slip(line)
        return line
    outer = {name: value for name, value in line.items() if name not in _BATCH}
    _require_no_slip(outer)
    url = line.get("url")
    if url is not None and not (isinstance(url, str) and re.search(r"/(chat/)?completions/?$", url)):
        raise ValueError(
            f"is a request to {url!r}, and only those to /v1/chat/completions and /v1/completions are read"
        )
    if both := sorted(outer.keys() & {"messages", "prompt"}):
        raise ValueError(f"has {both[0]} beside its body")
    # The batch names its requests itself.
    return {"id": line.get("custom_id"), **{name: body[name] for name in body if name != "id"}, **outer}


def _require_whole(place: str, value: Any) -> None:
    """Raise ValueError where a text in a field of ours is none; those of a chat are checked where they are read."""
    if isinstance(value, str):
        try:
            require_whole(value)
        except ValueError as error:
            raise ValueError(f"{place} {error}") from None
    elif isinstance(value, dict):
        for name, item in value.items():
            _require_whole(place, name)
            _require_whole(f"{place}.{name}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_whole(f"{place}[{index}]", item)


def _prompt(given: str | list[Any] | None) -> str:
    """A prompt as the completions API takes it, where it is one text.

    Raises:
        ValueError: It is empty, of several texts, or of tokens.
    """
    if isinstance(given, list):
        if any(not isinstance(item, str) for item in given):
            raise ValueError("its prompt is of tokens, and only text is read")
        if len(given) > 1:
            raise ValueError(f"has {len(given)} prompts: write a line for each")
        given = str(given[0]) if given else ""
    if given == "":
        raise ValueError("its prompt is empty")
    return given or ""


def _require_no_slip(line: Mapping[str, Any]) -> None:
    """Raise ValueError where a key is nearly one that is known."""
    for key in sorted(line.keys() - set(_Line.__struct_fields__) - FIELDS):
        singular = key.strip().lower().removesuffix("s")
        near = get_close_matches(singular, _MEANT, 1, _ALIKE)
        # A longer one is a name of its own: prompt_id, labeler.
        if near and (singular == near[0] or not singular.startswith(near[0])):
            raise ValueError(f"has the key {key!r}, which is nearly '{_MEANT[near[0]]}': write that, or another name")


def _text(value: str | int | bool) -> str:
    """As JSON would show it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)
