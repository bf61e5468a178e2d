"""The engine's sockets: nothing blocks, nothing is lost without being counted."""

import time

import msgspec
import numpy as np
import pytest
import zmq

torch = pytest.importorskip("torch")

from monitor.engine.batch import Begins
from monitor.engine.exporter import EVENTS, FRAME_EVENTS, Exporter, Step
from monitor.engine.inbox import OrderInbox
from monitor.engine.staging import DEPTH, Staging
from monitor.engine.steering.refusals import refusal
from monitor.errors import OrderError
from monitor.wire.codec import RESYNC, decode, encode_ack, encode_order
from monitor.wire.frames import ROW, VERSION, Frame, GateEvent, GuardEvent, Hello, Started, StateBlock
from monitor.wire.orders import Act, Steer, Stream

IN_FLIGHT = [Started(3, "a-1", "a", 5)]


class Peer:
    """A monitor's socket."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        # As the monitor does.
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
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


PROBES = 3


@pytest.fixture
def exporter(endpoint):
    exporter = Exporter(endpoint, "engine", PROBES, lambda: IN_FLIGHT, Staging(4000, PROBES, torch.device("cpu")))
    yield exporter
    exporter.close()


def offer(exporter: Exporter, rows: int = 2, started: list[Started] | None = None) -> None:
    """A step whose scores are ones, as the engine's thread offers it."""
    stage = exporter.take()
    if stage is None:
        return exporter.refuse()
    stage.scores[:rows] = 1.0
    stage.copy(rows, None)
    kept = None
    describe = lambda slots, positions, scores: (np.zeros(len(slots), ROW), kept)  # noqa: E731
    return exporter.offer(Step(unscored=0, started=started or [], stage=stage, rows=rows, describe=describe))


def wait_until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_frames_arrive_in_order_with_their_arrays(endpoint, exporter):
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    for _ in range(5):
        offer(exporter, started=[Started(0, "b-1", "b", 2)])
    frames = [peer.read() for _ in range(5)]
    assert all(isinstance(frame, Frame) for frame in frames)
    assert [frame.header.sequence for frame in frames] == list(range(5))
    assert frames[-1].scores.tolist() == [[1.0] * 3] * 2
    assert peer.identities == {b"engine/rank0"}
    peer.close()


def test_without_a_monitor_offering_costs_nothing_and_drops_are_counted(endpoint, exporter):
    offer(exporter)
    wait_until(lambda: exporter._away)
    begin = time.perf_counter()
    for _ in range(1000):
        offer(exporter)
    assert time.perf_counter() - begin < 1.0
    wait_until(lambda: exporter.dropped == 1001)
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    offer(exporter)
    frame = peer.read()
    assert frame.header.sequence == 1001
    assert frame.header.dropped == 1001
    # Whoever comes late is told of every request in flight.
    assert frame.header.complete
    assert frame.header.started == IN_FLIGHT
    peer.close()


def test_a_monitor_that_reads_nothing_makes_frames_drop_and_never_blocks(endpoint, exporter):
    peer = Peer(endpoint)
    offered = 10_000
    for _ in range(offered):
        offer(exporter, rows=4000)
    wait_until(lambda: exporter.dropped > 0)
    sequences = []
    while (frame := peer.read(0.5)) is not None:
        sequences.append(frame.header.sequence)
    assert sequences == sorted(set(sequences))
    # Every frame either arrived or is in the count of the dropped ones.
    wait_until(lambda: exporter._queue.empty())
    assert len(sequences) + exporter.dropped == offered
    peer.close()


def test_resync_and_acknowledgement_reach_the_next_frame(endpoint, exporter):
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    offer(exporter)
    assert peer.read().header.acked == -1
    peer.socket.send_multipart([b"engine/rank0", *encode_ack(0)])
    peer.socket.send_multipart([b"engine/rank0", RESYNC])
    wait_until(lambda: exporter._announce_all.is_set())
    offer(exporter)
    header = peer.read().header
    assert (header.acked, header.complete, header.started) == (0, True, IN_FLIGHT)
    offer(exporter)
    assert not peer.read().header.complete
    peer.close()


def test_the_inbox_says_hello_and_collects_orders_through_a_restart(endpoint):
    hello = Hello(VERSION, "engine", "model", "digest", "0.32.0")
    inbox = OrderInbox(endpoint, hello)
    for dose in (0.1, 0.2):
        peer = Peer(endpoint)
        assert peer.read() == hello
        order = Steer("a-1", [Act("v", add=dose)])
        peer.socket.send_multipart([b"engine/core", *encode_order(order)])
        peer.socket.send_multipart([b"engine/core", b"nonsense", b"\xff"])
        taken = []
        wait_until(lambda taken=taken: taken.extend(inbox.take()) or taken)
        assert [arrived.order for arrived in taken] == [order]
        peer.close()
    inbox.close()


def test_stages_come_back_whatever_becomes_of_their_frames(endpoint):
    staging = Staging(8, PROBES, torch.device("cpu"))
    exporter = Exporter(endpoint, "engine", PROBES, lambda: IN_FLIGHT, staging)
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    for _ in range(20 * DEPTH):
        offer(exporter)
    wait_until(lambda: exporter._queue.empty())
    peer.close()
    wait_until(lambda: offer(exporter) or exporter._away)
    stages = []
    wait_until(lambda: (stage := staging.take()) is None or (stages.append(stage), False)[1])
    assert len(set(map(id, stages))) == DEPTH
    exporter.close()


def test_a_frame_leaves_out_rows_and_says_which_states_belong_to_those_that_stay(endpoint, exporter, tmp_path):
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    stage = exporter.take()
    stage.scores[:4] = torch.arange(4.0).unsqueeze(1)
    stage.copy(4, None)
    kept = np.array([False, True, False, True])
    waited = []
    exporter.offer(
        Step(
            unscored=2,
            stage=stage,
            rows=4,
            describe=lambda slots, positions, scores: (np.zeros(2, ROW), kept),
            states=[StateBlock(5, "ring", 10, 4), StateBlock(6, "ring", 0, 2)],
            streamed=np.array([0, 1, 2, 3, 3, 2], np.int32),
            states_copied=lambda: waited.append(True),
        )
    )
    frame = peer.read()
    assert frame.scores[:, 0].tolist() == [1.0, 3.0]
    assert frame.streamed.tolist() == [-1, 0, -1, 1, 1, -1]
    assert [block.layer for block in frame.header.states] == [5, 6]
    assert waited
    peer.close()


def test_events_go_with_every_frame_until_one_that_had_them_is_confirmed(endpoint, exporter):
    events = [GateEvent(number, "g", "opened", "a-1", "a", number, 1.0, 0) for number in range(FRAME_EVENTS + 2)]

    def numbers() -> list[int]:
        offer(exporter)
        return [event.number for event in peer.read().header.gates]

    exporter.tell(events[:2])
    # Nobody is there: what is refused is told later.
    offer(exporter)
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    assert numbers() == numbers() == [0, 1]
    exporter.tell(events[2:])
    assert numbers() == list(range(FRAME_EVENTS))

    def confirm(sequence: int) -> None:
        peer.socket.send_multipart([b"engine/rank0", *encode_ack(sequence)])
        wait_until(lambda: exporter._acked == sequence)

    # The first frame was dropped; confirming it confirms nothing.
    confirm(0)
    assert numbers() == list(range(FRAME_EVENTS))
    confirm(2)
    assert numbers() == list(range(2, FRAME_EVENTS + 2))
    confirm(5)
    assert numbers() == []
    peer.close()


def test_of_events_that_nobody_confirms_the_oldest_are_lost_and_their_numbers_show_it(endpoint, exporter):
    exporter.tell([GateEvent(number, "g", "opened", "a-1", "a", number, 1.0, 0) for number in range(EVENTS + 3)])
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    offer(exporter)
    assert peer.read().header.gates[0].number == 3
    peer.close()


def test_refusals_go_with_every_frame_until_one_that_had_them_is_confirmed(endpoint, exporter):
    error = OrderError("dose", "A dose of 9 is over the cap.", "Order less.")
    refused = [
        msgspec.structs.replace(refusal(order, error), number=number)
        for number, order in enumerate([Steer("a-1", [Act("v", add=9.0)], id="rule"), Stream(3, "all")])
    ]
    exporter.tell([], refused)
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    offer(exporter)
    header = peer.read().header
    assert header.refused == refused
    assert [(one.order, one.id, one.engine_request_id, one.cause) for one in refused] == [
        ("steer", "rule", "a-1", "dose"),
        ("stream", "", "", "dose"),
    ]
    assert refused[0].reason == "A dose of 9 is over the cap. Order less."
    offer(exporter)
    assert peer.read().header.refused == refused
    peer.socket.send_multipart([b"engine/rank0", *encode_ack(header.sequence)])
    wait_until(lambda: exporter._acked == header.sequence)
    offer(exporter)
    assert peer.read().header.refused == []
    peer.close()


def test_what_the_guard_did_goes_with_every_frame_until_one_that_had_it_is_confirmed(endpoint, exporter):
    guarded = [
        GuardEvent(0, "a-1", "a", 80, 0.9, 0.7, 64, []),
        GuardEvent(1, "b-1", "b", 144, 0.95, 0.7, 64, ["g"]),
    ]
    exporter.tell([], [], guarded)
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    offer(exporter)
    header = peer.read().header
    offer(exporter)
    assert header.guarded == peer.read().header.guarded == guarded
    peer.socket.send_multipart([b"engine/rank0", *encode_ack(header.sequence)])
    wait_until(lambda: exporter._acked == header.sequence)
    offer(exporter)
    assert peer.read().header.guarded == []
    peer.close()


def begins(position: int) -> Begins:
    return Begins(np.array([3]), np.array([1]), np.array([position]))


def test_what_dropped_frames_had_is_known_and_nothing_newer_overtakes_it(endpoint, exporter):
    exporter.offer(Step(unscored=0, begins=begins(7)))
    renewed, (lost,) = exporter.take_losses()
    assert not renewed and lost.positions.tolist() == [7]
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    # Who has just connected may know nothing, so that everything is to be sent again, before anything newer.
    exporter.offer(Step(unscored=0, begins=begins(8)))
    assert exporter.dropped == 2
    renewed, lost = exporter.take_losses()
    assert renewed and [one.positions.tolist() for one in lost] == [[8]]
    exporter.offer(Step(unscored=0, begins=begins(0)))
    header = peer.read().header
    assert (header.sequence, header.complete, header.started) == (2, True, IN_FLIGHT)
    assert exporter.take_losses() == (False, [])
    # So has one that asks for everything.
    peer.socket.send_multipart([b"engine/rank0", RESYNC])
    wait_until(lambda: exporter.renewals == 2)
    exporter.offer(Step(unscored=0, begins=begins(9)))
    renewed, lost = exporter.take_losses()
    assert renewed and [one.positions.tolist() for one in lost] == [[9]]
    peer.close()


def test_a_sender_that_raises_anything_begins_again(endpoint, exporter, caplog):
    peer = Peer(endpoint)
    wait_until(lambda: not exporter._away)
    frame, left = exporter._frame, [3]

    def fail(*arguments):
        if left[0]:
            left[0] -= 1
            raise MemoryError("injected")
        return frame(*arguments)

    exporter._frame = fail
    for faults in (1, 2, 3):
        offer(exporter)
        wait_until(lambda faults=faults: exporter._faults.count == faults)
        wait_until(lambda: not exporter._away)
    offer(exporter)
    header = peer.read().header
    assert (header.sequence, header.dropped, header.complete, header.faults) == (3, 3, True, 3)
    assert "plumbob-exporter: MemoryError at test_link.py" in header.fault and "injected" not in header.fault
    assert caplog.text.count("plumbob-exporter failed and begins again") == 1
    assert exporter._staging.free == DEPTH
    peer.close()


def test_an_inbox_that_raises_anything_begins_again_and_says_so(endpoint):
    inbox = OrderInbox(endpoint, Hello(VERSION, "engine", "model", "digest", "0.32.0"))
    peer = Peer(endpoint)
    receive, left = inbox._receive, [1]

    def fail(socket):
        if left[0]:
            left[0] -= 1
            raise ZeroDivisionError
        return receive(socket)

    inbox._receive = fail
    assert peer.read().faults == 0
    order = Steer("a-1", [Act("v", add=0.1)])
    peer.socket.send_multipart([b"engine/core", *encode_order(order)])
    hello = peer.read()
    assert hello.faults == 1 and "plumbob-orders: ZeroDivisionError" in hello.fault
    inbox.running, inbox.steps = 2, 17
    peer.socket.send_multipart([b"engine/core", *encode_order(order)])
    wait_until(inbox.take)
    hello = peer.read()
    assert (hello.running, hello.steps) == (2, 17)
    inbox.close()
    peer.close()
