"""The files of a journal: a segment is a magic number and records, each its length, its checksum and its payload.

::

    PLUMBOB1                               8 bytes
    length  crc32  payload                 u32, u32 (of length and payload), little-endian; msgpack of Noted
    …

A segment begins with entries that come to the whole state, so that the newest one is enough. It is written aside,
confirmed by the disk and only then given its name; the one before it goes after that. So a killed process leaves, at
worst, a record at the end of which a part is missing, and everything before it is whole.
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from monitor.store.entries import Noted

MAGIC: Final = b"PLUMBOB1"
RECORD_BYTES: Final = 1 << 20
"""A longer record is none; most take a hundred bytes."""

_HEAD: Final = struct.Struct("<II")
_NAME: Final = re.compile(r"(\d{8})\.journal")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Noted)


def encode(noted: Noted) -> bytes:
    """An entry as a record."""
    payload = _encoder.encode(noted)
    length = len(payload)
    return _HEAD.pack(length, _checksum(length, payload)) + payload


def decode(data: bytes) -> tuple[list[Noted], int]:
    """Read the records of a segment.

    Returns:
        The entries up to the first record that is damaged, and the bytes that were not read from there on.
    """
    if not data.startswith(MAGIC):
        return [], len(data)
    entries: list[Noted] = []
    at = len(MAGIC)
    while at + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + length]
        if length > RECORD_BYTES or len(payload) < length or _checksum(length, payload) != checksum:
            break
        try:
            entries.append(_decoder.decode(payload))
        except (msgspec.MsgspecError, RecursionError):
            break
        at += _HEAD.size + length
    return entries, len(data) - at


def segments(folder: Path) -> list[tuple[int, Path]]:
    """The segments of a journal by number, oldest first."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match is not None)


def begin(folder: Path, number: int, entries: Iterable[Noted]) -> tuple[int, int]:
    """Begin a segment with entries that come to the whole state, and remove those before it.

    Returns:
        Its descriptor, open for appending, and its size in bytes.

    Raises:
        OSError: It cannot be written; the segments before it are still there.
    """
    aside = folder / "next.tmp"
    with suppress(FileNotFoundError):
        aside.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(aside, flags, 0o600)
    try:
        data = b"".join((MAGIC, *map(encode, entries)))
        write(descriptor, data)
        os.fdatasync(descriptor)
        aside.rename(folder / f"{number:08d}.journal")
        _sync_folder(folder)
    except BaseException:
        os.close(descriptor)
        raise
    for other, path in segments(folder):
        if other < number:
            path.unlink(missing_ok=True)
    return descriptor, len(data)


def write(descriptor: int, data: bytes) -> None:
    """Write all of it; raises OSError where a part may have been written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def open_folder(folder: Path) -> None:
    """Make the folder, for this user only.

    Raises:
        OSError: It cannot be made, or is somebody else's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(1, "It belongs to another user", str(folder))
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def _checksum(length: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(length.to_bytes(4, "little")))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
