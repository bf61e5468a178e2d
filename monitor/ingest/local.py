"""Messages of engines on the same host, over a ZeroMQ socket file.

ZeroMQ takes over a socket file that another process listens on without a word, and the other would wait for
ever. So the address is guarded by a lock file beside it, which the kernel releases when its holder dies.
"""

import asyncio
import fcntl
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import zmq
import zmq.asyncio

from monitor.errors import PortError
from monitor.ingest.source import Arrival, read_arrival

RECEIVE_FRAMES: Final = 256
"""Messages of one engine that may wait to be read; beyond it the engine's own queue fills, then it drops and
counts."""
SEND_MESSAGES: Final = 1024
"""Messages that may wait for one engine; beyond it a send fails."""
MAX_MESSAGE_BYTES: Final = 64 << 20
"""A larger part ends its sender's connection; 16,384 rows of 256 scores are 16 MiB."""

_SCHEME: Final = "ipc://"

logger = logging.getLogger(__name__)


class LocalSource:
    """Listens on a socket file from construction on; to be read from one event loop.

    Args:
        endpoint: ``ipc://`` and the path of the socket file. Its directory is created, for this user only.

    Raises:
        PortError: Another monitor listens there, or the path cannot be used.
    """

    def __init__(self, endpoint: str) -> None:
        if not endpoint.startswith(_SCHEME + "/"):
            raise PortError(f"{endpoint!r} is not a socket file.", "Write it as ipc:///run/plumbob/monitor.sock.")
        self.endpoint = endpoint
        self._path = Path(endpoint.removeprefix(_SCHEME))
        self._lock = _take(self._path)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            _configure(self._socket)
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise PortError(f"Cannot listen on {endpoint}: {error}.", "Choose another socket file.") from error

    async def __aiter__(self) -> AsyncIterator[Arrival]:
        try:
            while not self._socket.closed:
                identity, *parts = await self._socket.recv_multipart()
                yield read_arrival(identity, parts)
        except (zmq.ZMQError, asyncio.CancelledError):
            # Closing the socket cancels what waits on it; a cancellation of the reader's own task goes on.
            if not self._socket.closed:
                raise

    def send(self, identity: bytes, parts: list[bytes]) -> bool:
        """Send a message without waiting; false where its receiver is not connected or takes nothing."""
        try:
            # Finished at once: without waiting, there is nothing left for the event loop to do.
            cast("asyncio.Future[Any]", self._socket.send_multipart([identity, *parts], zmq.NOBLOCK)).result()
        except zmq.ZMQError as error:
            logger.debug("Nothing was sent to %r: %s.", identity, error)
            return False
        return True

    def close(self) -> None:
        """End the iteration and let go of the address."""
        if not self._socket.closed:
            self._socket.close(linger=0)
            self._context.term()
            # Under the lock, so that it is ours and not that of a monitor that has just started.
            with suppress(OSError):
                if self._path.is_socket():
                    self._path.unlink()
            os.close(self._lock)


def _take(path: Path) -> int:
    """Lock the address; the lock lives as long as the file descriptor that is returned."""
    lock = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # ZeroMQ removes what is in its way; let that be no more than the socket of a monitor that is gone.
        if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
            raise PortError(f"{path} exists and is not a socket.", "Choose another socket file.")
        lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock is not None:
            os.close(lock)
        if isinstance(error, BlockingIOError):
            raise PortError(
                f"A monitor already listens on {path}.",
                "Stop it, or give each monitor a socket file of its own.",
            ) from error
        raise PortError(f"Cannot listen on {path}: {error}.", "Choose another socket file.") from error
    return lock


def _configure(socket: zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.RCVHWM, RECEIVE_FRAMES)
    socket.setsockopt(zmq.SNDHWM, SEND_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    # An engine that reconnects takes its routing id over from the connection that died.
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    # Without it, messages to an engine that is gone would vanish, and an order would be recorded as sent.
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
