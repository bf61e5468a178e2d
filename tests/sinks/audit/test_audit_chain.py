"""Whatever is done to a file of whole lines is found, and the line is named."""

import hashlib
import os
import re
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import AuditError
from monitor.sinks.audit import parts, verify
from monitor.sinks.audit.chain import START, Head, is_torn, opening, seal, unseal
from monitor.sinks.audit.records import TornRecord
from tests.harness.audit_lines import about_engine, lines_of

LATER = datetime(2026, 1, 3, tzinfo=UTC)
LINES = lines_of(8)
WHOLE = b"".join(LINES)


def check(content: bytes, head: str | None = None):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        path.write_bytes(content)
        return verify(path, head)


def refused(content: bytes, head: str | None = None) -> str:
    with pytest.raises(AuditError) as error:
        check(content, head)
    return error.value.message.partition(": ")[2]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(parts, "WRITING_SECONDS", 0.0)


def test_a_log_as_it_was_written_is_valid():
    found = check(WHOLE)
    assert (found.lines, found.records, found.torn, found.known_at) == (8, 8, 0, None)
    assert found.head == unseal(LINES[-1].rstrip()).hash
    assert (found.first.second, found.last.second) == (0, 7)


def test_anybody_can_check_a_line_without_plumbob():
    before = "0" * 64
    for raw in LINES:
        line = msgspec.json.decode(raw)
        assert list(line) == ["version", "sequence", "previous", "time", "context", "record", "hash"]
        assert hashlib.sha256(raw.split(b',"hash":"')[0]).hexdigest() == line["hash"]
        assert line["previous"] == before
        before = line["hash"]


def test_every_flipped_bit_of_a_byte_is_found_in_its_line():
    starts = [sum(map(len, LINES[:number])) for number in range(len(LINES))]
    for at in range(len(WHOLE)):
        spoilt = bytearray(WHOLE)
        spoilt[at] ^= 1 << at % 8
        line = sum(start <= at for start in starts)
        assert re.match(rf"line {line} ", refused(bytes(spoilt))), (at, line)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_any_other_byte_is_found(at, change):
    spoilt = bytearray(WHOLE)
    spoilt[at] ^= change
    assert refused(bytes(spoilt)).startswith("line ")


@given(st.lists(st.integers(0, len(LINES) - 1), max_size=12))
@settings(max_examples=300, deadline=None)
def test_no_other_choice_or_order_of_the_lines_is_valid_but_a_beginning(order):
    content = b"".join(LINES[number] for number in order)
    if order and order == list(range(len(order))):
        assert check(content).lines == len(order)
        # And that is what a known head is for.
        if len(order) < len(LINES):
            head = unseal(LINES[-1].rstrip()).hash
            assert f"no line up to its last, line {len(order)}," in refused(content, head)
    else:
        refused(content)


@given(st.integers(0, len(WHOLE)), st.binary(min_size=1, max_size=300))
@settings(max_examples=200, deadline=None)
def test_nothing_can_be_inserted(at, inserted):
    content = WHOLE[:at] + inserted + WHOLE[at:]
    if content != WHOLE:
        refused(content)


def forged(before: Head) -> tuple[bytes, Head]:
    return seal(about_engine("connected", "forged"), LATER, before)


def head_of(raw: bytes) -> Head:
    line = unseal(raw.rstrip())
    return Head(line.sequence, line.hash)


SAID = {
    "a missing line": ([*LINES[:3], *LINES[5:]], "line 4 has record 6 where 4 is due: 2 before it are missing"),
    "a missing beginning": (LINES[1:], "line 1 has record 2 where 1 is due: 1 before it are missing"),
    "a line twice": ([*LINES[:3], LINES[2], *LINES[3:]], "line 4 has record 3 where 4 is due: it, or the other"),
    "two lines swapped": (
        [*LINES[:2], LINES[3], LINES[2], *LINES[4:]],
        "line 3 is out of order: the line that belongs there is line 4",
    ),
    "a line that was moved": (
        [*LINES[:2], *LINES[3:7], LINES[2], *LINES[7:]],
        "line 3 is out of order: the line that belongs there is line 7",
    ),
    "a forged line inserted": (
        [*LINES[:3], forged(head_of(LINES[2]))[0], *LINES[3:]],
        "line 5 has record 4 where 5 is due: it, or the other of that number, was inserted",
    ),
    "a line forged in its place": (
        [*LINES[:3], forged(head_of(LINES[2]))[0], *LINES[4:]],
        "line 5 has record 5, but does not refer to the one before it: one of them was replaced",
    ),
    "a line altered": (
        [*LINES[:3], LINES[3].replace(b"silent", b"Silent"), *LINES[4:]],
        "line 4 is not what was written: its SHA-256 does not match",
    ),
    "the last line altered": ([*LINES[:7], LINES[7].replace(b"lost", b"Lost")], "line 8 is not what was written"),
    "the last line altered, without its end": (
        [*LINES[:7], LINES[7].replace(b"lost", b"Lost")[:-1]],
        "line 8 is not what was written",
    ),
    "more than the last line": ([*LINES, b" "], "line 9 is not what was written"),
    "the last line's end taken off": ([*LINES[:7], LINES[7][:-1]], "line 8 is cut short, as a crash leaves it"),
    "half a last line": ([*LINES[:7], LINES[7][:200]], "line 8 is cut short, as a crash leaves it"),
    "half a line in the middle": ([*LINES[:3], LINES[3][:200], b"\n", *LINES[4:]], "line 4 is not what was written"),
    "half a line of another log": ([*LINES[:7], b'{"version":3,"sequence":9'], "line 8 is not what was written"),
    "nothing": ([], "is empty: all of it was cut off, or nothing was written yet"),
    "another file": ([b"hello\n"], "line 1 is not what was written"),
}


@pytest.mark.parametrize("what", SAID)
def test_what_is_said_of(what, written):
    lines, said = SAID[what]
    with pytest.raises(AuditError) as error:
        verify(written(lines))
    assert said in error.value.message and error.value.fix


def test_what_a_crash_leaves_of_a_line_is_told_apart_wherever_it_cuts():
    before, line = head_of(LINES[6]), LINES[7].rstrip()
    assert not is_torn(line, before) and not is_torn(line + b"x", before), "nothing is missing"
    for cut in range(len(line)):
        assert is_torn(line[:cut], before)
        assert is_torn(line[:cut] + b"\0" * 64, before), "room that was made and not filled"
        assert not is_torn(line[:cut] + b"\1", before) or cut >= len(opening(before))
        if cut > len(opening(START)):
            assert not is_torn(line[:cut], START), "of another place in the log"


def test_a_later_release_may_say_more_and_a_later_format_is_named(written):
    class Later(msgspec.Struct, tag_field="type", tag="later"):
        also: int = 1

    line, head = seal(Later(), LATER, START)
    assert verify(written([line])).head == head.hash
    content = line.split(b',"hash"')[0].replace(b'"version":3', b'"version":4')
    sealed = content + f',"hash":"{hashlib.sha256(content).hexdigest()}"}}\n'.encode()
    with pytest.raises(AuditError, match="line 1 has version 4; this plumbob reads version 3"):
        verify(written([sealed]))
    content = b'{"well":"sealed"'
    sealed = content + f',"hash":"{hashlib.sha256(content).hexdigest()}"}}\n'.encode()
    with pytest.raises(AuditError, match="line 1 is not a line of an audit log"):
        verify(written([sealed]))


def test_a_known_head_is_found_wherever_it_is(written):
    path = written(LINES)
    for number, raw in enumerate(LINES, 1):
        assert verify(path, head_of(raw).hash).known_at == number
    with pytest.raises(AuditError, match=r"no line up to its last, line 8, has the known head f{64}"):
        verify(path, "f" * 64)
    for nonsense in ("", "abc", "F" * 64, "f" * 65):
        with pytest.raises(AuditError, match="is not the hash of a record"):
            verify(path, nonsense)


def torn_and_closed(rest: bytes, size: int | None = None) -> list[bytes]:
    record = TornRecord(len(rest) if size is None else size, hashlib.sha256(rest).hexdigest())
    closing, head = seal(record, LATER, head_of(LINES[4]))
    return [*LINES[:5], rest, b"\n", closing, forged(head)[0]]


def test_a_torn_line_is_valid_with_the_record_that_says_so(written):
    lines = torn_and_closed(LINES[5][:99])
    found = verify(written(lines))
    assert (found.lines, found.records, found.torn) == (8, 7, 1)
    whole = b"".join(lines)
    for at in range(0, len(whole), 3):
        spoilt = bytearray(whole)
        spoilt[at] ^= 4
        refused(bytes(spoilt))


@pytest.mark.parametrize("lines", [
    torn_and_closed(LINES[5][:99], size=98),
    [*LINES[:5], LINES[5][:98], b"\n", *torn_and_closed(LINES[5][:99])[-2:]],
    [*LINES[:5], LINES[5][:99], b"\n", LINES[5][:99], b"\n", *torn_and_closed(LINES[5][:99])[-2:]],
    [*LINES[:4], *torn_and_closed(LINES[5][:99])[5:]],
])  # fmt: skip
def test_a_record_of_a_torn_line_closes_that_line_only(written, lines):
    with pytest.raises(AuditError, match=r"line [56] is not what was written"):
        verify(written(lines))


def test_a_line_that_is_just_being_written_is_waited_for(written, monkeypatch):
    monkeypatch.setattr(parts, "WRITING_SECONDS", 0.5)
    path = written([*LINES[:7], LINES[7][:200]])

    def finish():
        with path.open("ab") as file:
            file.write(LINES[7][200:])

    timer = threading.Timer(0.05, finish)
    timer.start()
    assert verify(path).lines == 8
    timer.join()


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "gone", tmp_path / "pipe"):
        with pytest.raises(AuditError, match="is not a file"):
            verify(path)
    with pytest.raises(AuditError, match="is to hold one audit log; it holds none"):
        verify(tmp_path)


def test_a_line_without_end_is_not_read_into_memory_whole(written, monkeypatch):
    monkeypatch.setattr("monitor.sinks.audit.file.LINE_BYTES", 2000)
    with pytest.raises(AuditError, match="line 9 is not what was written"):
        verify(written([*LINES, b"x" * 100_000]))
