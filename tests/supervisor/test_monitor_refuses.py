"""A monitor that died and cannot start again: ``plumbob serve`` says why, and ends or goes on as it was told to. The
server here only pretends; the monitor is real."""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from monitor.supervisor.revival import AGAIN_SECONDS, REFUSALS, Revival
from tests.harness.command_line import Running
from tests.harness.ports import free_port
from tests.harness.pretended_server import SCRIPT, STUBBORN, until

POLICY = """
version: 1
rules:
  - name: rule
    when: {probe: toxicity}
    mode: alert
    actions: [{alert: {severity: info}}]
"""


class Served:
    """``plumbob serve`` with a pretended server, and what it says."""

    def __init__(self, script: Path, *arguments: object) -> None:
        self.run = Running(*arguments, script=script, PYTHONPATH=os.pathsep.join(sys.path))
        self.process, self.lines = self.run.process, list[str]()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)

    def said(self, text: str) -> int:
        return sum(text in line for line in list(self.lines))

    def monitors(self) -> list[int]:
        found = []
        for pid in self.run.alive():
            try:
                if b"\0monitor\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
            except OSError:
                continue
        return found

    def kill_monitor(self) -> None:
        (pid,) = self.monitors()
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def serve(world, tmp_path):
    running: list[Served] = []
    world.policy.write_text(POLICY)

    def start(*options: object) -> Served:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(server=STUBBORN))
        served = Served(script, *world.serve("--eager", "--policy", world.policy, *options))
        running.append(served)
        until(lambda: served.said("metrics http://") and len(served.run.alive()) == 3, 60)
        return served

    yield start
    for served in running:
        served.run.kill()


def test_a_monitor_that_cannot_start_again_ends_serving_with_its_reason_once(world, serve):
    served = serve()
    world.policy.write_text("version: 1\nrules: oops\n")
    served.kill_monitor()
    # The server itself is stubborn: it is killed after its time to end.
    assert served.process.wait(90) == 2
    assert served.run.alive() == []
    until(lambda: served.said("error: ") >= 1)
    (last,) = [line for line in served.lines if "so serving ends" in line]
    assert last.startswith("error: ") and "rules: must be" in last and "--no-monitor-required" in last
    assert served.said("NOTHING IS MONITORED") == 1, "each reason once"


def test_with_no_monitor_required_serving_goes_on_and_the_monitor_starts_once_that_is_mended(world, serve):
    served = serve("--no-monitor-required")
    world.policy.write_text("version: 1\nrules: oops\n")
    served.kill_monitor()
    until(lambda: served.said("NOTHING IS MONITORED"), 60)
    (line,) = [line for line in served.lines if "NOTHING IS MONITORED" in line]
    assert "rules: must be" in line
    # It has been tried as often as would have ended it.
    until(lambda: served.said("error: ") >= REFUSALS + 1, 90)
    assert served.process.poll() is None and served.said("NOTHING IS MONITORED") == 1
    world.policy.write_text(POLICY)
    until(lambda: served.said("monitor ready") == 2, 60)
    assert served.process.poll() is None


def test_a_port_that_another_took_is_no_monitor_that_serves(world, serve):
    port = free_port()
    served = serve("--grpc-port", port)
    served.kill_monitor()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        until(lambda: taken(thief, port))
        thief.listen()
        assert served.process.wait(90) == 2
    (last,) = [line for line in served.lines if "so serving ends" in line]
    assert f"127.0.0.1:{port}: Address already in use" in last


def taken(thief: socket.socket, port: int) -> bool:
    try:
        thief.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("how", ["cut", "damaged", "moved"])
def test_an_audit_log_that_was_touched_keeps_no_monitor_from_starting_again(world, serve, how):
    audit = world.runtime / "audit.jsonl"
    served = serve("--audit", audit)
    until(lambda: audit.read_bytes().count(b"\n") >= 2)
    time.sleep(1.5)
    served.kill_monitor()
    match how:
        case "cut":
            os.truncate(audit, 100)
        case "damaged":
            audit.write_bytes(audit.read_bytes().replace(b"monitor_started", b"monitor_Started"))
        case _:
            audit.rename(audit.with_name("audit.jsonl.1"))
    until(lambda: served.said("monitor ready") == 2, 60)
    reason = "missing" if how == "moved" else "set_aside"
    until(lambda: served.said('"type":"audit_changed"') == 1)
    assert served.said(f'"reason":"{reason}"') == 1 and served.said("begins anew") == 1
    assert audit.read_bytes().startswith(b'{"version":3') and b'"segment_started"' in audit.read_bytes()


def test_a_monitor_is_believed_after_a_few_refusals_in_a_row():
    revival = Revival()
    assert [revival.failed(2) for _ in range(REFUSALS)] == [False] * (REFUSALS - 1) + [True]
    other = Revival()
    assert not any(other.failed(code) for code in (2, 2, 2, -9, 2, 2, 2, 1, None, 1, 1, 1))
    assert 25 < other.due - time.monotonic() < 31, "ever more rarely"


def test_a_reason_is_told_once_and_again_after_some_time(monkeypatch):
    revival, now = Revival(), [0.0]
    monkeypatch.setattr("monitor.supervisor.revival.time.monotonic", lambda: now[0])
    assert [revival.tells(why) for why in ("a", "a", "b", "b", "a")] == [True, False, True, False, True]
    now[0] = AGAIN_SECONDS + 1
    assert revival.tells("a")
