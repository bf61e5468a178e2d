"""``plumbob audit verify`` and ``--audit``: exit codes, lines of error, and where the log is."""

import os
import signal
import time

import pytest

from monitor.errors import AuditError
from monitor.service.config import MonitorConfig
from monitor.sinks.audit import AuditLog, verify
from monitor.sinks.audit.records import StopRecord
from monitor.supervisor.serving import Serving
from tests.harness.command_line import Running, assert_one_error


@pytest.fixture
def log(tmp_path):
    """A log of five records."""
    writer = AuditLog(tmp_path / "audit.jsonl")
    for _ in range(5):
        writer.append(StopRecord())
    writer.close()
    return writer


def test_a_valid_log(plumbob, log):
    result = plumbob("audit", "verify", log.path)
    assert (result.code, result.err) == (0, "")
    assert f"valid: {log.path}, 5 records in 5 lines\n" in result.out
    assert result.out.endswith(f"\nhead {log.head.hash}\n")
    known = result.out.split()[-1]
    assert "the known head is line 5; 0 lines follow it\n" in plumbob("audit", "verify", log.path, "--head", known).out


def test_a_log_that_was_touched(plumbob, log):
    lines = log.path.read_bytes().splitlines(keepends=True)

    def refused(content, *said, head=()):
        log.path.write_bytes(b"".join(content))
        result = plumbob("audit", "verify", log.path, *head)
        assert_one_error(result, str(log.path), *said)
        assert result.out == ""

    refused([*lines[:2], lines[2].replace(b"stopped", b"started"), *lines[3:]], "line 3 is not what was written")
    refused([*lines[:2], *lines[3:]], "line 3 has record 4 where 3 is due: 1 before it are missing")
    refused([*lines[:4], lines[4][:90]], "line 5 is cut short, as a crash leaves it", "plumbob monitor")
    refused([], "is empty")
    refused(lines[:4], "no line up to its last, line 4, has the known head", head=("--head", log.head.hash))


def test_a_log_of_many_files_one_of_which_was_set_aside_and_the_oldest_removed(plumbob, log, tmp_path):
    for segment_bytes in (1, 1 << 20):
        writer = AuditLog(log.path, segment_bytes=segment_bytes, sync_seconds=0.01)
        writer.append(StopRecord())
        writer.close()
    closed = tmp_path / "audit.000000000001.jsonl"
    result = plumbob("audit", "verify", tmp_path)
    assert (result.code, result.err) == (0, "")
    assert f"valid: {log.path}, 7 records in 8 lines\n" in result.out
    assert f"in 2 files: {closed.name}, audit.jsonl\n" in result.out
    closed.unlink()
    assert "records 1 to 5 are in no file here: it begins after them\n" in plumbob("audit", "verify", log.path).out
    log.path.write_bytes(log.path.read_bytes().replace(b"stopped", b"started", 1))
    AuditLog(log.path).close()
    writer = AuditLog(log.path)
    writer.append(StopRecord())
    writer.close()
    (aside,) = tmp_path.glob("audit.set-aside-*.jsonl")
    result = plumbob("audit", "verify", log.path)
    assert f"set aside {aside.name}: no record is whole; line 2 is not what was written" in result.out


def test_a_head_that_is_none_and_a_file_that_is_none(plumbob, log, tmp_path):
    assert_one_error(plumbob("audit", "verify", log.path, "--head", "abc"), "--head abc is not the hash of a record")
    assert_one_error(plumbob("audit", "verify", tmp_path / "gone"), f"{tmp_path / 'gone'} is not a file")


def test_a_torn_line_that_is_on_record_is_told(plumbob, log):
    with log.path.open("ab") as file:
        file.write(b'{"version":3,"seq')
    AuditLog(log.path).close()
    assert "6 records in 7 lines, 1 of them torn by a crash, as is recorded" in plumbob("audit", "verify", log.path).out


def test_where_the_log_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def log(**given):
        return MonitorConfig(bundle="bundle", **given).audit

    assert log() == tmp_path / "state" / "plumbob" / "audit.jsonl"
    assert log(audit="none") is None and log(audit=None) is None
    assert log(audit="./none") == tmp_path / "none" and log(audit="a b") == tmp_path / "a b"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert log() == tmp_path / ".local" / "state" / "plumbob" / "audit.jsonl"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    with pytest.raises(AuditError, match=r"no home directory .* --audit none"):
        log()


@pytest.mark.parametrize("command", ["serve", "monitor"])
def test_a_log_that_cannot_be_had(plumbob, world, log, command):
    def refused(path, *said):
        assert_one_error(plumbob(*getattr(world, command)("--audit", path)), *said)

    held = AuditLog(log.path)
    refused(log.path, f"Another monitor writes the audit log {log.path}", "each its own with --audit")
    held.close()
    refused(world.bundle, f"The audit log {world.bundle} is not a regular file", "--audit")
    refused("", "is not a regular file")
    assert not [path for path in world.runtime.rglob("*") if path.is_socket()]


@pytest.mark.parametrize(("option", "given"), [([], "state/plumbob/audit.jsonl"), (["--audit", "none"], "none")])
def test_the_monitor_beside_a_server_is_told_where(plumbob, world, monkeypatch, option, given):
    monkeypatch.setenv("XDG_STATE_HOME", str(world.runtime / "state"))
    told = []

    def spawn(self, command, environment):
        told.append(environment["PLUMBOB_MONITOR__AUDIT"])
        raise AssertionError("started")

    monkeypatch.setattr(Serving, "_spawn", spawn)
    with pytest.raises(AssertionError, match="started"):
        plumbob(*world.serve(*option))
    assert told == [given if option else str(world.runtime / given)]


def run_until_ready(running):
    assert running.process.stderr is not None
    said = []
    for line in running.process.stderr:
        said.append(line)
        if " audit log " in line:
            break
    return "".join(said)


def test_a_monitor_as_it_runs(world):
    """Started, killed, started again and stopped; the head that it says at its end is the file's."""
    path = world.runtime / "audit.jsonl"
    for end, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        running = Running(*world.monitor("--audit", path))
        try:
            assert f"audit log {path}, record" in run_until_ready(running)
            # Until it takes signals for its own.
            time.sleep(0.3)
            os.kill(running.process.pid, end)
            _, err = running.process.communicate(timeout=20)
            assert running.process.returncode == code
        finally:
            running.kill()
    found = verify(path)
    kinds = [raw.split(b'"type":"')[1].split(b'"')[0].decode() for raw in path.read_bytes().splitlines()]
    assert kinds == ["monitor_started", "policy_in_force", "monitor_started", "policy_in_force", "monitor_stopped"]
    assert f"record 5, head {found.head}" in err


def test_without_a_log_it_says_so_and_writes_none(world):
    state = world.runtime / "state"
    running = Running(*world.monitor("--audit", "none"), XDG_STATE_HOME=str(state))
    try:
        assert "no audit log is kept (--audit none)" in run_until_ready(running)
    finally:
        running.kill()
    assert [path.name for path in (state / "plumbob").iterdir()] == ["journal"]


def test_help_says_what_it_does(plumbob):
    assert "verify" in plumbob("audit", "--help").out
    result = plumbob("audit", "verify", "--help")
    assert result.code == 0 and "--head" in result.out
