"""A proxy of the environment lies between nobody and a monitor on the same host, and where it should to another one."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from monitor.addresses import stays_here
from tests.harness.command_line import MonitorProcess, Running
from tests.harness.ports import free_port
from tests.harness.pretended_server import until

pytestmark = pytest.mark.timeout(120)

DEAD = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), DEAD)


@pytest.fixture
def address(world):
    port = free_port()
    running = MonitorProcess(*world.monitor("--grpc-port", port, "--allow-control", "--audit", "none")[1:])

    def listens() -> bool:
        assert running.process.poll() is None
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", port)) == 0

    until(listens, 30)
    # Without a policy file, that is an event.
    running.process.send_signal(signal.SIGHUP)
    yield f"127.0.0.1:{port}"
    running.running.kill()


def test_a_monitor_on_this_host_is_called_directly(address):
    for given, code, said in (
        (("trace", "--address", address), 0, ""),
        (("order", "list", "--address", address), 0, ""),
        (("policy", "explain", "999", "--address", address), 2, f"The monitor at {address} does not keep event 999."),
    ):
        result = Running(*given, **PROXIES).finish()
        assert (result.code, said in result.err) == (code, True), result.err


def test_and_so_it_is_watched(address):
    watching = Running("watch", address, "--json", "--after", "0", **PROXIES)
    try:
        assert "policy" in watching.process.stdout.readline()
    finally:
        watching.kill()


CALL = """
import sys, grpc
from monitor.api.client import channel_to
with channel_to(sys.argv[1]) as channel:
    try:
        grpc.channel_ready_future(channel).result(20)
    except grpc.FutureTimeoutError:
        pass
"""


def test_a_monitor_on_another_host_is_called_through_the_proxy():
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.settimeout(20)
        through = {**os.environ, "http_proxy": f"http://127.0.0.1:{proxy.getsockname()[1]}"}
        caller = subprocess.Popen([sys.executable, "-c", CALL, "203.0.113.7:9401"], env=through)
        try:
            connection, _ = proxy.accept()
            with connection:
                assert connection.recv(64).startswith(b"CONNECT 203.0.113.7:9401 ")
        finally:
            caller.kill()
            caller.wait()


def test_what_is_on_this_host():
    here = [
        "127.0.0.1:1",
        "127.3.2.1:1",
        "localhost:1",
        "LOCALHOST:1",
        "localhost.:1",
        "a.localhost:1",
        "[::1]:1",
        "::1",
    ]
    here += [
        "[::ffff:127.0.0.1]:1",
        "0.0.0.0:1",
        "[::]:1",
        ":1",
        "unix:/run/x",
        "unix-abstract:x",
        "dns:///localhost:1",
    ]
    here += ["ipv4:127.0.0.1:1", "ipv6:[::1]:1", f"{socket.gethostname()}:1"]
    elsewhere = [
        "10.0.0.1:1",
        "monitor:1",
        "monitor.svc:1",
        "localhost.example.org:1",
        "[fe80::1]:1",
        "8.8.8.8",
        "fe80::1",
    ]
    assert [target for target in here if not stays_here(target)] == []
    assert [target for target in elsewhere if stays_here(target)] == []
