"""Logs on disk, and what is on the disk."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "audit.jsonl"


@pytest.fixture
def written(path):
    """``written([line, …])``: a file of these lines."""

    def write(lines):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(lines))
        return path

    return write
