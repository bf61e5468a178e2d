"""The writer of a journal, on a thread of its own: a disk that hangs is no reason for the monitor to.

1. What was there is read once, up to the first damaged record, and a new segment begins with the state that it comes
   to (:mod:`monitor.store.segment`).
2. :meth:`Journal.append` puts an entry into a queue and returns. The thread writes what waits in one write, and has the
   disk confirm it at most once a second.
3. Beyond a size, and each hour, a new segment begins with the state; what is too old goes with the one before it.
4. What could not be written is in the state all the same, and a new segment is tried each second: once the disk can be
   written again, nothing is missing. Meanwhile entries are settled without it, and that is counted.

A killed process loses no entry that is settled; a crash of the machine loses those of the last second, and the engines
that would repeat them.
"""

import fcntl
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread
from typing import Final, get_args

import msgspec

from monitor.store import segment
from monitor.store.entries import Noted
from monitor.store.state import State
from monitor.telemetry.stats import StoreFault

SEGMENT_BYTES: Final = 4 << 20
"""A segment that is larger is replaced, unless the state alone takes half of it."""
COMPACT_SECONDS: Final = 3600.0
CLOSE_SECONDS: Final = 3.0
"""Seconds that the end of the process waits for the disk."""
WAITING: Final = 65_536
"""Entries that may wait for a disk that hangs; beyond it they are lost and counted."""

logger = logging.getLogger(__name__)


class Journal:
    """Appends entries to segments in a folder, which it holds alone until it is closed.

    A folder that cannot be used is counted and logged, never raised: entries are settled without it.

    Args:
        folder: Made if it is not there, for this user only (mode 0700; files 0600).
        segment_bytes: A larger segment is replaced.
        sync_seconds: At least between two confirmations of the disk, and between two attempts to write.
        clock: Unix time, in seconds.

    Attributes:
        faults: What went wrong, and how often.
        settled: Entries up to this one are in a file, or never will be.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        sync_seconds: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder.absolute()
        self.faults: Counter[StoreFault] = Counter(dict.fromkeys(get_args(StoreFault), 0))
        self.settled = 0
        self._segment_bytes, self._sync_seconds, self._clock = segment_bytes, sync_seconds, clock
        self._changed = Condition()
        """Protects the next two, and tells of ``settled``."""
        self._waiting: deque[tuple[int, list[Noted], bytes]] = deque()
        self._closing = False
        # From here on, everything is the thread's, but for what is read before it starts.
        self._state = State()
        self._faulty: set[StoreFault] = set()
        self._descriptor = -1
        self._size, self._limit, self._number = 0, segment_bytes, 0
        self._unsynced, self._sync_at, self._retry_at, self._compact_at = False, 0.0, 0.0, 0.0
        self._lock = self._open()
        self.found = [] if self._lock < 0 else self._read()
        """The entries that were there, oldest first."""
        for noted in self.found:
            self._state.apply(noted)
        self._thread = Thread(target=self._run, name="plumbob-journal", daemon=True)
        if self._lock >= 0:
            self._thread.start()

    def append(self, position: int, noted: Noted) -> None:
        """Take an entry; never waits, never raises.

        Args:
            position: Its own, which ``settled`` reaches.
            noted: With its time.
        """
        kept = [noted]
        try:
            record = segment.encode(noted)
        except (msgspec.MsgspecError, ValueError):
            # Such as a name that is not Unicode; its position is settled with nothing.
            self.faults["lost"] += 1
            logger.exception("An entry of the journal in %s cannot be encoded.", self.folder)
            kept, record = [], b""
        with self._changed:
            if self._lock < 0 or self._closing:
                self.settled = position
            elif len(self._waiting) >= WAITING:
                self.faults["lost"] += 1
            else:
                self._waiting.append((position, kept, record))
                self._changed.notify_all()

    def wait(self, position: int, seconds: float) -> bool:
        """Wait until a position is settled; false where it was not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.settled >= position, seconds)

    def close(self) -> None:
        """Write what waits, for :data:`CLOSE_SECONDS` at most, and let go of the folder. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                logger.error("The journal in %s is still being written; what waits may be lost.", self.folder)

    def _open(self) -> int:
        """Hold the folder; −1 where that cannot be had."""
        lock = -1
        try:
            segment.open_folder(self.folder)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, ValueError) as error:
            if lock >= 0:
                os.close(lock)
            why = "another monitor keeps its own there" if isinstance(error, BlockingIOError) else str(error)
            self._failed("open", f"cannot be used: {why}; after a restart, what was done before is not known")
            return -1
        return lock

    def _read(self) -> list[Noted]:
        try:
            found = segment.segments(self.folder)
            if not found:
                return []
            self._number, newest = found[-1]
            entries, damaged = segment.decode(newest.read_bytes())
        except OSError as error:
            self._failed("open", f"cannot be read: {error}")
            return []
        if damaged:
            self.faults["damaged"] += 1
            logger.warning("The last %d bytes of the journal %s were torn, and are left out.", damaged, newest)
        return entries

    def _run(self) -> None:
        more = True
        while more:
            more, batch = self._collect()
            for _, kept, _ in batch:
                for noted in kept:
                    self._state.apply(noted)
            now = time.monotonic()
            try:
                self._write(b"".join(record for _, _, record in batch), now, last=not more)
            except OSError as error:
                self._let_go()
                self._retry_at = now + self._sync_seconds
                self._failed("write", f"cannot be written: {error.strerror}; it is tried again each second")
            with self._changed:
                if batch:
                    self.settled = batch[-1][0]
                self._changed.notify_all()
            if self._unsynced and (not more or time.monotonic() >= self._sync_at):
                self._sync()
        self._let_go()
        os.close(self._lock)

    def _collect(self) -> tuple[bool, list[tuple[int, list[Noted], bytes]]]:
        """Wait until there is something to do, and take what waits; false at the end."""
        due = self._retry_at if self._descriptor < 0 else self._sync_at if self._unsynced else self._compact_at
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting, max(0.0, due - time.monotonic()))
            batch = list(self._waiting)
            self._waiting.clear()
            return not self._closing, batch

    def _write(self, data: bytes, now: float, *, last: bool) -> None:
        if self._descriptor < 0:
            if now >= self._retry_at or last:
                self._begin(now)
        elif self._size + len(data) > self._limit or now >= self._compact_at:
            self._begin(now)
        elif data:
            segment.write(self._descriptor, data)
            self._size += len(data)
            self._unsynced = True

    def _begin(self, now: float) -> None:
        """Begin a segment with all that is known."""
        self._let_go()
        self._state.forget_old(self._clock())
        self._number += 1
        self._descriptor, self._size = segment.begin(self.folder, self._number, self._state.entries())
        self._limit = max(self._segment_bytes, 2 * self._size)
        self._unsynced, self._compact_at = False, now + COMPACT_SECONDS
        self._worked("write")

    def _sync(self) -> None:
        self._unsynced, self._sync_at = False, time.monotonic() + self._sync_seconds
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed("sync", f"was not confirmed by the disk: {error.strerror}")
        else:
            self._worked("sync")

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _failed(self, fault: StoreFault, problem: str) -> None:
        self.faults[fault] += 1
        if fault not in self._faulty:
            self._faulty.add(fault)
            logger.error("The journal in %s %s.", self.folder, problem)

    def _worked(self, fault: StoreFault) -> None:
        if fault in self._faulty:
            self._faulty.discard(fault)
            logger.warning("The journal in %s is well again (%s).", self.folder, fault)
