"""A record as a line that is sealed to the one before it, and lines read back.

::

    {"version":3,"sequence":7,"previous":"<64 hex>","time":"2026-01-02T03:04:05Z",
     "context":{…},"record":{"type":"intervention",…},"hash":"<64 hex>"}

(on one line). ``record`` is an event as it is, with its ``context``, or says something of the log itself, with none.

1. ``hash`` is the SHA-256 of the line's bytes before ``,"hash"``; ``previous`` is the ``hash`` of the record before, 64
   zeros in the first. So every byte of every line is covered, the one spelling that was written is the only valid one,
   and to change a record is to write every later line anew.
2. ``sequence`` counts from 1. It says what is wrong where two lines do not join: missing, moved or written twice. A
   ``segment_started`` line, with which each file but the first begins, is sealed to the line before it as all are, and
   has its number once more: it is not counted, so that a record's number does not depend on where files end.
3. A crash may leave the beginning of a last line. Whoever continues the file ends that line and has a ``line_torn``
   record follow, with its size and SHA-256: so it is covered as well, and nothing else may pass for a torn line.

What a chain cannot show by itself is that its end was cut off, or that the whole of it was made anew: for that, one has
to know the hash of a record from elsewhere.
"""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, Final, cast

import msgspec

from monitor.events import Event
from monitor.sinks.audit.records import SEGMENT, Context, EventRecord, OwnRecord, Record, SegmentRecord, TornRecord

VERSION: Final = 3

_BEGINS: Final = f'{{"type":"{SEGMENT}"'.encode()
"""Begins the ``record`` of a line that is not counted."""
_SEAL: Final = b',"hash":"'
_SEAL_BYTES: Final = len(_SEAL) + 64 + 2
"""No record has a field of this name: it is nowhere else in a line, since quotes within strings are escaped."""


@dataclass(frozen=True, slots=True)
class Head:
    """A record, as the next one refers to it."""

    sequence: int
    hash: str


START: Final = Head(0, "0" * 64)
"""The first record refers to this."""


class _Content(msgspec.Struct, frozen=True):
    version: int
    sequence: int
    previous: str
    time: datetime
    context: Context | None
    record: Event | OwnRecord


class Line(msgspec.Struct, frozen=True):
    """Content of a line."""

    version: int
    sequence: Annotated[int, msgspec.Meta(ge=0)]
    previous: str
    time: datetime
    context: Context | None
    record: msgspec.Raw
    """Not decoded, so that events of a later release still verify."""
    hash: str

    def type_name(self) -> str:
        """The ``type`` of its record."""
        return _type.decode(self.record).type

    @property
    def counted(self) -> bool:
        """False where it begins a file, and has the number of the record before it."""
        return not bytes(self.record).startswith(_BEGINS)

    def event(self) -> Event | None:
        """The event that it records; ``None`` where it says something of the log, or a later release wrote it."""
        try:
            return _event.decode(self.record)
        except msgspec.MsgspecError:
            return None


class _Type(msgspec.Struct):
    type: str


_encoder = msgspec.json.Encoder()
_line = msgspec.json.Decoder(Line)
_torn = msgspec.json.Decoder(TornRecord)
_event: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(cast("Any", Event))
_type = msgspec.json.Decoder(_Type)


class Break(Exception):
    """A place where lines do not join.

    Args:
        line: Its number in what was read, from 1.
        problem: What is wrong, as the rest of a sentence that begins with the line.
        due: The hash that the missing record would refer to; ``None`` where none is missing.
    """

    def __init__(self, line: int, problem: str, due: str | None = None) -> None:
        super().__init__(f"line {line} {problem}")
        self.line, self.problem, self.due = line, problem, due


def seal(record: Record, time: datetime, head: Head) -> tuple[bytes, Head]:
    """A record as the line after ``head``, its end included.

    Raises:
        UnicodeEncodeError: A string of it is not Unicode.
    """
    context, said = (record.context, record.event) if isinstance(record, EventRecord) else (None, record)
    number = head.sequence if isinstance(record, SegmentRecord) else head.sequence + 1
    content = _encoder.encode(_Content(VERSION, number, head.hash, time, context, said))[:-1]
    digest = sha256(content).hexdigest()
    return content + _SEAL + digest.encode() + b'"}\n', Head(number, digest)


def unseal(raw: bytes) -> Line:
    """Read a line, without its end.

    Raises:
        ValueError: It is not what was written, as the rest of a sentence that begins with the line.
    """
    digest = sha256(raw[:-_SEAL_BYTES]).hexdigest().encode()
    if raw[-_SEAL_BYTES:] != _SEAL + digest + b'"}':
        raise ValueError("is not what was written: its SHA-256 does not match")
    try:
        line = _line.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("is not a line of an audit log") from error
    if line.version != VERSION:
        raise ValueError(f"has version {line.version}; this plumbob reads version {VERSION}")
    return line


def opening(head: Head, *, counted: bool = True) -> bytes:
    """Beginning of the line after ``head``, whatever it says."""
    number = head.sequence + counted
    return f'{{"version":{VERSION},"sequence":{number},"previous":"{head.hash}","time":"'.encode()


def is_torn(rest: bytes, head: Head) -> bool:
    """True where a crash could have left ``rest``, which has no end of line, of the line after ``head``."""
    # A file system may have made room for what it had not filled yet.
    left = rest.rstrip(b"\0")
    at = left.find(_SEAL)
    begins = (opening(head, counted=counted) for counted in (True, False))
    return any(left[: len(begin)] == begin[: len(left)] for begin in begins) and (
        at < 0 or len(left) < at + _SEAL_BYTES
    )


class Chain:
    """Lines, read in order; torn ones are passed over where a record says that they are.

    Args:
        head: What the first line has to refer to; ``None``: it is taken at its word.
    """

    def __init__(self, head: Head | None = START) -> None:
        self.head = head
        """The last record."""
        self.lines = 0
        self.torn = 0
        """Lines that a crash tore, with the record that says so."""
        self.first: datetime | None = None
        """When the first record was made."""
        self.last: datetime | None = None
        self.ended = True
        """False where the last line lacks its end."""
        self.line: Line | None = None
        """The last line that was whole."""
        self._unread: tuple[bytes, Break] | None = None

    def add(self, raw: bytes) -> None:
        """Read a line, with its end where it has one.

        Raises:
            Break: This line, or the one before it, is not what was written there.
        """
        self.lines += 1
        self.ended = raw.endswith(b"\n")
        try:
            line = unseal(raw.removesuffix(b"\n"))
        except ValueError as error:
            if self._unread is not None:
                raise self._unread[1] from error
            # The next line says whether a crash tore it.
            self._unread = raw, Break(self.lines, str(error))
            return
        gap = self._gap(line)
        if self._unread is not None:
            before, problem = self._unread
            if gap is not None or not _closes(line, before.removesuffix(b"\n")):
                raise problem
            self._unread = None
            self.torn += 1
        elif gap is not None:
            raise gap
        self.line, self.head = line, Head(line.sequence, line.hash)
        self.first = self.first or line.time
        self.last = line.time

    def rest(self) -> bytes:
        """Rest that a crash left of a last line, to be asked for after all lines; empty where they are whole.

        Raises:
            Break: The last line is not what was written.
        """
        if self._unread is None:
            return b""
        raw, problem = self._unread
        if self.ended or self.head is None or not is_torn(raw, self.head):
            raise problem
        return raw

    def _gap(self, line: Line) -> Break | None:
        """Fault between the last record and this line."""
        if self.head is None:
            return None
        due, found = self.head.sequence + line.counted, line.sequence
        if line.previous == self.head.hash and found == due:
            return None
        if found > due:
            problem = f"has record {found} where {due} is due: {found - due} before it are missing"
            return Break(self.lines, problem, self.head.hash)
        if found < due:
            problem = f"has record {found} where {due} is due: it, or the other of that number, was inserted"
        else:
            problem = f"has record {found}, but does not refer to the one before it: one of them was replaced"
        return Break(self.lines, problem)


def _closes(line: Line, torn: bytes) -> bool:
    try:
        record = _torn.decode(line.record)
    except msgspec.MsgspecError:
        return False
    return (record.size, record.digest) == (len(torn), sha256(torn).hexdigest())
