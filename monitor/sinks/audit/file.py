"""The file of an audit log: a regular file that one monitor writes, continued where it ended.

Of a file that is already there, its end is checked and not all of it: a monitor that is started again should not read
for minutes first. ``plumbob audit verify`` reads all.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from monitor.errors import AuditError
from monitor.sinks.audit.chain import Break, Chain, Head

END_BYTES: Final = 4 << 20
"""Bytes of the end of a file that are checked before it is continued: about 6000 records, in a fraction of a second."""
LINE_BYTES: Final = 16 << 20
"""A longer line is no record; most take 600 bytes, and a policy of a thousand rules 200,000."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a file."""

    head: Head
    size: int
    """In bytes."""
    ended: bool = True
    """False where its last line lacks its end."""
    rest: bytes = b""
    """Rest that a crash left of a last line."""


def open_log(path: Path) -> tuple[int, End]:
    """Open a file to append to, made if it is not there, and hold it alone.

    Returns:
        Its descriptor, which the lock lives as long as, and its end.

    Raises:
        AuditError: It cannot be written, another monitor writes it, or its end is not what was written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # For reading and writing, and not waiting: this could be a pipe.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AuditError(f"The audit log {path} is not a regular file.", "Name another with --audit.")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor, _end(path, descriptor)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AuditError(
            f"Another monitor writes the audit log {path}.", "Stop it, or give each its own with --audit."
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise _unusable(path, error) from error
    except BaseException:
        os.close(descriptor)
        raise


def require_log(path: Path) -> None:
    """Check that a monitor could write the file; raises AuditError as :func:`open_log` does."""
    os.close(open_log(path)[0])


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; one beyond :data:`LINE_BYTES` comes in pieces, which are no records."""
    while raw := file.readline(LINE_BYTES):
        yield raw


def _end(path: Path, descriptor: int) -> End:
    size = os.fstat(descriptor).st_size
    chain = Chain() if size <= END_BYTES else Chain(None)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            if chain.head is None:
                file.seek(-END_BYTES, os.SEEK_END)
                file.readline(END_BYTES)
            for raw in read_lines(file):
                chain.add(raw)
        rest = chain.rest()
        if chain.head is None:
            raise Break(1, "has no end")
    except Break as error:
        where = str(error) if size <= END_BYTES else f"a line near its end {error.problem}"
        raise AuditError(
            f"The audit log {path} is not continued: {where}.",
            f"Keep it, see plumbob audit verify {path}, and name another file with --audit.",
        ) from error
    return End(chain.head, size, chain.ended, rest)


def _unusable(path: Path, error: OSError | ValueError) -> AuditError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return AuditError(
        f"The audit log {path} cannot be written: {why}.",
        "Name another file with --audit; --audit none keeps no log.",
    )
