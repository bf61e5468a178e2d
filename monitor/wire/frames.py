r"""The messages between an engine and its monitor, both sides.

The monitor binds a ZeroMQ ROUTER; each engine process connects with a DEALER, over ipc. Every message is multipart and
begins with one byte of kind. Engine to monitor::

    HELLO   msgpack Hello                                    at connect, then every second, from the engine core
    FRAME   msgpack FrameHeader, rows, scores, streamed      one a step that computed rows, from the rank that exports

Monitor to engine::

    ORDER   msgpack Order                                    to the engine core
    ACK     msgpack Ack                                      to the exporter: the last frame that arrived
    RESYNC                                                   to the exporter: tell me all requests in flight

``rows`` is a packed array of :data:`ROW` and ``scores`` float32 ``(rows, probes)``, both little-endian. Activations
that are streamed travel in shared memory (:mod:`monitor.wire.ring`); the header's ``states`` say where, and
``streamed`` is int32, for each row of each of those blocks the row of this frame that it is the state of, −1 for none.

Frames carry sequence numbers that begin at 0 with the engine and never repeat: a gap is a loss. What an engine had to
drop was numbered too. The first frame after a loss, and the answer to RESYNC, is ``complete``: it lists every request
in flight.
"""

from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.errors import Cause, FrameError, FrameVersionError

VERSION: Final = 2

HELLO: Final = b"H"
FRAME: Final = b"F"
ORDER: Final = b"O"
ACK: Final = b"A"
RESYNC: Final = b"R"

ROW: Final = np.dtype([("slot", "<i4"), ("position", "<i4"), ("role", "u1"), ("steered", "u1")])
"""One row of a frame: the request's slot, the token's absolute position in the request, its role
(:class:`probes.scoring.roles.Role`), and whether the row's scores lie downstream of steering."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Who an engine is."""

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


class Act(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to the projection of a row on a steering vector; see :class:`probes.steering.Operation`."""

    vector: str
    add: float = 0.0
    """Dose, relative to the residual stream's norm."""
    scale: float = 1.0
    """What the projection is multiplied with; 0 takes it away."""
    low: float | None = None
    """It is at least this, before anything is added, in norms of the residual stream; ``None``: no bound."""
    high: float | None = None


class Admission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a request asks to be steered from its first token on: what ``vllm_xargs.plumbob`` says, as JSON."""

    acts: Annotated[list[Act], msgspec.Meta(min_length=1, max_length=8)]
    tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Release after this many tokens of the response; ``None``: at its end."""
    prompt: bool = False
    """The prompt's rows are steered as well, and the request shares none of the prefix cache."""


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A request that rows may refer to from now on."""

    slot: int
    key: str
    """The engine's own, unique id; orders are addressed to it."""
    request_id: str
    """The id that the user of the API sees."""
    prompt_tokens: int
    """Length of the prompt."""
    admitted: Admission | None = None
    """What it asked for and is steered by."""


Selection = Literal["none", "last", "all"]
"""Which rows of a step are streamed: none, the last of each request, or all."""


class StateBlock(msgspec.Struct, frozen=True, array_like=True):
    """Activations of one layer, in shared memory."""

    layer: int
    path: str
    """The ring's file."""
    start: int
    """The ring's number of the first row."""
    rows: int


class GateEvent(msgspec.Struct, frozen=True, array_like=True):
    """What a gate of the engine decided.

    Sent with every frame until the monitor has confirmed one that had it: whoever records them keeps each number once.
    """

    number: int
    """Counts from 0 with the engine, in the order of decisions; a gap is a loss."""
    gate: str
    kind: Literal["opened", "closed"]
    """It began to steer, or it has steered for the last time until it opens again, or for good."""
    key: str
    """The engine's own id of the request."""
    request_id: str
    """The id that the user of the API sees."""
    position: int
    """Opened: of the token that opened it. Closed: the first that is no longer steered."""
    average: float | None
    """Opened: the running average at that token, in logits. Closed: ``None``."""
    steered: int
    """Rows of the request that the gate has steered so far."""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """An order that the engine does not carry out, or no more: its lease has ended. The request is served without it.

    Sent with every frame until the monitor has confirmed one that had it: whoever records them keeps each number once.
    """

    number: int
    """Counts from 0 with the engine, so that the last number tells how many were refused; a gap is a loss."""
    order: str
    """Its kind: the tag of the order, or ``admission`` for what a request itself asked for."""
    id: str
    """Of the order, of the rule's action, or of the gate; empty: it has none."""
    key: str
    """The engine's own id of the request; empty: it is about none."""
    cause: Cause
    reason: str
    """In words, with what to do about it."""


class GuardEvent(msgspec.Struct, frozen=True, array_like=True):
    """The guard (:mod:`monitor.engine.steering.guard`) has taken steering back, since an answer repeated itself.

    Sent with every frame until the monitor has confirmed one that had it: whoever records them keeps each number once.
    """

    number: int
    """Counts from 0 with the engine; a gap is a loss."""
    kind: Literal["halved", "released"]
    """Half of what orders did is done, or the request is steered no more, for good."""
    key: str
    """The engine's own id of the request."""
    request_id: str
    """The id that the user of the API sees."""
    position: int
    """The first that is steered less."""
    repetition: float
    """Share of the window's sequences of three tokens that repeat an earlier one of it."""
    threshold: float
    """The share at which the guard acts."""
    window: int
    """Tokens of the answer that were judged together."""
    left: list[Act]
    """What orders do from that position on."""
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
    """What gates decided, oldest first, as far as it is not confirmed."""
    refused: list[Refusal] = []
    """What was not done, oldest first, as far as it is not confirmed."""
    guarded: list[GuardEvent] = []
    """What the guard took back, oldest first, as far as it is not confirmed."""


class Frame(msgspec.Struct, frozen=True):
    """What one step of an engine computed."""

    header: FrameHeader
    rows: NDArray[np.void]
    """Of dtype :data:`ROW`, shape ``(rows,)``."""
    scores: NDArray[np.float32]
    """Shape ``(rows, probes)``, in logits."""
    streamed: NDArray[np.int32]
    """The frame's row of each streamed state, all blocks one after the other; −1: the row is not in the frame."""


class Steer(msgspec.Struct, frozen=True, tag="steer"):
    """Steer every response row of a request, from its next step on.

    Acts and orders compose, in no order, as in :func:`monitor.engine.steering.acts.compose`: doses add up, scales
    multiply, and ranges intersect. An engine refuses what goes beyond a vector's cap, or leaves a range empty.
    """

    key: str
    acts: Annotated[list[Act], msgspec.Meta(min_length=1)]
    tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Release after this many tokens; ``None``: until the request ends."""
    id: str = ""
    """Of the rule's action: an engine applies an id once a request, so that a monitor that was started again and
    decides anew does not double the dose. Empty: applied each time."""
    lease: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Seconds after which the engine releases it by itself, from when the order arrived; ``None``: never."""
    max_dose: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """What all that may be done to the request at once along one of its vectors may come to, either way; ``None``: no
    more than the bundle's cap."""


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Stop steering a request."""

    key: str
    id: str = ""
    """Of the order to undo; empty: all that were ordered for the request."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End a generation: the answer ends with the message and the end of sequence. From the engine's next step on, the
    model adds nothing to it.
    """

    key: str
    message: str
    """Empty: nothing is said."""
    id: str = ""
    """Of the rule's action."""


class Stream(msgspec.Struct, frozen=True, tag="stream"):
    """Stream a layer's activations, from the next step on; the engine must have been started to allow it."""

    layer: int
    rows: Selection


class Arm(msgspec.Struct, frozen=True, tag="arm"):
    """Let the engine itself steer requests, from the very token at which a probe's running average crosses a threshold
    (:mod:`monitor.engine.ops.gate`); it needs no monitor for that. The engine must have been started with gates.

    A gate of the same id is tuned: averages go on. Where ``acts`` differ, it steers anew only when it opens again.
    """

    id: str
    probe: str
    acts: Annotated[list[Act], msgspec.Meta(min_length=1)]
    threshold: float | None = None
    """In logits; ``None``: the probe's own."""
    half_life: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Of the average, in tokens; ``None``: the probe's own."""
    min_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Tokens read before it may open; ``None``: the probe's own."""
    streak: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Averages in a row that must reach the threshold; ``None``: the probe's own agreement, if it is of that kind."""
    release: float | None = None
    """It stays open until averages fall below this, in logits; ``None``: until the hold is over."""
    release_streak: Annotated[int, msgspec.Meta(ge=1)] = 1
    """So many averages in a row."""
    hold: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Rows steered after the last token over the threshold, at least; ``None``: none where there is a release, else
    until the request ends."""
    budget: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The most rows steered of a request; ``None``: no limit."""
    key: str | None = None
    """The request it is for; ``None``: all, those in flight from their next row on."""
    lease: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Seconds after which the engine disarms it by itself, from when the order arrived; ``None``: never."""
    max_dose: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """What all that may be done to a request at once along one of its vectors may come to, either way; ``None``: no
    more than the bundle's cap."""


class Disarm(msgspec.Struct, frozen=True, tag="disarm"):
    """Let a gate steer no more, from the next step on."""

    id: str


Order = Steer | Release | Stop | Stream | Arm | Disarm


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """The last frame that arrived."""

    sequence: int


_encoder = msgspec.msgpack.Encoder()
_hello = msgspec.msgpack.Decoder(Hello)
_header = msgspec.msgpack.Decoder(FrameHeader)
_order = msgspec.msgpack.Decoder(Order)
_ack = msgspec.msgpack.Decoder(Ack)


def encode_hello(hello: Hello) -> list[bytes]:
    """As message parts."""
    return [HELLO, _encoder.encode(hello)]


def encode_frame(
    header: FrameHeader,
    rows: NDArray[np.void],
    scores: NDArray[np.float32],
    streamed: NDArray[np.int32] | None = None,
) -> list[bytes]:
    """As message parts; the arrays are copied."""
    where = b"" if streamed is None else np.ascontiguousarray(streamed, "<i4").tobytes()
    return [FRAME, _encoder.encode(header), rows.tobytes(), np.ascontiguousarray(scores, "<f4").tobytes(), where]


def encode_order(order: Order) -> list[bytes]:
    """As message parts."""
    return [ORDER, _encoder.encode(order)]


def encode_ack(sequence: int) -> list[bytes]:
    """As message parts."""
    return [ACK, _encoder.encode(Ack(sequence))]


def decode(parts: list[bytes]) -> Hello | Frame:
    """Read a message of an engine.

    Args:
        parts: The message, without its routing id.

    Returns:
        What was sent. Arrays are read-only views of the message.

    Raises:
        FrameError: It is no message of this protocol.
        FrameVersionError: It is of a version that this monitor does not read.
    """
    try:
        match parts:
            case [kind, body] if kind == HELLO:
                _require_version(body)
                return _hello.decode(body)
            case [kind, head, row_bytes, score_bytes, streamed_bytes] if kind == FRAME:
                _require_version(head)
                header = _header.decode(head)
                if min(header.rows, header.probes, *(block.rows for block in header.states)) < 0:
                    raise FrameError(f"A frame announces {header.rows} rows of {header.probes} probes.")
                rows = np.frombuffer(row_bytes, ROW)
                scores = np.frombuffer(score_bytes, "<f4")
                if len(rows) != header.rows or len(scores) != header.rows * header.probes:
                    raise FrameError(
                        f"A frame announces {header.rows} rows of {header.probes} probes and carries "
                        f"{len(rows)} rows and {len(scores)} scores."
                    )
                streamed = np.frombuffer(streamed_bytes, "<i4")
                if len(streamed) != sum(block.rows for block in header.states) or (streamed >= header.rows).any():
                    raise FrameError("A frame's streamed states and the rows that they belong to do not match.")
                return Frame(header, rows, scores.reshape(header.rows, header.probes), streamed)
            case _:
                raise FrameError(f"A message of {len(parts)} parts is not of this protocol.")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"A message cannot be decoded: {error}.") from error


def decode_order(parts: list[bytes]) -> Order | Ack | None:
    """Read a message of a monitor; ``None`` stands for a request to resync.

    Raises:
        FrameError: It is no message of this protocol.
    """
    try:
        match parts:
            case [kind, body] if kind == ORDER:
                return _order.decode(body)
            case [kind, body] if kind == ACK:
                return _ack.decode(body)
            case [kind] if kind == RESYNC:
                return None
            case _:
                raise FrameError(f"A message of {len(parts)} parts is not of this protocol.")
    except msgspec.MsgspecError as error:
        raise FrameError(f"A message cannot be decoded: {error}.") from error


def _require_version(encoded: bytes) -> None:
    """The version comes first in every message, so that it can be read whatever follows."""
    fields = msgspec.msgpack.decode(encoded)
    found = fields[0] if isinstance(fields, list) and fields else None
    if found != VERSION:
        raise FrameVersionError(f"A message has version {found!r}; this monitor reads version {VERSION}.")
