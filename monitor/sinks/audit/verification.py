"""Verification of a log: no line altered, missing, moved or inserted, over all its files; against a known head, none
cut off its end.

1. All files beside it whose names begin alike are read.
2. From the file that was named, one goes back from each to the one that its first line refers to.
3. What does not join, and was not set aside, is a gap: that is an error. Where the oldest files are gone, the operator
   has kept them for so long; that is said.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from monitor.errors import AuditError
from monitor.sinks.audit.chain import START, Line, unseal
from monitor.sinks.audit.file import read_lines
from monitor.sinks.audit.parts import Part, begin_of, begins_a_log, read_part
from monitor.sinks.audit.segments import log_of, relatives

_KEEP = "The lines before it are whole; compare with a copy."


@dataclass(frozen=True, slots=True)
class Verified:
    """Content of a valid log."""

    files: tuple[Path, ...]
    """Its files, oldest first."""
    lines: int
    records: int
    """In these files."""
    before: int
    """Records before the first file, which are in no file here."""
    torn: int
    """Lines that a crash tore, each with the record that says so."""
    first: datetime
    last: datetime
    head: str
    """Hash of the last line: kept elsewhere, it shows later whether the end was cut off."""
    known_at: int | None
    """Line, counted through all files, that has the known head; ``None``: none was asked for."""
    aside: tuple[str, ...] = ()
    """Files that were set aside, each with what there is to say of it."""


def verify(path: Path, head: str | None = None) -> Verified:
    """Check a log from its first line to its last.

    Args:
        path: Of the file that is written, which a monitor may be writing, or of an older one, where its end is taken
            to be; or of their directory.
        head: Hash of a line that has to be there: the last one at an earlier time.

    Raises:
        AuditError: It is not what was written; names the first line that is not.
    """
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise AuditError(f"--head {head} is not the hash of a record.", "Give its 64 characters of 0-9 and a-f.")
    path = _in_directory(path) if path.is_dir() else path
    if not path.is_file():
        raise AuditError(f"{path} is not a file.", "Name an audit log.")
    try:
        return _verify(path, head)
    except OSError as error:
        raise AuditError(
            f"{error.filename or path} cannot be read: {error.strerror}.", "Check its owner and its disk."
        ) from error


def read_records(path: Path, verified: Verified | None = None) -> Iterator[Line]:
    """The lines of a file, or of all files of a log that was verified, without those that a crash tore."""
    for one in (path,) if verified is None else verified.files:
        with one.open("rb") as file:
            for raw in read_lines(file):
                try:
                    yield unseal(raw.removesuffix(b"\n"))
                except ValueError:
                    continue


def _in_directory(folder: Path) -> Path:
    """The file that is written, of the log in a directory."""
    logs = {log_of(one) for one in folder.iterdir() if one.is_file() and begin_of(one) is not None}
    found = sorted(one for one in logs if one.suffix == ".jsonl")
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise AuditError(f"{folder} is to hold one audit log; it holds {names}.", "Name the file that is written.")
    return found[0]


def _verify(path: Path, head: str | None) -> Verified:
    others = [one for one in relatives(log_of(path)) if one != path]
    begins = {one: begin_of(one) for one in (path, *others)}
    wanted = {line.previous for line in begins.values() if line is not None} | ({head} if head else set())
    parts = [read_part(one, wanted, None) for one in others]
    # What is no log at all lies beside it by chance.
    parts = [part for part in parts if part.begin is not None or part.aside]
    chain = [_last(path, begins[path], parts, wanted)]
    while not begins_a_log(chain[0].begin) and (before := _before(chain[0], parts)) is not None:
        chain.insert(0, before)
    _require_no_gap(chain[0], [part for part in parts if part not in chain and not part.aside])
    end = chain[-1].chain
    if end.head is None or end.first is None or end.last is None:
        raise AuditError(f"{path} is empty: all of it was cut off, or nothing was written yet.", "Compare with a copy.")
    known_at, lines = None, 0
    for part in chain:
        if known_at is None and head in part.seen:
            known_at = lines + part.seen[head]
        lines += part.chain.lines
    if head is not None and known_at is None:
        raise AuditError(
            f"{path}: no line up to its last, line {lines}, has the known head {head}.",
            "Its end was cut off, or it was written anew; compare with a copy.",
        )
    return Verified(
        files=tuple(part.path for part in chain),
        lines=lines,
        records=end.head.sequence - chain[0].before,
        before=chain[0].before,
        torn=sum(part.chain.torn for part in chain),
        first=next(part.chain.first for part in chain if part.chain.first is not None),
        last=end.last,
        head=end.head.hash,
        known_at=known_at,
        aside=tuple(_of_aside(part, part in chain) for part in parts if part.aside),
    )


def _last(path: Path, begin: Line | None, parts: list[Part], wanted: set[str]) -> Part:
    """The last file of the log; raises AuditError where something is wrong with it."""
    if not path.stat().st_size:
        # A monitor was killed just as it had begun it: the log ends with the file before.
        closed = [part for part in parts if not part.aside and part.chain.head is not None]
        path = max(closed, key=lambda part: part.before).path if closed else path
        begin = begin_of(path)
    joins = begin is not None and (not begin.counted or any(begin.previous in part.seen for part in parts))
    last = read_part(path, wanted, None if joins else START)
    if last.cut:
        raise AuditError(
            f"{path}: {last.problem}.",
            "The lines before it are whole; the next plumbob monitor that writes this file records it.",
        )
    if last.problem:
        raise AuditError(f"{path}: {last.problem}.", _KEEP)
    return last


def _before(part: Part, parts: list[Part]) -> Part | None:
    """The file that has the line that another's first one refers to; raises AuditError where more follows there."""
    previous = "" if part.begin is None else part.begin.previous
    found = [one for one in parts if previous in one.seen and one.path != part.path]
    whole = [one for one in found if not one.problem and one.chain.head is not None and one.chain.head.hash == previous]
    if whole:
        return whole[0]
    for one in found:
        if not one.aside:
            line = one.seen[previous]
            what = one.problem or f"lines after line {line} were added"
            raise AuditError(f"{one.path}: {what}, and {part.path.name} goes on after its line {line}.", _KEEP)
    return found[0] if found else None


def _require_no_gap(oldest: Part, left: list[Part]) -> None:
    """Raise AuditError where files are left that are older than what was taken for the oldest of the log."""
    if begins_a_log(oldest.begin):
        return
    for part in sorted(left, key=lambda part: part.before, reverse=True):
        if part.before < oldest.before and part.begin is not None:
            if part.problem:
                raise AuditError(f"{part.path}: {part.problem}.", _KEEP)
            upto = 0 if part.chain.head is None else part.chain.head.sequence
            raise AuditError(
                f"{oldest.path}: it begins after record {oldest.before}, and {part.path.name} ends with record {upto}: "
                "what is between is in no file here.",
                "Look for the file that is missing; compare with a copy.",
            )


def _of_aside(part: Part, joined: bool) -> str:
    head = part.chain.head
    what = "no record is whole"
    if head is not None and head.sequence > part.before:
        what = f"records {part.before + 1} to {head.sequence} are whole"
    used = ", and the log goes on after one of them" if joined else ""
    return f"{part.path.name}: {what}{used}{f'; {part.problem}' if part.problem else ''}"
