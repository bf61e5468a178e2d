"""The entries of a store, one type a kind.

Entries hold ids, names of the operator's own rules and probes, and numbers; never text of a prompt or a completion.
"""

from typing import Literal

import msgspec

Channel = Literal["gate", "guard", "refusal"]
"""A kind of report that an engine numbers, and repeats until it is confirmed.

* ``gate``: decisions of its gates.
* ``guard``: what its guard took back.
* ``refusal``: orders that it refused.
"""


class Processed(msgspec.Struct, frozen=True, array_like=True, tag="processed"):
    """Something that an engine repeats until it is confirmed is about to be recorded."""

    engine: str
    channel: Channel
    number: int
    """Counts from 0 with the engine and channel."""
    at: dict[str, int] = {}
    """Durable sinks that will have it, by name, each with the position that it will have there."""


class ProcessedRange(msgspec.Struct, frozen=True, array_like=True, tag="processed_range"):
    """Numbers that are recorded for good."""

    engine: str
    channel: Channel
    first: int
    last: int


class PartlyDelivered(msgspec.Struct, frozen=True, array_like=True, tag="partly"):
    """Something that some durable sinks have, and others lost with the monitor that was killed: it goes to those."""

    engine: str
    channel: Channel
    number: int
    sinks: tuple[str, ...]
    """Those that have it."""


class Confirmed(msgspec.Struct, frozen=True, array_like=True, tag="confirmed"):
    """All that was processed of an engine so far is settled in every sink that is waited for."""

    engine: str


class Armed(msgspec.Struct, frozen=True, array_like=True, tag="armed"):
    """An engine was ordered to arm a gate."""

    engine: str
    gate: str


class Disarmed(msgspec.Struct, frozen=True, array_like=True, tag="disarmed"):
    """An engine was ordered to disarm a gate, or ended its lease itself."""

    engine: str
    gate: str


class EngineForgotten(msgspec.Struct, frozen=True, array_like=True, tag="forgotten"):
    """An engine was lost, and is not waited for any more."""

    engine: str


class Admitted(msgspec.Struct, frozen=True, array_like=True, tag="admitted"):
    """An admission that is about to be recorded."""

    engine: str
    engine_request_id: str
    """The engine's own id of the request."""
    at: dict[str, int] = {}
    """As of :class:`Processed`."""
    again: bool = False
    """It is not recorded in any other sink than these, and is to be."""


class Applied(msgspec.Struct, frozen=True, array_like=True, tag="applied"):
    """Rules were carried out on a request in flight."""

    engine: str
    engine_request_id: str
    rules: tuple[str, ...]


class Fired(msgspec.Struct, frozen=True, array_like=True, tag="fired"):
    """A probe fired on a request in flight, and that was told."""

    engine: str
    engine_request_id: str
    probe: str
    position: int
    aggregate: float
    gate: bool = False
    """A gate of the engine saw it: the rows that are read do not show it."""


class RequestEnded(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """A request ended that something was known of."""

    engine: str
    engine_request_id: str


class PolicyInForce(msgspec.Struct, frozen=True, array_like=True, tag="policy"):
    """From here on, this policy decides."""

    name: str
    """Path of its file, or what stands in for one."""
    digest: str
    """SHA-256 of the file; empty for a policy that comes from no file."""


class AlertFired(msgspec.Struct, frozen=True, array_like=True, tag="alert"):
    """A rule alerted, in another mode than ``shadow``."""

    model: str
    rule: str
    severity: str
    probe: str
    times: int = 1
    since: float | None = None
    """When the alert began to fire, in Unix time; ``None``: with this, where it was not firing."""


class Resumed(msgspec.Struct, frozen=True, array_like=True, tag="resumed"):
    """A monitor goes on where one ended: what durable sinks do not have is not processed."""

    settled: dict[str, int]
    """Durable sinks by name, each with the position up to which it has everything."""


class LogHead(msgspec.Struct, frozen=True, array_like=True, tag="log"):
    """The last record of a log that is on disk, as far as was noted: what ends before it was cut off."""

    name: str
    """Of the durable sink that writes it."""
    sequence: int
    hash: str


Recording = Processed | Admitted
"""Entries that go ahead of an event, so that it is recorded once."""

Entry = (
    Processed
    | ProcessedRange
    | PartlyDelivered
    | Confirmed
    | Armed
    | Disarmed
    | EngineForgotten
    | Admitted
    | Applied
    | Fired
    | RequestEnded
    | PolicyInForce
    | AlertFired
    | Resumed
    | LogHead
)


class Noted(msgspec.Struct, frozen=True, array_like=True):
    """An entry with its time."""

    time: float
    """Unix time, in seconds."""
    entry: Entry
