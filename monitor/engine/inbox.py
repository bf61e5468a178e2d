"""The engine core's end of the wire: it says every second who the engine is, and collects orders for the next step."""

import logging
import queue
import time
from typing import Final

import msgspec
import zmq

from monitor.engine.faults import Faults
from monitor.engine.reachability import Reachability
from monitor.engine.steering.leases import Arrived
from monitor.engine.threads import LastingThread, configure
from monitor.errors import FrameError
from monitor.wire.codec import decode_order, encode_hello
from monitor.wire.frames import Hello
from monitor.wire.orders import Ack

HELLO_SECONDS: Final = 1.0
ORDERS: Final = 4096
"""Orders that may wait for the next step; beyond it the newest are dropped and logged."""

logger = logging.getLogger(__name__)


class OrderInbox:
    """Introduces the engine to the monitor, and collects its orders for the next step.

    Args:
        endpoint: Where the monitor binds.
        hello: Sent at once and every second.

    Attributes:
        hello: May be replaced; what is sent next says so.
        running: Requests that run, for the next HELLO; ``None``: not said.
        steps: Steps that computed rows since the start, likewise.
        faults: Of the core.
    """

    def __init__(self, endpoint: str, hello: Hello) -> None:
        self.hello = hello
        self.running: int | None = None
        self.steps: int | None = None
        self.faults = Faults()
        self._endpoint = endpoint
        self._orders: queue.Queue[Arrived] = queue.Queue(ORDERS)
        self._thread = LastingThread("plumbob-orders", self._serve, self.faults)
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
        self._thread.close()

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            configure(socket, f"{self.hello.engine}/core")
            socket.connect(self._endpoint)
            next_hello, reachability = 0.0, Reachability(self._endpoint)
            while not self._thread.stop.is_set():
                if time.monotonic() >= next_hello:
                    try:
                        socket.send_multipart(encode_hello(self._introduction()), zmq.NOBLOCK)
                        next_hello = time.monotonic() + HELLO_SECONDS
                        reachability.reached()
                    except zmq.Again:
                        reachability.missed()
                        # Nobody is there yet; look again soon, so that a monitor that starts is found at once.
                        next_hello = time.monotonic() + HELLO_SECONDS / 10
                if socket.poll(50, zmq.POLLIN):
                    self._receive(socket)

    def _introduction(self) -> Hello:
        return msgspec.structs.replace(
            self.hello, running=self.running, steps=self.steps, faults=self.faults.count, fault=self.faults.last
        )

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
