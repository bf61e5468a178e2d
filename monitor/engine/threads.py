"""A thread that talks to the monitor, and begins again when what it does fails."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import zmq

from monitor.engine.faults import Faults

FIRST_WAIT: Final = 0.05
"""Seconds until it begins again; twice as long after each further failure, up to :data:`LONGEST_WAIT`."""
LONGEST_WAIT: Final = 1.0
SEND_FRAMES: Final = 64
"""Messages that may wait inside ZeroMQ for the monitor to read them."""

logger = logging.getLogger(__name__)


class LastingThread:
    """Runs ``serve`` until it returns, and again whenever it raises: an engine whose sender has ended is unread.

    Args:
        name: Of the thread.
        serve: Lets go of all it holds when it raises.
        faults: Counts what was raised; the first is logged.
        failed: Called in the thread after each failure, before it begins again.
    """

    def __init__(
        self, name: str, serve: Callable[[], None], faults: Faults, failed: Callable[[], None] = lambda: None
    ) -> None:
        self.stop = threading.Event()
        """Set: ``serve`` is to return."""
        self._name, self._serve, self._faults, self._failed = name, serve, faults, failed
        self._logged = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; to be called once, when all that ``serve`` needs is there."""
        self._thread.start()

    def close(self, seconds: float = 1.0) -> None:
        """Ask it to end, and wait for that."""
        self.stop.set()
        self._thread.join(timeout=seconds)

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                return self._serve()
            except Exception as error:
                self._faults.note(self._name, error)
                if not self._logged:
                    self._logged = True
                    logger.exception("Plumbob: %s failed and begins again; further failures are counted", self._name)
                self._failed()
            if time.monotonic() - began > 10 * LONGEST_WAIT:
                wait = FIRST_WAIT
            self.stop.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        return None


def configure(socket: zmq.Socket[bytes], identity: str) -> None:
    """Set up a socket to the monitor; ``ZMQ_IMMEDIATE``: nothing piles up for one that is not there."""
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.SNDHWM, SEND_FRAMES)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
