"""The thread that sends frames. Nothing else in a worker touches a socket, and nothing waits for one.

It is the one thread that waits for copies to the host, and what it has not caught up with is bounded by the stages of
:mod:`monitor.engine.staging`. With no monitor connected, or no stage free, a frame is dropped and counted, and the next
one that goes out announces all requests in flight. Which positions a dropped frame had is kept for the engine's thread,
which sends them again out of the scores by KV slot (:mod:`monitor.engine.backlog`); to a monitor that has just
connected, it sends those of all requests in flight.

The monitor binds. ZMQ_IMMEDIATE keeps frames from piling up for a monitor that is not there.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from monitor.engine.batch import Begins
from monitor.engine.faults import Faults
from monitor.engine.inbox import OrderInbox as OrderInbox
from monitor.engine.outbox import Outbox
from monitor.engine.staging import Stage, Staging
from monitor.engine.threads import LastingThread, configure
from monitor.errors import FrameError
from monitor.wire.codec import decode_order, encode_frame
from monitor.wire.frames import ROW, VERSION, FrameHeader, GateEvent, GuardEvent, Refusal, Started, StateBlock
from monitor.wire.orders import Ack

QUEUE_STEPS: Final = 256
"""Steps that may wait for the sending thread; most hold a stage, of which there are fewer."""
EVENTS: Final = 4096
"""Decisions of gates that may wait for a monitor to confirm them, as many refused orders, and as many requests that the
guard released; beyond it the oldest are lost, which their numbers show."""
FRAME_EVENTS: Final = 64
"""Of them, those that one frame carries."""

logger = logging.getLogger(__name__)


class Describe(Protocol):
    """Makes a frame's rows of what a stage holds; called by the exporter's thread."""

    def __call__(
        self, slots: NDArray[np.int32], positions: NDArray[np.int32], scores: NDArray[np.float32], /
    ) -> tuple[NDArray[np.void], NDArray[np.bool_] | None]:
        """Rows of dtype :data:`monitor.wire.frames.ROW`, and which of the stage's rows they are; ``None``: all."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as it is left for the exporter."""

    unscored: int
    finished: list[int] = field(default_factory=list[int])
    started: list[Started] = field(default_factory=list[Started])
    stage: Stage | None = None
    """Whose copy has begun; ``None`` where no row was computed."""
    rows: int = 0
    """Rows of the stage."""
    describe: Describe | None = None
    states: list[StateBlock] = field(default_factory=list[StateBlock])
    """Blocks of activations that were streamed."""
    streamed: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """The stage's row of each streamed state."""
    states_copied: Callable[[], None] | None = None
    """Waits until what was streamed is where the blocks say."""
    begins: Begins | None = None
    """For rows that are to be sent again where the frame is dropped; ``None``: there is nothing to send again."""


class Exporter:
    """Sends frames, and never blocks who offers them.

    Args:
        endpoint: Where the monitor binds.
        engine: The engine's id.
        probes: Columns of scores.
        in_flight: Lists all requests in flight; called from the engine's thread only.
        staging: Where stages are returned to.
        faults: Counts what fails in the thread, and is told with each frame.
    """

    def __init__(
        self,
        endpoint: str,
        engine: str,
        probes: int,
        in_flight: Callable[[], list[Started]],
        staging: Staging,
        faults: Faults | None = None,
    ) -> None:
        self._endpoint, self._engine, self._probes = endpoint, engine, probes
        self._in_flight, self._staging = in_flight, staging
        self._queue: queue.Queue[tuple[int, bool, Step]] = queue.Queue(QUEUE_STEPS)
        self._sequence = 0
        self._acked = -1
        # Each counter has one writer: the engine's thread, the sending thread.
        self._refused = 0
        self._unsent = 0
        self._away = True
        """The monitor takes nothing at the moment, or was not reached yet; written by the sending thread."""
        self._connected = False
        self._announce_all = threading.Event()
        self._moving = threading.Lock()
        """Held for microseconds by who puts into the queue, and by who empties it to begin anew."""
        self._lost: deque[Begins] = deque()
        """Contents of dropped frames, until the engine's thread takes them; as many as the queue holds, and a few."""
        self._renewed = False
        """A monitor has connected that may know nothing, or one has asked for everything."""
        self.renewals = 0
        """How often that was so."""
        self._decided = Outbox[GateEvent](EVENTS, FRAME_EVENTS, QUEUE_STEPS)
        self._refusals = Outbox[Refusal](EVENTS, FRAME_EVENTS, QUEUE_STEPS)
        self._guarded = Outbox[GuardEvent](EVENTS, FRAME_EVENTS, QUEUE_STEPS)
        self._faults = Faults() if faults is None else faults
        self._thread = LastingThread("plumbob-exporter", self._serve, self._faults, self._leave)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Frames dropped since the start."""
        return self._refused + self._unsent

    def take(self, leave: int = 0) -> Stage | None:
        """A stage to fill and offer; ``None`` where the step's frame is to be refused.

        Args:
            leave: Stages that are to stay free.
        """
        return None if self._away or self._queue.full() or self.free <= leave else self._staging.take()

    @property
    def free(self) -> int:
        """Stages that can be taken now; called by the engine's thread, which alone takes any."""
        return 0 if self._away else self._staging.free

    def announce(self) -> None:
        """Have the next frame announce all requests in flight."""
        self._announce_all.set()

    def take_losses(self) -> tuple[bool, list[Begins]]:
        """Take what is to be sent again, before anything else is; called by the engine's thread.

        Returns:
            Whether it is everything, and where the rows begin of frames that were dropped.
        """
        if not self._renewed and not self._lost:
            # What is lost from here on, :meth:`offer` sees.
            return False, []
        with self._moving:
            renewed, self._renewed = self._renewed, False
            lost = list(self._lost)
            self._lost.clear()
        return renewed, lost

    def refuse(self, begins: Begins | None = None) -> None:
        """Count the frame of a step as dropped. Called by the engine's thread."""
        self._sequence += 1
        self._refused += 1
        if begins is not None:
            self._lost.append(begins)
        self._announce_all.set()

    def offer(self, step: Step) -> None:
        """Queue a step's frame, or drop it. Called by the engine's thread, in order.

        Rows that are to be sent again when lost are dropped too where earlier ones have been lost since
        :meth:`take_losses`: they go out behind those.
        """
        with self._moving:
            overtakes = step.begins is not None and (self._renewed or len(self._lost) > 0)
            if self._away or overtakes or self._queue.full():
                if step.stage is not None:
                    self._staging.give(step.stage)
                return self.refuse(step.begins)
            sequence, self._sequence = self._sequence, self._sequence + 1
            if complete := self._announce_all.is_set():
                self._announce_all.clear()
                step = replace(step, started=self._in_flight())
            # Only this thread puts, so that a queue that was not full still is not.
            return self._queue.put_nowait((sequence, complete, step))

    def tell(
        self, decided: Sequence[GateEvent], refused: Sequence[Refusal] = (), guarded: Sequence[GuardEvent] = ()
    ) -> None:
        """Send events with the next frames, until one that had them is confirmed. Called by the engine's thread."""
        self._decided.extend(decided)
        self._refusals.extend(refused)
        self._guarded.extend(guarded)

    def close(self) -> None:
        """Send what waits, within a second, and end the thread."""
        self._thread.close()

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 200
            configure(socket, f"{self._engine}/rank0")
            connections = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            try:
                socket.connect(self._endpoint)
                self._send_all(socket, connections)
            finally:
                socket.disable_monitor()
                connections.close(linger=0)
                self._connected = False

    def _send_all(self, socket: zmq.Socket[bytes], connections: zmq.Socket[bytes]) -> None:
        """Send what is queued, until it is to end and all is sent."""
        stop = self._thread.stop
        while not stop.is_set() or not self._queue.empty():
            self._follow(connections)
            self._receive(socket)
            if self._away:
                # A connection is known before anything is sent over it: who is there may be another monitor.
                if not (socket.poll(50, zmq.POLLOUT) if self._connected else connections.poll(50)):
                    if stop.is_set():
                        return
                    continue
                if not self._connected:
                    continue
                with self._moving:
                    # What slipped into the queue as the monitor went away is older than what was dropped since.
                    self._discard()
                    self._announce_all.set()
                    self._away = False
            try:
                item = self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
            sent = False
            try:
                socket.send_multipart(self._encode(*item), zmq.NOBLOCK)
                sent = True
            except zmq.Again:
                pass
            finally:
                if not sent:
                    self._lose(item[2])
                    self._leave()

    def _leave(self) -> None:
        """The monitor takes nothing any more: frames that wait are dropped."""
        with self._moving:
            self._away = True
            self._discard()
            self._announce_all.set()

    def _renew(self) -> None:
        """All requests in flight are to be announced, and all of their rows sent again."""
        with self._moving:
            self._renewed = True
            self.renewals += 1
            self._announce_all.set()

    def _follow(self, connections: zmq.Socket[bytes]) -> None:
        while connections.poll(0):
            event = recv_monitor_message(connections, zmq.NOBLOCK)["event"]
            self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._connected:
                self._renew()
            else:
                self._leave()

    def _encode(self, sequence: int, complete: bool, step: Step) -> list[bytes]:
        """The frame of a step, as soon as it is on the host; its stage is free from here on, whatever goes wrong."""
        try:
            return self._frame(sequence, complete, step)
        finally:
            if step.stage is not None:
                self._staging.give(step.stage)

    def _frame(self, sequence: int, complete: bool, step: Step) -> list[bytes]:
        rows, scores, streamed = np.empty(0, ROW), np.empty((0, self._probes), np.float32), step.streamed
        computed_ns = time.monotonic_ns()
        if step.stage is not None and step.describe is not None:
            computed_ns = step.stage.wait()
            slots, positions, scores = step.stage.read(step.rows)
            rows, kept = step.describe(slots, positions, scores)
            if kept is not None:
                scores = scores[kept]
                streamed = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)[streamed]
        if step.states_copied is not None:
            step.states_copied()
        header = FrameHeader(
            version=VERSION,
            engine=self._engine,
            rank=0,
            sequence=sequence,
            acked=self._acked,
            dropped=self.dropped,
            unscored=step.unscored,
            monotonic_ns=computed_ns,
            rows=len(rows),
            probes=self._probes,
            complete=complete,
            finished=step.finished,
            started=step.started,
            states=step.states,
            gates=self._decided.carry(sequence),
            refused=self._refusals.carry(sequence),
            guarded=self._guarded.carry(sequence),
            faults=self._faults.count,
            fault=self._faults.last,
            untapped=self._faults.untapped,
        )
        return encode_frame(header, rows, scores, streamed)

    def _discard(self) -> None:
        while not self._queue.empty():
            _, _, step = self._queue.get_nowait()
            if step.stage is not None:
                self._staging.give(step.stage)
            self._lose(step)

    def _lose(self, step: Step) -> None:
        self._unsent += 1
        if step.begins is not None:
            self._lost.append(step.begins)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while socket.poll(0, zmq.POLLIN):
            try:
                message = decode_order(socket.recv_multipart(zmq.NOBLOCK))
            except FrameError as error:
                logger.warning("plumbob: skipped a message of the monitor: %s", error)
                continue
            if message is None:
                self._renew()
            elif isinstance(message, Ack):
                self._acked = message.sequence
                self._decided.confirm(message.sequence)
                self._refusals.confirm(message.sequence)
                self._guarded.confirm(message.sequence)
