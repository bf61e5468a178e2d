"""Bounds on the texts of messages: clients choose their requests' ids, and an engine may be of another version.

An id of more than :data:`ID_CHARACTERS`, or one that cannot be printed, stands for itself by its beginning and a hash
of all of it, so that two ids that begin alike are still two. The engine bounds ids where they arise
(:mod:`monitor.engine.vllm.requests`); the monitor bounds what it is sent once more, so that no engine can make an event
too large to be told, or write control characters into a log or a terminal.
"""

from collections import Counter
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from monitor.errors import FrameError
from monitor.wire.frames import Frame, GateEvent, GuardEvent, Hello, Refusal, Started
from monitor.wire.orders import Act

ID_CHARACTERS: Final = 256
"""The longest id that is taken as it is."""
KEPT_CHARACTERS: Final = 200
"""Of a longer one, those at its beginning that are kept."""
TEXT_CHARACTERS: Final = 4096
"""The longest text that is no id, such as the reason of a refusal; of a longer one, the beginning is kept."""
PATH_CHARACTERS: Final = 4096
"""The longest path of a ring; a longer one is no path of Linux."""
NAMES: Final = 1024
"""Gates that a message names in one place; those beyond are left out."""

CutReason = Literal["long", "unprintable"]
"""Why a text of a message was not taken as it is.

* ``long``: it has more characters than are taken.
* ``unprintable``: it has control characters, or others that cannot be shown.
"""


def bounded_id(id: str) -> str:
    """An id as it is told: itself, or its beginning and a hash of all of it. Bounding it again changes nothing.

    Args:
        id: Of any length, of any characters.

    Returns:
        At most :data:`ID_CHARACTERS`, all of which can be printed.
    """
    if len(id) <= ID_CHARACTERS and id.isprintable():
        return id
    digest = sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{_printable(id[:KEPT_CHARACTERS])}…sha256:{digest}"


def bounded_text(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """A text that is no id: its beginning, without what cannot be printed."""
    if len(text) > characters:
        text = text[: characters - 1] + "…"
    return text if text.isprintable() else _printable(text)


def bound(message: Hello | Frame) -> tuple[Hello | Frame, Counter[CutReason]]:
    """A message with every text in it bounded.

    Args:
        message: As it was decoded.

    Returns:
        The message, itself where nothing was cut, and how many of its texts were cut, by reason.

    Raises:
        FrameError: It names a ring by what cannot be a path.
    """
    cut: Counter[CutReason] = Counter()
    if isinstance(message, Hello):
        names = None if message.armed is None else _names(message.armed, cut)
        changed = _changed(message, cut, "model", "bundle", "vllm")
        return msgspec.structs.replace(changed, armed=names) if names is not message.armed else changed, cut
    header = message.header
    if any(len(block.path) > PATH_CHARACTERS for block in header.states):
        raise FrameError(f"A frame names a ring of states by more than {PATH_CHARACTERS} characters.")
    # Most frames have none of these.
    if header.started or header.gates or header.refused or header.guarded:
        bounded = msgspec.structs.replace(
            header,
            started=[_started(started, cut) for started in header.started],
            gates=[_gate(event, cut) for event in header.gates],
            refused=[_refusal(refusal, cut) for refusal in header.refused],
            guarded=[_guarded(event, cut) for event in header.guarded],
        )
        if cut:
            return msgspec.structs.replace(message, header=bounded), cut
    return message, cut


def _started(started: Started, cut: Counter[CutReason]) -> Started:
    started = _changed(started, cut, "request_id", "engine_request_id", "part")
    if (admitted := started.admitted) is not None:
        acts: list[Act] = [_changed(act, cut, "vector") for act in admitted.acts]
        if any(act is not before for act, before in zip(acts, admitted.acts, strict=True)):
            started = msgspec.structs.replace(started, admitted=msgspec.structs.replace(admitted, acts=acts))
    return started


def _gate(event: GateEvent, cut: Counter[CutReason]) -> GateEvent:
    return _changed(event, cut, "gate", "engine_request_id", "request_id")


def _refusal(refusal: Refusal, cut: Counter[CutReason]) -> Refusal:
    refusal = _changed(refusal, cut, "order", "id", "engine_request_id")
    reason = bounded_text(refusal.reason)
    if reason == refusal.reason:
        return refusal
    cut[_why(refusal.reason, TEXT_CHARACTERS)] += 1
    return msgspec.structs.replace(refusal, reason=reason)


def _guarded(event: GuardEvent, cut: Counter[CutReason]) -> GuardEvent:
    gates = _names(event.gates, cut)
    event = _changed(event, cut, "engine_request_id", "request_id")
    return event if gates is event.gates else msgspec.structs.replace(event, gates=gates)


def _names(names: list[str], cut: Counter[CutReason]) -> list[str]:
    if len(names) <= NAMES and all(len(name) <= ID_CHARACTERS and name.isprintable() for name in names):
        return names
    cut["long"] += max(0, len(names) - NAMES)
    return [_id(name, cut) for name in names[:NAMES]]


def _changed(struct: Any, cut: Counter[CutReason], *fields: str) -> Any:
    """A struct with these of its fields bounded as ids; itself where nothing was cut."""
    changed = {name: id for name in fields if (id := _id(found := getattr(struct, name), cut)) is not found}
    return msgspec.structs.replace(struct, **changed) if changed else struct


def _id(id: str, cut: Counter[CutReason]) -> str:
    bounded = bounded_id(id)
    if bounded is not id:
        cut[_why(id, ID_CHARACTERS)] += 1
    return bounded


def _why(text: str, characters: int) -> CutReason:
    return "long" if len(text) > characters else "unprintable"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
