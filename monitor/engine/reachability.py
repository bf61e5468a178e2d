"""Says what keeps an engine from its monitor: a socket file that is missing, closed to its user, or not listened on.

ZeroMQ tries again for ever and says nothing. So while nothing could be sent, the socket file is looked at and connected
to as ZeroMQ would, and what that yields is logged in words, once for each change.
"""

import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from monitor.addresses import file_access, group_name, user_name

FIRST_SECONDS: Final = 2.0
"""A monitor that is being started as well is waited for so long."""
LOOK_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 0.5

_SCHEME: Final = "ipc://"
_FIX: Final = "start the monitor with --socket-group or --socket-mode, see its documentation on users"

logger = logging.getLogger(__name__)


class Reachability:
    """Looks at the way to the monitor while there is none; one thread calls it.

    Args:
        endpoint: ``ipc://`` and the path of the monitor's socket file.
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, endpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._endpoint, self._clock = endpoint, clock
        self._due: float | None = None
        self._said = ""

    def missed(self) -> None:
        """Nothing could be sent: look what the reason is, if it is time to."""
        now = self._clock()
        if self._due is None:
            self._due = now + FIRST_SECONDS
        if now < self._due or not self._endpoint.startswith(_SCHEME):
            return
        self._due = now + LOOK_SECONDS
        if (found := obstacle(Path(self._endpoint.removeprefix(_SCHEME)))) != self._said:
            self._said = found
            logger.warning("plumbob: the monitor at %s is not reached: %s. Nothing is read.", self._endpoint, found)

    def reached(self) -> None:
        """Something was sent."""
        if self._said:
            logger.warning("plumbob: the monitor at %s is reached.", self._endpoint)
        self._due, self._said = None, ""


def obstacle(path: Path) -> str:
    """Find the reason that keeps this process from a socket file, in words without a full stop at the end."""
    me = f"this engine runs as user {user_name(os.geteuid())}, group {group_name(os.getegid())}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(_CONNECT_SECONDS)
        try:
            attempt.connect(str(path))
        except OSError as error:
            return _words(path, error, me)
        except ValueError as error:
            return str(error)
    return "something listens there and does not answer: a monitor that hangs, or another program"


def readers_group(endpoint: str) -> int | None:
    """The group that may read what is streamed: that which the socket of another user's monitor lets in, if any."""
    try:
        found = Path(endpoint.removeprefix(_SCHEME)).stat()
    except OSError:
        return None
    return found.st_gid if found.st_mode & stat.S_IWGRP and found.st_uid != os.geteuid() else None


def _words(path: Path, error: OSError, me: str) -> str:
    closed = _closed_directory(path)
    if closed is not None:
        return f"{me}, and may not enter {closed}, which has {_access(closed)}: {_FIX}"
    match error.errno:
        case errno.ENOENT:
            missing = next((one for one in reversed(path.parents) if not one.exists()), path)
            what = "the socket file" if missing == path else f"the directory {missing}"
            return f"{what} is not there: no monitor listens at this endpoint, or it runs where this is another file"
        case errno.EACCES | errno.EPERM:
            return f"{me}, and may not connect to the socket, which has {_access(path)}: {_FIX}"
        case errno.ECONNREFUSED:
            return "nobody listens on the socket file: its monitor has ended, or it is no socket"
        case errno.EAGAIN:
            return "the monitor takes no connections: it hangs"
        case _:
            return error.strerror or str(error)


def _closed_directory(path: Path) -> Path | None:
    """The first directory on the way that this process may not enter."""
    return next((one for one in reversed(path.parents) if one.exists() and not _enters(one)), None)


def _enters(directory: Path) -> bool:
    return os.access(directory, os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _access(path: Path) -> str:
    try:
        return file_access(path)
    except OSError as error:
        return error.strerror or str(error)
