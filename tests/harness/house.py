"""A copy of the monitor, for tests that edit it as somebody would who adds to it."""

import shutil
from pathlib import Path

import monitor

ROOT = Path(monitor.__file__).parent.parent


def copy_house(folder: Path) -> Path:
    """Copy the monitor and its protocol into a new folder of this one."""
    copied = folder / "house"
    shutil.copytree(ROOT / "monitor", copied / "monitor", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "proto", copied / "proto")
    return copied


def edit(path: Path, *changes: tuple[str, str]) -> None:
    """Replace what stands in a file once."""
    text = path.read_text()
    for before, after in changes:
        assert text.count(before) == 1, f"{path}: {before!r}"
        text = text.replace(before, after)
    path.write_text(text)
