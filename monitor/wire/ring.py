"""Activations from an engine to readers in other processes: one ring in shared memory a layer, both sides.

The engine writes the rows of a step into the ring and then sends a frame that describes them by the absolute number
of the first and their count; any process of the same user, or of a group that it is
shared with, reads them by these. Nobody waits for anybody: an engine
overwrites what is older than the ring, and a reader that was too slow gets an error instead of mixed rows.

A ring is a file: :data:`HEADER`, and from :data:`BODY_OFFSET` on ``capacity`` rows of ``hidden`` elements; all
little-endian. Row number ``n`` lies at ``n % capacity``. It is intact while ``reserved - n <= capacity``, where
``reserved`` is the number that the next row will get: it is raised *before* a byte is written, which makes the ring a
seqlock with one writer (H.-J. Boehm, "Can seqlocks get along with programming language memory models?", 2012). Two
orders have to hold, on x86 and on arm64:

* A reader that has a description sees the rows. The engine sends it when the copy is complete (on CUDA: when an event
  recorded after it has passed), and what is written before a message is sent is seen after it is received.
* A reader that sees a byte of a newer row sees the ``reserved`` that announced it. The writer has :func:`_fence`
  between raising ``reserved`` and writing, the reader between copying and looking at ``reserved`` again. Copies by a
  CUDA device are ordered too: the driver puts a barrier before it hands work to the device.

An engine holds an exclusive ``flock`` on each of its rings. The kernel lets go of it however the engine ends, and
unlike a process id it means the same in every container: :func:`sweep` removes what nobody holds.
"""

import fcntl
import mmap
import os
import re
import time
import weakref
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from monitor.errors import FrameError, FrameVersionError
from probes.errors import PlumbobError

VERSION: Final = 1

DIRECTORY: Final = Path("/dev/shm")

Dtype = Literal["bfloat16", "float16", "float32"]

_RESERVED_OFFSET: Final = 64
"""Fields that change have a cache line of their own."""

HEADER: Final = np.dtype(
    {
        "names": ["magic", "version", "layer", "hidden", "dtype", "capacity", "first", "reserved"],
        "formats": ["S8", "<u4", "<u4", "<u4", "S12", "<u8", "<u8", "<u8"],
        "offsets": [0, 8, 12, 16, 20, 32, 40, _RESERVED_OFFSET],
        "itemsize": 128,
    }
)
"""``first`` and ``reserved`` are row numbers: the ring has held ``[first, reserved)``."""

BODY_OFFSET: Final = 65_536
"""The largest page of the platforms that vLLM runs on, so that rows begin on a page of any."""

_MAGIC: Final = b"PLUMBOBS"

_ELEMENTS: Final = {"bfloat16": np.dtype("<u2"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
"""Elements of a ring as numpy sees them, which has no bfloat16."""


class StreamError(PlumbobError):
    """Activations cannot be streamed: there is no place, or no room, for their ring."""


class RingError(FrameError):
    """A file that is not a ring of activations, or rows that are not of this ring."""


def ring_path(engine: str, layer: int, directory: Path = DIRECTORY) -> Path:
    """Path of the ring that an engine keeps for a layer.

    Raises:
        RingError: The engine's id, which comes from a message, cannot be part of a file's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", engine):
        raise RingError(f"{engine!r} is no engine's id.")
    return directory / f"plumbob-{engine}-{layer}.states"


class StateWriter:
    """An engine's side of a ring: creates the file, and removes it at the end of the process at the latest.

    For one thread. A forked child may not write, and neither keeps the ring alive nor removes it.

    Args:
        engine: The engine's id, unique for each start.
        layer: Whose output it carries.
        hidden: Width of a row.
        dtype: Of the elements.
        capacity: Rows that are kept: the time that readers have is ``capacity`` divided by rows a second.
        directory: Of a file system in memory.

    Raises:
        StreamError: The file cannot be created, or the file system has no room for it.
    """

    def __init__(
        self, engine: str, layer: int, hidden: int, dtype: Dtype, capacity: int, directory: Path = DIRECTORY
    ) -> None:
        if hidden < 1 or capacity < 1:
            raise ValueError(f"A ring of {capacity} rows of {hidden} elements.")
        self.path = ring_path(engine, layer, directory)
        self.capacity = capacity
        self.refused = 0
        """Rows of reservations that were larger than the ring."""
        element = _ELEMENTS[dtype]
        mapping, self._lock = _create(self.path, BODY_OFFSET + capacity * hidden * element.itemsize)
        self._end = weakref.finalize(self, _remove, self.path, self._lock)
        _writers.add(self)

        # The same engine may stream a layer, stop, and stream it again. A clock that no stream of rows overtakes
        # makes their numbers differ, so that a late description is never answered from the wrong ring.
        self._next = time.monotonic_ns()
        header = np.frombuffer(mapping, HEADER, 1)
        header[0] = (_MAGIC, VERSION, layer, hidden, dtype.encode(), capacity, self._next, self._next)
        self._reserved = _counter(mapping)
        self.view: NDArray[Any] = np.frombuffer(mapping, element, capacity * hidden, BODY_OFFSET).reshape(-1, hidden)
        """The rows, shape ``(capacity, hidden)``; bfloat16 as uint16. Stays valid after :meth:`close`."""

    @property
    def reserved(self) -> int:
        """The number that the next row will get."""
        return self._next

    def reserve(self, rows: int) -> list[tuple[int, int]]:
        """Make room for rows by giving up as many of the oldest; never waits.

        The first of them has the number that :attr:`reserved` was before the call.

        Returns:
            Where in :attr:`view` they go, in order, as ``(position, count)``: at most two pieces. Nothing if there are
            more than the ring holds, which are counted as :attr:`refused`.
        """
        if rows < 0:
            raise ValueError(f"A reservation of {rows} rows.")
        if rows > self.capacity:
            self.refused += rows
            return []
        start = self._next
        self._next += rows
        self._reserved[0] = self._next
        _fence()
        return _pieces(start, rows, self.capacity)

    def share(self, group: int) -> None:
        """Let the members of a group read the ring.

        Raises:
            OSError: The engine's user is no member of it.
        """
        os.chown(self.path, -1, group)
        self.path.chmod(0o640)

    def close(self) -> None:
        """Remove the file. Readers that have it open keep what they can see."""
        self._end()

    def _disown(self) -> None:
        """Leave the ring to the parent: the child of a fork has the lock's descriptor too, and would hold on to it."""
        if self._end.detach():
            os.close(self._lock)


class StateReader:
    """A reader's side of a ring, in any process of the same user; any number may read. Unmapped when dropped.

    A ring that its engine has removed can still be read, and takes up memory, until its last reader is dropped.

    Args:
        path: See :func:`ring_path`.

    Raises:
        RingError: There is no such file, or it is not a whole ring.
        FrameVersionError: It is of a version that this reader does not read.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Not blocking: this could be a pipe that somebody put there.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise RingError(f"{path} cannot be opened: {error.strerror}.") from error
        weakref.finalize(self, os.close, self._descriptor)
        header, size = _read_header(path, self._descriptor)
        self.path = path
        self.layer = int(header["layer"])
        self.hidden = int(header["hidden"])
        self.capacity = int(header["capacity"])
        self.dtype: str = header["dtype"].decode()
        self.lost = 0
        """Rows that were asked for too late."""
        self._first = int(header["first"])
        # The writer never makes the file shorter, so that no access is beyond its end.
        mapping = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
        self._reserved = _counter(mapping)
        elements = np.frombuffer(mapping, _ELEMENTS[self.dtype], self.capacity * self.hidden, BODY_OFFSET)
        self._body: NDArray[Any] = elements.reshape(self.capacity, self.hidden)

    @property
    def reserved(self) -> int:
        """The number that the next row will get; rows before ``reserved - capacity`` are lost."""
        return self._reserved[0]

    def read(self, start: int, rows: int) -> NDArray[np.float32] | None:
        """Rows that a frame described.

        Args:
            start: Number of the first.
            rows: How many.

        Returns:
            A copy, shape ``(rows, hidden)``; ``None`` if any of them has been overwritten, or may have been while it
            was copied, which counts all of them as :attr:`lost`.

        Raises:
            RingError: The ring never held such rows: they are of another ring of this engine and layer.
        """
        if not self._first <= start <= start + rows <= self.reserved:
            raise RingError(f"{self.path} never held {rows} rows from number {start} on.")
        if self._intact(start):
            # bfloat16 is the upper half of float32: widened in the same pass, moved up when it is known to be good.
            wide: NDArray[Any] = np.empty((rows, self.hidden), "<u4" if self.dtype == "bfloat16" else "<f4")
            done = 0
            for position, count in _pieces(start, rows, self.capacity):
                wide[done : done + count] = self._body[position : position + count]
                done += count
            _fence()
            if self._intact(start):
                if self.dtype == "bfloat16":
                    wide <<= 16
                return wide.view("<f4")
        self.lost += rows
        return None

    def alive(self) -> bool:
        """True while the engine streams into this ring."""
        if not _try_lock(self._descriptor, fcntl.LOCK_SH):
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False

    def _intact(self, start: int) -> bool:
        return self.reserved - start <= self.capacity


def sweep(directory: Path = DIRECTORY) -> list[Path]:
    """Remove the rings of this user's engines that ended without removing them.

    Returns:
        What was removed.
    """
    removed: list[Path] = []
    for path in sorted(directory.glob("plumbob-*.states")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or gone
        try:
            if os.fstat(descriptor).st_uid != os.geteuid() or not _try_lock(descriptor, fcntl.LOCK_EX):
                continue
            # One that is just being created may not be held yet, but has no size before it is. One that was removed
            # meanwhile may have a successor of the same name; while it is there, only who holds it removes it.
            found = os.fstat(descriptor)
            if found.st_size and found.st_nlink:
                path.unlink()
                removed.append(path)
        finally:
            os.close(descriptor)
    return removed


def _create(path: Path, size: int) -> tuple[mmap.mmap, int]:
    """A file of a size that its file system has set aside, mapped, and a descriptor that holds the lock on it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StreamError(f"{path} cannot be created: {error.strerror}.") from error
    lock = -1
    try:
        # Opened again: a mapping refers to what it was made from, and would keep the lock in a forked child.
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A sparse file would end the engine by SIGBUS at the row for which there is no memory.
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE), lock
    except OSError as error:
        path.unlink(missing_ok=True)
        if lock >= 0:
            os.close(lock)
        raise StreamError(
            f"A ring of {size / 2**20:.0f} MiB cannot be created in {path.parent}: {error.strerror}.",
            "Stream fewer rows or layers, or make that file system larger (docker run --shm-size; in Kubernetes an "
            "emptyDir with medium: Memory).",
        ) from error
    finally:
        os.close(descriptor)


def _remove(path: Path, lock: int) -> None:
    path.unlink(missing_ok=True)
    os.close(lock)


def _read_header(path: Path, descriptor: int) -> tuple[np.void, int]:
    """The header and the file's size, which fit each other."""
    try:
        encoded = os.pread(descriptor, HEADER.itemsize, 0)
    except OSError as error:
        raise RingError(f"{path} cannot be read: {error.strerror}.") from error
    if len(encoded) < HEADER.itemsize:
        raise RingError(f"{path} is not a ring of activations: it has {len(encoded)} bytes.")
    header: np.void = np.frombuffer(encoded, HEADER)[0]
    if header["magic"] != _MAGIC:
        raise RingError(f"{path} is not a ring of activations.")
    if header["version"] != VERSION:
        raise FrameVersionError(f"{path} has version {header['version']}; this reader reads version {VERSION}.")
    name: str = header["dtype"].decode(errors="replace")
    rows, hidden = int(header["capacity"]), int(header["hidden"])
    if name not in _ELEMENTS or not rows or not hidden:
        raise RingError(f"{path} announces {rows} rows of {hidden} elements of type {name!r}.")
    expected = BODY_OFFSET + rows * hidden * _ELEMENTS[name].itemsize
    found = os.fstat(descriptor).st_size
    if found != expected:
        raise RingError(f"{path} has {found} bytes; its header announces {expected}.")
    return header, found


def _try_lock(descriptor: int, mode: int) -> bool:
    """Take the lock if it is free; False where it is not."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _counter(mapping: mmap.mmap) -> memoryview:
    """``reserved``, which a memoryview reads and writes as a whole: no reader sees half of a new number."""
    return memoryview(mapping)[_RESERVED_OFFSET : _RESERVED_OFFSET + 8].cast("Q")


def _pieces(start: int, rows: int, capacity: int) -> list[tuple[int, int]]:
    position = start % capacity
    before_end = min(rows, capacity - position)
    return [piece for piece in ((position, before_end), (0, rows - before_end)) if piece[1]]


def _fence() -> None:
    """No read or write of this thread passes another across this call.

    Python has no barrier, but its locks are made of them. A lock that is let go and then taken is a release followed
    by an acquire: on arm64 nothing before the one moves behind it, nothing after the other before it, and these two
    keep their order (the architecture's ``[L]; po; [A]``). On x86 each is a locked instruction, which streaming stores
    of a large memcpy do not pass either.
    """
    lock = Lock()
    with lock:
        pass
    with lock:
        pass


_writers: Final[weakref.WeakSet[StateWriter]] = weakref.WeakSet()


def _disown_all() -> None:
    for writer in list(_writers):
        writer._disown()
    _writers.clear()


os.register_at_fork(after_in_child=_disown_all)
