"""The journal gives back what was noted, wherever a kill or a disk breaks it off, and stops nobody."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings

from monitor.store import Applied, Armed, MemoryStore, PolicyInForce, Processed, segment
from monitor.store.entries import Noted
from tests.store.conftest import ENTRIES, fold, said

DEADLINE = 20.0


def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def only_segment(folder):
    ((_, path),) = segment.segments(folder)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "journal"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENTRIES)
def test_another_store_knows_what_one_before_it_did(tmp_path_factory, noted):
    folder = tmp_path_factory.mktemp("journal")
    now = 0.0
    first = MemoryStore(folder, clock=lambda: now)
    for entry in noted:
        now = entry.time
        first.note(entry.entry)
    first.close()
    first.close()
    now = 0.0
    second = MemoryStore(folder, clock=lambda: now)
    assert said(second.state) == said(first.state) == said(fold(noted))
    second.close()


def test_wherever_a_segment_is_cut_off_all_whole_records_are_found(folder):
    entries = [Processed("engine", "gate", number, {"audit:/a": number}) for number in range(6)]
    entries += [PolicyInForce("p.yaml", "d" * 64), Applied("engine", "a", ("rule",)), Armed("engine", "g")]
    store = MemoryStore(folder)
    for entry in entries:
        store.note(entry)
    store.close()
    path = only_segment(folder)
    whole = path.read_bytes()
    noted, damaged = segment.decode(whole)
    assert damaged == 0 and [found.entry for found in noted] == entries
    ends = [len(segment.MAGIC)]
    for found in noted:
        ends.append(ends[-1] + len(segment.encode(found)))
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        count = sum(end <= cut for end in ends) - 1
        found, damaged = segment.decode(path.read_bytes())
        assert [one.entry for one in found] == entries[: max(0, count)]
        assert damaged == cut - (ends[count] if count >= 0 else 0)
    # And what is noted after it is found with what was before it.
    for cut in (*range(0, len(whole), 37), len(whole) - 1):
        for other in folder.glob("*.journal"):
            other.unlink()
        path.write_bytes(whole[:cut])
        store = MemoryStore(folder)
        before = said(store.state)
        assert store.faults["damaged"] == (cut not in (0, *ends))
        store.note(Armed("engine", "after"))
        store.close()
        again = MemoryStore(folder)
        again.close()
        assert said(again.state)[1:3] == before[1:3] and "after" in again.state.armed()["engine"]


def test_a_record_that_was_altered_ends_what_is_read():
    records = [segment.encode(Noted(1.0, Armed("e", str(number)))) for number in range(3)]
    data = bytearray(segment.MAGIC + b"".join(records))
    data[len(segment.MAGIC) + len(records[0]) + 12] ^= 1
    found, damaged = segment.decode(bytes(data))
    assert [noted.entry.gate for noted in found] == ["0"] and damaged == len(records[1]) + len(records[2])
    assert segment.decode(b"something else") == ([], 14)


def test_the_folder_is_private(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    store = MemoryStore(folder)
    store.note(Armed("e", "g"))
    store.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_it_stays_small_however_much_is_noted(folder):
    store = MemoryStore(folder, segment_bytes=4096)
    largest = 0
    for number in range(3000):
        store.note(Processed("engine", "gate", number))
        if number % 50 == 0:
            assert store.wait(store.accepted, DEADLINE)
            largest = max(largest, sum(path.stat().st_size for path in folder.glob("*.journal")))
    store.close()
    assert largest < 3 * 4096
    again = MemoryStore(folder)
    assert said(again.state) == said(store.state)
    again.close()


def test_a_second_store_in_the_same_folder_goes_without_and_says_so(folder, caplog):
    first, second = MemoryStore(folder), MemoryStore(folder)
    first.note(Armed("e", "first"))
    second.note(Armed("e", "second"))
    assert second.settled == second.accepted == 1 and second.wait(1, 0.0)
    assert second.faults["open"] == 1 and "another monitor keeps its own there" in caplog.text
    second.close()
    first.close()
    third = MemoryStore(folder)
    assert third.state.armed() == {"e": {"first"}}
    third.close()


@pytest.mark.parametrize("what", ["a file", "a file above"])
def test_a_folder_that_cannot_be_had_stops_nothing(tmp_path, what, caplog):
    (tmp_path / "file").write_text("")
    store = MemoryStore(tmp_path / "file" if what == "a file" else tmp_path / "file" / "journal")
    store.note(Armed("e", "g"))
    assert store.settled == 1 and store.faults["open"] == 1 and store.state.armed() == {"e": {"g"}}
    assert "cannot be used" in caplog.text
    store.close()


def test_a_disk_that_is_full_stops_nothing_and_what_was_noted_meanwhile_is_kept_later(folder, monkeypatch, caplog):
    store = MemoryStore(folder, segment_bytes=1 << 20)
    store._journal._sync_seconds = 0.02
    store.note(Armed("e", "before"))
    assert store.wait(1, DEADLINE)

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monitor.store.segment.os.write", full)
    store.note(Armed("e", "meanwhile"))
    assert store.wait(2, DEADLINE), "it is settled without it"
    until(lambda: store.faults["write"] >= 2)
    monkeypatch.undo()
    until(lambda: "well again" in caplog.text)
    store.note(Armed("e", "after"))
    store.close()
    again = MemoryStore(folder)
    assert again.state.armed() == {"e": {"before", "meanwhile", "after"}}
    again.close()


def test_a_disk_that_hangs_settles_nothing_and_stops_nobody(folder, monkeypatch):
    store = MemoryStore(folder)
    store.note(Armed("e", "before"))
    assert store.wait(1, DEADLINE)
    hanging, write = threading.Event(), os.write

    def hang(descriptor, data):
        hanging.wait(DEADLINE)
        return write(descriptor, data)

    monkeypatch.setattr("monitor.store.segment.os.write", hang)
    store.note(Armed("e", "after"))
    assert not store.wait(2, 0.05) and store.settled == 1
    assert store.state.armed() == {"e": {"before", "after"}}
    hanging.set()
    assert store.wait(2, DEADLINE)
    store.close()


def test_what_cannot_be_written_down_is_counted(folder, caplog):
    store = MemoryStore(folder)
    store.note(Armed("e", "g"))
    store.note(Armed("\udcff", "g"))
    assert store.wait(2, DEADLINE) and store.faults["lost"] == 1
    store.close()


WRITER = """
import itertools, pathlib, sys
from monitor.store import MemoryStore, Processed
store = MemoryStore(pathlib.Path(sys.argv[1]), segment_bytes=2048)
for number in itertools.count():
    store.note(Processed("engine", "gate", number, {"audit": number}))
    store.wait(store.accepted, 10)
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 40, 400])
def test_a_killed_process_loses_nothing_that_was_settled(folder, after):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if int(line) >= after:
                    break
        finally:
            process.send_signal(signal.SIGKILL)
        settled = int(([line, *process.stdout])[-1])
    store = MemoryStore(folder)
    assert set(range(settled + 1)) <= store.state.processed("gate")["engine"] <= set(range(settled + 2))
    store.close()
