"""``plumbob monitor`` itself, whose audit log others rotate: nothing is lost, and it is told everywhere."""

import os
import signal

import pytest
import zmq

from monitor.sinks.audit import read_records, verify
from tests.harness.watched import until, watched

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("how", ["moved, with a hang-up", "moved, without", "copied and cut", "by the monitor"])
def test_a_log_that_is_rotated_under_a_running_monitor(tmp_path, how):
    audit = tmp_path / "audit" / "audit.jsonl"
    limits = "silence_seconds: 0.5, audit_bytes: " + ("1000" if how == "by the monitor" else "67108864")
    options = ("--audit", audit, "--state", tmp_path / "state")
    reason = {"copied and cut": "truncated", "by the monitor": "rotated"}.get(how, "moved")
    with watched(tmp_path, limits, *options) as monitor, zmq.Context() as context:
        begun = monitor.samples("plumbob_audit_files_begun_total")
        assert set(begun.values()) == {0} and ("truncated",) in begun, "there before anything was done to it"
        monitor.hello(context).close(linger=200)
        until(lambda: b'"connected"' in audit.read_bytes() or how == "by the monitor")
        match how:
            case "copied and cut":
                audit.with_name("audit.jsonl.1").write_bytes(audit.read_bytes())
                os.truncate(audit, 0)
            case "moved, with a hang-up" | "moved, without":
                audit.rename(audit.with_name("audit.jsonl.1"))
                audit.touch(mode=0o640)
                if how == "moved, with a hang-up":
                    monitor.process.process.send_signal(signal.SIGHUP)
            case _:
                pass
        # Within seconds, whether anything is written or not.
        until(lambda: monitor.samples("plumbob_audit_files_begun_total")[reason,] >= 1, 5.0)
        until(lambda: any(event["type"] == "audit_changed" for event in monitor.process.events))
        assert {event["reason"] for event in monitor.process.events if event["type"] == "audit_changed"} == {reason}
        until(lambda: any(event.get("state") == "lost" for event in monitor.process.events))
        assert monitor.process.end(signal.SIGTERM) == 0
    found = verify(audit)
    assert found.before == 0 and len(found.files) >= 2 and not found.aside
    records = [line.type_name() for line in read_records(audit, found) if line.counted]
    assert records[0] == "monitor_started" and records[-1] == "monitor_stopped"
    assert records.count("engine_changed") == 2, "it came and was lost"


def test_a_log_that_cannot_be_continued_keeps_no_monitor_from_starting(tmp_path):
    audit = tmp_path / "audit.jsonl"
    options = ("--audit", audit, "--state", tmp_path / "state")
    for cut in (None, 300, 0):
        if cut is not None:
            os.truncate(audit, cut)
        with watched(tmp_path, "", *options) as monitor:
            expected = {} if cut is None else {"set_aside" if cut else "missing": 1.0}
            until(
                lambda monitor=monitor, expected=expected: (
                    {
                        reason: count
                        for (reason,), count in monitor.samples("plumbob_audit_files_begun_total").items()
                        if count
                    }
                    == expected
                )
            )
            until(lambda: audit.read_bytes().count(b"\n") >= 2)
            assert monitor.said("begins anew") == (cut is not None)
            assert monitor.process.end(signal.SIGTERM) == 0
    assert len(list(tmp_path.glob("audit.set-aside-*"))) == 1
    assert verify(audit).before == 6 and verify(audit).records == 3
