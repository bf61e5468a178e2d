"""The monitor beside a benchmark, in its own process, with an engine that is nothing but its sockets."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from monitor.bench.bundle import synthetic_bundle
from monitor.bench.monitor_process import Counters, Mode, MonitorProcess
from monitor.errors import EngineError
from monitor.wire.codec import decode_order, encode_frame, encode_hello
from monitor.wire.frames import VERSION, Hello, Started, StateBlock
from monitor.wire.orders import Steer, Stream
from monitor.wire.ring import StateWriter
from probes.bundle import ModelIdentity
from probes.scoring.roles import Role
from tests.harness.frames import make_frame

PROBES, HIDDEN = 4, 8


class FakeEngine:
    """Says what an engine says."""

    def __init__(self, endpoint: str, digest: str) -> None:
        self._context = zmq.Context()
        self.core, self.exporter = (self._connect(endpoint, name) for name in ("engine/core", "engine/rank0"))
        self._hello = encode_hello(Hello(VERSION, "engine", "tiny", digest, "0"))
        self.sequence = 0

    def _connect(self, endpoint: str, name: str) -> zmq.Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, name.encode())
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDTIMEO, 10_000)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.connect(endpoint)
        return socket

    def hello(self) -> None:
        self.core.send_multipart(self._hello)

    def step(self, request: str = "a", *, states: StateBlock | None = None, steered: bool = False) -> None:
        """One frame of one row; its request is announced with it."""
        message = make_frame(
            self.sequence,
            rows=[(0, self.sequence, Role.USER, int(steered))],
            started=[Started(0, request, request, 4)],
            complete=True,
            probes=PROBES,
        )
        header, streamed = message.header, None
        if states is not None:
            header.states.append(states)
            streamed = np.zeros(states.rows, np.int32)
        self.exporter.send_multipart(encode_frame(header, message.rows, message.scores, streamed))
        self.sequence += 1

    def order(self) -> object:
        """The next order for the engine core."""
        assert self.core.poll(10_000), "no order came"
        return decode_order(self.core.recv_multipart())

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = ModelIdentity(name="tiny", hidden=HIDDEN, layers=4, parts={"config": "c"})
    return synthetic_bundle(tmp_path_factory.mktemp("monitor_process") / "bundle", model, [1, 2, 3], PROBES)


@pytest.fixture
def monitor_process(bundle, tmp_path) -> Iterator[MonitorProcess]:
    with MonitorProcess(bundle.path, f"ipc://{tmp_path}/engine.sock", tmp_path / "log") as monitor_process:
        yield monitor_process


@pytest.fixture
def engine(monitor_process, bundle, tmp_path) -> Iterator[FakeEngine]:
    engine = FakeEngine(f"ipc://{tmp_path}/engine.sock", bundle.digest)
    yield engine
    engine.close()


def wait(monitor_process: MonitorProcess, **wanted: int) -> Counters:
    """The counters, once they say what they should."""
    deadline = time.monotonic() + 10
    while True:
        counters = monitor_process.counters()
        if all(getattr(counters, name) == value for name, value in wanted.items()):
            return counters
        assert time.monotonic() < deadline, counters
        time.sleep(0.02)


def test_frames_are_read_and_gaps_are_counted(monitor_process, engine):
    monitor_process.set(Mode())
    engine.hello()
    engine.step()
    engine.sequence += 3
    engine.step()
    assert wait(monitor_process, frames=2) == Counters(sent=5, frames=2, lost=3)


def test_counters_go_on_over_a_pause(monitor_process, engine):
    monitor_process.set(Mode())
    engine.step()
    wait(monitor_process, frames=1)
    monitor_process.set(Mode(listen=False))
    assert monitor_process.counters().frames == 1
    monitor_process.set(Mode())
    engine.hello()
    engine.step()
    assert wait(monitor_process, frames=2).sent == 2


def test_nobody_listens_during_a_pause(monitor_process, engine):
    monitor_process.set(Mode())
    engine.hello()
    engine.step()
    wait(monitor_process, frames=1)
    monitor_process.set(Mode(listen=False))
    time.sleep(0.2)
    assert not engine.exporter.poll(0, zmq.POLLOUT)


def test_steering_is_ordered_when_it_is_wanted_and_only_then(monitor_process, engine):
    monitor_process.set(Mode())
    engine.hello()
    assert engine.order() == Stream(2, "none")
    engine.step("unsteered")
    wait(monitor_process, frames=1)
    monitor_process.set(Mode(steer=True))
    engine.step("steered")
    order = engine.order()
    assert isinstance(order, Steer) and order.engine_request_id == "steered"
    engine.step("steered", steered=True)
    assert wait(monitor_process, frames=3).steered == 1


def test_streaming_is_ordered_and_every_row_is_read(monitor_process, engine, tmp_path):
    monitor_process.set(Mode(stream=True))
    engine.hello()
    assert engine.order() == Stream(2, "all")
    writer = StateWriter("bench-test", 2, HIDDEN, "bfloat16", 64, tmp_path)
    for rows in (3, 5):
        start = writer.reserved
        writer.reserve(rows)
        engine.step(states=StateBlock(2, str(writer.path), start, rows))
    wait(monitor_process, streamed=8)
    monitor_process.set(Mode())
    assert engine.order() == Stream(2, "none")
    writer.close()


def test_a_slow_monitor_takes_its_time_over_each_message(monitor_process, engine):
    monitor_process.set(Mode(delay=0.3))
    begin = time.monotonic()
    for _ in range(4):
        engine.step()
    wait(monitor_process, frames=4)
    assert time.monotonic() - begin >= 4 * 0.3


def test_a_killed_monitor_is_started_again_and_what_it_was_known_to_have_seen_counts(monitor_process, engine):
    monitor_process.set(Mode())
    engine.step()
    wait(monitor_process, frames=1)
    monitor_process.kill()
    assert monitor_process.counters().frames == 1
    monitor_process.set(Mode())
    engine.sequence += 2
    engine.step()
    # Of the frame that was read and not confirmed, the successor cannot know.
    assert wait(monitor_process, frames=2) == Counters(sent=4, frames=2, lost=3)


def test_a_monitor_that_cannot_start_says_why(tmp_path):
    monitor_process = MonitorProcess(tmp_path / "gone", f"ipc://{tmp_path}/engine.sock", tmp_path / "log")
    with monitor_process, pytest.raises(EngineError, match="gone is not a bundle"):
        monitor_process.set(Mode())


def test_counters_of_runs_are_added_and_of_monitors_follow_each_other():
    some, more = Counters(1, 2, 3, 4, 5), Counters(10, 20, 30, 40, 50)
    assert some + more == Counters(11, 22, 33, 44, 55)
    assert more.since(some) == Counters(9, 18, 27, 36, 45)
    assert some.then(more) == Counters(10, 22, 33, 44, 55), "the engine's numbers go on"
