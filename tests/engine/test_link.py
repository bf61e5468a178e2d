"""The engine's sockets: nothing blocks, nothing is lost without being counted."""

import time

import numpy as np
import pytest
import zmq

from monitor.engine.link import QUEUE_FRAMES, Exporter, OrderInbox, Step
from monitor.frames import (
    RESYNC,
    ROW,
    Frame,
    Hello,
    Started,
    Steer,
    decode,
    encode_ack,
    encode_order,
)

IN_FLIGHT = [Started(3, "a-1", "a", 5)]


class Peer:
    """A monitor's socket."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind(endpoint)
        self.identities: set[bytes] = set()

    def read(self, seconds: float = 5.0):
        if not self.socket.poll(int(seconds * 1000)):
            return None
        identity, *parts = self.socket.recv_multipart()
        self.identities.add(identity)
        return decode(parts)

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def endpoint(tmp_path) -> str:
    return f"ipc://{tmp_path}/engine.sock"


def step(rows: int = 2, **more) -> Step:
    fields = {"unscored": 0, "finished": [], "started": [], "monotonic_ns": time.monotonic_ns(), **more}
    return Step(rows=np.zeros(rows, ROW), scores=np.ones((rows, 3), np.float32), **fields)


def wait_until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_frames_arrive_in_order_with_their_arrays(endpoint):
    peer = Peer(endpoint)
    exporter = Exporter(endpoint, "engine", 3, lambda: IN_FLIGHT)
    wait_until(lambda: not exporter._away)
    for _ in range(5):
        exporter.offer(step(started=[Started(0, "b-1", "b", 2)]))
    frames = [peer.read() for _ in range(5)]
    assert all(isinstance(frame, Frame) for frame in frames)
    assert [frame.header.sequence for frame in frames] == list(range(5))
    assert frames[-1].scores.tolist() == [[1.0] * 3] * 2
    assert peer.identities == {b"engine/rank0"}
    exporter.close()
    peer.close()


def test_without_a_monitor_offering_costs_nothing_and_drops_are_counted(endpoint):
    exporter = Exporter(endpoint, "engine", 3, lambda: IN_FLIGHT)
    exporter.offer(step())
    wait_until(lambda: exporter._away)
    begin = time.perf_counter()
    for _ in range(1000):
        exporter.offer(step())
    assert time.perf_counter() - begin < 1.0
    wait_until(lambda: exporter.dropped == 1001)
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    exporter.offer(step())
    frame = peer.read()
    assert frame.header.sequence == 1001
    assert frame.header.dropped == 1001
    # Whoever comes late is told of every request in flight.
    assert frame.header.complete
    assert frame.header.started == IN_FLIGHT
    exporter.close()
    peer.close()


def test_a_monitor_that_reads_nothing_makes_frames_drop_and_never_blocks(endpoint):
    peer = Peer(endpoint)
    exporter = Exporter(endpoint, "engine", 3, lambda: IN_FLIGHT)
    big = np.zeros(4000, ROW), np.ones((4000, 3), np.float32)
    offered = 40 * QUEUE_FRAMES
    for _ in range(offered):
        exporter.offer(Step(*big, unscored=0, finished=[], started=[], monotonic_ns=0))
    wait_until(lambda: exporter.dropped > 0)
    sequences = []
    while (frame := peer.read(0.5)) is not None:
        sequences.append(frame.header.sequence)
    assert sequences == sorted(set(sequences))
    # Every frame either arrived or is in the count of the dropped ones.
    wait_until(lambda: exporter._queue.empty())
    assert len(sequences) + exporter.dropped == offered
    exporter.close()
    peer.close()


def test_resync_and_acknowledgement_reach_the_next_frame(endpoint):
    peer = Peer(endpoint)
    exporter = Exporter(endpoint, "engine", 3, lambda: IN_FLIGHT)
    wait_until(lambda: not exporter._away)
    exporter.offer(step())
    assert peer.read().header.acked == -1
    peer.socket.send_multipart([b"engine/rank0", *encode_ack(0)])
    peer.socket.send_multipart([b"engine/rank0", RESYNC])
    wait_until(lambda: exporter._announce_all.is_set())
    exporter.offer(step())
    header = peer.read().header
    assert (header.acked, header.complete, header.started) == (0, True, IN_FLIGHT)
    exporter.offer(step())
    assert not peer.read().header.complete
    exporter.close()
    peer.close()


def test_the_inbox_says_hello_and_collects_orders_through_a_restart(endpoint):
    hello = Hello(1, "engine", "model", "digest", "0.32.0")
    inbox = OrderInbox(endpoint, hello)
    for dose in (0.1, 0.2):
        peer = Peer(endpoint)
        assert peer.read() == hello
        order = Steer("a-1", "v", dose)
        peer.socket.send_multipart([b"engine/core", *encode_order(order)])
        peer.socket.send_multipart([b"engine/core", b"nonsense", b"\xff"])
        taken = []
        wait_until(lambda taken=taken: taken.extend(inbox.take()) or taken)
        assert taken == [order]
        peer.close()
    inbox.close()
