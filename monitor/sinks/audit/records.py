"""Records of the audit log: events as they are, and records about the log and the monitor that writes it.

All are told apart by ``type``. They hold ids, names of the operator's own rules, probes and vectors, and numbers; never
text of a prompt or a completion.
"""

from typing import Final

import msgspec

from monitor.events import AuditBeginning, Event, Mode

SEGMENT: Final = "segment_started"
TORN: Final = "line_torn"


class Context(msgspec.Struct, frozen=True):
    """Circumstances of an event that it does not say itself."""

    policy: str
    """Path of the file of the policy that decided, or what stands in for one."""
    policy_digest: str
    """SHA-256 of that file; empty for a policy that comes from no file."""
    ordered: int | None = None
    """Interventions that this monitor had ordered for the request before, 0 where it was one before this monitor;
    ``None``: the event is about no request."""
    steered: int | None = None
    """Tokens of the request that had been steered before; ``None``: it is not in flight, or the event is about none."""


class EventRecord(msgspec.Struct, frozen=True):
    """An event, and its context: of a line of the log, ``record`` and ``context``."""

    event: Event
    context: Context


class StartRecord(msgspec.Struct, frozen=True, tag_field="type", tag="monitor_started"):
    """A monitor began; one that ended without a :class:`StopRecord` was killed, or crashed."""

    plumbob: str
    """Its version."""
    bundle: str
    """Path of the bundle that it reads with."""
    bundle_digest: str


class StopRecord(msgspec.Struct, frozen=True, tag_field="type", tag="monitor_stopped"):
    """A monitor ended as it should."""


class RuleInForce(msgspec.Struct, frozen=True):
    """One rule of a policy."""

    name: str
    probe: str
    models: tuple[str, ...]
    """Name globs; empty: all."""
    mode: Mode
    actions: tuple[str, ...]
    """In words."""


class PolicyRecord(msgspec.Struct, frozen=True, tag_field="type", tag="policy_in_force"):
    """From here on, this policy decides."""

    policy: str
    """Path of its file, or what stands in for one."""
    policy_digest: str
    """SHA-256 of the file; empty for a policy that comes from no file."""
    rules: tuple[RuleInForce, ...]
    before: str | None = None
    """SHA-256 of the one that decided until now; ``None``: none is known."""


class LossRecord(msgspec.Struct, frozen=True, tag_field="type", tag="records_lost"):
    """Records that are missing before this one: more waited than are kept while the file could not be written."""

    records: int


class TornRecord(msgspec.Struct, frozen=True, tag_field="type", tag=TORN):
    """The line before this one is what a crash left of it."""

    size: int
    """Of it, in bytes, without the end of the line."""
    digest: str
    """SHA-256 of these bytes."""


class SegmentRecord(msgspec.Struct, frozen=True, tag_field="type", tag=SEGMENT):
    """A file of the log begins here; the line has the number of the record before it, and takes none of its own."""

    reason: AuditBeginning
    before: str
    """Name of the file that has the record before, as far as it is known; empty: it is not."""
    detail: str
    """What happened, in words."""


OwnRecord = StartRecord | StopRecord | PolicyRecord | LossRecord | TornRecord | SegmentRecord
"""Records about the log itself, and the monitor that writes it."""

Record = EventRecord | OwnRecord
