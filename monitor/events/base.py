"""Parts of events: the words of their fields, the request that they are about, and their bases."""

import re
from typing import ClassVar, Literal

import msgspec

__all__ = [
    "AuditBeginning",
    "EngineEvent",
    "EventBase",
    "Mode",
    "Operation",
    "OrderKind",
    "OrderResult",
    "Reading",
    "Request",
    "RequestEvent",
    "Severity",
    "Unread",
    "request_of",
    "type_name",
]

Mode = Literal["shadow", "alert", "enforce"]
"""The mode of a rule: how far it goes.

* ``shadow``: everything is computed and recorded as what would have happened; nothing is sent.
* ``alert``: alerts are sent; nothing changes a generation.
* ``enforce``: alerts are sent and generations are changed.
"""

Severity = Literal["info", "warning", "critical"]

Operation = Literal["add", "ablate", "clamp", "stop"]
"""Ways to change a generation.

* ``add``: a dose of a vector is added to the residual stream.
* ``ablate``: the projection on the vector is taken away.
* ``clamp``: the projection on the vector is kept in a range.
* ``stop``: the generation is ended with a message.
"""

OrderKind = Literal["steer", "release", "stop", "stream", "arm", "disarm", "admission"]
"""Effects of an order.

* ``steer``, ``release``: steer a request, or leave it alone again.
* ``stop``: end its generation.
* ``stream``: stream a layer's activations.
* ``arm``, ``disarm``: let a gate of the engine steer requests, or let it steer no more.
* ``admission``: what a request itself asked to be steered by.
"""

AuditBeginning = Literal["rotated", "moved", "truncated", "set_aside", "missing"]
"""Why a file of the audit log begins where another ended.

* ``rotated``: the one before had reached its size or its age.
* ``moved``: another process moved or removed the one before.
* ``truncated``: another process cut off what was in this file.
* ``set_aside``: what was in this file could not be continued; it was renamed, and is kept.
* ``missing``: what an earlier monitor wrote last was not there.
"""

OrderResult = Literal["sent", "refused", "expired"]
"""Results of such an order.

* ``sent``: it went to the engine.
* ``refused``: it did not; the event says why.
* ``expired``: its lease ended, and what it did was undone.
"""


def _tag(name: str) -> str:
    """``ProbeFired`` as ``probe_fired``."""
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


class Request(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A request as its user and its engine know it."""

    engine: str
    model: str
    """The name it is served under."""
    request_id: str
    """The id that the user of the API sees."""
    engine_request_id: str
    """The engine's own, unique id; orders are addressed to it."""
    prompt_tokens: int
    """Length of the prompt; 0 where an engine tells of a request that the monitor does not follow."""
    part: str = ""
    """Which part of the user's request it is: ``choice 3`` of ``n``, ``prompt 1`` of a batch, ``beam 2`` of a beam
    search, which has a new request for each token. Empty: all of it."""

    @property
    def name(self) -> str:
        """The user's id and the part, in words."""
        return f"{self.request_id} ({self.part})" if self.part else self.request_id


class Reading(msgspec.Struct, frozen=True, gc=False):
    """Reading of one request by one probe."""

    probe: str
    tokens: int
    """Tokens of the probe's roles that were scored."""
    peak: float | None
    """The largest running aggregate, in logits; ``None`` when too few tokens were read."""
    threshold: float
    fired_at: int | None
    """Position of the token at which the probe fired."""
    unscored: int = 0
    """Tokens of the probe's roles whose score was no finite number, or that its worker did not score. Positions that
    were never heard of have no role, and are among those of the request."""

    @property
    def fired(self) -> bool:
        """True where the probe fired."""
        return self.fired_at is not None


class Unread(msgspec.Struct, frozen=True, gc=False):
    """Tokens of content that no probe of the bundle reads."""

    role: str
    """Theirs: ``text`` without the chat template, for one; ``unknown`` where the engine is newer than the monitor."""
    tokens: int


class EventBase(msgspec.Struct, frozen=True, tag_field="type", tag=_tag):
    """Base of all events; JSON names the kind as ``type``, in snake case."""

    logged: ClassVar[bool] = True
    """Written to the log of the process, which leaves out kinds that come with every request."""
    audited: ClassVar[bool] = True
    """Recorded in the audit log, each one; of requests that end, those that were steered are."""
    routine: ClassVar[bool] = False
    """It comes with every request, whatever was read in it: where room is short, it goes before others."""


def type_name(event: EventBase | type[EventBase]) -> str:
    """The name of a kind of event: ``probe_fired``, as JSON and protobuf have it."""
    return str(event.__struct_config__.tag)


class RequestEvent(EventBase, frozen=True):
    """An event about one request."""

    request: Request


def request_of(event: EventBase) -> Request | None:
    """The request that an event is about, if it is about one."""
    return getattr(event, "request", None)


class EngineEvent(EventBase, frozen=True):
    """An event about one engine."""

    engine: str
    """Unique for each start of an engine."""
    model: str
    """The name that it serves under; empty until it has said who it is."""
