"""``plumbob monitor`` itself, sent ids without end by an engine that bounds nothing: every watcher goes on."""

import asyncio
import signal
import tempfile
import urllib.request
from pathlib import Path

import pytest

from monitor.api.client import Notice, follow
from monitor.cli.listener import Listener
from monitor.events import Alert, ProbeFired, RequestFinished
from monitor.wire.bounds import ID_CHARACTERS, bounded_id
from tests.harness.bundles import make_bundle
from tests.harness.command_line import MonitorProcess
from tests.harness.fake_engine import FakeEngine
from tests.harness.ports import free_port
from tests.harness.server import wait_until

pytestmark = pytest.mark.timeout(120)

LENGTH = 5_000_000
EVENT_BYTES = 16_384
"""Of a line about a request whose id is as long as one may be."""


class House:
    """A monitor's process, a pretended engine, and the files that it writes."""

    def __init__(self, folder: Path) -> None:
        self.bundle = make_bundle(folder / "bundle")
        self.endpoint = f"ipc://{folder}/engine.sock"
        self.grpc, self.metrics = free_port(), free_port()
        self.audit, self.state = folder / "audit.jsonl", folder / "state"
        options = ["--bundle", self.bundle.path, "--endpoint", self.endpoint, "--grpc-port", self.grpc]
        options += ["--metrics-port", self.metrics, "--audit", self.audit, "--state", self.state]
        self.monitor = MonitorProcess(*options)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc}"


@pytest.fixture(scope="module")
def house():
    # Not tmp_path: the path of a socket file has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="plumbob") as path:
        found = House(Path(path))
        wait_until(lambda: Path(found.endpoint.removeprefix("ipc://")).exists(), 60)
        yield found
        assert found.monitor.end(signal.SIGTERM) in (0, 143)
        found.monitor.running.kill()


def fired(listener: Listener, *ids: str) -> bool:
    found = {
        recorded.event.request.request_id for recorded in listener.events if isinstance(recorded.event, ProbeFired)
    }
    return found >= {*ids}


def test_a_request_id_of_five_megabytes_stops_no_watcher_and_fills_no_log(house):
    long = "chatcmpl-" + "a" * LENGTH
    with FakeEngine(house.bundle, house.endpoint) as engine, Listener(house.address) as listener:
        engine.hello()
        engine.request(0, "chatcmpl-small", "small-1")
        engine.request(1, long, f"{long}-01234567")
        engine.request(2, f"{long}b", f"{long}b-01234567")
        engine.frame(finished=[0, 1, 2])
        engine.request(3, "chatcmpl-after", "after-1")
        wait_until(lambda: fired(listener, "chatcmpl-small", "chatcmpl-after"), 30)
        # Those of the long ones are told as well, and told apart.
        assert fired(listener, bounded_id(long), bounded_id(f"{long}b"))
        events = listener.events
    assert [recorded.sequence for recorded in events] == list(range(1, len(events) + 1))
    about = [one.event for one in events if isinstance(one.event, ProbeFired | Alert | RequestFinished)]
    assert max(len(event.request.request_id) for event in about) <= ID_CHARACTERS
    assert max(len(event.request.engine_request_id) for event in about) <= ID_CHARACTERS
    files = [house.audit, *house.state.rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 1 << 20
    lines = list(house.monitor._lines)
    assert lines and max(map(len, lines)) < EVENT_BYTES


def test_a_watcher_that_comes_back_comes_past_it(house):
    async def sequences():
        found = []
        async for event in follow(house.address, after=0):
            if not isinstance(event, Notice):
                found.append(event.sequence)
                if event.probe_fired.request.request_id == "chatcmpl-after":
                    return found
        return found

    found = asyncio.run(asyncio.wait_for(sequences(), 30))
    assert found == sorted(found) and len(found) > 4


def test_a_watcher_of_one_request_names_it_by_the_id_that_the_client_chose(house):
    long = "chatcmpl-" + "a" * LENGTH

    async def first():
        async for event in follow(house.address, after=0, request_id=long):
            if not isinstance(event, Notice):
                return event
        return None

    event = asyncio.run(asyncio.wait_for(first(), 30))
    assert event.probe_fired.request.request_id == bounded_id(long)


def test_what_was_cut_is_counted(house):
    with urllib.request.urlopen(f"http://127.0.0.1:{house.metrics}/metrics", timeout=5) as answer:
        page = answer.read().decode()
    (line,) = [line for line in page.splitlines() if line.startswith('plumbob_message_texts_cut_total{reason="long"}')]
    assert float(line.split()[-1]) >= 4
