"""Streamed rows put together again: a real socket and a real ring, frames made by hand."""

import numpy as np
import pytest
import zmq

from monitor.offline.inbox import StateInbox
from monitor.wire.codec import decode_order, encode_frame
from monitor.wire.codec import encode_hello as hello
from monitor.wire.frames import ROW, VERSION, FrameHeader, Hello, Started, StateBlock
from monitor.wire.orders import Stream
from monitor.wire.ring import StateWriter

HIDDEN = 4
RING = 16
LAYERS = (3, 7)


class Engine:
    """Streams what it is told to."""

    def __init__(self, endpoint, folder):
        self.rings = [StateWriter("engine", layer, HIDDEN, "float32", RING, folder) for layer in LAYERS]
        self.context = zmq.Context()
        self.core, self.rank = (self.context.socket(zmq.DEALER) for _ in range(2))
        for socket, name in ((self.core, "core"), (self.rank, "rank0")):
            socket.setsockopt(zmq.IDENTITY, f"engine/{name}".encode())
            socket.connect(endpoint)

    def introduce(self):
        self.core.send_multipart(hello(Hello(VERSION, "engine", "m", "", "0")))

    def write(self, layer, states):
        """Rows into a ring, as a block."""
        ring = self.rings[LAYERS.index(layer)]
        start, done = ring.reserved, 0
        for at, count in ring.reserve(len(states)):
            ring.view[at : at + count] = states[done : done + count]
            done += count
        return StateBlock(layer, str(ring.path), start, len(states))

    def send(self, rows, blocks=(), streamed=(), started=(), finished=(), complete=False):
        header = FrameHeader(
            version=VERSION,
            engine="engine",
            rank=0,
            sequence=0,
            acked=-1,
            dropped=0,
            unscored=0,
            monotonic_ns=0,
            rows=len(rows),
            probes=0,
            complete=complete,
            finished=list(finished),
            started=[Started(slot, f"{name}-1", name, 3) for slot, name in started],
            states=list(blocks),
        )
        table = np.array([(slot, position, 2, 0) for slot, position in rows], ROW)
        self.rank.send_multipart(
            encode_frame(header, table, np.empty((len(rows), 0), "f4"), np.array(streamed, np.int32))
        )

    def stream(self, rows, states, **more):
        """A frame whose rows are all streamed, at both layers."""
        indices = [*range(len(rows))] * 2
        self.send(rows, [self.write(layer, states + layer) for layer in LAYERS], indices, **more)

    def close(self):
        self.core.close(linger=0)
        self.rank.close(linger=0)
        self.context.term()
        for ring in self.rings:
            ring.close()


@pytest.fixture
def inbox(tmp_path):
    with StateInbox(f"ipc://{tmp_path}/engine.sock", LAYERS, HIDDEN) as inbox:
        yield inbox


@pytest.fixture
def engine(inbox, tmp_path):
    engine = Engine(inbox.endpoint, tmp_path)
    yield engine
    engine.close()


def states(*tokens):
    """A row for each number."""
    return np.array(tokens, np.float32)[:, None] * np.ones(HIDDEN, np.float32)


def assert_is(expected, tokens):
    assert expected.complete
    np.testing.assert_array_equal(expected.states, np.stack([states(*tokens) + layer for layer in LAYERS]))


def test_rows_go_to_their_request_and_position_however_they_were_batched(inbox, engine):
    first, second = inbox.expect(["0", "1"], [3, 2])
    engine.stream([(5, 0), (5, 1), (2, 0)], states(10, 11, 20), started=[(5, "0"), (2, "1")])
    inbox.take(5)
    assert not first.complete and not second.complete
    # The rest of either, and behind it the row of the token that was sampled.
    engine.stream([(2, 1), (5, 2), (5, 3)], states(21, 12, 13))
    inbox.take(5)
    assert_is(first, (10, 11, 12))
    assert_is(second, (20, 21))


def test_rows_of_nobody_and_of_unknown_requests_are_left_out(inbox, engine):
    (mine,) = inbox.expect(["7"], [2])
    blocks = [engine.write(layer, states(1, 99, 2, 98) + layer) for layer in LAYERS]
    engine.send([(0, 0), (0, 1), (4, 0)], blocks, [0, -1, 1, 2] * 2, started=[(0, "7"), (4, "8")])
    inbox.take(5)
    assert_is(mine, (1, 2))


def test_a_slot_that_is_used_again_is_the_next_requests(inbox, engine):
    (before,) = inbox.expect(["0"], [1])
    engine.stream([(0, 0)], states(1), started=[(0, "0")])
    inbox.take(5)
    (after,) = inbox.expect(["1"], [1])
    engine.stream([(0, 0)], states(2), started=[(0, "1")], finished=[0])
    inbox.take(5)
    assert_is(before, (1,))
    assert_is(after, (2,))


def test_a_request_announced_late_has_its_later_rows_and_is_not_complete(inbox, engine):
    """The first frame after a loss lists all requests in flight."""
    (mine,) = inbox.expect(["0"], [2])
    engine.stream([(0, 1)], states(2), started=[(0, "0")], complete=True)
    inbox.take(5)
    assert mine.come.tolist() == [[False, True]] * 2
    assert not mine.complete


def test_rows_that_were_overwritten_are_missed(inbox, engine):
    (mine,) = inbox.expect(["0"], [2])
    first = [engine.write(layer, states(1) + layer) for layer in LAYERS]
    second = [engine.write(layer, states(*range(RING)) + layer) for layer in LAYERS]
    engine.send([(0, 0)], first, [0, 0], started=[(0, "0")])
    engine.send([(0, 1)], second, [0, *[-1] * (RING - 1)] * 2)
    inbox.take(5)
    inbox.take(0.1)
    assert mine.come.tolist() == [[False, True]] * 2


def test_every_layer_is_ordered_once_the_engine_is_known(inbox, engine):
    engine.introduce()
    inbox.take(5)
    assert inbox.engine == "engine"
    inbox.order_streams()
    ordered = []
    for _ in LAYERS:
        assert engine.core.poll(5000)
        ordered.append(decode_order(engine.core.recv_multipart()))
    assert ordered == [Stream(layer, "all") for layer in LAYERS]
