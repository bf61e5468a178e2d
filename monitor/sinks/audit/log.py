"""The writer of an audit log, on a thread of its own: a disk that hangs is no reason for the monitor to.

1. :meth:`AuditLog.append` puts a record into a queue of limited length and returns.
2. The thread seals what waits, appends it in one write of whole lines, and has the disk confirm it at most once a
   second; a record that comes after a pause is confirmed at once.
3. What could not be written is kept and tried again each second, from the very byte on. Records that find the queue
   full meanwhile are lost and counted, and a ``records_lost`` record says how many.

So a killed process loses the records of the last moment, a crash of the machine those of the last second.

A record has its number in the chain as soon as it is taken, and is written only after the store has kept what was noted
before it: whatever is in the file, the store knows of.
"""

import logging
import os
import time
from collections import Counter, deque
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import Condition, Thread
from typing import Final, get_args

from monitor.sinks.audit.chain import seal
from monitor.sinks.audit.file import open_log
from monitor.sinks.audit.records import LossRecord, Record, TornRecord
from monitor.store import Store
from monitor.telemetry.stats import AuditFault

CLOSE_SECONDS: Final = 3.0
"""Seconds that the end of the process waits for the disk; a supervisor allows for about five."""

logger = logging.getLogger(__name__)


class AuditLog:
    """Appends records to a file, which it holds alone until it is closed. Any thread may append.

    Args:
        path: Of the file; made if it is not there, with its directory, for this user only.
        store: Is written ahead of the log; ``None``: there is none.
        limit: Records that may wait; beyond it they are lost.
        sync_seconds: At least between two confirmations of the disk, and between two attempts to write.

    Raises:
        AuditError: The file cannot be written, another monitor writes it, or its end is not what was written.
    """

    def __init__(
        self, path: Path, *, store: Store | None = None, limit: int = 16_384, sync_seconds: float = 1.0
    ) -> None:
        self.path = path.absolute()
        self._descriptor, end = open_log(self.path)
        self.head = end.head
        """The last record that was sealed."""
        self.written = 0
        """Records in the file, of this writer."""
        self.lost = 0
        """Records that never will be."""
        self.accepted = self.settled = end.head.sequence
        """Number of the last record that was taken, and of the last that is in the file."""
        self.faults: Counter[AuditFault] = Counter(dict.fromkeys(get_args(AuditFault), 0))
        """Faults, and how often each occurred."""
        self._store, self._limit, self._sync_seconds = store, limit, sync_seconds
        self._changed = Condition()
        """Protects the next three, and ``accepted``."""
        self._waiting: deque[tuple[Record, datetime, int]] = deque()
        """With the position of the store that has to be settled first."""
        self._untold = 0
        """Of the lost ones, those that no record tells of yet."""
        self._closing = False
        # From here on, everything is the thread's.
        self._size = end.size
        self._unwritten = bytearray() if end.ended else bytearray(b"\n")
        self._sealed = 0
        """Records of which a part is unwritten."""
        self._unsynced, self._sync_at = False, 0.0
        self._alerted: set[AuditFault] = set()
        if end.rest:
            logger.warning("The last line of the audit log %s was torn by a crash; a record says so.", self.path)
            self._take(TornRecord(len(end.rest), sha256(end.rest).hexdigest()), datetime.now(UTC))
        self._thread = Thread(target=self._run, name="plumbob-audit", daemon=True)

    @property
    def name(self) -> str:
        """Names the file, in Unicode."""
        return f"audit:{os.fsencode(self.path).decode(errors='replace')}"

    @property
    def closed(self) -> bool:
        """True once it takes no more records."""
        return self._closing

    def append(self, record: Record, when: datetime | None = None) -> None:
        """Record something; never waits, never raises.

        Args:
            record: What happened.
            when: UTC; ``None``: now.
        """
        with self._changed:
            if self._closing or len(self._waiting) >= self._limit:
                self.lost += 1
                self._untold += 1
                return
            if self._untold:
                self._take(LossRecord(self._untold), datetime.now(UTC))
                self._untold = 0
            self._take(record, when or datetime.now(UTC))
            self._changed.notify()
            if self._thread.ident is None:
                # With the first record, so that before it the file is as it was found.
                self._thread.start()

    def close(self) -> None:
        """Write what waits, and let go of the file; waits for :data:`CLOSE_SECONDS` at most. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            if self._thread.ident is None:
                self._thread.start()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.error("The audit log %s is still being written; what waits may be lost.", self.path)

    def _take(self, record: Record, when: datetime) -> None:
        self._waiting.append((record, when, 0 if self._store is None else self._store.accepted))
        self.accepted += 1

    def _run(self) -> None:
        more = True
        while more:
            more = self._collect()
            self._write()
            if self._unsynced and (not more or time.monotonic() >= self._sync_at):
                self._sync()
        os.close(self._descriptor)
        if self._sealed:
            self.lost += self._sealed
            logger.error("%d records were not written to the audit log %s.", self._sealed, self.path)

    def _collect(self) -> bool:
        """Wait until there is something to do, and seal what waits; false at the end."""
        with self._changed:
            if "write" in self._alerted:
                self._changed.wait_for(lambda: self._closing, self._sync_seconds)
            elif not self._unwritten:
                pause = max(0.0, self._sync_at - time.monotonic()) if self._unsynced else None
                self._changed.wait_for(lambda: self._closing or self._waiting, pause)
            more = not self._closing
            # While the file cannot be written, records wait where their number is limited.
            take = not self._unwritten or not more
            batch = list(self._waiting) if take else []
            if take:
                self._waiting.clear()
                if self._untold:
                    self._take(LossRecord(self._untold), datetime.now(UTC))
                    self._untold = 0
                    batch.append(self._waiting.popleft())
        if batch and self._store is not None:
            # Where the store hangs, the log goes on without it: a record may then be there twice after a kill.
            self._store.wait(batch[-1][2], self._sync_seconds)
        for record, when, _ in batch:
            self._seal(record, when)
        return more

    def _seal(self, record: Record, when: datetime) -> None:
        try:
            line, self.head = seal(record, when, self.head)
        except Exception:
            # Such as a name that is not Unicode. Another has its place, so that those behind it keep their numbers.
            self.lost += 1
            logger.exception("A record of the audit log %s cannot be encoded.", self.path)
            line, self.head = seal(LossRecord(1), when, self.head)
        self._unwritten += line
        self._sealed += 1

    def _write(self) -> None:
        if not self._unwritten:
            return
        try:
            while self._unwritten:
                written = os.write(self._descriptor, self._unwritten)
                del self._unwritten[:written]
                self._size += written
                self._unsynced = True
        except OSError as error:
            self._failed("write", f"cannot be written: {error.strerror}; records wait, then are lost")
        else:
            self.written += self._sealed
            self._sealed = 0
            self.settled = self.head.sequence
            self._worked("write")

    def _sync(self) -> None:
        self._unsynced, self._sync_at = False, time.monotonic() + self._sync_seconds
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed("sync", f"was not confirmed by the disk: {error.strerror}")
        else:
            self._worked("sync")
        if self._disturbed():
            self._failed("disturbed", "was moved, removed or changed by another; what is written now may not verify")
        else:
            self._worked("disturbed")

    def _disturbed(self) -> bool:
        """True where somebody else touched the file."""
        own = os.fstat(self._descriptor)
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino, own.st_size) != (own.st_dev, own.st_ino, self._size)

    def _failed(self, fault: AuditFault, problem: str) -> None:
        self.faults[fault] += 1
        if fault not in self._alerted:
            self._alerted.add(fault)
            logger.error("The audit log %s %s.", self.path, problem)

    def _worked(self, fault: AuditFault) -> None:
        if fault in self._alerted:
            self._alerted.discard(fault)
            logger.warning("The audit log %s is well again (%s); %d records were lost.", self.path, fault, self.lost)
