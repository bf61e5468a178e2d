"""The packets between the monitor and a probe worker, both sides.

They travel through a pair of connected ``SOCK_SEQPACKET`` sockets, which keep packets apart and tell each side at once
when the other is gone::

    monitor to worker   Job                rows to score, requests to forget
    worker to monitor   Ready, then        what it reads with
                        Answer, one a job  in the order of the jobs

Numbers in them are of this host's byte order: both ends are the same installation.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.wire.frames import StateBlock

PACKET_BYTES: Final = 64 << 10
"""Bytes of a packet's arrays, at most. A packet has to fit into the kernel's buffer, 208 KiB where nobody has
changed it, together with some that wait."""
RECEIVE_BYTES: Final = 2 * PACKET_BYTES
"""Room for a packet with everything around its arrays: a path a layer, numbers of requests, names of probes."""
PATH_BYTES: Final = 4096
"""The longest path of a ring that is sent on; Linux has none that are longer."""
FORGET_REQUESTS: Final = 1024
"""Requests to forget that one job carries at most."""


class Outcome(IntEnum):
    """The outcome of one token and probe in a worker."""

    READ = 0
    """The probe read it, or does not read tokens of its role."""
    OVERTAKEN = 1
    """The engine had written over the state before the worker came to it."""
    UNREADABLE = 2
    """The ring could not be opened, or is another than the frame told of."""
    FAILED = 3
    """The probe raised an error; what it remembered of the request begins anew."""


class Job(msgspec.Struct, frozen=True, array_like=True, tag="job"):
    """Rows of one frame that a worker is to score."""

    number: int
    blocks: list[StateBlock]
    """Places of each layer's states in its ring: as many as the worker's rows take of them."""
    requests: bytes
    """int64, shape ``(rows,)``: a number for each row's request, never used for another. Grouped by request."""
    states: bytes
    """int32, shape ``(blocks, rows)``: which state of the block is the row's, −1 for none."""
    reads: bytes
    """bool, shape ``(rows, probes)``: which probe is to read which row."""
    ended: list[int]
    """Requests that can be forgotten after this job."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The worker takes jobs."""

    probes: list[str]
    """Names of what it reads with, in the order of the columns of scores."""


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """A worker's answer to a job."""

    number: int
    scores: bytes
    """float64, shape ``(rows, probes)``; NaN where there is none."""
    outcomes: bytes
    """uint8 of :class:`Outcome`, shape ``(rows, probes)``."""


@dataclass(frozen=True, slots=True)
class JobRows:
    """A job's arrays, as a worker sees them."""

    requests: NDArray[np.int64]
    states: NDArray[np.int32]
    reads: NDArray[np.bool_]


_encoder = msgspec.msgpack.Encoder()
_job = msgspec.msgpack.Decoder(Job)
_reply: msgspec.msgpack.Decoder[Ready | Answer] = msgspec.msgpack.Decoder(Ready | Answer)


def rows_per_job(layers: int, probes: int) -> int:
    """Rows of a job, at most, for it and its answer to be packets of :data:`PACKET_BYTES`."""
    return PACKET_BYTES // max(8 + 4 * layers + probes, 9 * probes)


def encode(message: Job | Ready | Answer) -> bytes:
    """As a packet."""
    return _encoder.encode(message)


def decode_job(packet: bytes) -> Job:
    """Read a packet of the monitor; raises msgspec.MsgspecError where it is none."""
    return _job.decode(packet)


def decode_reply(packet: bytes) -> Ready | Answer:
    """Read a packet of a worker; raises msgspec.MsgspecError where it is none."""
    return _reply.decode(packet)


def job_rows(job: Job, probes: int) -> JobRows:
    """The arrays of a job; read-only views of it."""
    requests = np.frombuffer(job.requests, np.int64)
    return JobRows(
        requests=requests,
        states=np.frombuffer(job.states, np.int32).reshape(len(job.blocks), len(requests)),
        reads=np.frombuffer(job.reads, np.bool_).reshape(len(requests), probes),
    )


def answer_arrays(answer: Answer, shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Scores and outcomes, each of shape ``(rows, probes)``; raises ValueError where they are of another."""
    return (
        np.frombuffer(answer.scores, np.float64).reshape(shape),
        np.frombuffer(answer.outcomes, np.uint8).reshape(shape),
    )
