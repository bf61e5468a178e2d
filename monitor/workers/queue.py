"""The queue of one probe worker: jobs that were not sent yet, and those that it has not answered."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from monitor.telemetry.stats import Refusal
from monitor.wire.frames import StateBlock
from monitor.workers.messages import FORGET_REQUESTS, Answer, Job, Ready, answer_arrays, decode_reply, encode
from monitor.workers.process import WorkerProcess

QUEUE_ROWS: Final = 32_768
"""Rows that may wait for one worker, those that it is at included. At 256 decoding requests and 100 steps/s it is
1.3 s; a ring that holds less is overtaken first."""
QUEUE_JOBS: Final = 2048
"""Jobs that may wait for one worker: of a single request that decodes, a job is one row."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows that a worker is to score: what the monitor has to know when the answer comes."""

    engine: str
    model: str
    rows: NDArray[np.int64]
    """The verdict that each row belongs to, shape ``(rows,)``; opaque to the queue."""
    requests: NDArray[np.int64]
    """The number of each row's request, shape ``(rows,)``; grouped by request."""
    positions: NDArray[np.int64]
    """Shape ``(rows,)``."""
    roles: NDArray[np.uint8]
    """Shape ``(rows,)``."""
    reads: NDArray[np.bool_]
    """The mask of rows that each probe is to read, shape ``(rows, probes)``."""

    def select(self, which: NDArray[np.intp]) -> Self:
        """Some of the rows, in the order of their indices ``which``."""
        return replace(
            self,
            rows=self.rows[which],
            requests=self.requests[which],
            positions=self.positions[which],
            roles=self.roles[which],
            reads=self.reads[which],
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker's answer to a job."""

    asked: Asked
    scores: NDArray[np.float64]
    """Shape ``(rows, probes)``."""
    outcomes: NDArray[np.uint8]
    """Of :class:`monitor.workers.messages.Outcome`, shape ``(rows, probes)``."""


class WorkerQueue:
    """A running worker and what it has to do. Times are of a monotonic clock, in seconds.

    Args:
        process: Just started.
        probes: Names of the probes that it has to read with.
        now: When it was started.
    """

    def __init__(self, process: WorkerProcess, probes: Sequence[str], now: float) -> None:
        self.process = process
        self.started = self.heard = now
        """``heard``: when it last said something, or was last without work."""
        self.ready = False
        """True while it takes jobs."""
        self._probes = list(probes)
        self._jobs = 0
        self._unsent: deque[bytes] = deque()
        self._asked: dict[int, Asked] = {}
        self._rows = 0
        self._ended: list[int] = []

    @property
    def asked(self) -> list[Asked]:
        """Jobs without an answer, in order."""
        return list(self._asked.values())

    @property
    def idle(self) -> bool:
        """True where everything was answered."""
        return not self._asked

    def submit(
        self, asked: Asked, blocks: Sequence[StateBlock], states: NDArray[np.int32], now: float
    ) -> Refusal | None:
        """Queue rows, see :meth:`monitor.workers.pool.WorkerPool.submit`."""
        rows = len(asked.rows)
        if self._rows + rows > QUEUE_ROWS or len(self._asked) >= QUEUE_JOBS:
            return "queue_full"
        if not self._asked:
            self.heard = now
        self._jobs += 1
        ended, self._ended = self._ended[:FORGET_REQUESTS], self._ended[FORGET_REQUESTS:]
        job = Job(
            number=self._jobs,
            blocks=list(blocks),
            requests=np.ascontiguousarray(asked.requests, np.int64).tobytes(),
            states=np.ascontiguousarray(states, np.int32).tobytes(),
            reads=np.ascontiguousarray(asked.reads, np.bool_).tobytes(),
            ended=ended,
        )
        self._unsent.append(encode(job))
        self._asked[job.number] = asked
        self._rows += rows
        self.send()
        return None

    def forget(self, request: int) -> None:
        """Have the worker forget a request, at the end of the next job."""
        self._ended.append(request)

    def forget_now(self, now: float) -> None:
        """Have it forget what has ended, where no job will say so soon."""
        if self._ended and self.ready and self.idle:
            nothing, reads = np.empty(0, np.int64), np.empty((0, len(self._probes)), np.bool_)
            asked = Asked("", "", nothing, nothing, nothing, np.empty(0, np.uint8), reads)
            self.submit(asked, [], np.empty((0, 0), np.int32), now)

    def send(self) -> None:
        """Send what the worker's socket takes."""
        while self.ready and self._unsent and self.process.send(self._unsent[0]):
            self._unsent.popleft()

    def receive(self, now: float) -> list[Answered] | None:
        """The worker's next answer; ``None`` where there will be none, since it has ended.

        Raises:
            ValueError: It reads with other probes, or says what was not asked.
        """
        packets = self.process.receive()
        if packets is None:
            return None
        if packets:
            self.heard = now
        return [answered for packet in packets if (answered := self._read(packet)) is not None]

    def _read(self, packet: bytes) -> Answered | None:
        # MsgspecError is a ValueError for what does not decode, too.
        match decode_reply(packet):
            case Ready(probes):
                if probes != self._probes:
                    raise ValueError(f"it reads with {probes}, not with {self._probes}")
                self.ready = True
                return None
            case Answer(number) as answer:
                if (asked := self._asked.pop(number, None)) is None:
                    raise ValueError(f"it answers job {number}, which does not wait")
                self._rows -= len(asked.rows)
                return Answered(asked, *answer_arrays(answer, (len(asked.rows), len(self._probes))))
