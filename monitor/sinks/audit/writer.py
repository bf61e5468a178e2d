"""Lines into the file of an audit log, and from one file to the next.

A file is closed once it has reached its size or its age: it is renamed, and a new one begins with a line that names
the record before it. The same happens where another process has moved the file, cut it off, or written to it: what is
left of it stays, and what the monitor has not written yet goes to a new one.
"""

import logging
import os
import stat
import time
from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from monitor.events import AuditBeginning
from monitor.sinks.audit.chain import Head, seal
from monitor.sinks.audit.file import APPEND
from monitor.sinks.audit.opening import Opened, set_aside
from monitor.sinks.audit.records import LossRecord, Record, SegmentRecord
from monitor.sinks.audit.segments import as_text, segment_path, sync_directory
from monitor.telemetry.stats import AuditFault

SEGMENT_BYTES: Final = 64 << 20
"""A file of the log is closed once it has reached this size: about 100,000 records."""
SEGMENT_SECONDS: Final = 7 * 86_400.0
"""And once its first line is so old."""
NEWS: Final = 64
"""AuditBeginnings of files that may wait to be told; beyond it the oldest are not."""
_RETRY_SECONDS: Final = 30.0
"""Between two attempts to close a file."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Line:
    raw: bytes
    head: Head
    """After it."""
    record: Record | None
    """``None``: it is the end of a line that a crash tore."""
    when: datetime

    @property
    def counted(self) -> bool:
        """True for a record, which has a number of its own."""
        return self.record is not None and not isinstance(self.record, SegmentRecord)


class Writer:
    """Writes one log; one thread calls it.

    Args:
        path: Of the file.
        opened: What is there.
        segment_bytes: A file that has reached this size is closed.
        segment_seconds: A file whose first line is so old is closed.

    Attributes:
        head: The last line that was sealed.
        written: Records in the file, of this writer.
        settled: Number of the last record that is in the file.
        synced: The last line that the disk has confirmed.
        lost: Records that could not be encoded.
        faults: Faults, and how often each occurred.
        news: AuditBeginnings of files that are to be told, oldest first.
    """

    def __init__(
        self,
        path: Path,
        opened: Opened,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self._path, self._segment_bytes, self._segment_seconds = path, segment_bytes, segment_seconds
        self._descriptor, self._size = opened.descriptor, opened.size
        self._first, self._begun = opened.first, opened.begun
        self.head = self.synced = self._in_file = opened.head
        self.written = self.lost = 0
        self.settled = opened.head.sequence
        self.unsynced = False
        self.faults: Counter[AuditFault] = Counter(dict.fromkeys(get_args(AuditFault), 0))
        self.news: deque[SegmentRecord] = deque(maxlen=NEWS)
        self._faulty: set[AuditFault] = set()
        self._pending: deque[_Line] = deque()
        self._offset = 0
        """Bytes of the first pending line that are in the file."""
        self._rotate_at = 0.0
        if not opened.ended:
            self._pending.append(_Line(b"\n", opened.head, None, datetime.now(UTC)))
        if opened.begins is not None:
            self._begin(opened.begins)

    @property
    def pending(self) -> int:
        """Records of which a part is not in the file."""
        return sum(line.counted for line in self._pending)

    @property
    def stuck(self) -> bool:
        """True while something is not in the file."""
        return bool(self._pending)

    @property
    def failing(self) -> bool:
        """True while the file cannot be written."""
        return "write" in self._faulty

    def seal(self, record: Record, when: datetime) -> None:
        """Make a record the next line to be written."""
        try:
            line, self.head = seal(record, when, self.head)
        except Exception:
            # Such as a name that is not Unicode. Another has its place, so that those behind it keep their numbers.
            self.lost += 1
            logger.exception("A record of the audit log %s cannot be encoded.", self._path)
            record = LossRecord(1)
            line, self.head = seal(record, when, self.head)
        self._pending.append(_Line(line, self.head, record, when))

    def write(self) -> None:
        """Append what is pending; what cannot be written is kept."""
        if not self._pending:
            return
        try:
            while self._pending:
                rest = b"".join(line.raw for line in self._pending)[self._offset :]
                self._advance(os.write(self._descriptor, rest))
        except OSError as error:
            self._failed("write", f"cannot be written: {error.strerror}; records wait, then are lost")
        else:
            self._worked("write")

    def sync(self) -> None:
        """Have the disk confirm what was written."""
        self.unsynced, head = False, self._in_file
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed("sync", f"was not confirmed by the disk: {error.strerror}")
        else:
            self.synced = head
            self._worked("sync")

    def look(self) -> None:
        """Go on in a new file where another process has touched this one, or where it is to be closed."""
        try:
            found = self._disturbance()
        except OSError as error:
            return self._failed("segment", f"cannot be looked at: {error.strerror}")
        if found is not None:
            return self._leave(*found)
        age = 0.0 if self._begun is None else (datetime.now(UTC) - self._begun).total_seconds()
        has_records = not self._pending and self._in_file.sequence >= self._first
        if has_records and (self._size >= self._segment_bytes or age >= self._segment_seconds):
            return self._rotate()
        return None

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _advance(self, count: int) -> None:
        self._size += count
        self._offset += count
        self.unsynced = True
        while self._pending and self._offset >= len(self._pending[0].raw):
            line = self._pending.popleft()
            self._offset -= len(line.raw)
            self._in_file = line.head
            self.settled = line.head.sequence
            self._begun = self._begun or line.when
            self.written += line.counted

    def _disturbance(self) -> tuple[AuditBeginning, str] | None:
        """Find what another process did to the file, in words that end a sentence about it."""
        own = os.fstat(self._descriptor)
        try:
            found = self._path.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            return "moved", "was moved or removed by another process"
        if own.st_size < self._size:
            return "truncated", f"was cut by another process from {self._size} bytes to {own.st_size}"
        if own.st_size > self._size:
            return "set_aside", f"was written to by another process: {own.st_size - self._size} bytes"
        return None

    def _leave(self, reason: AuditBeginning, detail: str) -> None:
        self.faults["disturbed"] += 1
        before = ""
        try:
            if reason == "moved":
                before = _name_of(self._descriptor)
                self.sync()
            if os.path.lexists(self._path) and not _is_empty(self._path):
                aside = set_aside(self._path).name
                before = before or as_text(aside)
                detail += f"; what is at its place is now {as_text(aside)}"
            descriptor = os.open(self._path, APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            return self._failed("segment", f"{detail}, and no new one can be begun: {error.strerror}")
        logger.error("The audit log %s %s. It goes on in a new file.", self._path, detail)
        return self._go_on(descriptor, SegmentRecord(reason, before, f"{as_text(self._path.name)} {detail}"))

    def _rotate(self) -> None:
        if time.monotonic() < self._rotate_at:
            return None
        self._rotate_at = time.monotonic() + _RETRY_SECONDS
        self.sync()
        closed = segment_path(self._path, self._first)
        try:
            self._path.rename(closed)
            try:
                descriptor = os.open(self._path, APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            except OSError:
                closed.rename(self._path)
                raise
            sync_directory(self._path)
        except OSError as error:
            return self._failed("segment", f"cannot be closed: {error.strerror}; it grows on")
        self._rotate_at = 0.0
        logger.info("The audit log %s goes on in a new file; %s is closed.", self._path, closed.name)
        return self._go_on(descriptor, SegmentRecord("rotated", as_text(closed.name), "the file before it was closed"))

    def _go_on(self, descriptor: int, begins: SegmentRecord) -> None:
        """Write what is pending to another file; the line that was being written is begun there anew."""
        again = [line for line in self._pending if line.counted]
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, os.fstat(descriptor).st_size
        self._pending.clear()
        self.head, self._offset = self._in_file, 0
        self._first, self._begun = self.head.sequence + 1, None
        self._worked("segment")
        self._begin(begins)
        for line in again:
            if line.record is not None:
                self.seal(line.record, line.when)

    def _begin(self, begins: SegmentRecord) -> None:
        self.seal(begins, datetime.now(UTC))
        self.news.append(begins)

    def _failed(self, fault: AuditFault, problem: str) -> None:
        self.faults[fault] += 1
        if fault not in self._faulty:
            self._faulty.add(fault)
            logger.error("The audit log %s %s.", self._path, problem)

    def _worked(self, fault: AuditFault) -> None:
        if fault in self._faulty:
            self._faulty.discard(fault)
            logger.warning("The audit log %s is well again (%s).", self._path, fault)


def _name_of(descriptor: int) -> str:
    """The name that an open file has now; empty: it has none, or it is not known."""
    try:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
    except OSError:
        return ""
    return "" if name.endswith(" (deleted)") else as_text(name)


def _is_empty(path: Path) -> bool:
    found = path.stat()
    return stat.S_ISREG(found.st_mode) and not found.st_size
