"""The threads that talk to the monitor. Nothing else in the engine touches a socket, and nothing waits for one.

``Exporter`` (the rank that exports) sends frames. It is the one thread that waits for copies to the host, and what it
has not caught up with is bounded by the stages of :mod:`monitor.engine.staging`. With no monitor connected, or no stage
free, a frame is dropped and counted, and the next one that goes out announces all requests in flight. ``OrderInbox``
(the engine core) introduces the engine every second and collects orders.

Both connect; the monitor binds. ZMQ_IMMEDIATE keeps frames from piling up for a monitor that is not there: a verdict
that is late by an outage helps nobody, and its gap is counted.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np
import zmq
from numpy.typing import NDArray

from monitor.engine.outbox import Outbox
from monitor.engine.reachability import Reachability
from monitor.engine.staging import Stage, Staging
from monitor.engine.steering.leases import Arrived
from monitor.errors import FrameError
from monitor.wire.codec import decode_order, encode_frame, encode_hello
from monitor.wire.frames import ROW, VERSION, FrameHeader, GateEvent, GuardEvent, Hello, Refusal, Started, StateBlock
from monitor.wire.orders import Ack

QUEUE_STEPS: Final = 256
"""Steps that may wait for the sending thread; most hold a stage, of which there are fewer."""
SEND_FRAMES: Final = 64
"""Frames that may wait inside ZeroMQ for the monitor to read them."""
EVENTS: Final = 4096
"""Decisions of gates that may wait for a monitor to confirm them, as many refused orders, and as many requests that the
guard released; beyond it the oldest are lost, which their numbers show."""
FRAME_EVENTS: Final = 64
"""Of them, those that one frame carries."""
HELLO_SECONDS: Final = 1.0
ORDERS: Final = 4096
"""Orders that may wait for the next step; beyond it the newest are dropped and logged."""

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


class Exporter:
    """Sends frames, and never blocks who offers them.

    Args:
        endpoint: Where the monitor binds.
        engine: The engine's id.
        probes: Columns of scores.
        in_flight: Lists all requests in flight; called from the engine's thread only.
        staging: Where stages are returned to.
    """

    def __init__(
        self, endpoint: str, engine: str, probes: int, in_flight: Callable[[], list[Started]], staging: Staging
    ) -> None:
        self._engine, self._probes, self._in_flight, self._staging = engine, probes, in_flight, staging
        self._queue: queue.Queue[tuple[int, bool, Step]] = queue.Queue(QUEUE_STEPS)
        self._sequence = 0
        self._acked = -1
        # Each counter has one writer: the engine's thread, the sending thread.
        self._refused = 0
        self._unsent = 0
        self._away = True
        """The monitor takes nothing at the moment, or was not reached yet; written by the sending thread."""
        self._announce_all = threading.Event()
        self._decided = Outbox[GateEvent](EVENTS, FRAME_EVENTS, QUEUE_STEPS)
        self._refusals = Outbox[Refusal](EVENTS, FRAME_EVENTS, QUEUE_STEPS)
        self._guarded = Outbox[GuardEvent](EVENTS, FRAME_EVENTS, QUEUE_STEPS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint,), name="plumbob-exporter", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Frames dropped since the start."""
        return self._refused + self._unsent

    def take(self) -> Stage | None:
        """A stage to fill and offer; ``None`` where the step's frame is to be refused."""
        return None if self._away or self._queue.full() else self._staging.take()

    def refuse(self) -> None:
        """Count the frame of a step as dropped. Called by the engine's thread."""
        self._sequence += 1
        self._refused += 1
        self._announce_all.set()

    def offer(self, step: Step) -> None:
        """Queue a step's frame, or drop it. Called by the engine's thread, in order."""
        if self._away or self._queue.full():
            if step.stage is not None:
                self._staging.give(step.stage)
            return self.refuse()
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
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _run(self, endpoint: str) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        _configure(socket, f"{self._engine}/rank0")
        socket.connect(endpoint)
        try:
            while not self._stop.is_set() or not self._queue.empty():
                self._receive(socket)
                if self._away:
                    if not socket.poll(50, zmq.POLLOUT):
                        if self._stop.is_set():
                            return
                        continue
                    # What slipped into the queue as the monitor went away is older than what was dropped since.
                    self._discard()
                    self._announce_all.set()
                    self._away = False
                try:
                    item = self._queue.get(timeout=0.05)
                except queue.Empty:
                    continue
                try:
                    socket.send_multipart(self._encode(*item), zmq.NOBLOCK)
                except zmq.Again:
                    self._away = True
                    self._unsent += 1
                    self._discard()
        finally:
            socket.close(linger=200)
            context.term()

    def _encode(self, sequence: int, complete: bool, step: Step) -> list[bytes]:
        """The frame of a step, as soon as it is on the host; its stage is free from here on."""
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
        )
        message = encode_frame(header, rows, scores, streamed)
        if step.stage is not None:
            self._staging.give(step.stage)
        return message

    def _discard(self) -> None:
        while not self._queue.empty():
            _, _, step = self._queue.get_nowait()
            if step.stage is not None:
                self._staging.give(step.stage)
            self._unsent += 1

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while socket.poll(0, zmq.POLLIN):
            try:
                message = decode_order(socket.recv_multipart(zmq.NOBLOCK))
            except FrameError as error:
                logger.warning("plumbob: skipped a message of the monitor: %s", error)
                continue
            if message is None:
                self._announce_all.set()
            elif isinstance(message, Ack):
                self._acked = message.sequence
                self._decided.confirm(message.sequence)
                self._refusals.confirm(message.sequence)
                self._guarded.confirm(message.sequence)


class OrderInbox:
    """Introduces the engine to the monitor, and collects its orders for the next step.

    Args:
        endpoint: Where the monitor binds.
        hello: Sent at once and every second.

    Attributes:
        hello: May be replaced; what is sent next says so.
    """

    def __init__(self, endpoint: str, hello: Hello) -> None:
        self.hello = hello
        self._orders: queue.Queue[Arrived] = queue.Queue(ORDERS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint,), name="plumbob-orders", daemon=True)
        self._thread.start()

    def take(self) -> list[Arrived]:
        """All orders that have arrived, in order of arrival."""
        orders: list[Arrived] = []
        while True:
            try:
                orders.append(self._orders.get_nowait())
            except queue.Empty:
                return orders

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _run(self, endpoint: str) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        _configure(socket, f"{self.hello.engine}/core")
        socket.connect(endpoint)
        next_hello, reachability = 0.0, Reachability(endpoint)
        try:
            while not self._stop.is_set():
                if time.monotonic() >= next_hello:
                    try:
                        socket.send_multipart(encode_hello(self.hello), zmq.NOBLOCK)
                        next_hello = time.monotonic() + HELLO_SECONDS
                        reachability.reached()
                    except zmq.Again:
                        reachability.missed()
                        # Nobody is there yet; look again soon, so that a monitor that starts is found at once.
                        next_hello = time.monotonic() + HELLO_SECONDS / 10
                if socket.poll(50, zmq.POLLIN):
                    self._receive(socket)
        finally:
            socket.close(linger=0)
            context.term()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        try:
            message = decode_order(socket.recv_multipart())
        except FrameError as error:
            logger.warning("plumbob: skipped a message of the monitor: %s", error)
            return
        if message is None or isinstance(message, Ack):
            return
        try:
            self._orders.put_nowait(Arrived(message, time.monotonic()))
        except queue.Full:
            logger.warning("plumbob: more than %d orders wait; dropped %s", ORDERS, message)


def _configure(socket: zmq.Socket[bytes], identity: str) -> None:
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.SNDHWM, SEND_FRAMES)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
