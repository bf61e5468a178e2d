"""A log over many files: closed by the monitor, moved or cut by others, and killed at every point of it."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from monitor.errors import AuditError
from monitor.events import EngineChanged
from monitor.sinks.audit import AuditLog, read_records, verify
from monitor.sinks.audit import parts as parts_module
from monitor.sinks.audit import writer as writer_module
from monitor.sinks.audit.chain import Head
from monitor.sinks.audit.segments import closed_segments
from monitor.store import LogHead, MemoryStore
from tests.harness.audit_lines import about_engine, kinds

ROOM = 1500
"""Bytes of a file that is closed after it: three records, and what is said at its beginning."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(parts_module, "WRITING_SECONDS", 0.0)


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def add(log, *numbers):
    """Records, one after the other, so that each is looked at."""
    for number in numbers:
        position = log.accepted
        log.append(about_engine("lost", f"silent {number}"))
        until(lambda position=position: log.settled > position)


def told(path) -> list[str]:
    """What the records of a whole log say, in order."""
    events = [line.event() for line in read_records(path, verify(path)) if line.counted]
    return [event.detail for event in events if isinstance(event, EngineChanged)]


def small(path, **options):
    return closing(AuditLog(path, sync_seconds=0.02, segment_bytes=ROOM, **options))


def test_a_log_goes_on_over_files_that_join_and_a_restart_changes_nothing(path):
    for start in (0, 15):
        with small(path) as log:
            add(log, *range(start, start + 15))
            assert {begins.reason for begins in log.news()} == {"rotated"}
    closed = closed_segments(path)
    assert len(closed) > 5 and closed[0].name == "audit.000000000001.jsonl"
    found = verify(path)
    assert found.files == (*closed, path) and (found.records, found.before, found.torn) == (30, 0, 0)
    assert told(path) == [f"silent {number}" for number in range(30)]
    assert verify(path.parent) == found
    for before, after in zip(closed, [*closed[1:], path], strict=True):
        last, first = list(read_records(before))[-1], next(read_records(after))
        assert (first.type_name(), first.sequence, first.previous) == ("segment_started", last.sequence, last.hash)
        assert before.name.encode() in bytes(first.record)
        assert before.name == f"audit.{next(line for line in read_records(before) if line.counted).sequence:012d}.jsonl"
    # A head from any time is found, and a closed file is a whole log up to its end.
    for line in read_records(path, found):
        assert verify(path, line.hash).known_at is not None
    assert verify(closed[2]).files == tuple(closed[:3])


def test_a_file_is_closed_by_its_age(path, monkeypatch):
    with closing(AuditLog(path, sync_seconds=0.02, segment_seconds=3600.0)) as log:
        add(log, 0)
        log.append(about_engine("lost", "old"), datetime.now(UTC) - timedelta(hours=2))
        add(log, 1)
        assert not closed_segments(path)
    first = path.read_bytes().splitlines()[0]
    assert first
    log = AuditLog(path, sync_seconds=0.02, segment_seconds=0.3)
    time.sleep(0.4)
    add(log, 2)
    log.close()
    assert len(closed_segments(path)) == 1 and verify(path).records == 4


def test_what_is_missing_altered_or_added_between_files_is_found(path):
    with small(path) as log:
        add(log, *range(15))
    closed = closed_segments(path)
    content = {one: one.read_bytes() for one in (*closed, path)}

    def refused(*said):
        with pytest.raises(AuditError) as error:
            verify(path)
        assert all(part in error.value.message for part in said), error.value.message
        for one, whole in content.items():
            one.write_bytes(whole)

    closed[1].unlink()
    refused(path.parent.name, "what is between is in no file here")
    closed[1].write_bytes(content[closed[1]].replace(b"silent", b"Silent", 1))
    refused(closed[1].name, "is not what was written: its SHA-256 does not match")
    closed[1].write_bytes(b"".join(content[closed[1]].splitlines(keepends=True)[:-1]))
    refused("what is between is in no file here")
    closed[1].write_bytes(content[closed[1]] + b"more\n")
    refused(closed[1].name, "is not what was written")
    path.write_bytes(path.read_bytes().replace(b"rotated", b"missing", 1))
    refused("line 1 is not what was written")
    # The oldest may go: how long they are kept is the operator's to say.
    closed[0].unlink()
    found = verify(path)
    assert (found.before, found.records) == (4, 11)
    assert found.files == (*closed[1:], path)


@pytest.mark.parametrize("how", ["moved", "moved, and made anew", "removed", "copied and cut", "cut", "written to"])
def test_what_others_do_to_the_file_is_noticed_within_a_second_said_and_goes_on(path, how, caplog):
    rotated = path.with_name("audit.jsonl.1")
    with closing(AuditLog(path, sync_seconds=0.02)) as log:
        add(log, 0, 1)
        match how:
            case "moved" | "moved, and made anew":
                path.rename(rotated)
                if how != "moved":
                    path.touch(mode=0o640)
            case "removed":
                path.unlink()
            case "copied and cut":
                rotated.write_bytes(path.read_bytes())
                os.truncate(path, 0)
            case "cut":
                os.truncate(path, 100)
            case _:
                with path.open("ab") as file:
                    file.write(b"x")
        # Without a record: it is alarmed of while nothing is written.
        begins = []
        until(lambda: begins or begins.extend(log.news()) or begins)
        reason = {"copied and cut": "truncated", "cut": "truncated", "written to": "set_aside"}.get(how, "moved")
        assert [begin.reason for begin in begins] == [reason]
        add(log, 2, 3)
        assert log.lost == 0 and log.settled == 4 == log.accepted
        assert log.faults["disturbed"] == 1
    assert "It goes on in a new file." in caplog.text and "by another process" in caplog.text
    first = next(read_records(path))
    assert (first.type_name(), first.sequence) == ("segment_started", 2)
    if how in ("removed", "cut"):
        found = verify(path)
        assert (found.before, found.records) == (2, 2)
        assert len(found.aside) == (how == "cut")
    else:
        assert told(path) == [f"silent {number}" for number in range(4)]
        assert verify(path).before == 0
    # And the next monitor goes on there.
    with closing(AuditLog(path, sync_seconds=0.02)) as log:
        add(log, 4)
    assert told(path)[-3:] == ["silent 2", "silent 3", "silent 4"]


def test_hangup_has_it_look_at_once(path):
    with closing(AuditLog(path, sync_seconds=5.0)) as log:
        add(log, 0)
        time.sleep(0.1)
        path.rename(path.with_name("audit.jsonl.1"))
        begin = time.monotonic()
        log.look()
        until(lambda: log.faults["disturbed"] == 1)
        assert time.monotonic() - begin < 4


def test_a_line_that_was_half_written_as_the_file_was_moved_is_whole_in_the_next(path, monkeypatch):
    class Full:
        room = None

        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, descriptor, content):
            if self.room is not None:
                content, self.room = content[: self.room], 0
                if not content:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return os.write(descriptor, content)

    disk = Full()
    monkeypatch.setattr(writer_module, "os", disk)
    with closing(AuditLog(path, sync_seconds=0.02)) as log:
        add(log, 0)
        disk.room = 50
        log.append(about_engine("lost", "silent 1"))
        until(lambda: log.faults["write"] >= 1)
        path.rename(path.with_name("audit.jsonl.1"))
        disk.room = None
        until(lambda: log.settled == 2)
    assert kinds(path) == ["segment_started", "engine_changed"]
    line = list(read_records(path))[-1]
    assert line.sequence == 2 and line.event().detail == "silent 1"


def remembering(store, path, sequence, digest):
    store.note(LogHead(f"audit:{path}", sequence, digest))
    return store


@pytest.mark.parametrize(
    "how", ["cut between lines", "cut in a line", "emptied", "removed", "replaced", "unreadable", "beheaded"]
)
def test_what_happened_while_no_monitor_ran_is_told_against_what_the_store_remembers(path, how, tmp_path):
    store = MemoryStore(tmp_path / "journal")
    with closing(AuditLog(path, store=store, sync_seconds=0.02)) as log:
        add(log, *range(6))
        until(lambda: log._writer.synced == log.head)
        log.remember()
    store.close()
    lines = path.read_bytes().splitlines(keepends=True)
    match how:
        case "cut between lines":
            path.write_bytes(b"".join(lines[:4]))
        case "cut in a line":
            path.write_bytes(b"".join(lines[:4]) + lines[4][:60])
        case "emptied":
            path.write_bytes(b"")
        case "removed":
            path.unlink()
        case "replaced":
            path.unlink()
            with closing(AuditLog(path)) as other:
                for number in range(9):
                    other.append(about_engine("lost", f"forged {number}"))
        case "beheaded":
            path.write_bytes(b"".join(lines[2:]))
        case _:
            path.write_bytes(os.urandom(500))
    store = MemoryStore(tmp_path / "journal")
    before = path.read_bytes() if path.exists() else b""
    with closing(AuditLog(path, store=store, sync_seconds=0.02)) as log:
        assert log.accepted == log.settled == 6, "its numbers go on, and no two records have one"
        (begins,) = log.news()
        assert begins.reason == ("missing" if how in ("emptied", "removed") else "set_aside")
        add(log, 6)
    store.close()
    first, second = read_records(path)
    assert (first.type_name(), first.sequence, second.sequence) == ("segment_started", 6, 7)
    asides = list(path.parent.glob("*.set-aside-*"))
    assert [one.read_bytes() for one in asides] == ([] if begins.reason == "missing" else [before])
    found = verify(path)
    # What was set aside whole at its end is what the new file goes on after.
    gone = 2 if how == "beheaded" else 6
    assert (found.before, found.records, len(found.aside)) == (gone, 7 - gone, len(asides))
    # Once, not at every start.
    with closing(AuditLog(path, store=MemoryStore(tmp_path / "journal"))) as log:
        assert not log.news() and log.accepted == 7


def test_killed_at_every_byte_of_the_turn_from_one_file_to_the_next_it_goes_on(path):
    with small(path) as log:
        add(log, *range(5))
    (closed,) = closed_segments(path)
    whole, old = path.read_bytes(), closed.read_bytes()
    header = len(whole.splitlines(keepends=True)[0])
    # Renamed, and nothing made yet; then made, and filled up to each byte of two lines.
    for cut in (None, *range(header + 120)):
        for one in path.parent.iterdir():
            one.unlink()
        closed.write_bytes(old)
        if cut is not None:
            path.write_bytes(whole[:cut])
        with closing(AuditLog(path, sync_seconds=0.02)) as log:
            before = log.settled
            log.append(about_engine("lost", "after"))
        found = verify(path)
        assert found.files == (closed, path) and not found.aside and found.before == 0, cut
        assert found.torn == (cut is not None and cut not in (0, header, header - 1)), cut
        assert before in (3, 4) and told(path)[-1] == "after"


KILLED = """
import sys, time
from pathlib import Path
from monitor.sinks.audit import AuditLog
from monitor.sinks.audit.records import LossRecord
log = AuditLog(Path(sys.argv[1]), segment_bytes=700, sync_seconds=0.001)
print("up", flush=True)
for number in range(100_000):
    log.append(LossRecord(number))
    if number % 3 == 0:
        print(log.settled, flush=True)
        time.sleep(0.0005)
"""


def test_a_process_that_is_killed_again_and_again_as_it_turns_loses_nothing_that_was_settled(path):
    settled = 0
    for turn in range(12):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "up\n"
            deadline = time.monotonic() + 0.05 + turn * 0.017
            while time.monotonic() < deadline:
                settled = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split("\n")
        settled = max([settled, *(int(line) for line in rest[:-1] if line)])
        with closing(AuditLog(path)) as log:
            assert log.head.sequence >= settled and not [one for one in log.news() if one.reason != "rotated"]
            log.append(about_engine("lost", f"after {turn}"))
        found = verify(path)
        assert found.before == 0 and not found.aside and found.records >= settled
    assert len(closed_segments(path)) > 12


def test_a_directory_that_takes_no_new_file_stops_nothing(path, monkeypatch, caplog):
    class Closed:
        refuses = True

        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, name, flags, mode=0o777):
            if self.refuses and flags & os.O_EXCL:
                raise OSError(errno.EACCES, "Permission denied")
            return os.open(name, flags, mode)

    disk = Closed()
    monkeypatch.setattr(writer_module, "os", disk)
    monkeypatch.setattr(writer_module, "_RETRY_SECONDS", 0.05)
    with small(path) as log:
        add(log, *range(8))
        assert not closed_segments(path) and log.faults["segment"] >= 1
        assert caplog.text.count("cannot be closed: Permission denied") == 1
        disk.refuses = False
        time.sleep(0.1)
        add(log, *range(8, 12))
        assert closed_segments(path)
    assert told(path) == [f"silent {number}" for number in range(12)]


def test_positions_are_the_numbers_of_records_whatever_files_end(path):
    """What an engine is confirmed for waits for a position: no line that begins a file may take one."""
    with small(path) as log:
        add(log, *range(10))
        assert log.accepted == log.settled == 10
        path.rename(path.with_name("audit.jsonl.1"))
        add(log, *range(10, 20))
        assert log.accepted == log.settled == 20 == verify(path).records
        assert Head(20, log.head.hash) == log.head
