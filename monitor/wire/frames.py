"""Messages of an engine to its monitor: who it is, what each step computed, and what it decided by itself."""

from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.errors import Cause
from monitor.wire.orders import Admission

VERSION: Final = 4

Position = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
"""A token's place in its request, or a number of tokens: what the monitor's protocol to watchers can have."""
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Counts from 0."""

ROW: Final = np.dtype([("slot", "<i4"), ("position", "<i4"), ("role", "u1"), ("steered", "u1")])
"""One row of a frame: the request's slot, the token's absolute position in the request, its role
(:class:`probes.scoring.roles.Role`), and whether the row's scores lie downstream of steering."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Identity of an engine, and what it can do."""

    version: int
    engine: str
    """Unique for each start of an engine."""
    model: str
    """The name it is served under; the label ``model_name`` of metrics."""
    bundle: str
    """Digest of the bundle that it scores with."""
    vllm: str
    """Version of vLLM."""
    drift: float | None = None
    """The largest drift of a canary's score that the self-test at start found; ``None``: not tested."""
    shadow: bool = False
    """The drift is beyond tolerance: nothing may be enforced on what this engine's scores say."""
    gates: int | None = None
    """Gates that may be armed at once; ``None``: the engine does not say."""
    armed: list[str] | None = None
    """Ids of the gates that are armed for all requests; ``None``: the engine does not say."""
    running: int | None = None
    """Requests that it has running; ``None``: the engine does not say."""
    steps: int | None = None
    """Steps that computed rows since its start: one without a frame was not read. ``None``: the engine does not say."""
    faults: int = 0
    """Faults of the engine core's part since its start; it goes on after each."""
    fault: str = ""
    """The last of them; empty: none."""


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A request that rows may refer to from now on."""

    slot: int
    engine_request_id: str
    """The engine's own, unique id; orders are addressed to it."""
    request_id: str
    """The id that the user of the API sees, bounded (:mod:`monitor.wire.bounds`)."""
    prompt_tokens: Position
    """Length of the prompt."""
    admitted: Admission | None = None
    """Steering that it asked for and has."""
    part: str = ""
    """Which part of the user's request it is, such as ``choice 3`` or ``prompt 1``; empty: all of it. Parts share
    ``request_id``."""


class StateBlock(msgspec.Struct, frozen=True, array_like=True):
    """Activations of one layer, in shared memory."""

    layer: int
    path: str
    """The ring's file."""
    start: int
    """The ring's number of the first row."""
    rows: int


class GateEvent(msgspec.Struct, frozen=True, array_like=True):
    """Decision of a gate of the engine.

    Sent with every frame until the monitor has confirmed one that had it: the monitor takes each number once.
    """

    number: Number
    """Counts from 0 with the engine, in the order of decisions; a gap is a loss."""
    gate: str
    kind: Literal["opened", "closed"]
    """It began to steer, or it has steered for the last time until it opens again, or for good."""
    engine_request_id: str
    """The engine's own id of the request."""
    request_id: str
    """The id that the user of the API sees."""
    position: Position
    """Opened: of the token that opened it. Closed: the first that is no longer steered."""
    average: float | None
    """Opened: the running average at that token, in logits. Closed: ``None``."""
    steered: Position
    """Rows of the request that the gate has steered so far."""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """An order that the engine does not carry out, or no more: its lease has ended. The request is served without it.

    Sent with every frame until the monitor has confirmed one that had it: the monitor takes each number once.
    """

    number: Number
    """Counts from 0 with the engine, so that the last number tells how many were refused; a gap is a loss."""
    order: str
    """Its kind: the tag of the order, or ``admission`` for what a request itself asked for."""
    id: str
    """Of the order, of the rule's action, or of the gate; empty: it has none."""
    engine_request_id: str
    """The engine's own id of the request; empty: it is about none."""
    cause: Cause
    reason: str
    """In words, with what to do about it."""


class GuardEvent(msgspec.Struct, frozen=True, array_like=True):
    """The guard (:mod:`monitor.engine.steering.guard`) released a request for good, since its answer repeated itself.

    Sent with every frame until the monitor has confirmed one that had it: the monitor takes each number once.
    """

    number: Number
    """Counts from 0 with the engine; a gap is a loss."""
    engine_request_id: str
    """The engine's own id of the request."""
    request_id: str
    """The id that the user of the API sees."""
    position: Position
    """The first that is steered no more."""
    repetition: float
    """Share of the window's sequences of three tokens that repeat an earlier one of it."""
    threshold: float
    """The share at which the guard acts."""
    window: Position
    """Tokens of the answer that were judged together."""
    gates: list[str]
    """Gates that steered the request up to there, and steer it no more."""


class FrameHeader(msgspec.Struct, frozen=True, array_like=True):
    """Everything of a frame but its arrays."""

    version: int
    engine: str
    rank: int
    sequence: int
    acked: int
    """The last sequence number that a monitor has confirmed to this engine, −1 if none."""
    dropped: int
    """Frames that this engine had to drop since its start: no monitor, or a full queue."""
    unscored: int
    """Rows computed but not scored since the start: LoRA requests, more requests than slots."""
    monotonic_ns: int
    """The host's monotonic clock when the step had been computed."""
    rows: int
    probes: int
    complete: bool
    """``started`` lists every request in flight: any other has ended."""
    finished: list[int]
    """Slots whose request has ended; applied before ``started``, since slots are reused."""
    started: list[Started]
    states: list[StateBlock] = []
    gates: list[GateEvent] = []
    """Decisions of gates that are not confirmed, oldest first."""
    refused: list[Refusal] = []
    """Orders that were not carried out and are not confirmed, oldest first."""
    guarded: list[GuardEvent] = []
    """Whom the guard released, oldest first, as far as it is not confirmed."""
    faults: int = 0
    """Faults of the taps and of the thread that sends, since the start; they go on after each."""
    fault: str = ""
    """The last of them; empty: none."""
    untapped: bool = False
    """The taps failed again and again and are switched off for good: nothing is scored any more."""


class Frame(msgspec.Struct, frozen=True):
    """One step of an engine."""

    header: FrameHeader
    rows: NDArray[np.void]
    """Of dtype :data:`ROW`, shape ``(rows,)``."""
    scores: NDArray[np.float32]
    """Shape ``(rows, probes)``, in logits."""
    streamed: NDArray[np.int32]
    """The frame's row of each streamed state, all blocks one after the other; −1: the row is not in the frame."""
