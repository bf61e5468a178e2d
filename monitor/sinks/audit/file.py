"""The files of an audit log as they are found: who writes them, and what is at their ends.

Of a file that is already there, its end is checked and not all of it: a monitor that is started again should not read
for minutes first. ``plumbob audit verify`` reads all.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

from monitor.errors import AuditError
from monitor.sinks.audit.chain import Break, Chain, Line, unseal
from monitor.sinks.audit.records import TORN
from monitor.sinks.audit.segments import lock_path

END_BYTES: Final = 4 << 20
"""Bytes of the end of a file that are checked before it is continued: about 6000 records, in a fraction of a second."""
LINE_BYTES: Final = 16 << 20
"""A longer line is no record; most take 600 bytes, and a policy of a thousand rules 200,000."""
APPEND: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
"""For reading and writing, and not waiting: this could be a pipe."""


def lock_log(path: Path) -> int:
    """Hold a log alone, whatever is renamed meanwhile; the lock lives as long as the descriptor that is returned.

    Raises:
        AuditError: Another monitor writes it, or there can be no log at this place.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise AuditError(f"The audit log {path} is not a regular file.", "Name another with --audit.")
        descriptor = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except (OSError, ValueError) as error:
        raise unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AuditError(
            f"Another monitor writes the audit log {path}.", "Stop it, or give each its own with --audit."
        ) from error
    return descriptor


def require_log(path: Path) -> None:
    """Check that a monitor could write a log here, and change none.

    Raises:
        AuditError: As :func:`lock_log` does.
    """
    lock = lock_log(path)
    try:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise unusable(path, PermissionError(13, os.strerror(13)))
    finally:
        os.close(lock)


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; one beyond :data:`LINE_BYTES` comes in pieces, which are no records."""
    while raw := file.readline(LINE_BYTES):
        yield raw


def first_line(file: IO[bytes]) -> Line | None:
    """The first record of a file that is read from its beginning; ``None`` where it does not begin with one.

    A crash may have torn its very first line: then the next one is the first, and says so.
    """
    try:
        return unseal(file.readline(LINE_BYTES).removesuffix(b"\n"))
    except ValueError:
        try:
            second = unseal(file.readline(LINE_BYTES).removesuffix(b"\n"))
        except ValueError:
            return None
    return second if second.type_name() == TORN else None


@dataclass(frozen=True, slots=True)
class End:
    """The end of a file that is whole there."""

    chain: Chain
    """Of what was read of it."""
    size: int
    """In bytes."""
    first: int
    """Number of its first record."""
    begun: datetime | None
    """When its first line was made; ``None``: it is not known."""
    beheaded: bool
    """It begins with a record that is not the first of a log, nor says what is before it."""
    rest: bytes
    """Rest that a crash left of a last line; where no line is whole, all of it, whatever it is."""
    hashes: frozenset[str]
    """Of the lines that the record with the number that was asked for may be; empty: none of them was read."""


def read_end(descriptor: int, number: int | None = None) -> End:
    """Check the end of a file.

    Args:
        descriptor: Of the file, which may be appended to afterwards.
        number: Of the record whose hash is looked for.

    Raises:
        Break: It is not what was written.
        OSError: It cannot be read.
    """
    size, chain, hashes = os.fstat(descriptor).st_size, Chain(None), set[str]()
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        begin = first_line(file)
        file.seek(max(0, size - END_BYTES))
        raw = file.readline(END_BYTES) if size > END_BYTES else b""
        for raw in read_lines(file):
            chain.add(raw)
            if number is not None and (line := chain.line) is not None:
                # A line that begins a file has the number of the record before it, which may be in another.
                if line.sequence == number:
                    hashes.add(line.hash)
                if line.sequence == number + line.counted:
                    hashes.add(line.previous)
    first, begun, beheaded = 1, None, False
    if begin is not None:
        first, begun = begin.sequence + (not begin.counted), begin.time
        beheaded = begin.counted and begin.sequence > 1 and begin.type_name() != TORN
    if chain.head is None:
        if chain.lines > 1 or (chain.lines == 1 and chain.ended) or size > END_BYTES:
            raise Break(1, "is not what was written")
        return End(chain, size, first, begun, beheaded, raw, frozenset())
    return End(chain, size, first, begun, beheaded, chain.rest(), frozenset(hashes))


def unusable(path: Path, error: OSError | ValueError) -> AuditError:
    """The error that says why a log cannot be written."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return AuditError(
        f"The audit log {path} cannot be written: {why}.",
        "Name another file with --audit; --audit none keeps no log.",
    )
