"""Mount points, as containers have them: file systems and single files, mounted where something is to be written."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_READ_ONLY, _REMOUNT, _BIND = 1, 32, 4096


@contextmanager
def mounted(path: Path, source: Path | None = None, *, size: str = "1m", read_only: bool = False) -> Iterator[Path]:
    """Mount something at ``path`` for a while; the test is skipped where that is not allowed.

    Args:
        path: An existing directory or file.
        source: Bound to it; ``None``: a new file system in memory.
        size: Of the new file system.
        read_only: Whether nothing can be written there.
    """
    if source is None:
        _mount("none", path, "tmpfs", 0, f"size={size}")
    else:
        _mount(str(source), path, "none", _BIND, "")
    try:
        if read_only:
            _mount("none", path, "none", _REMOUNT | _BIND | _READ_ONLY, "")
        yield path
    finally:
        if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(path), 0):
            raise OSError(ctypes.get_errno(), f"{path} stays mounted")


def _mount(source: str, path: Path, kind: str, flags: int, data: str) -> None:
    # By itself, not by a program: tests of the command line see to it that none is started.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), os.fsencode(path), kind.encode(), ctypes.c_ulong(flags), data.encode()):
        pytest.skip(f"nothing may be mounted here: {os.strerror(ctypes.get_errno())}")
