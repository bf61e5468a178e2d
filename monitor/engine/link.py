"""The threads that talk to the monitor. Nothing else in the engine touches a socket, and nothing waits for one.

``Exporter`` (the rank that exports) sends frames from a bounded queue. With no monitor connected, or a queue that is
full, a frame is dropped and counted, and the next one that goes out announces all requests in flight. ``OrderInbox``
(the engine core) introduces the engine every second and collects orders.

Both connect; the monitor binds. ZMQ_IMMEDIATE keeps frames from piling up for a monitor that is not there: a verdict
that is late by an outage helps nobody, and its gap is counted.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import zmq
from numpy.typing import NDArray

from monitor.errors import FrameError
from monitor.frames import (
    VERSION,
    Ack,
    FrameHeader,
    Hello,
    Order,
    Started,
    decode_order,
    encode_frame,
    encode_hello,
)

QUEUE_FRAMES: Final = 256
"""Frames that may wait for the sending thread; beyond it they are dropped."""
SEND_FRAMES: Final = 64
"""Frames that may wait inside ZeroMQ for the monitor to read them."""
HELLO_SECONDS: Final = 1.0
ORDERS: Final = 4096
"""Orders that may wait for the next step; beyond it the newest are dropped and logged."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step leaves for the exporter."""

    rows: NDArray[np.void]
    scores: NDArray[np.float32]
    unscored: int
    finished: list[int]
    started: list[Started]
    monotonic_ns: int


class Exporter:
    """Sends frames, and never blocks who offers them.

    Args:
        endpoint: Where the monitor binds.
        engine: The engine's id.
        probes: Columns of scores.
        in_flight: Lists all requests in flight; called from the engine's thread only.
    """

    def __init__(self, endpoint: str, engine: str, probes: int, in_flight: Callable[[], list[Started]]) -> None:
        self._engine, self._probes, self._in_flight = engine, probes, in_flight
        self._queue: queue.Queue[list[bytes]] = queue.Queue(QUEUE_FRAMES)
        self._sequence = 0
        self._acked = -1
        # Each counter has one writer: the engine's thread, the sending thread.
        self._refused = 0
        self._unsent = 0
        self._away = True
        """The monitor takes nothing at the moment, or was not reached yet; written by the sending thread."""
        self._announce_all = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint,), name="plumbob-exporter", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Frames dropped since the start."""
        return self._refused + self._unsent

    def offer(self, step: Step) -> None:
        """Queue a step's frame, or drop it. Called by the engine's thread, in order."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        if self._away or self._queue.full():
            self._refused += 1
            self._announce_all.set()
            return
        if complete := self._announce_all.is_set():
            self._announce_all.clear()
        header = FrameHeader(
            version=VERSION,
            engine=self._engine,
            rank=0,
            sequence=sequence,
            acked=self._acked,
            dropped=self.dropped,
            unscored=step.unscored,
            monotonic_ns=step.monotonic_ns,
            rows=len(step.rows),
            probes=self._probes,
            complete=complete,
            finished=step.finished,
            started=self._in_flight() if complete else step.started,
        )
        # Only this thread puts, so that a queue that was not full still is not.
        self._queue.put_nowait(encode_frame(header, step.rows, step.scores))

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
                    message = self._queue.get(timeout=0.05)
                except queue.Empty:
                    continue
                try:
                    socket.send_multipart(message, zmq.NOBLOCK)
                except zmq.Again:
                    self._away = True
                    self._unsent += 1
                    self._discard()
        finally:
            socket.close(linger=200)
            context.term()

    def _discard(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()
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


class OrderInbox:
    """Introduces the engine to the monitor, and collects its orders for the next step.

    Args:
        endpoint: Where the monitor binds.
        hello: Sent at once and every second.
    """

    def __init__(self, endpoint: str, hello: Hello) -> None:
        self._orders: queue.Queue[Order] = queue.Queue(ORDERS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint, hello), name="plumbob-orders", daemon=True)
        self._thread.start()

    def take(self) -> list[Order]:
        """All orders that have arrived, in order of arrival."""
        orders: list[Order] = []
        while True:
            try:
                orders.append(self._orders.get_nowait())
            except queue.Empty:
                return orders

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _run(self, endpoint: str, hello: Hello) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        _configure(socket, f"{hello.engine}/core")
        socket.connect(endpoint)
        message, next_hello = encode_hello(hello), 0.0
        try:
            while not self._stop.is_set():
                if time.monotonic() >= next_hello:
                    try:
                        socket.send_multipart(message, zmq.NOBLOCK)
                        next_hello = time.monotonic() + HELLO_SECONDS
                    except zmq.Again:
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
            self._orders.put_nowait(message)
        except queue.Full:
            logger.warning("plumbob: more than %d orders wait; dropped %s", ORDERS, message)


def _configure(socket: zmq.Socket[bytes], identity: str) -> None:
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.SNDHWM, SEND_FRAMES)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
