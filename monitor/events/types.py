"""The events: verdicts, alerts, interventions, and the state of engines, a frozen struct each.

An event is written once, here. Everything that shows it is machinery: protobuf messages (:mod:`monitor.api.convert`)
and JSON in the log of the process.
"""

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from monitor.events.base import (
    AuditBeginning,
    EngineEvent,
    EventBase,
    Mode,
    Operation,
    OrderKind,
    OrderResult,
    Reading,
    Request,
    RequestEvent,
    Severity,
    Unread,
)

__all__ = [
    "Alert",
    "AuditChanged",
    "EngineChanged",
    "Escalated",
    "Event",
    "FramesLost",
    "Guarded",
    "Intervention",
    "InterventionEnded",
    "InterventionsLost",
    "Ordered",
    "PolicyChanged",
    "ProbeFired",
    "Recorded",
    "RequestFinished",
]


class ProbeFired(RequestEvent, frozen=True):
    """A probe's running aggregate reached its threshold, for the first time in this request."""

    logged: ClassVar[bool] = False
    audited: ClassVar[bool] = False

    probe: str
    aggregate: float
    threshold: float
    position: int
    role: str


class Alert(RequestEvent, frozen=True):
    """A rule of the policy chose to alert."""

    audited: ClassVar[bool] = False

    rule: str
    mode: Mode
    severity: Severity
    probe: str
    aggregate: float
    threshold: float
    position: int
    reason: str
    """The decision in words."""


class Intervention(RequestEvent, frozen=True):
    """A rule of the policy chose to change a generation, or a gate that it armed did.

    In ``shadow``, it is what it would have done.
    """

    rule: str
    """Empty: of a gate that no rule of this policy has armed."""
    mode: Mode
    probe: str
    aggregate: float
    threshold: float
    position: int
    vector: str
    """Empty for ``stop``."""
    dose: float
    """Relative to the residual stream's norm; 0 for every operation but ``add``."""
    tokens: int | None
    """Tokens after which steering is released; ``None``: at the end of the request."""
    sent: bool
    """The order went to the engine, or its gate decided itself: always false in ``shadow``."""
    reason: str
    """The decision in words."""
    operation: Operation = "add"
    low: float | None = None
    """The projection is at least this, in norms of the residual stream; ``None``: no bound."""
    high: float | None = None
    gate: str = ""
    """Id of the engine's gate that decided; empty: the monitor did."""
    agree: int = 1
    """Averages that had to reach the threshold, among ..."""
    agree_of: int = 1
    """... the last so many."""
    number: int | None = None
    """Of a gate's decision, counted with the engine; ``None``: the monitor decided."""
    refusal: str = ""
    """Why a rule that enforces changed nothing; empty where it did."""


class InterventionEnded(RequestEvent, frozen=True):
    """A gate of the engine steers a request no more: until it opens again, or for good."""

    rule: str
    gate: str
    position: int
    """Of the first token that is no longer steered."""
    steered: int
    """Tokens of the request that the gate has steered so far."""
    number: int
    """Of the gate's decision, counted with the engine."""


class InterventionsLost(EngineEvent, frozen=True):
    """Decisions of an engine's gates never arrived: a gap in their numbers."""

    decisions: int
    """Openings and closings, together."""


class Guarded(RequestEvent, frozen=True):
    """An answer repeated itself while it was steered, and the engine's guard released it for good."""

    position: int
    """Of the first token that is steered no more."""
    repetition: float
    """Share of the sequences of three tokens that repeat an earlier one, among the last ``window`` tokens."""
    threshold: float
    """The share at which the guard acts."""
    window: int
    gates: tuple[str, ...]
    """Gates of the engine that steered it up to there, and steer it no more."""
    number: int
    """Of what the guard did, counted with the engine."""
    reason: str
    """All of it in words."""


class Escalated(RequestEvent, frozen=True):
    """A rule of the policy marked a request for review; its trace is kept, but in ``shadow``."""

    rule: str
    mode: Mode
    probe: str
    aggregate: float
    threshold: float
    position: int
    reason: str
    """The decision in words."""


class Ordered(EventBase, frozen=True):
    """An order that no decision on a request stands behind, or any that an engine refused.

    The former are an operator's, and the gates that the policy arms.
    """

    order: str
    """Its id; of a gate, the gate's."""
    kind: OrderKind
    result: OrderResult
    engine: str
    model: str
    request: Request | None
    """The request that it is for; ``None``: all, or it is not known."""
    who: str
    """``policy``, ``request`` for an admission, ``operator`` with its address, or ``engine``: it refused, or ended its
    lease."""
    lease_seconds: float | None
    """Until it is undone; ``None``: it is not by itself."""
    detail: str
    """Its effect in words."""
    reason: str
    """Why it was refused or undone; empty where it was sent."""


class RequestFinished(RequestEvent, frozen=True):
    """A request ended; the final verdict of each probe."""

    logged: ClassVar[bool] = False
    audited: ClassVar[bool] = False
    routine: ClassVar[bool] = True

    tokens: int
    """Positions read, each counted once; the system's and the template's are among them."""
    unscored: int
    """Tokens that were not wholly scored: served from the prefix cache, lost on the way, or with a score that is no
    finite number. Never passed off as clean."""
    steered: int
    """Rows computed downstream of steering; not part of the verdict."""
    readings: tuple[Reading, ...]
    unread: tuple[Unread, ...] = ()
    """Tokens of content that no probe of the bundle reads, by role; neither in ``tokens`` nor passed off as clean."""


class PolicyChanged(EventBase, frozen=True):
    """The policy was read again, while the monitor ran."""

    audited: ClassVar[bool] = False

    policy: str
    """Path of its file."""
    digest: str
    """SHA-256 of the file; empty where it is not in force."""
    in_force: bool
    """It decides from here on; otherwise the one before it still does."""
    before: str
    """SHA-256 of the file that was in force; empty for a policy that comes from no file."""
    reason: str
    """Its rules and gates in words, or why it is not in force."""


class AuditChanged(EventBase, frozen=True):
    """A file of the audit log begins where another ended; its own first line says the same."""

    audited: ClassVar[bool] = False

    file: str
    """Path of the file that is written."""
    reason: AuditBeginning
    before: str
    """Name of the file that has the record before, as far as it is known; empty: it is not."""
    detail: str
    """What happened, in words."""


class EngineChanged(EngineEvent, frozen=True):
    """An engine connected, was lost, does not fit this monitor, does not score as its bundle's model would, or serves
    unread.
    """

    state: Literal["connected", "lost", "refused", "shadow", "silent"]
    detail: str


class FramesLost(EngineEvent, frozen=True):
    """A gap in an engine's sequence numbers."""

    audited: ClassVar[bool] = False

    frames: int


Event = (
    ProbeFired
    | Alert
    | Intervention
    | RequestFinished
    | EngineChanged
    | FramesLost
    | InterventionEnded
    | InterventionsLost
    | Guarded
    | PolicyChanged
    | AuditChanged
    | Escalated
    | Ordered
)


class Recorded(msgspec.Struct, frozen=True):
    """An event with its place in the log."""

    sequence: int
    """Ascending by one from 1, since the monitor started."""
    time: datetime
    """UTC."""
    event: Event
