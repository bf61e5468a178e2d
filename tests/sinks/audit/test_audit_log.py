"""The writer: it goes on where the last one ended, whatever ended that, and nothing stops the monitor."""

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import AuditError
from monitor.sinks.audit import AuditLog, read_records, require_log, verify
from monitor.sinks.audit import file as log_file
from monitor.sinks.audit import log as log_module
from monitor.sinks.audit import writer as writer_module
from monitor.sinks.audit.records import EventRecord, StopRecord
from tests.harness.audit_lines import about_engine, kinds, lines_of


def record(number: int = 0) -> EventRecord:
    return about_engine("lost", f"silent {number}")


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class Disk:
    """``os`` for the writer, with a disk that a test can fill up or let hang."""

    def __init__(self):
        self.room: int | None = None
        """Bytes that still fit; ``None``: any."""
        self.refuses_sync = False
        self.syncs = 0
        self.hangs = threading.Event()
        self.hangs.set()

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, descriptor, content):
        self.hangs.wait()
        if self.room is not None:
            content = content[: self.room]
            if not content:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= len(content)
        return os.write(descriptor, content)

    def fdatasync(self, descriptor):
        self.syncs += 1
        if self.refuses_sync:
            raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(writer_module, "os", disk)
    yield disk
    disk.hangs.set()


def test_what_is_appended_is_in_the_file_at_once_and_in_order(path):
    with closing(AuditLog(path)) as log:
        for number in range(100):
            log.append(record(number))
        until(lambda: log.written == 100)
        assert [f"silent {n}".encode() in raw for n, raw in enumerate(path.read_bytes().splitlines())] == [True] * 100
        assert verify(path).records == 100
    assert verify(path).head == log.head.hash
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_next_one_goes_on(path):
    for number in range(3):
        with closing(AuditLog(path)) as log:
            assert log.head.sequence == number
            log.append(record(number))
    assert verify(path).records == 3


def test_a_log_that_is_only_opened_is_not_changed(path, written):
    require_log(path)
    assert not path.exists()
    for lines in (lines_of(3), [*lines_of(2), lines_of(3)[2][:50]]):
        before = written(lines).read_bytes()
        require_log(path)
        assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 50, 150, 300])
def test_a_torn_line_is_closed_by_a_record_that_says_so(written, cut, caplog):
    *whole, last = lines_of(4)
    path = written([*whole, last[:cut]])
    with closing(AuditLog(path)) as log:
        log.append(record())
    assert kinds(path) == ["engine_changed"] * 3 + ["torn", "line_torn", "engine_changed"]
    found = verify(path)
    assert (found.torn, found.records) == (1, 5)
    assert "was torn by a crash" in caplog.text
    # And again, from there on.
    with path.open("ab") as file:
        file.write(b'{"version":3')
    with closing(AuditLog(path)) as log:
        log.append(record())
    assert verify(path).torn == 2


def test_a_last_line_that_lacks_nothing_but_its_end_is_kept(written):
    lines = lines_of(4)
    path = written([*lines[:3], lines[3][:-1]])
    with closing(AuditLog(path)) as log:
        log.append(record())
    assert kinds(path) == ["engine_changed"] * 5 and verify(path).torn == 0


def test_a_record_of_a_torn_line_may_be_torn_as_well(written):
    *whole, last = lines_of(4)
    path = written([*whole, last[:200]])
    with closing(AuditLog(path)):
        pass
    closed = path.read_bytes()
    for cut in range(len(closed) - 330, len(closed) - 1, 7):
        path.write_bytes(closed[:cut])
        with closing(AuditLog(path)) as log:
            log.append(record())
        found = verify(path)
        if closed[:cut].count(b"\n") == 4:
            # Both lines are torn, and nothing says so of the first: it could have been altered.
            (aside,) = found.aside
            assert found.records == 1 and "records 1 to 3 are whole; line 4 is not what was written" in aside
            next(path.parent.glob("*.set-aside-*")).unlink()
        else:
            assert found.records == 5


LINES = lines_of(6)
BROKEN = {
    "altered": [*LINES[:5], LINES[5].replace(b"lost", b"Lost")],
    "altered, without its end": [*LINES[:5], LINES[5].replace(b"lost", b"Lost")[:-1]],
    "missing": [*LINES[:3], *LINES[4:]],
    "moved": [*LINES[:4], LINES[5], LINES[4]],
    "of something else": [b"hello\n"],
    "with something else at its end": [*LINES, b"hello"],
}


@pytest.mark.parametrize("end_bytes", [10_000_000, 1500])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_chain_is_set_aside_as_it_is_and_a_new_log_begins_and_says_so(
    written, fault, end_bytes, monkeypatch, caplog
):
    monkeypatch.setattr(log_file, "END_BYTES", end_bytes)
    path = written(BROKEN[fault])
    before = path.read_bytes()
    with closing(AuditLog(path)) as log:
        assert [begins.reason for begins in log.news()] == ["set_aside"]
        log.append(record())
    (aside,) = path.parent.glob("audit.set-aside-*.jsonl")
    assert aside.read_bytes() == before
    assert kinds(path) == ["segment_started", "engine_changed"]
    begins = next(read_records(path)).record
    assert aside.name.encode() in bytes(begins) and b"audit.jsonl is not continued: line" in bytes(begins)
    assert "begins anew: audit.jsonl is not continued: line" in caplog.text
    found = verify(path)
    assert found.records == 1 and len(found.aside) == 1 and found.aside[0].startswith(aside.name)
    # And that is the log from here on.
    with closing(AuditLog(path)) as log:
        log.append(record())
    assert verify(path).records == 2


def test_the_beginning_of_a_long_file_is_not_read(written, monkeypatch):
    monkeypatch.setattr(log_file, "END_BYTES", 1000)
    path = written([LINES[0].replace(b"lost", b"Lost"), *LINES[1:]])
    with closing(AuditLog(path)) as log:
        assert log.head.sequence == 6
        log.append(record())
    with pytest.raises(AuditError, match="line 1 is not what was written"):
        verify(path)


def test_two_monitors_on_one_file(path):
    with closing(AuditLog(path)):
        for use in (AuditLog, require_log):
            with pytest.raises(AuditError, match=r"Another monitor writes .* give each its own with --audit"):
                use(path)
    AuditLog(path).close()


def test_a_killed_monitor_lets_go_and_its_records_stay(path):
    script = f"""
import signal, sys, time
from pathlib import Path
from monitor.sinks.audit import AuditLog
from monitor.sinks.audit.records import StopRecord
log = AuditLog(Path({str(path)!r}))
for _ in range(50):
    log.append(StopRecord())
while log.written < 50:
    time.sleep(0.001)
print("written", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "written\n"
        with pytest.raises(AuditError, match="Another monitor"):
            AuditLog(path)
        child.send_signal(signal.SIGKILL)
    with closing(AuditLog(path)) as log:
        log.append(record())
    assert verify(path).records == 51


@pytest.mark.parametrize("make", ["directory", "pipe", "below a file", "null byte"])
def test_what_is_no_place_for_a_log(tmp_path, make):
    path = tmp_path / "audit.jsonl"
    if make == "directory":
        path.mkdir()
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "below a file":
        path.write_text("")
        path = path / "audit.jsonl"
    else:
        path = tmp_path / "a\0b"
    with pytest.raises(AuditError, match="--audit"):
        AuditLog(path)


def test_a_full_disk_stops_nothing_and_loses_nothing_that_fits_the_queue(path, disk, caplog):
    with closing(AuditLog(path, sync_seconds=0.02)) as log:
        log.append(record(0))
        until(lambda: log.written == 1)
        disk.room = 100
        for number in range(1, 20):
            log.append(record(number))
        until(lambda: log.faults["write"] >= 3)
        assert log.written == 1 and path.read_bytes().count(b"\n") == 1, "no more than the beginning of a line"
        disk.room = None
        until(lambda: log.written == 20)
    assert (log.lost, verify(path).records, verify(path).torn) == (0, 20, 0)
    levels = [entry.levelno for entry in caplog.records]
    assert levels == [logging.ERROR, logging.WARNING], "told once, not at every attempt"
    assert "No space left on device" in caplog.text and "is well again (write)" in caplog.text


def test_what_the_queue_has_no_room_for_is_lost_counted_and_recorded(path, disk):
    with closing(AuditLog(path, limit=5, sync_seconds=0.02)) as log:
        disk.room = 0
        log.append(record(0))
        until(lambda: log.faults["write"] >= 1)
        for number in range(1, 13):
            log.append(record(number))
        assert log.lost == 7
        disk.room = None
        until(lambda: log.written == 7)
    assert kinds(path) == ["engine_changed"] * 6 + ["records_lost"]
    assert b'"records":7' in path.read_bytes() and verify(path).records == 7


def test_what_is_never_written_is_counted_at_the_end(path, disk, caplog):
    log = AuditLog(path, sync_seconds=0.02)
    disk.room = 100
    for number in range(5):
        log.append(record(number))
    log.close()
    log.append(record())
    assert log.lost == 6 and log.written == 0
    assert "5 records were not written" in caplog.text
    disk.room = None
    with closing(AuditLog(path)) as again:
        again.append(record())
    assert verify(path).torn == 1


def test_a_disk_that_hangs_does_not_hang_the_monitor(path, disk, monkeypatch, caplog):
    monkeypatch.setattr(log_module, "CLOSE_SECONDS", 0.05)
    log = AuditLog(path)
    disk.hangs.clear()
    begin = time.monotonic()
    for number in range(100):
        log.append(record(number))
    log.close()
    assert time.monotonic() - begin < 2
    assert "is still being written" in caplog.text
    disk.hangs.set()
    log._thread.join(5)
    assert verify(path).records == 100


def test_the_disk_confirms_at_once_after_a_pause_and_then_once_a_second(path, disk):
    period = 3.0
    begin = time.monotonic()
    with closing(AuditLog(path, sync_seconds=period)) as log:
        log.append(record())
        until(lambda: disk.syncs == 1, 2)
        for number in range(50):
            log.append(record(number))
        until(lambda: log.written == 51, 5)
        # However slow the machine is, the disk confirms no more than once a period.
        assert disk.syncs <= 1 + (time.monotonic() - begin) / period
        until(lambda: disk.syncs == 2, 10)
        time.sleep(period * 1.2)
        assert disk.syncs == 2, "there is nothing to confirm"


def test_a_disk_that_does_not_confirm_is_counted(path, disk, caplog):
    disk.refuses_sync = True
    log = AuditLog(path)
    log.append(record())
    log.close()
    assert log.faults["sync"] == 1 and "was not confirmed by the disk: Input/output error" in caplog.text


def test_a_real_limit_of_the_operating_system(path):
    """Not a pretended one: the kernel takes a part of a write, then refuses."""
    script = f"""
import resource, time
from pathlib import Path
from monitor.sinks.audit import AuditLog
from monitor.events import EngineChanged
from monitor.sinks.audit.records import Context, EventRecord
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
log = AuditLog(Path({str(path)!r}), sync_seconds=0.02)
for number in range(20):
    log.append(EventRecord(EngineChanged("engine", "tiny", "lost", str(number)), Context("", "")))
while not log.faults["write"]:
    time.sleep(0.001)
print(Path({str(path)!r}).stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.close()
print(log.lost, log.written)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["1000", "0", "20"], done.stderr
    assert "File too large" in done.stderr
    assert verify(path).records == 20


@given(rooms=st.lists(st.integers(0, 700), max_size=12), limit=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_wherever_writes_break_off_the_file_verifies_and_every_record_is_accounted_for(tmp_path_factory, rooms, limit):
    path, disk = tmp_path_factory.mktemp("log") / "audit.jsonl", Disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "os", disk)
        with closing(AuditLog(path, limit=limit, sync_seconds=0.001)) as log:
            for room in rooms:
                disk.room = room
                for number in range(3):
                    log.append(record(number))
                time.sleep(0.002)
            disk.room = None
            log.append(StopRecord())
    assert not rooms or verify(path).records
    found = kinds(path)
    told = found.count("records_lost")
    assert "torn" not in found
    assert len(found) - told + log.lost == 3 * len(rooms) + 1


def test_any_thread_may_append(path):
    with closing(AuditLog(path)) as log:

        def work():
            for number in range(500):
                log.append(record(number))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert log.lost == 0 and verify(path).records == 2000


def test_a_record_that_cannot_be_encoded_leaves_its_place_to_one_that_says_so(path, caplog):
    with closing(AuditLog(path)) as log:
        log.append(about_engine("lost", "", engine="\udcff"))
        log.append(record())
    assert log.lost == 1 and kinds(path) == ["records_lost", "engine_changed"]
    assert verify(path).records == 2 == log.settled
    assert "cannot be encoded" in caplog.text
