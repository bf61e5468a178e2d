"""What happens when workers die, hang, fail or fall behind: it is counted, and the verdicts go on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from monitor.events import ProbeFired, RequestFinished
from monitor.wire.frames import Started
from monitor.workers import WorkerPool, queue
from monitor.workers import pool as pools
from probes.scoring.aggregate import running
from probes.scoring.roles import Role
from tests.harness.bundles import HIDDEN
from tests.workers.conftest import LAYERS, WORKER_PROBES, by_probe, make_worker_bundle, rows_of
from tests.workers.readers import EXIT, RAISE, SHAPE, SLEEP

NAMES = [name for name, *_ in WORKER_PROBES]
SUMMED = "sandbagging"
AGGREGATE = WORKER_PROBES[2][4]


class Clock:
    """Stands still between two looks, unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def pool(bundle, clock):
    pool = WorkerPool(bundle, readers="tests.workers.readers:summing", clock=clock)
    yield pool
    pool.close()


@pytest.fixture
def house(make_house, clock, pool):
    """A monitor whose one worker runs, whatever the test before has done to it."""
    house = make_house()
    revive(house, clock)
    house.stats.worker_restarts.clear()
    return house


def revive(house, clock) -> None:
    """Wait until the worker runs and has nothing to do, as time goes by."""
    house.until(lambda: all(place.queue is None or place.queue.idle for place in house.pool._places))
    clock.now += pools.LONGEST_PAUSE_SECONDS
    house.until(lambda: house.pool.running == 1)


def states(values, at=None, what=0.0, seconds=0.0):
    """States whose first elements are ``values``; that of token ``at`` tells the reader what to do."""
    made = np.zeros((len(LAYERS), len(values), HIDDEN), np.float32)
    made[:, :, 0] = values
    if at is not None:
        # Only in one layer: the probes of the other are not touched by it.
        made[1, at, 1:3] = what, seconds
    return made


def assistant(positions, slot=0):
    return rows_of(slot, positions, Role.ASSISTANT)


def peak_of(*sums) -> float:
    return float(running(np.concatenate([np.cumsum(part) for part in sums]), AGGREGATE).max())


@contextmanager
def stopped(house):
    """The worker does nothing meanwhile, for as long as it takes."""
    (pid,) = house.pool.pids
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_worker_that_is_killed_is_started_again_and_its_probes_begin_anew(house, clock):
    engine = house.engine()
    engine.frame(started=[Started(0, "a", "user-a", 1), Started(1, "b", "user-b", 1)])
    engine.frame(assistant(range(4)), states([1, 2, 3, 4]))
    house.settle()
    (pid,) = house.pool.pids
    os.kill(pid, signal.SIGKILL)
    house.until(lambda: house.stats.worker_restarts)
    assert house.stats.worker_restarts == {("ended",): 1}
    assert house.stats.worker_carries_lost == {("tiny",): 1}, "of the other request nothing was remembered"
    assert house.monitor.status().workers_running == 0
    engine.frame(assistant([4, 5]), states([50, 60]))
    assert house.unscored() == {(name, "worker_down"): 2 for name in NAMES}
    revive(house, clock)
    assert house.pool.pids != [pid]
    engine.frame(assistant([6, 7]), states([7, 8]))
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    reading = by_probe(finished)[SUMMED]
    assert (reading.tokens, reading.unscored) == (6, 2)
    assert reading.peak == pytest.approx(peak_of([1, 2, 3, 4], [7, 8]))


def test_what_waited_for_a_worker_that_dies_is_unscored_and_holds_nobody_up(house):
    engine = house.engine()
    engine.start()
    engine.frame(assistant(range(3)), states([1, 2, 3], 1, SLEEP, 60.0))
    engine.frame(assistant(range(3, 5)), states([4, 5]))
    engine.frame(finished=[0])
    house.monitor.tick()
    assert house.events(RequestFinished) == []
    os.kill(house.pool.pids[0], signal.SIGKILL)
    (finished,) = house.until(lambda: house.events(RequestFinished))
    assert [(by_probe(finished)[name].tokens, by_probe(finished)[name].unscored) for name in NAMES] == [(0, 5)] * 3
    assert house.stats.worker_carries_lost == {}, "the request had ended"


def test_a_state_that_ends_the_worker_costs_no_more_than_what_waited(house, clock):
    engine = house.engine()
    engine.start()
    engine.frame(assistant(range(2)), states([1, 2]))
    house.settle()
    engine.frame(assistant([2]), states([3], 0, EXIT))
    house.until(lambda: house.stats.worker_restarts)
    revive(house, clock)
    engine.frame(assistant([3]), states([4]))
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    assert [(by_probe(finished)[name].tokens, by_probe(finished)[name].unscored) for name in NAMES] == [(3, 1)] * 3


def test_a_worker_that_hangs_is_killed(house, clock):
    engine = house.engine()
    engine.start()
    engine.frame(assistant([0]), states([1], 0, SLEEP, 600.0))
    (pid,) = house.pool.pids
    clock.now += pools.STUCK_SECONDS - 0.1
    house.monitor.tick()
    assert house.stats.worker_restarts == {}
    clock.now += 0.2
    house.monitor.tick()
    assert house.stats.worker_restarts == {("stuck",): 1}
    assert house.unscored() == {(name, "worker_down"): 1 for name in NAMES}
    house.until(lambda: ended(pid))


def test_a_worker_without_work_is_not_stuck(house, clock):
    clock.now += 10 * pools.STUCK_SECONDS
    house.monitor.tick()
    engine = house.engine()
    engine.start()
    engine.frame(assistant([0]), states([1]))
    house.monitor.tick()
    house.settle()
    assert house.stats.worker_restarts == {}


def test_a_full_queue_is_unscored_and_linear_verdicts_go_on(house, monkeypatch):
    monkeypatch.setattr(queue, "QUEUE_ROWS", 10)
    engine = house.engine()
    engine.start()
    with stopped(house):
        engine.frame(assistant([0]), states([1]))
        engine.frame(assistant(range(1, 9)), states(range(1, 9)))
        engine.frame(assistant(range(9, 12)), states(range(3)), 9.0)
    assert house.unscored() == {(name, "queue_full"): 3 for name in NAMES}
    assert {event.probe for event in house.events(ProbeFired)} >= {"toxicity", "sycophancy"}
    house.settle()
    engine.frame(assistant([12]), states([1]))
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    assert [(by_probe(finished)[name].tokens, by_probe(finished)[name].unscored) for name in NAMES] == [(10, 3)] * 3


def test_jobs_that_wait_are_bounded_too(house, monkeypatch):
    monkeypatch.setattr(queue, "QUEUE_JOBS", 3)
    engine = house.engine()
    engine.start()
    with stopped(house):
        for position in range(6):
            engine.frame(assistant([position]), states([1]))
    assert house.unscored() == {(name, "queue_full"): 3 for name in NAMES}
    house.settle()


def test_more_than_the_socket_takes_waits_in_order(house):
    engine = house.engine(capacity=20_000)
    tokens = 3000
    engine.start()
    with stopped(house):
        for position in range(400):
            engine.frame(assistant([position]), states([1]))
        engine.frame(assistant(range(400, tokens)), states(np.ones(tokens - 400)))
        assert house.pool._places[0].queue._unsent, "otherwise the test shows less than it says"
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished), 60)
    assert by_probe(finished)[SUMMED].tokens == tokens
    assert by_probe(finished)[SUMMED].peak == pytest.approx(peak_of(np.ones(tokens)))


def test_a_finished_request_waits_no_longer_than_the_deadline(house):
    engine = house.engine()
    engine.start()
    engine.frame(assistant(range(2)), states([1, 2]))
    house.settle()
    with stopped(house):
        engine.frame(assistant([2]), states([3]))
        engine.frame(finished=[0])
        house.monitor.tick()
        assert house.events(RequestFinished) == []
        house.ahead += 2.5
        house.monitor.tick()
        (finished,) = house.events(RequestFinished)
    assert [(by_probe(finished)[name].tokens, by_probe(finished)[name].unscored) for name in NAMES] == [(2, 1)] * 3
    assert house.unscored() == {(name, "late"): 1 for name in NAMES}
    before = house.stats.worker_tokens_scored.copy()
    # Its answer is nobody's, and the next request of the same row has nothing of it.
    engine.start(key="b")
    engine.frame(assistant([0]), states([9]))
    engine.frame(finished=[0])
    finished = house.until(lambda: house.events(RequestFinished)[1:])[0]
    assert (by_probe(finished)[SUMMED].tokens, by_probe(finished)[SUMMED].peak) == (1, 9.0)
    assert sum(house.stats.worker_tokens_scored.values()) == sum(before.values()) + 3


def test_finished_requests_that_wait_are_bounded(house, monkeypatch):
    monkeypatch.setattr("monitor.workers.reading.MAX_HELD", 2)
    engine = house.engine()
    engine.frame(started=[Started(slot, f"{slot}", f"user-{slot}", 1) for slot in range(4)])
    with stopped(house):
        engine.frame([row for slot in range(4) for row in assistant([0], slot)], states([1, 2, 3, 4]))
        engine.frame(finished=[0, 1, 2, 3])
    assert [event.request.engine_request_id for event in house.events(RequestFinished)] == ["0", "1"]
    house.until(lambda: len(house.events(RequestFinished)) == 4)
    assert house.unscored() == {(name, "late"): 2 for name in NAMES}


def test_a_monitor_that_closes_tells_of_the_requests_that_wait(bundle, make_house, clock):
    own = WorkerPool(bundle, readers="tests.workers.readers:summing")
    house = make_house(pool=own)
    engine = house.engine()
    engine.start()
    house.until(lambda: own.running)
    engine.frame(assistant([0]), states([1], 0, SLEEP, 60.0))
    engine.frame(finished=[0])
    house.monitor.close()
    (finished,) = house.events(RequestFinished)
    assert by_probe(finished)[SUMMED].unscored == 1
    assert own.pids == []


@pytest.mark.parametrize("what", [RAISE, SHAPE])
def test_a_probe_that_fails_begins_anew_and_the_others_go_on(house, what):
    engine = house.engine()
    engine.start()
    engine.frame(assistant([0, 1]), states([1, 2]))
    house.settle()
    engine.frame(assistant([2, 3]), states([3, 4], 1, what))
    house.settle()
    engine.frame(assistant([4, 5]), states([5, 6]))
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    assert house.unscored() == {(SUMMED, "failed"): 2}
    assert [by_probe(finished)[name].tokens for name in NAMES] == [6, 6, 4]
    assert by_probe(finished)[SUMMED].peak == pytest.approx(peak_of([1, 2], [5, 6]))
    assert house.stats.worker_restarts == {}


def test_workers_ignore_the_terminals_interrupt(house):
    os.kill(house.pool.pids[0], signal.SIGINT)
    engine = house.engine()
    engine.start()
    engine.frame(assistant([0]), states([1]))
    house.settle()
    assert house.stats.worker_restarts == {} and house.unscored() == {}


def test_what_has_ended_is_forgotten_without_another_job(house):
    engine = house.engine()
    engine.start()
    engine.frame(assistant([0]), states([1]))
    engine.frame(finished=[0])
    house.until(lambda: house.events(RequestFinished))
    place = house.pool._places[0]
    house.until(lambda: not place.queue._ended and place.queue.idle)


@pytest.mark.parametrize(("readers", "fault"), [("too_few", "stuck"), ("broken", "ended")])
def test_a_worker_that_cannot_read_is_started_again_after_ever_longer_pauses(bundle, readers, fault, capfd):
    clock = Clock()
    pool = WorkerPool(bundle, readers=f"tests.workers.readers:{readers}", clock=clock)
    try:
        for pause in (0.5, 1.0, 2.0):
            deadline, lost = time.monotonic() + 20, []
            while not lost:
                assert time.monotonic() < deadline
                time.sleep(0.01)
                lost = pool.collect()
            assert [each.fault for each in lost] == [fault]
            assert pool.running == 0 and pool.pids == []
            clock.now += pause - 0.01
            pool.tick()
            assert pool.pids == []
            clock.now += 0.02
            pool.tick()
            assert len(pool.pids) == 1
    finally:
        pool.close()
    if readers == "broken":
        assert "these readers cannot be loaded" in capfd.readouterr().err


def test_a_bundle_that_was_replaced_is_not_read(tmp_path, capfd):
    bundle = make_worker_bundle(tmp_path)
    make_worker_bundle(tmp_path, [*WORKER_PROBES[:2], ("sandbagging", 3, ["user"], 0.0, AGGREGATE)])
    pool = WorkerPool(bundle)
    try:
        deadline = time.monotonic() + 20
        while not pool.collect():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        pool.close()
    assert "has changed since the monitor read it. Restart the monitor." in capfd.readouterr().err


def test_a_pool_needs_a_worker(bundle):
    with pytest.raises(ValueError, match="0 workers"):
        WorkerPool(bundle, workers=0)


def test_workers_end_with_a_monitor_that_is_killed(bundle):
    script = f"""
import os, signal, time
from monitor.workers import WorkerPool
from probes.bundle import load_bundle
bundle = load_bundle({str(bundle.path)!r})
pool = WorkerPool(bundle, workers=2)
while pool.running < 2:
    pool.collect()
    time.sleep(0.01)
print(*pool.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.returncode == -signal.SIGKILL
    pids = list(map(int, run.stdout.split()))
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while not all(map(ended, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
