"""Worker probes from frame to verdict, with real workers and rings."""

import asyncio
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from monitor.events import Alert, Intervention, ProbeFired, RequestFinished
from monitor.ingest import Arrival, MemorySource
from monitor.policy import AlertAction, Policy, Rule, SteerAction, Steering, default_policy, load_policy
from monitor.service.monitor import Monitor
from monitor.wire.codec import encode_frame, encode_hello
from monitor.wire.frames import VERSION as FRAMES
from monitor.wire.frames import Hello, Started, StateBlock
from monitor.wire.orders import Act, Steer, Stream
from probes.scoring.aggregate import running
from probes.scoring.roles import Role
from tests.harness.bundles import HIDDEN
from tests.workers.conftest import LAYERS, LINEAR, WORKER_PROBES, Engine, by_probe, rows_of

USER, ASSISTANT, TEMPLATE = Role.USER, Role.ASSISTANT, Role.TEMPLATE
NAMES = [name for name, *_ in WORKER_PROBES]
CLOSE = 1e-4
"""float32 products of a few rows at a time are not to the last bit those of all at once: 2**-24 of values up to 100,
added up over two layers of eight."""


def states_of(random, rows):
    return (2 * random.normal(size=(len(LAYERS), rows, HIDDEN))).astype(np.float32)


def offline(bundle, states, roles, scored):
    """Peak, number of tokens and where it fired, of each worker probe, from all of a request at once.

    Args:
        states: Shape ``(layers, tokens, hidden)``.
        roles: Shape ``(tokens,)``.
        scored: Which tokens came with their states, shape ``(tokens,)``.
    """
    result = {}
    for worker in bundle.worker_probes:
        probe = worker.probe
        read = np.flatnonzero(np.array([probe.reads(Role(role)) for role in roles]) & scored)
        of_layer = states[LAYERS.index(probe.layer)][read]
        scores = worker.reader.scores(of_layer, worker.reader.begin()) if len(read) else np.empty(0)
        aggregate = running(scores, probe.aggregate)
        over = np.flatnonzero(aggregate >= probe.threshold)
        peak = float(aggregate.max()) if len(read) and aggregate.max() > -np.inf else None
        result[probe.name] = (peak, len(read), int(read[over[0]]) if len(over) else None)
    return result


@pytest.mark.parametrize("seed", range(6))
def test_any_interleaving_equals_offline(house, seed):
    """Random chunks of requests of two engines, replays, cached tokens, slots used again: each verdict is that of the
    request's tokens alone."""
    random = np.random.default_rng(seed)
    engines = [house.engine(), house.engine()]
    expected, fired_somewhere = {}, False
    for wave in range(2):
        waiting = []
        for engine in engines:
            slots = range(int(random.integers(2, 6)))
            engine.frame(started=[Started(slot, f"{wave}-{slot}", f"user-{wave}-{slot}", 1) for slot in slots])
            for slot in slots:
                tokens = int(random.integers(1, 150))
                roles = random.choice([USER, ASSISTANT, TEMPLATE], tokens, p=[0.3, 0.6, 0.1])
                states, scored = states_of(random, tokens), random.random(tokens) > 0.05
                waiting.append([engine, slot, 0, tokens, roles, states, scored])
                expected[engine.name, f"{wave}-{slot}"] = offline(house.bundle, states, roles, scored), roles, scored
        while waiting:
            for engine in engines:
                mine = [each for each in waiting if each[0] is engine]
                rows, parts = [], []
                for each in mine:
                    _, slot, done, tokens, roles, states, scored = each
                    # A preempted request is computed again from its start, or from somewhere.
                    begin = int(random.integers(0, done + 1)) if random.random() < 0.1 else done
                    count = min(int(random.choice([1, 1, 1, 40])), tokens - done) + done - begin
                    for position in range(begin, begin + count):
                        row = (slot, position, roles[position], 0)
                        if scored[position]:
                            rows.append(row)
                            parts.append(states[:, position])
                        else:
                            # Of the prefix cache: told by a frame of its own, ahead of what was computed after it.
                            if rows:
                                engine.frame(rows, np.stack(parts, axis=1))
                                rows, parts = [], []
                            engine.frame([row])
                    each[2] = begin + count
                if rows:
                    engine.frame(rows, np.stack(parts, axis=1))
            waiting = [each for each in waiting if each[2] < each[3]]
        for engine in engines:
            slots = {int(key.split("-")[1]) for name, key in expected if name == engine.name and key[0] == str(wave)}
            engine.frame(finished=sorted(slots))
    finished = house.until(lambda: (found := house.events(RequestFinished)) and len(found) == len(expected) and found)
    fired = {
        (e.request.engine, e.request.engine_request_id, e.probe): e
        for e in house.events(ProbeFired)
        if e.probe in NAMES
    }
    for event in finished:
        request = event.request
        verdicts, roles, scored = expected[request.engine, request.engine_request_id]
        assert [reading.probe for reading in event.readings] == [*LINEAR, *NAMES]
        for worker in house.bundle.worker_probes:
            probe, reading = worker.probe, by_probe(event)[worker.probe.name]
            peak, tokens, at = verdicts[probe.name]
            mine = np.array([probe.reads(Role(role)) for role in roles])
            assert (reading.tokens, reading.unscored) == (tokens, int((mine & ~scored).sum()))
            assert reading.peak == (None if peak is None else pytest.approx(peak, rel=CLOSE, abs=CLOSE))
            assert reading.fired_at == at
            event_fired = fired.get((request.engine, request.engine_request_id, probe.name))
            assert (event_fired.position if event_fired else None) == at
            if event_fired:
                fired_somewhere = True
                assert event_fired.role == Role(roles[at]).name.lower()
                assert event_fired.threshold <= event_fired.aggregate
    assert fired_somewhere, "the test would show less than it says"
    assert {reason for _, reason in house.unscored()} == {"no_states"}
    scored_tokens = sum(reading.tokens for event in finished for reading in event.readings if reading.probe in NAMES)
    assert sum(house.stats.worker_tokens_scored.values()) == scored_tokens


def test_replays_count_once(house):
    random = np.random.default_rng(0)
    engine, states = house.engine(), states_of(random, 12)
    engine.start(prompt_tokens=4)
    engine.frame(rows_of(0, range(10), ASSISTANT), states[:, :10])
    engine.frame(rows_of(0, range(6), ASSISTANT), states_of(random, 6))
    engine.frame(rows_of(0, range(6, 12), ASSISTANT), states[:, 6:])
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    verdicts = offline(house.bundle, states, np.full(12, ASSISTANT), np.ones(12, bool))
    for name, (peak, tokens, _) in verdicts.items():
        assert by_probe(finished)[name].tokens == tokens == 12
        assert by_probe(finished)[name].peak == pytest.approx(peak, rel=CLOSE, abs=CLOSE)


def test_a_slot_that_is_used_again_begins_anew(house):
    random = np.random.default_rng(1)
    engine = house.engine()
    first, second = states_of(random, 8), states_of(random, 8)
    engine.start(key="first")
    engine.frame(rows_of(0, range(8), ASSISTANT), first)
    # Ended and followed within one frame, that has rows of the second.
    engine.frame(
        rows_of(0, range(8), ASSISTANT), second, finished=[0], started=[Started(0, "second", "user-second", 1)]
    )
    engine.frame(finished=[0])
    finished = house.until(lambda: len(house.events(RequestFinished)) == 2 and house.events(RequestFinished))
    for event, states in zip(finished, (first, second), strict=True):
        for name, (peak, tokens, at) in offline(house.bundle, states, np.full(8, ASSISTANT), np.ones(8, bool)).items():
            reading = by_probe(event)[name]
            assert (reading.tokens, reading.fired_at) == (tokens, at)
            assert reading.peak == pytest.approx(peak, rel=CLOSE, abs=CLOSE)
    assert len(house.monitor._workers) == 0


def test_steered_rows_and_other_roles_are_not_read(house):
    random = np.random.default_rng(2)
    engine, states = house.engine(), states_of(random, 6)
    engine.start()
    roles = [USER, TEMPLATE, Role.SYSTEM, ASSISTANT, ASSISTANT, 200]
    engine.frame([(0, position, role, int(position == 4)) for position, role in enumerate(roles)], states)
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    assert [by_probe(finished)[name].tokens for name in NAMES] == [2, 1, 1]
    assert [by_probe(finished)[name].unscored for name in NAMES] == [0, 0, 0]
    read = offline(house.bundle, states, [*roles[:4], TEMPLATE, TEMPLATE], np.ones(6, bool))
    assert by_probe(finished)["concealment"].peak == pytest.approx(read["concealment"][0], rel=CLOSE, abs=CLOSE)


def test_a_request_without_any_row_has_empty_readings(house):
    engine = house.engine()
    engine.start(prompt_tokens=5)
    engine.frame(finished=[0])
    (finished,) = house.events(RequestFinished)
    assert [(reading.tokens, reading.peak) for reading in finished.readings] == [(0, None)] * 6
    assert finished.unscored == 5


def test_large_steps_are_divided_into_several_jobs(house):
    random = np.random.default_rng(3)
    rows = 2 * house.pool.rows_per_job + 100
    engine, states = house.engine(capacity=8192), states_of(random, rows)
    assert rows < 8192
    engine.start(prompt_tokens=rows)
    engine.frame(rows_of(0, range(rows), USER), states)
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    peak, tokens, at = offline(house.bundle, states, np.full(rows, USER), np.ones(rows, bool))["concealment"]
    reading = by_probe(finished)["concealment"]
    assert (reading.tokens, reading.fired_at) == (tokens, at)
    assert reading.peak == pytest.approx(peak, rel=CLOSE, abs=CLOSE)


def test_the_linear_verdict_waits_for_nothing(house):
    engine = house.engine()
    engine.start()
    engine.frame(rows_of(0, range(3), ASSISTANT), states_of(np.random.default_rng(4), 3), 9.0)
    # Nothing was collected: only what this call itself has done is here.
    assert {event.probe for event in house.events(Alert)} == {"toxicity", "sycophancy"}
    house.settle()


def firing(house, engine, random):
    """States of a request of eight tokens in which ``concealment`` fires."""
    while True:
        states = states_of(random, 8)
        if offline(house.bundle, states, np.full(8, USER), np.ones(8, bool))["concealment"][2] is not None:
            return states


def test_a_rule_may_name_a_worker_probe(make_house, bundle, tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\nrules:\n"
        "  - name: rule\n    when: {probe: concealment}\n    mode: enforce\n    actions:\n"
        "      - alert: {severity: critical}\n      - steer: {vector: sycophancy, dose: -0.2}\n"
    )
    house = make_house(policy=load_policy(path, bundle))
    engine = house.engine()
    house.orders()
    engine.start(key="k")
    engine.frame(rows_of(0, range(8), USER), firing(house, engine, np.random.default_rng(5)))
    (alert,) = house.until(lambda: house.events(Alert))
    assert (alert.rule, alert.probe, alert.severity) == ("rule", "concealment", "critical")
    ((name, order),) = house.orders(Steer)
    assert (name, order.engine_request_id, order.acts) == (engine.name, "k", [Act("sycophancy", add=-0.2)])
    assert [event.sent for event in house.events(Intervention)] == [True]
    assert house.stats.probe_fired["tiny", "concealment"] == 1


def test_a_probe_that_fires_after_the_end_alerts_and_steers_nothing(make_house, bundle):
    actions = (SteerAction(Steering("sycophancy", dose=-0.2)), AlertAction("critical"))
    house = make_house(policy=Policy("test", "", (Rule("rule", "concealment", (), "enforce", actions),)))
    engine = house.engine()
    house.orders()
    engine.start()
    engine.frame(rows_of(0, range(8), USER), firing(house, engine, np.random.default_rng(6)))
    engine.frame(finished=[0])
    assert house.events(RequestFinished) == [], "it waits for its workers"
    (finished,) = house.until(lambda: house.events(RequestFinished))
    kinds = [type(event) for event in house.sink.events if not isinstance(event, ProbeFired)][-3:]
    assert kinds == [Intervention, Alert, RequestFinished]
    (intervention,), (alert,) = house.events(Intervention), house.events(Alert)
    assert (intervention.mode, intervention.sent) == ("shadow", False)
    assert intervention.reason.endswith("held to shadow: the request had ended")
    assert alert.mode == "enforce"
    assert house.orders(Steer) == []
    assert by_probe(finished)["concealment"].fired


def test_the_default_policy_alerts_on_worker_probes(bundle):
    assert [rule.probe for rule in default_policy(bundle).rules] == [*LINEAR, *NAMES]


def test_streaming_is_ordered_at_connect_and_again_after_a_loss(house):
    engine = house.engine()
    streams = [(engine.name, Stream(layer, "all")) for layer in LAYERS]
    assert house.orders(Stream) == streams
    engine.hello()
    assert house.orders(Stream) == [], "once is enough"
    house.ahead += 6
    house.monitor.tick()
    engine.hello()
    assert house.orders(Stream) == streams


def test_an_order_to_stream_that_was_not_sent_is_sent_later(house):
    away = f"{next_name(house)}/core".encode()
    house.source.away.add(away)
    engine = house.engine()
    assert f"{engine.name}/core".encode() == away
    assert house.orders(Stream) == []
    house.source.away.clear()
    engine.hello()
    assert len(house.orders(Stream)) == 2


def next_name(house) -> str:
    """The id of the engine after this one."""
    spent = Engine(house)
    spent.close()
    stem, number = spent.name.rsplit("x", 1)
    return f"{stem}x{int(number) + 1}"


def test_an_engine_with_another_bundle_is_not_ordered_to_stream(house):
    engine = Engine(house)
    house.engines.append(engine)
    hello = Hello(FRAMES, engine.name, "tiny", "f" * 64, "0.32.0")
    house.source.put(f"{engine.name}/core".encode(), encode_hello(hello))

    async def first():
        return await anext(aiter(house.source))

    house.monitor.receive(asyncio.run(first()))
    assert house.orders(Stream) == []


def test_rows_that_were_overwritten_are_overtaken(house):
    engine = house.engine(capacity=16)
    random = np.random.default_rng(7)
    engine.start()
    sent = [
        engine.frame(rows_of(0, range(at, at + 8), ASSISTANT), states_of(random, 8), sent=False) for at in (0, 8, 16)
    ]
    for frame in sent:
        house.monitor.receive(Arrival(f"{engine.name}/rank0".encode(), frame))
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    assert house.unscored() == {(name, "overtaken"): 8 for name in NAMES}
    assert [(by_probe(finished)[name].tokens, by_probe(finished)[name].unscored) for name in NAMES] == [(16, 8)] * 3
    (status,) = house.monitor.status().engines
    assert status.worker_unscored == 24


def test_rings_that_cannot_be_read_are_told(house, tmp_path):
    engine = house.engine()
    random = np.random.default_rng(8)
    engine.start()
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    good = engine.frame(rows_of(0, range(2), ASSISTANT), states_of(random, 2), sent=False)
    for number, (path, start) in enumerate([(str(tmp_path / "gone"), 0), (str(tmp_path / "rubbish"), 0), ("", 1)]):
        blocks = [
            StateBlock(block.layer, path or block.path, start * (block.start + 10**6), block.rows)
            for block in good.header.states
        ]
        rows = good.rows.copy()
        rows["position"] += 2 * number
        header = msgspec.structs.replace(good.header, states=blocks, sequence=engine.sequence)
        engine.sequence += 1
        frame = type(good)(header, rows, good.scores, good.streamed)
        house.monitor.receive(Arrival(f"{engine.name}/rank0".encode(), frame))
    house.settle()
    assert house.unscored() == {(name, "unreadable"): 6 for name in NAMES}


def test_states_that_are_not_finite_are_not_read(house):
    engine = house.engine()
    states = states_of(np.random.default_rng(9), 5)
    states[0, 2] = np.nan
    engine.start()
    engine.frame(rows_of(0, range(5), ASSISTANT), states)
    engine.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    assert [by_probe(finished)[name].tokens for name in NAMES] == [4, 4, 5]
    assert [by_probe(finished)[name].unscored for name in NAMES] == [1, 1, 0]
    assert {probe: count for (_, probe), count in house.stats.scores_invalid.items()} == {
        "concealment": 1,
        "scheming": 1,
    }


def test_what_comes_for_an_engine_that_was_lost_is_nobodys(house):
    random = np.random.default_rng(10)
    engine = house.engine()
    engine.start()
    engine.frame(rows_of(0, range(50), ASSISTANT), states_of(random, 50))
    house.ahead += 6
    house.monitor.tick()
    assert len(house.monitor._workers) == 0
    again = house.engine()
    states = states_of(random, 8)
    again.start()
    again.frame(rows_of(0, range(8), ASSISTANT), states)
    again.frame(finished=[0])
    (finished,) = house.until(lambda: house.events(RequestFinished))
    verdicts = offline(house.bundle, states, np.full(8, ASSISTANT), np.ones(8, bool))
    assert [by_probe(finished)[name].tokens for name in NAMES] == [verdicts[name][1] for name in NAMES] == [8, 8, 8]
    assert by_probe(finished)["concealment"].peak == pytest.approx(verdicts["concealment"][0], rel=CLOSE, abs=CLOSE)


def test_margins_and_status_know_worker_probes(house):
    engine = house.engine()
    engine.start()
    engine.frame(rows_of(0, range(8), USER), states_of(np.random.default_rng(11), 8))
    engine.frame(finished=[0])
    house.until(lambda: house.events(RequestFinished))
    assert house.stats.margins["tiny"].probes == (*LINEAR, *NAMES)
    assert house.stats.margins["tiny"].counts[3].sum() == 1
    status = house.monitor.status()
    assert (status.workers, status.workers_running) == (2, 2)


def test_a_running_monitor_collects_and_ends_its_workers(bundle, rings, house):
    """On an event loop, from start to end, with workers of its own."""
    engine, states = house.engine(), states_of(np.random.default_rng(12), 8)
    frames = [
        engine.frame(rows_of(0, range(8), USER), states, started=[Started(0, "a", "user-a", 1)], sent=False),
        engine.frame(finished=[0], sent=False),
    ]
    source = MemorySource()
    monitor = Monitor(bundle, default_policy(bundle), source)
    pids = monitor._workers.pool.pids

    async def scenario():
        subscription = monitor.events.subscribe()
        task = asyncio.create_task(monitor.run())
        hello = Hello(FRAMES, engine.name, "tiny", bundle.digest, "0.32.0")
        source.put(f"{engine.name}/core".encode(), encode_hello(hello))
        for frame in frames:
            parts = encode_frame(frame.header, frame.rows, frame.scores, frame.streamed)
            source.put(f"{engine.name}/rank0".encode(), parts)
        async for recorded in subscription:
            if isinstance(recorded.event, RequestFinished):
                break
        task.cancel()
        await asyncio.wait([task])
        return recorded.event

    finished = asyncio.run(asyncio.wait_for(scenario(), 30))
    monitor.close()
    assert by_probe(finished)["concealment"].tokens == 8
    assert len(pids) == 1 and not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 0


def test_nothing_of_it_is_imported_where_no_probe_needs_it(tmp_path):
    script = f"""
import sys
from pathlib import Path
from tests.harness.bundles import make_bundle
from monitor.service import process
from monitor.ingest import MemorySource
from monitor.policy import default_policy
from monitor.service.monitor import Monitor
bundle = make_bundle(Path({str(tmp_path / "bundle")!r}))
monitor = Monitor(bundle, default_policy(bundle), MemorySource())
monitor.tick()
print([name for name in sys.modules if name.startswith("monitor.workers")], monitor.status().workers)
"""
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[] 0\n"
