"""The writer of an audit log, on a thread of its own: a disk that hangs is no reason for the monitor to.

1. :meth:`AuditLog.append` puts a record into a queue of limited length and returns.
2. The thread seals what waits, appends it in one write of whole lines, and has the disk confirm it at most once a
   second; a record that comes after a pause is confirmed at once.
3. What could not be written is kept and tried again each second, from the very byte on. Records that find the queue
   full meanwhile are lost and counted, and a ``records_lost`` record says how many.
4. Before each write, and once a second, the thread looks whether the file is still its own, and whether it is to be
   closed (:mod:`monitor.sinks.audit.writer`).

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
from typing import Final

from monitor.sinks.audit.chain import Head
from monitor.sinks.audit.file import lock_log
from monitor.sinks.audit.opening import open_log
from monitor.sinks.audit.records import LossRecord, Record, SegmentRecord, TornRecord
from monitor.sinks.audit.writer import SEGMENT_BYTES, SEGMENT_SECONDS, Writer
from monitor.store import LogHead, Store
from monitor.telemetry.stats import AuditFault

CLOSE_SECONDS: Final = 3.0
"""Seconds that the end of the process waits for the disk; a supervisor allows for about five."""

logger = logging.getLogger(__name__)


class AuditLog:
    """Appends records to a file, and to the next, alone until it is closed. Any thread may append.

    Args:
        path: Of the file; made if it is not there, with its directory, for this user only.
        store: Is written ahead of the log, and remembers its end; ``None``: there is none.
        limit: Records that may wait; beyond it they are lost.
        sync_seconds: At least between two confirmations of the disk, and between two attempts to write.
        segment_bytes: A file that has reached this size is closed, and another begun.
        segment_seconds: And one whose first line is so old.

    Raises:
        AuditError: Another monitor writes the log, or it cannot be written; what cannot be continued is set aside.
    """

    def __init__(
        self,
        path: Path,
        *,
        store: Store | None = None,
        limit: int = 16_384,
        sync_seconds: float = 1.0,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self.path = path.absolute()
        self._lock = lock_log(self.path)
        known = None if store is None else store.state.logs.get(self.name)
        try:
            opened = open_log(self.path, None if known is None else Head(known.sequence, known.hash))
        except BaseException:
            os.close(self._lock)
            raise
        if opened.begins is not None and opened.begins.reason != "rotated":
            logger.error("The audit log %s begins anew: %s.", self.path, opened.begins.detail)
        self.accepted = opened.head.sequence
        """Number of the last record that was taken."""
        self._store, self._limit, self._sync_seconds = store, limit, sync_seconds
        self._changed = Condition()
        """Protects the next four, and ``accepted``."""
        self._waiting: deque[tuple[Record, datetime, int]] = deque()
        """With the position of the store that has to be settled first."""
        self._lost = self._untold = 0
        """Records that never will be in the file, and those of them that no record tells of yet."""
        self._looks = False
        self._closing = False
        # From here on, everything is the thread's.
        self._writer = Writer(self.path, opened, segment_bytes=segment_bytes, segment_seconds=segment_seconds)
        self._remembered = self._writer.synced
        self._sync_at = 0.0
        if opened.rest:
            logger.warning("The last line of the audit log %s was torn by a crash; a record says so.", self.path)
            self._take(TornRecord(len(opened.rest), sha256(opened.rest).hexdigest()), datetime.now(UTC))
        self._thread = Thread(target=self._run, name="plumbob-audit", daemon=True)

    @property
    def head(self) -> Head:
        """The last line that was sealed."""
        return self._writer.head

    @property
    def settled(self) -> int:
        """Number of the last record that is in the file."""
        return self._writer.settled

    @property
    def written(self) -> int:
        """Records in the file, of this writer."""
        return self._writer.written

    @property
    def lost(self) -> int:
        """Records that never will be."""
        return self._lost + self._writer.lost

    @property
    def faults(self) -> Counter[AuditFault]:
        """Faults, and how often each occurred."""
        return self._writer.faults

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
                self._lost += 1
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

    def news(self) -> list[SegmentRecord]:
        """Beginnings of files that were not told yet, oldest first."""
        found: list[SegmentRecord] = []
        while self._writer.news:
            found.append(self._writer.news.popleft())
        return found

    def look(self) -> None:
        """Look at once whether the file is still there; it may have been moved on purpose."""
        with self._changed:
            self._looks = True
            self._changed.notify()

    def remember(self) -> None:
        """Note in the store the last record that is on disk. To be called from the monitor's event loop only."""
        synced = self._writer.synced
        if self._store is not None and synced != self._remembered:
            self._remembered = synced
            self._store.note(LogHead(self.name, synced.sequence, synced.hash))

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
        writer, more = self._writer, True
        while more:
            more, batch = self._collect()
            writer.look()
            for record, when in batch:
                writer.seal(record, when)
            writer.write()
            if writer.unsynced and (not more or time.monotonic() >= self._sync_at):
                self._sync_at = time.monotonic() + self._sync_seconds
                writer.sync()
        writer.close()
        os.close(self._lock)
        if writer.pending:
            self._lost += writer.pending
            logger.error("%d records were not written to the audit log %s.", writer.pending, self.path)

    def _collect(self) -> tuple[bool, list[tuple[Record, datetime]]]:
        """Wait until there is something to do; false at the end, and the records that are to be written."""
        with self._changed:
            if self._writer.failing:
                self._changed.wait_for(lambda: self._closing, self._sync_seconds)
            else:
                pause = max(0.0, self._sync_at - time.monotonic()) if self._writer.unsynced else self._sync_seconds
                self._changed.wait_for(lambda: self._closing or self._waiting or self._looks, pause)
            more, self._looks = not self._closing, False
            # While the file cannot be written, records wait where their number is limited.
            take = not self._writer.failing or not more
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
        return more, [(record, when) for record, when, _ in batch]
