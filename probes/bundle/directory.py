"""The directory of a bundle: where one may be written, and how one takes the place of another.

A directory may be a mount point, a volume's root or what a hub downloaded: it cannot always be renamed, and may hold
files that are no part of the bundle. So it stays, and the files in it are replaced:

1. All new files are written into a directory inside it, read back, and brought to the disk.
2. Files of the bundle that was there are moved aside into the same place, the manifest first: what is half replaced is
   no bundle, never a mixture of two.
3. The new files are renamed to their names, the manifest last; then what was moved aside is removed.

Where a step fails, the earlier files are moved back.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from probes.bundle.artefact import MANIFEST, SIGNATURE, TENSORS
from probes.errors import BundleError

OPTIONAL: Final = ("report.json", "report.html")
"""Further files that a bundle may have."""
NAMES: Final = (MANIFEST, TENSORS, SIGNATURE, *OPTIONAL)
"""Names of a bundle's files, the manifest first."""

_STAGING: Final = ".plumbob."
_FITTING: Final = ".fitting"
_BARE: Final = ("lost+found", _FITTING)
"""What an empty directory may hold: that of a new file system, and that of a fit which was interrupted."""
_ANOTHER: Final = "Name another directory with --out."


class _Ours(msgspec.Struct):
    """What tells a manifest from another file of its name."""

    format: int
    plumbob: str


def require_destination(path: Path) -> Path:
    """Resolve where a bundle may be written.

    Args:
        path: A directory that does not exist, is empty, or is a bundle. It may be a mount point. Files beside those of
            the bundle stay as they are.

    Raises:
        BundleError: It is something else, or cannot be written.
    """
    path = path.expanduser().resolve()
    if path.exists() and not (path.is_dir() and _is_replaceable(path)):
        raise BundleError(f"{path} exists and is not a bundle.", _ANOTHER)
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise BundleError(f"{path} cannot be written: {folder} is not a directory that you may write to.", _ANOTHER)
    if fixed := mount_points(path / name for name in NAMES):
        raise BundleError(
            f"{path} cannot be written: {fixed[0].name} in it is a mount point, which no file can replace.",
            "Mount the directory instead of its files, or name another with --out.",
        )
    return path


def fitting_directory(path: Path) -> Path:
    """The directory where a fit keeps what it has read until its bundle is written.

    Args:
        path: As :func:`require_destination` returned it.

    Returns:
        Beside the bundle; inside it where only the bundle's own directory can be written, as that of a volume.
    """
    if path.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
        return path / _FITTING
    return path.parent / f".{path.name}{_FITTING}"


def mount_points(paths: Iterable[Path]) -> list[Path]:
    """Those of some files or directories that are mounted themselves, so that nothing can be renamed to their names.

    Args:
        paths: Resolved, the last name excepted.

    Returns:
        In their order; empty where the system does not say.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    # The fifth field; white space and backslashes in it are octal escapes.
    known = {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines}
    return [path for path in paths if str(path) in known]


def replace_bundle(path: Path, files: Mapping[str, bytes], check: Callable[[Path], object]) -> None:
    """Put a bundle's files in the place of those that are there.

    Args:
        path: As :func:`require_destination` returned it.
        files: By name, some of :data:`NAMES`; what is there of the others is removed.
        check: Raises where the bundle in a directory is not as it should be.

    Raises:
        BundleError: ``check`` did, or something cannot be written. What was there is still there.
    """
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=path))
        try:
            for name, content in files.items():
                _write(staging / name, content)
            # What cannot be read back does not replace what can.
            check(staging)
            _swap(path, staging, [name for name in reversed(NAMES) if name in files])
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException as error:
        for directory in made:
            # Only those that are empty.
            with suppress(OSError):
                directory.rmdir()
        if isinstance(error, OSError):
            raise BundleError(
                f"{path} cannot be written: {error.strerror}. What was there is still there.",
                "Free space, or name another directory with --out.",
            ) from error
        raise


def _is_replaceable(path: Path) -> bool:
    """Tell whether a directory is as good as empty, or holds a bundle, whole or not."""
    names = {entry.name for entry in path.iterdir()}
    if all(name in (*NAMES, *_BARE) or name.startswith(_STAGING) for name in names):
        return True
    # Among files that are not a bundle's, only a manifest shows that the others are.
    try:
        msgspec.json.decode((path / MANIFEST).read_bytes(), type=_Ours)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _swap(path: Path, staging: Path, names: Collection[str]) -> None:
    """Move a bundle's old files aside and its new ones in; the manifest is the last of ``names``."""
    aside = staging / "earlier"
    aside.mkdir()
    moved, placed = list[str](), list[str]()
    try:
        for name in NAMES:
            # A link counts, whether or not it leads anywhere.
            if os.path.lexists(path / name):
                (path / name).rename(aside / name)
                moved.append(name)
        for name in names:
            (staging / name).rename(path / name)
            placed.append(name)
        _sync(path)
    except BaseException:
        for name in reversed(placed):
            (path / name).unlink()
        for name in reversed(moved):
            (aside / name).rename(path / name)
        raise


def _sync(path: Path) -> None:
    """Bring the names of a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
