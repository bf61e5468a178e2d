"""Messages of engines on the same host, over a ZeroMQ socket file.

ZeroMQ takes over a socket file that another process listens on without a word, and the other would wait for
ever. So the address is guarded by a lock file beside it, which the kernel releases when its holder dies.

Who may connect is who may write to the socket file and enter its directory. ZeroMQ makes the file as the umask has it;
so it is made for its owner alone, and then given to a group, or opened.
"""

import asyncio
import fcntl
import grp
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import zmq
import zmq.asyncio

from monitor.addresses import file_access, socket_file, user_name
from monitor.errors import PortError
from monitor.ingest.source import Arrival, read_arrival

RECEIVE_FRAMES: Final = 256
"""Messages of one engine that may wait to be read; beyond it the engine's own queue fills, then it drops and
counts."""
SEND_MESSAGES: Final = 1024
"""Messages that may wait for one engine; beyond it a send fails."""
MAX_MESSAGE_BYTES: Final = 64 << 20
"""A larger part ends its sender's connection; 16,384 rows of 256 scores are 16 MiB."""

logger = logging.getLogger(__name__)


class LocalSource:
    """Listens on a socket file from construction on; to be read from one event loop.

    Args:
        endpoint: ``ipc://`` and the path of the socket file. Its directory is created, for those who may connect.
        group: Name or number of the group that the socket file is given to; ``None``: it is this process's.
        mode: Of the socket file. Its group may enter a directory that is created only if it is named.

    Raises:
        PortError: Another monitor listens there, or the path or the group cannot be used.
    """

    def __init__(self, endpoint: str, *, group: str | None = None, mode: int = 0o660) -> None:
        self.endpoint = endpoint
        # ZeroMQ removes what is in its way: no more than the socket of a monitor that is gone.
        self._path = socket_file(endpoint)
        gid = None if group is None else _number_of(group)
        self._lock = _take(self._path, gid, mode)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            _configure(self._socket)
            _bind(self._socket, endpoint)
            _open_to(self._path, gid, mode)
        except zmq.ZMQError as error:
            self.close()
            raise PortError(f"Cannot listen on {endpoint}: {error}.", "Choose another socket file.") from error
        except PortError:
            self.close()
            raise

    def describe(self) -> str:
        """Address that it listens at, and users who may connect, in words."""
        here = f"listens at {self.endpoint} as user {user_name(os.geteuid())}"
        try:
            socket, folder = file_access(self._path), file_access(self._path.parent)
        except OSError as error:
            return f"{here}, but the socket file is not there any more: {error.strerror}"
        return f"{here}; the socket has {socket}, its directory {folder}"

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


def _number_of(group: str) -> int:
    """The number of a group, given by name or number."""
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except (KeyError, OverflowError) as error:
        raise PortError(f"There is no group {group!r} on this machine.", "Name another with --socket-group.") from error


def _give(path: Path, gid: int, mode: int) -> None:
    try:
        os.chown(path, -1, gid)
        path.chmod(mode)
    except (OSError, OverflowError) as error:
        raise PortError(
            f"{path} cannot be given to group {gid}: {getattr(error, 'strerror', None) or error}.",
            "Run the monitor as a member of that group, or name another with --socket-group.",
        ) from error


def _make_directory(path: Path, gid: int | None, mode: int) -> None:
    """Make the socket's directory, where it is not there, for those who may connect."""
    if path.is_dir():
        return
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    entered = 0o011 if mode & 0o002 else 0o010 if mode & 0o020 and gid is not None else 0
    if gid is not None:
        _give(path, gid, 0o700 | entered)
    elif entered:
        path.chmod(0o700 | entered)


def _bind(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    """Make the socket file for its owner alone, whatever the umask is."""
    before = os.umask(0o177)
    try:
        socket.bind(endpoint)
    finally:
        os.umask(before)


def _open_to(path: Path, gid: int | None, mode: int) -> None:
    if gid is not None:
        return _give(path, gid, mode)
    try:
        path.chmod(mode)
    except OSError as error:
        raise PortError(
            f"The mode of {path} cannot be set: {error.strerror}.", "Choose another socket file."
        ) from error


def _take(path: Path, gid: int | None, mode: int) -> int:
    """Lock the address; the lock lives as long as the file descriptor that is returned."""
    lock = None
    try:
        _make_directory(path.parent, gid, mode)
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
