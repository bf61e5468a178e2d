"""What a worker computes, without its process; and that its packets fit through the socket."""

import socket
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.wire.frames import StateBlock
from monitor.wire.ring import StateWriter
from monitor.workers import rings as ring_module
from monitor.workers.messages import (
    PACKET_BYTES,
    RECEIVE_BYTES,
    Answer,
    Job,
    Outcome,
    answer_arrays,
    decode_job,
    decode_reply,
    encode,
    job_rows,
    rows_per_job,
)
from monitor.workers.rings import Rings
from monitor.workers.scoring import Scoring
from tests.harness.bundles import HIDDEN
from tests.workers.conftest import names
from tests.workers.readers import Summing

numbers = count(1)


@pytest.fixture
def scoring(bundle):
    return Scoring([(worker.probe, Summing()) for worker in bundle.worker_probes])


@pytest.fixture
def writer(rings):
    writer = StateWriter(next(names), 2, HIDDEN, "float32", 512, rings)
    yield writer
    writer.close()


def put(writer, values) -> StateBlock:
    """States whose first elements are ``values``."""
    states = np.zeros((len(values), HIDDEN), np.float32)
    states[:, 0] = values
    start, done = writer.reserved, 0
    for position, rows in writer.reserve(len(values)):
        writer.view[position : position + rows] = states[done : done + rows]
        done += rows
    return StateBlock(2, str(writer.path), start, len(values))


def job(writer, requests, values, ended=(), probes=3) -> Job:
    """Rows of layer 2, for its two probes."""
    reads = np.zeros((len(requests), probes), bool)
    reads[:, :2] = True
    return Job(
        number=next(numbers),
        blocks=[put(writer, values)],
        requests=np.array(requests, np.int64).tobytes(),
        states=np.arange(len(requests), dtype=np.int32).tobytes(),
        reads=reads.tobytes(),
        ended=list(ended),
    )


def scores_of(answer: Answer, rows: int):
    scores, outcomes = answer_arrays(answer, (rows, 3))
    assert np.isnan(scores[:, 2]).all() and (outcomes == Outcome.READ).all()
    assert np.array_equal(scores[:, 0], scores[:, 1])
    return scores[:, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_jobs_scored_together_or_apart_are_the_same(bundle, rings, seed, sizes):
    random = np.random.default_rng(seed)
    writer = StateWriter(next(names), 2, HIDDEN, "float32", 512, rings)
    readers = [(worker.probe, Summing()) for worker in bundle.worker_probes]
    together, apart, expected = Scoring(readers), Scoring(readers), {}
    jobs, wanted = [], []
    for size in sizes:
        requests = np.sort(random.integers(1, 4, size))
        values = random.integers(-9, 9, size)
        jobs.append(job(writer, requests, values))
        for request, value in zip(requests, values, strict=True):
            expected[request] = expected.get(request, 0) + value
            wanted.append(expected[request])
    merged = together.score([together.take(each) for each in jobs])
    single = [apart.score([apart.take(each)])[0] for each in jobs]
    assert [answer.number for answer in merged] == [each.number for each in jobs]
    for answers in (merged, single):
        found = np.concatenate([scores_of(answer, size) for answer, size in zip(answers, sizes, strict=True)])
        assert found.tolist() == wanted
    assert len(together) == len(apart) == len(expected)
    writer.close()


def test_a_request_that_ended_is_forgotten_after_its_job(scoring, writer):
    def run(*jobs):
        return [scores_of(answer, 1)[0] for answer in scoring.score([scoring.take(each) for each in jobs])]

    assert run(job(writer, [1], [5]), job(writer, [1], [6], ended=[1])) == [5, 11]
    assert len(scoring) == 0
    assert run(job(writer, [1], [7])) == [7]


def test_states_are_taken_before_they_are_scored(scoring, writer):
    taken = scoring.take(job(writer, [1], [5]))
    for _ in range(3):
        put(writer, range(512))
    (answer,) = scoring.score([taken])
    assert scores_of(answer, 1) == [5]
    late = job(writer, [1], [6])
    put(writer, range(512))
    (answer,) = scoring.score([scoring.take(late)])
    _, outcomes = answer_arrays(answer, (1, 3))
    assert outcomes.tolist() == [[Outcome.OVERTAKEN, Outcome.OVERTAKEN, Outcome.READ]]


def test_a_ring_that_was_made_again_is_opened_again(rings):
    open_rings, engine = Rings(), next(names)
    for value in (1, 2):
        writer = StateWriter(engine, 2, HIDDEN, "float32", 8, rings)
        assert open_rings.read(put(writer, [value]))[0, 0] == value
        writer.close()


def test_a_ring_of_another_layer_is_not_read(writer):
    block = put(writer, [1])
    other = StateBlock(3, block.path, block.start, block.rows)
    assert Rings().read(other) is Outcome.UNREADABLE


def test_rings_of_engines_that_are_gone_are_let_go_of(rings):
    gone, here = (StateWriter(next(names), 2, HIDDEN, "float32", 8, rings) for _ in range(2))
    open_rings, blocks = Rings(), [put(gone, [1]), put(here, [2])]
    for block in blocks:
        open_rings.read(block)
    gone.close()
    assert open_rings.read(blocks[0])[0, 0] == 1, "what is open can still be read"
    open_rings.sweep()
    assert open_rings.read(blocks[0]) is Outcome.UNREADABLE
    assert open_rings.read(blocks[1])[0, 0] == 2
    here.close()


def test_open_rings_are_bounded(rings, monkeypatch):
    monkeypatch.setattr(ring_module, "MAX_RINGS", 2)
    writers = [StateWriter(next(names), 2, HIDDEN, "float32", 8, rings) for _ in range(3)]
    open_rings = Rings()
    for writer in writers:
        open_rings.read(put(writer, [1]))
    assert list(open_rings._open) == [str(writer.path) for writer in writers[1:]]
    for writer in writers:
        writer.close()


@pytest.mark.parametrize(("layers", "probes"), [(1, 1), (2, 3), (1, 64), (64, 64)])
def test_the_largest_packets_fit_through_a_socket(layers, probes):
    rows = rows_per_job(layers, probes)
    assert rows >= 1
    sent = Job(
        number=2**62,
        blocks=[
            StateBlock(layer, f"/dev/shm/plumbob-{'e' * 64}-{layer}.states", 2**62, rows) for layer in range(layers)
        ],
        requests=np.arange(rows, dtype=np.int64).tobytes(),
        states=np.zeros((layers, rows), np.int32).tobytes(),
        reads=np.ones((rows, probes), bool).tobytes(),
        ended=[2**62] * 1024,
    )
    answer = Answer(1, np.zeros((rows, probes)).tobytes(), np.zeros((rows, probes), np.uint8).tobytes())
    assert max(8 + 4 * layers + probes, 9 * probes) * (rows + 1) > PACKET_BYTES, "no smaller than it has to be"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        ours.sendall(encode(sent))
        received = decode_job(theirs.recv(RECEIVE_BYTES))
        assert received == sent
        assert job_rows(received, probes).reads.shape == (rows, probes)
        theirs.sendall(encode(answer))
        assert decode_reply(ours.recv(RECEIVE_BYTES)) == answer
