"""Verification of a file: no line altered, missing, moved or inserted; against a known head, none cut off its end."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

from monitor.errors import AuditError
from monitor.sinks.audit.chain import Break, Chain, Line, unseal
from monitor.sinks.audit.file import read_lines

WRITING_SECONDS: Final = 0.1
"""A last line without its end may be one that a monitor is just writing."""

_KEEP: Final = "The lines before it are whole; compare with a copy."


@dataclass(frozen=True, slots=True)
class Verified:
    """Content of a valid file."""

    lines: int
    records: int
    torn: int
    """Lines that a crash tore, each with the record that says so."""
    first: datetime
    last: datetime
    head: str
    """Hash of the last record: kept elsewhere, it shows later whether the end was cut off."""
    known_at: int | None
    """Line that has the known head; ``None``: none was asked for."""


def verify(path: Path, head: str | None = None) -> Verified:
    """Check a file from its first line to its last.

    Args:
        path: Of the file; a monitor may be writing it.
        head: Hash of a record that has to be there: the last one at an earlier time.

    Raises:
        AuditError: It is not what was written; names the first line that is not.
    """
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise AuditError(f"--head {head} is not the hash of a record.", "Give its 64 characters of 0-9 and a-f.")
    if not path.is_file():
        raise AuditError(f"{path} is not a file.", "Name an audit log.")
    try:
        with path.open("rb") as file:
            return _verify(path, file, head)
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}.", "Check its owner and its disk.") from error


def read_records(path: Path) -> Iterator[Line]:
    """The lines of a file that were verified, without those that a crash tore."""
    with path.open("rb") as file:
        for raw in read_lines(file):
            try:
                yield unseal(raw.removesuffix(b"\n"))
            except ValueError:
                continue


def _verify(path: Path, file: IO[bytes], head: str | None) -> Verified:
    chain, known_at = Chain(), None
    try:
        for raw in _patient(file):
            chain.add(raw)
            if chain.head is not None and chain.head.hash == head:
                known_at = known_at or chain.lines
        rest = chain.rest()
    except Break as error:
        moved = _find(file, error.due, chain.lines)
        problem = error.problem if moved is None else f"is out of order: the line that belongs there is line {moved}"
        raise AuditError(f"{path}: line {error.line} {problem}.", _KEEP) from error
    if rest or not chain.ended:
        raise AuditError(
            f"{path}: line {chain.lines} is cut short, as a crash leaves it.",
            "The lines before it are whole; the next plumbob monitor that writes this file records it.",
        )
    if chain.head is None or chain.first is None or chain.last is None:
        raise AuditError(f"{path} is empty: all of it was cut off, or nothing was written yet.", "Compare with a copy.")
    if head is not None and known_at is None:
        raise AuditError(
            f"{path}: no line up to its last, line {chain.lines}, has the known head {head}.",
            "Its end was cut off, or it was written anew; compare with a copy.",
        )
    return Verified(
        lines=chain.lines,
        records=chain.head.sequence,
        torn=chain.torn,
        first=chain.first,
        last=chain.last,
        head=chain.head.hash,
        known_at=known_at,
    )


def _patient(file: IO[bytes]) -> Iterator[bytes]:
    for raw in read_lines(file):
        if raw.endswith(b"\n"):
            yield raw
        else:
            time.sleep(WRITING_SECONDS)
            yield raw + file.readline()


def _find(file: IO[bytes], due: str | None, lines: int) -> int | None:
    """The line, of those that follow, that refers to the record before a gap."""
    if due is not None:
        for number, raw in enumerate(read_lines(file), lines + 1):
            try:
                if unseal(raw.removesuffix(b"\n")).previous == due:
                    return number
            except ValueError:
                continue
    return None
