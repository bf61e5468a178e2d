"""SIGHUP: the monitor reads its policy again, ``plumbob serve`` passes it on, and a terminal that is gone ends both."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import urllib.request

import pytest

from tests.harness.command_line import Running
from tests.harness.ports import free_port
from tests.harness.pretended_server import SCRIPT, STUBBORN, until

POLICY = """
version: 1
rules:
  - name: NAME
    when: {probe: toxicity}
    mode: alert
    actions: [{alert: {severity: info}}]
"""


@pytest.fixture
def started():
    running: list[Running] = []

    def start(*arguments, until: str = "metrics http://", **options) -> Running:
        run = Running(*arguments, **options)
        running.append(run)
        for line in run.process.stderr:
            if until in line:
                return run
        raise AssertionError("it did not start")

    yield start
    for run in running:
        run.kill()


def write(world, name: str) -> None:
    world.policy.write_text(POLICY.replace("NAME", name))


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def count(port: int, result: str) -> float:
    line = next(
        line
        for line in metrics(port).splitlines()
        if line.startswith(f'plumbob_policy_reloads_total{{result="{result}"')
    )
    return float(line.split()[-1])


def digest(port: int) -> str:
    return next(line for line in metrics(port).splitlines() if line.startswith("plumbob_policy_info"))


def test_the_monitor_reads_its_policy_again_and_keeps_it_where_the_new_one_is_bad(world, started, tmp_path):
    write(world, "first")
    port, audit = free_port(), world.runtime / "audit.jsonl"
    run = started(*world.monitor("--policy", world.policy, "--metrics-port", port, "--audit", audit))
    first = digest(port)
    assert (count(port, "in_force"), count(port, "refused")) == (0.0, 0.0)

    write(world, "second")
    run.process.send_signal(signal.SIGHUP)
    until(lambda: count(port, "in_force") == 1.0)
    second = digest(port)
    assert second != first

    world.policy.write_text("version: 1\nrules: oops\n")
    run.process.send_signal(signal.SIGHUP)
    until(lambda: count(port, "refused") == 1.0)
    assert digest(port) == second

    world.policy.unlink()
    run.process.send_signal(signal.SIGHUP)
    until(lambda: count(port, "refused") == 2.0)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(20) == 0
    said = run.process.stderr.read()
    assert '"type":"policy_changed"' in said and "rules: must be" in said and "cannot be read" in said
    assert [line.count('"policy_in_force"') for line in audit.read_text().splitlines()].count(1) == 2


def test_a_monitor_without_a_policy_file_says_that_there_is_none(world, started):
    port = free_port()
    run = started(*world.monitor("--metrics-port", port))
    run.process.send_signal(signal.SIGHUP)
    until(lambda: count(port, "refused") == 1.0)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(20) == 0
    assert "There is no file to read again: start with --policy." in run.process.stderr.read()


def test_serve_passes_it_on(world, started, tmp_path):
    write(world, "first")
    port = free_port()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(server=STUBBORN))
    arguments = world.serve("--eager", "--policy", world.policy, "--metrics-port", port)
    run = started(*arguments, script=script, until="plumbob metrics", PYTHONPATH=os.pathsep.join(sys.path))
    # Serve itself, its server and its monitor.
    until(lambda: len(run.alive()) == 3)
    before = set(run.alive())
    write(world, "second")
    run.process.send_signal(signal.SIGHUP)
    until(lambda: count(port, "in_force") == 1.0)
    assert set(run.alive()) == before


def test_a_terminal_that_is_gone_ends_the_monitor(world):
    write(world, "first")
    port = free_port()
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "monitor.cli",
        *map(str, world.monitor("--policy", world.policy, "--metrics-port", port)),
    ]
    process = subprocess.Popen(
        command,
        stdin=follower,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    try:
        os.close(follower)
        until(lambda: _serves(port))
        # With its terminal there, it means to read the policy again.
        process.send_signal(signal.SIGHUP)
        until(lambda: count(port, "in_force") == 1.0)
        assert process.poll() is None
        os.close(leader)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # These tests may be run under nohup, which children inherit, and which makes a terminal that is gone mean nothing.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _serves(port: int) -> bool:
    try:
        return bool(digest(port))
    except OSError:
        return False
