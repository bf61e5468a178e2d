"""What the audit log says: one type a kind, told apart by ``kind``.

Records hold ids, names of the operator's own rules, probes and vectors, and numbers; never text of a prompt or a
completion.
"""

from typing import Literal

import msgspec

from monitor.events import Mode, Operation, OrderKind, OrderResult


class StartRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="monitor_started"):
    """A monitor began; one that ended without a :class:`StopRecord` was killed, or crashed."""

    plumbob: str
    """Its version."""
    bundle: str
    """Path of the bundle that it reads with."""
    bundle_digest: str


class StopRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="monitor_stopped"):
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


class PolicyRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="policy_in_force"):
    """From here on, this policy decides."""

    policy: str
    """Path of its file, or what stands in for one."""
    policy_digest: str
    """SHA-256 of the file; empty for a policy that comes from no file."""
    rules: tuple[RuleInForce, ...]
    before: str | None = None
    """SHA-256 of the one that decided until now; ``None``: the monitor starts with this one."""


class EngineRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="engine_changed"):
    """An engine connected, was lost, was refused, or is held to shadow."""

    engine: str
    model: str
    state: Literal["connected", "lost", "refused", "shadow"]
    detail: str


Result = Literal["ordered", "refused", "shadow"]
"""What became of an intervention.

* ``ordered``: the order went to the engine.
* ``refused``: it did not; ``refusal`` says why.
* ``shadow``: it is what would have been ordered; nothing was sent.
"""


class InterventionRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="intervention"):
    """A rule chose to change a generation, or a gate of an engine did."""

    engine: str
    model: str
    request_id: str
    """The id that the user of the API sees."""
    key: str
    """The engine's own, unique id."""
    policy: str
    policy_digest: str
    rule: str
    mode: Mode
    probe: str
    score: float
    """The running aggregate that reached the threshold, in logits."""
    threshold: float
    position: int
    """Of the token at which it did, in the request."""
    vector: str
    dose: float
    """Relative to the norm of the residual stream."""
    tokens: int | None
    """Tokens after which it is released; ``None``: at the end of the request."""
    steered: int
    """Tokens of the request that had been steered before."""
    result: Result
    refusal: str | None
    reason: str
    """The decision in words."""
    operation: Operation = "add"
    low: float | None = None
    """Of ``clamp``, in norms of the residual stream; ``None``: no bound."""
    high: float | None = None
    gate: str = ""
    """Id of the gate that decided; empty: the monitor did."""
    number: int | None = None
    """Of the gate's decision, counted with the engine: a monitor that is started again passes over those on record."""
    agree: int = 1
    """Averages that had to reach the threshold, among ..."""
    agree_of: int = 1
    """... the last so many."""


class GateClosedRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="intervention_ended"):
    """A gate steers a request no more: until it opens again, or for good."""

    engine: str
    model: str
    request_id: str
    key: str
    rule: str
    gate: str
    number: int
    position: int
    """Of the first token that is no longer steered."""
    steered: int
    """Tokens of the request that the gate has steered so far."""


class GateLossRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="interventions_lost"):
    """What gates of an engine decided here never arrived."""

    engine: str
    model: str
    decisions: int


class GuardRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="guarded"):
    """An answer repeated itself while it was steered, and the engine's guard released it for good."""

    engine: str
    model: str
    request_id: str
    key: str
    position: int
    """Of the first token that is steered no more."""
    repetition: float
    """Share of the sequences of three tokens that repeat an earlier one, among the last ``window`` tokens."""
    threshold: float
    window: int
    gates: tuple[str, ...]
    """Gates that steered it up to there, and steer it no more."""
    number: int
    """Of what the guard did, counted with the engine."""
    reason: str
    """All of it in words."""


class EscalationRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="escalated"):
    """A rule marked a request for review."""

    engine: str
    model: str
    request_id: str
    key: str
    policy: str
    policy_digest: str
    rule: str
    mode: Mode
    probe: str
    score: float
    threshold: float
    position: int
    reason: str


class OrderRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="order"):
    """An operator's order, a gate that the policy armed or disarmed, or what an engine refused."""

    order: str
    """Its id; of a gate, the gate's."""
    action: OrderKind
    result: OrderResult
    engine: str
    model: str
    request_id: str | None
    key: str | None
    who: str
    """``policy``, ``request`` for an admission, ``operator`` with its address, or ``engine``: it refused, or ended its
    lease."""
    lease_seconds: float | None
    """Until it is undone; ``None``: it is not by itself."""
    detail: str
    """What it does, in words."""
    reason: str
    """Why it was refused or undone; empty where it was sent."""


class EndRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="steering_ended"):
    """A request ended that was steered, or was to be."""

    engine: str
    model: str
    request_id: str
    key: str
    ordered: int
    """Interventions that this monitor ordered; 0 where it was one before it."""
    steered: int
    """Tokens that were computed downstream of steering, of those that this monitor saw."""
    tokens: int
    """Tokens that were read and not steered."""


class LossRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="records_lost"):
    """Records that are missing before this one: more waited than are kept while the file could not be written."""

    records: int


class TornRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="line_torn"):
    """The line before this one is what a crash left of it."""

    size: int
    """Of it, in bytes, without the end of the line."""
    digest: str
    """SHA-256 of these bytes."""


Record = (
    StartRecord
    | StopRecord
    | PolicyRecord
    | EngineRecord
    | InterventionRecord
    | GateClosedRecord
    | GateLossRecord
    | GuardRecord
    | EscalationRecord
    | OrderRecord
    | EndRecord
    | LossRecord
    | TornRecord
)
