"""The files of a log, each read from its first line to its last, and which of them goes on after which.

A file joins the one that has the record that its first line refers to, wherever its name comes from: closed by the
monitor, moved by what rotates logs, copied before it was cut, or set aside.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from monitor.sinks.audit.chain import START, Break, Chain, Head, Line, unseal
from monitor.sinks.audit.file import first_line, read_lines
from monitor.sinks.audit.segments import is_aside

WRITING_SECONDS: Final = 0.1
"""A last line without its end may be one that a monitor is just writing."""


@dataclass(slots=True)
class Part:
    """One file."""

    path: Path
    begin: Line | None
    """Its first line; ``None``: that is no record."""
    chain: Chain
    """Of it, up to what is wrong with it."""
    problem: str = ""
    """What is wrong with it, as a sentence without its path; empty: nothing."""
    cut: bool = False
    """Its last line is cut short, and nothing else is wrong."""
    seen: dict[str, int] = field(default_factory=dict[str, int])
    """Of the hashes that were looked for, the line that each is at."""

    @property
    def aside(self) -> bool:
        """True where it was set aside."""
        return is_aside(self.path)

    @property
    def before(self) -> int:
        """Number of the record before its first."""
        return 0 if self.begin is None else self.begin.sequence - self.begin.counted


def begin_of(path: Path) -> Line | None:
    """The first record of a file; ``None`` where it does not begin with one."""
    with path.open("rb") as file:
        return first_line(file)


def read_part(path: Path, looked_for: Iterable[str], after: Head | None) -> Part:
    """Read a file.

    Args:
        path: Of it.
        looked_for: Hashes of lines whose places are wanted.
        after: What its first line has to refer to; ``None``: it is taken at its word.

    Raises:
        OSError: It cannot be read.
    """
    wanted = frozenset(looked_for)
    part = Part(path, begin_of(path), Chain(after))
    with path.open("rb") as file:
        try:
            for raw in _patient(file):
                part.chain.add(raw)
                if part.chain.head is not None and part.chain.head.hash in wanted:
                    part.seen.setdefault(part.chain.head.hash, part.chain.lines)
            rest = part.chain.rest()
        except Break as error:
            moved = _find(file, error.due, part.chain.lines)
            what = error.problem if moved is None else f"is out of order: the line that belongs there is line {moved}"
            part.problem = f"line {error.line} {what}"
            return part
    if rest or not part.chain.ended:
        part.problem, part.cut = f"line {part.chain.lines} is cut short, as a crash leaves it", True
    return part


def begins_a_log(line: Line | None) -> bool:
    """True where a first line refers to nothing before it, or is none."""
    return line is None or line.previous == START.hash


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
