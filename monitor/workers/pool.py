"""Probe workers, some of them, kept alive: rows in, answers out, and whatever goes wrong as a value.

Nothing here waits, so that the monitor's event loop never does; what waits for a worker is bounded
(:mod:`monitor.workers.queue`). A worker that ends, or does not answer for :data:`STUCK_SECONDS`, is started again after
a pause that doubles each time; what it had to do is lost, and said to be.
"""

import logging
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.telemetry.stats import Refusal, WorkerFault
from monitor.wire.frames import StateBlock
from monitor.workers.messages import rows_per_job
from monitor.workers.process import WorkerProcess
from monitor.workers.queue import Answered, Asked, WorkerQueue
from probes.bundle import Bundle

OF_BUNDLE: Final = "monitor.workers.worker:of_bundle"
"""The default readers of a worker: the worker probes of the bundle."""

START_SECONDS: Final = 60.0
"""Seconds until a worker is ready, at most; importing numpy and reading a bundle takes less than one."""
STUCK_SECONDS: Final = 10.0
"""Seconds that a worker may take to answer while jobs wait for it."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0
"""A worker that lasted so long is started again after the first pause."""
_END_SECONDS: Final = 1.0
"""Seconds for workers to end by themselves when the pool is closed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker ended or was ended, and with it what it remembered of requests."""

    worker: int
    fault: WorkerFault
    asked: list[Asked]
    """Rows that waited for it, and will not be answered."""


@dataclass(slots=True)
class _Place:
    """One worker's place in the pool."""

    start_at: float
    """When its next process may be started, where there is none; of the monotonic clock, in seconds."""
    queue: WorkerQueue | None = None
    """``None``: its process has ended."""
    pause: float = FIRST_PAUSE_SECONDS


class WorkerPool:
    """Probe workers, started at once.

    Args:
        bundle: Whose worker probes they read.
        workers: How many there are to be.
        readers: What they read with, ``MODULE:FUNCTION``; see :mod:`monitor.workers.worker`.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        workers: int = 1,
        readers: str = OF_BUNDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise ValueError(f"a pool of {workers} workers")
        self._bundle, self._readers, self._clock = bundle, readers, clock
        probes = bundle.manifest.worker_probes
        self._probes = [probe.name for probe in probes]
        self.rows_per_job = rows_per_job(len({probe.layer for probe in probes}), len(probes))
        """Rows that :meth:`submit` takes at once, at most."""
        self._requests = 0
        self._epoll = select.epoll()
        self._ending: list[WorkerProcess] = []
        self._lost: list[WorkerLost] = []
        self._places = [_Place(clock()) for _ in range(workers)]
        self.tick()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def running(self) -> int:
        """Workers that take work now."""
        return sum(place.queue is not None and place.queue.ready for place in self._places)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that there are."""
        return [place.queue.process.pid for place in self._places if place.queue is not None]

    def fileno(self) -> int:
        """Readable when :meth:`collect` has something to do."""
        return self._epoll.fileno()

    def number(self) -> int:
        """A number for a request, never given before."""
        self._requests += 1
        return self._requests

    def submit(
        self, index: int, asked: Asked, blocks: Sequence[StateBlock], states: NDArray[np.int32]
    ) -> Refusal | None:
        """Queue rows for a worker.

        Args:
            index: Of the worker. Rows of one request always go to the same.
            asked: At most :attr:`rows_per_job` rows.
            blocks: Where the states are.
            states: Which state of each block is each row's, −1 for none, shape ``(blocks, rows)``.

        Returns:
            Why they are not queued; ``None``: they are.
        """
        queue = self._places[index].queue
        return "worker_down" if queue is None else queue.submit(asked, blocks, states, self._clock())

    def forget(self, index: int, request: int) -> None:
        """A request has ended: the worker need not remember it. No more rows of it may be submitted."""
        if (queue := self._places[index].queue) is not None:
            queue.forget(request)

    def collect(self) -> list[Answered | WorkerLost]:
        """News since the last call: answers in the order of each worker, then workers that were lost."""
        found, now = list[Answered | WorkerLost](), self._clock()
        for index, place in enumerate(self._places):
            while (queue := place.queue) is not None:
                try:
                    answers = queue.receive(now)
                except ValueError as error:
                    self._lose(index, "stuck", f"said what cannot be understood: {error}")
                    break
                if answers is None:
                    self._lose(index, "ended", "has ended")
                    break
                found += answers
                # There is room in the worker's socket for as much as it has answered.
                queue.send()
                if not answers:
                    break
        lost, self._lost = self._lost, []
        return [*found, *lost]

    def tick(self) -> None:
        """Do what is due: workers to start again, workers that are stuck, requests to forget."""
        now = self._clock()
        self._ending = [process for process in self._ending if process.reap() is None]
        for index, place in enumerate(self._places):
            queue = place.queue
            if queue is None:
                if now >= place.start_at:
                    self._start(place, now)
            elif not queue.ready and now - queue.started > START_SECONDS:
                self._lose(index, "stuck", f"was not ready after {START_SECONDS:.0f} s")
            elif queue.ready and not queue.idle and now - queue.heard > STUCK_SECONDS:
                self._lose(index, "stuck", f"has not answered for {now - queue.heard:.0f} s")
            else:
                queue.forget_now(now)

    def close(self) -> None:
        """End all workers; those that do not end by themselves are killed."""
        processes = [place.queue.process for place in self._places if place.queue is not None]
        for place in self._places:
            place.queue, place.start_at = None, np.inf
        for process in processes:
            process.dismiss()
        deadline = time.monotonic() + _END_SECONDS
        for process in [*processes, *self._ending]:
            if process.reap(max(0.01, deadline - time.monotonic())) is None:
                process.kill()
                process.reap(_END_SECONDS)
        self._ending = []
        self._epoll.close()

    def _start(self, place: _Place, now: float) -> None:
        try:
            process = WorkerProcess(self._readers, self._bundle)
        except OSError as error:
            logger.error("A probe worker cannot be started: %s", error)
            self._pause(place, now)
            return
        place.queue = WorkerQueue(process, self._probes, now)
        self._epoll.register(process, select.EPOLLIN)

    def _lose(self, index: int, fault: WorkerFault, what: str) -> None:
        """Give a worker up, and what it had to do."""
        place, now = self._places[index], self._clock()
        queue, place.queue = place.queue, None
        if queue is None:
            return
        self._epoll.unregister(queue.process)
        queue.process.kill()
        self._ending.append(queue.process)
        if now - queue.started > STEADY_SECONDS:
            place.pause = FIRST_PAUSE_SECONDS
        logger.warning("Probe worker %d %s; it is started again in %.1f s.", index, what, place.pause)
        self._lost.append(WorkerLost(index, fault, queue.asked))
        self._pause(place, now)

    def _pause(self, place: _Place, now: float) -> None:
        place.start_at = now + place.pause
        place.pause = min(2 * place.pause, LONGEST_PAUSE_SECONDS)
