"""An audit log continued where it ended, or begun anew where it cannot be.

1. Where the file is whole at its end, and that is not before what the store remembers, it is continued.
2. Where it is empty or not there, it goes on after the last closed file, or after what the store remembers.
3. Anything else is set aside under another name, and a new file goes on after the same. Its first line says so.

A monitor that is killed while it closes a file and begins the next leaves a closed file and none, or one with a part
of a first line: both are of the second kind.
"""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from monitor.sinks.audit.chain import START, Break, Head, is_torn
from monitor.sinks.audit.file import APPEND, read_end, unusable
from monitor.sinks.audit.records import SegmentRecord
from monitor.sinks.audit.segments import as_text, aside_path, closed_segments


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that is ready to be appended to."""

    descriptor: int
    head: Head
    """The record before the next one."""
    size: int
    """In bytes."""
    first: int = 1
    """Number of the first record that it has, or will have."""
    begun: datetime | None = None
    """When its first line was made; ``None``: it has none, or it is not known."""
    ended: bool = True
    """False where its last line lacks its end."""
    rest: bytes = b""
    """Rest that a crash left of a last line."""
    begins: SegmentRecord | None = None
    """What its first line is to say; ``None``: nothing is to be said."""


class _Unfit(Exception):
    """A file is not continued, in words that end a sentence about it."""


def open_log(path: Path, known: Head | None = None) -> Opened:
    """Open the file of a log that this process holds, made if it is not there.

    Args:
        path: Of the file.
        known: The last record that is known to have been written; ``None``: none is.

    Raises:
        AuditError: It cannot be written, or cannot be set aside.
    """
    before, name = _before(path, known)
    begins = None
    if name:
        begins = SegmentRecord("rotated", name, "the file before it was closed")
    elif before != START:
        begins = SegmentRecord("missing", "", f"record {before.sequence} was written, and no file here has it")
    try:
        try:
            found = _continued(path, known, before)
        except _Unfit as error:
            aside = set_aside(path)
            found = None
            begins = SegmentRecord("set_aside", as_text(aside.name), f"{as_text(path.name)} is not continued: {error}")
        if found is not None:
            return found
        return Opened(os.open(path, APPEND | os.O_CREAT, 0o600), before, 0, before.sequence + 1, begins=begins)
    except OSError as error:
        raise unusable(path, error) from error


def set_aside(path: Path) -> Path:
    """Rename what is at the place of a log, and keep it.

    Raises:
        OSError: It cannot be renamed.
    """
    aside = aside_path(path)
    path.rename(aside)
    return aside


def _continued(path: Path, known: Head | None, before: Head) -> Opened | None:
    """The file as it is, if it can be continued; ``None`` where it is empty or not there."""
    try:
        descriptor = os.open(path, APPEND)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unfit(f"it cannot be opened: {error.strerror}") from error
    try:
        found = _read(descriptor, known, before)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise _Unfit(f"it cannot be read: {error.strerror}") from error
        if isinstance(error, Break):
            raise _Unfit(str(error)) from error
        raise
    if found is None:
        os.close(descriptor)
    return found


def _read(descriptor: int, known: Head | None, before: Head) -> Opened | None:
    end = read_end(descriptor, None if known is None else known.sequence)
    head = end.chain.head
    if head is None:
        if not end.size:
            return None
        if not is_torn(end.rest, before):
            raise _Unfit("line 1 is not what was written")
        return Opened(descriptor, before, end.size, before.sequence + 1, ended=False, rest=end.rest)
    if end.beheaded:
        raise _Unfit(f"it begins with record {end.first}: what was before it was cut off")
    if known is not None and head.sequence < known.sequence:
        raise _Unfit(f"it ends with record {head.sequence}, and record {known.sequence} was written")
    if known is not None and end.hashes and known.hash not in end.hashes:
        raise _Unfit(f"its record {known.sequence} is not the one that was written")
    return Opened(descriptor, head, end.size, end.first, end.begun, end.chain.ended, end.rest)


def _before(path: Path, known: Head | None) -> tuple[Head, str]:
    """The record that a new file goes on after, and the name of the closed file that has it; empty: none is known."""
    head, name = START, ""
    for segment in reversed(closed_segments(path)):
        try:
            descriptor = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found = read_end(descriptor).chain.head
        except (Break, OSError):
            continue
        finally:
            os.close(descriptor)
        if found is not None:
            head, name = found, as_text(segment.name)
            break
    return (known, "") if known is not None and known.sequence > head.sequence else (head, name)
