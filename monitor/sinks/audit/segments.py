"""The files of an audit log: the one that is written, those that were closed, and those that were set aside.

Beside ``audit.jsonl`` lie ``audit.000000000001.jsonl``, named by the first record in it, and, where something could not
be continued, ``audit.set-aside-20260102T030405Z.jsonl``. Nothing is ever deleted here: how long files are kept is the
operator's to say.
"""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_ASIDE: Final = ".set-aside-"
_NUMBER: Final = re.compile(r"\.(\d{12,})(?:-(\d+))?")


def segment_path(path: Path, first: int) -> Path:
    """The name of a closed file of which ``first`` is the first record; one that is not taken."""
    return _free(path, f".{max(first, 0):012d}")


def aside_path(path: Path) -> Path:
    """The name of what is set aside now; one that is not taken."""
    return _free(path, f"{_ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def is_aside(path: Path) -> bool:
    """True for the name of what was set aside."""
    return _ASIDE in path.name


def closed_segments(path: Path) -> list[Path]:
    """The closed files of a log, in the order of their records."""
    found: list[tuple[int, int, Path]] = []
    for one in relatives(path):
        match = _NUMBER.fullmatch(one.name.removeprefix(path.stem).removesuffix(path.suffix))
        if match is not None:
            found.append((int(match[1]), int(match[2] or 0), one))
    return [one for _, _, one in sorted(found)]


def relatives(path: Path) -> Iterator[Path]:
    """Regular files beside a log whose names begin as its own does, it among them; its lock is none."""
    if not path.parent.is_dir():
        return
    for one in sorted(path.parent.iterdir()):
        if one.name.startswith(path.stem) and one.name != lock_path(path).name and one.is_file():
            yield one


def lock_path(path: Path) -> Path:
    """The file that says that a monitor writes the log."""
    return path.with_name(path.name + ".lock")


def sync_directory(path: Path) -> None:
    """Have the disk confirm the names in a file's directory."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path, part: str) -> Path:
    found, number = path.with_name(f"{path.stem}{part}{path.suffix}"), 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.stem}{part}-{number}{path.suffix}")
    return found


def as_text(name: str) -> str:
    """A name as Unicode, which one of the operating system need not be."""
    return os.fsencode(name).decode(errors="replace")


def log_of(path: Path) -> Path:
    """The file that is written, of the log that a file of it belongs to."""
    stem = re.sub(rf"({_NUMBER.pattern}|{re.escape(_ASIDE)}\d{{8}}T\d{{6}}Z(-\d+)?)$", "", path.stem)
    return path.with_name(stem + path.suffix)
