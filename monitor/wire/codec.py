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

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.errors import FrameError, FrameVersionError
from monitor.wire.frames import ROW, VERSION, Frame, FrameHeader, Hello
from monitor.wire.orders import Ack, Order

HELLO: Final = b"H"
FRAME: Final = b"F"
ORDER: Final = b"O"
ACK: Final = b"A"
RESYNC: Final = b"R"

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
