"""Engines that are a ring and frames, a bundle with worker probes, and a monitor with real workers."""

import itertools
import os
import time
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from monitor.ingest import Arrival, MemorySource
from monitor.policy import default_policy
from monitor.service.config import Limits
from monitor.service.monitor import Monitor
from monitor.sinks import MemorySink
from monitor.wire.codec import decode, decode_order
from monitor.wire.codec import encode_frame as encode
from monitor.wire.frames import VERSION, Frame, Hello, Started, StateBlock
from monitor.wire.orders import Steer, Stream
from monitor.wire.ring import StateWriter
from monitor.workers import WorkerPool
from probes.bundle import Bundle, Calibration, Evaluation, Probe, WorkerProbe, save_bundle
from probes.scoring.aggregate import Aggregate
from probes.scoring.multimax import MultiMax
from tests.harness.bundles import HIDDEN, PROBES, make_bundle
from tests.harness.frames import make_frame

WORKER_PROBES = (
    # name, layer, roles, threshold, aggregate
    ("concealment", 2, ["user", "assistant"], 0.5, Aggregate(half_life=3.0, min_tokens=2)),
    ("scheming", 2, ["assistant"], 1.0, Aggregate(half_life=2.0, min_tokens=1, window=3, agree=2, agree_of=3)),
    ("sandbagging", 3, ["assistant"], 1e9, Aggregate(half_life=4.0, min_tokens=1)),
)
LAYERS = (2, 3)

names = (f"test{os.getpid()}x{number}" for number in itertools.count())
"""Ids of engines, never used twice."""


def multimax(seed: int, width: int = 6, heads: int = 3, window: int = 4) -> MultiMax:
    random = np.random.default_rng(seed)

    def normal(*shape: int):
        return random.normal(size=shape).astype(np.float32)

    return MultiMax(
        w1=normal(width, HIDDEN),
        b1=normal(width),
        w2=normal(width, width),
        b2=normal(width),
        value=normal(heads, width),
        attention=normal(heads, width),
        bias=normal(1),
        window=window,
    )


def make_worker_bundle(path, probes=WORKER_PROBES) -> Bundle:
    """The small bundle of all tests, with three worker probes at two layers."""
    plain = make_bundle(path / "plain")
    manifest = plain.manifest
    workers = [
        WorkerProbe(
            Probe(
                name=name,
                layer=layer,
                roles=roles,
                threshold=threshold,
                aggregate=aggregate,
                calibration=Calibration(0.01, 100, 1, (0.0, 0.05)),
                evaluation=Evaluation(50, 60, 0.9, 0.6, 0.8),
                kind="multimax",
            ),
            multimax(seed),
        )
        for seed, (name, layer, roles, threshold, aggregate) in enumerate(probes)
    ]
    return save_bundle(
        path / "workers",
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=[(probe, plain.weight[i], float(plain.bias[i])) for i, probe in enumerate(manifest.probes)],
        vectors=[(vector, plain.vectors[i]) for i, vector in enumerate(manifest.vectors)],
        worker_probes=workers,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return make_worker_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    return tmp_path_factory.mktemp("rings")


class Engine:
    """Sends frames, and writes what it streams into its rings as an engine does."""

    def __init__(self, house: "House", capacity: int = 4096, layers=LAYERS) -> None:
        self.house, self.name, self.sequence = house, next(names), 0
        self.writers = {
            layer: StateWriter(self.name, layer, HIDDEN, "float32", capacity, house.rings) for layer in layers
        }

    def hello(self) -> None:
        bundle = self.house.bundle
        hello = Hello(VERSION, self.name, "tiny", bundle.digest, "0.32.0")
        self.house.monitor.receive(Arrival(f"{self.name}/core".encode(), hello))

    def write(self, layer: int, states) -> StateBlock | None:
        """Rows into a ring; where they are."""
        writer, done = self.writers[layer], 0
        start = writer.reserved
        pieces = writer.reserve(len(states))
        for position, count in pieces:
            writer.view[position : position + count] = states[done : done + count]
            done += count
        return StateBlock(layer, str(writer.path), start, len(states)) if pieces else None

    def frame(self, rows=(), states=None, scores=0.0, *, sent: bool = True, **options) -> Frame:
        """A frame; ``states`` is ``(layers, rows, hidden)``, ``None`` where nothing is streamed."""
        made = make_frame(self.sequence, rows, scores, engine=self.name, **options)
        self.sequence += 1
        blocks, streamed = [], []
        if states is not None:
            for layer, of_layer in zip(self.writers, states, strict=True):
                if (block := self.write(layer, of_layer)) is not None:
                    blocks.append(block)
                    streamed.append(np.arange(block.rows, dtype=np.int32))
        header = msgspec.structs.replace(made.header, states=blocks, monotonic_ns=time.monotonic_ns())
        parts = encode(header, made.rows, made.scores, np.concatenate(streamed) if streamed else None)
        if sent:
            self.house.monitor.receive(Arrival(f"{self.name}/rank0".encode(), decode(parts)))
        return decode(parts)

    def start(self, slot: int = 0, key: str = "a", prompt_tokens: int = 1) -> None:
        self.frame(started=[Started(slot, key, f"user-{key}", prompt_tokens)])

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def rows_of(slot: int, positions, role: int, steered: int = 0):
    return [(slot, position, role, steered) for position in positions]


@dataclass
class House:
    """A monitor driven by hand, with workers of a pool that others use before and after it."""

    bundle: Bundle
    rings: object
    pool: WorkerPool
    policy: object = None
    ahead: float = 0.0
    """Seconds that have passed on the monitor's clock, which stands still by itself."""
    engines: list[Engine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source, self.sink = MemorySource(), MemorySink()
        self.monitor = Monitor(
            self.bundle,
            self.policy or default_policy(self.bundle),
            self.source,
            sinks=[self.sink],
            limits=Limits(),
            pool=self.pool,
            clock=lambda: 1000.0 + self.ahead,
        )
        self.stats = self.monitor.stats

    def engine(self, **options) -> Engine:
        engine = Engine(self, **options)
        self.engines.append(engine)
        engine.hello()
        return engine

    def events(self, kind):
        return [event for event in self.sink.events if isinstance(event, kind)]

    def orders(self, kind: type = Steer | Stream):
        """What was ordered since the last look, with the engine that it was for."""
        sent, self.source.sent = self.source.sent, []
        orders = [
            (identity.decode().removesuffix("/core"), decode_order(parts))
            for identity, parts in sent
            if identity.endswith(b"/core")
        ]
        return [(engine, order) for engine, order in orders if isinstance(order, kind)]

    def until(self, condition, seconds: float = 20.0):
        """Let the monitor work until something is so."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.005)
            self.monitor.tick()
        return found

    def settle(self) -> None:
        """Wait until nothing is outstanding."""
        self.until(lambda: not self.monitor._workers._requests.waiting.any())

    def unscored(self) -> dict[tuple[str, str], int]:
        """By probe and reason."""
        counts = self.stats.worker_tokens_unscored
        return {(probe, reason): count for (_, probe, reason), count in counts.items() if count}

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


@pytest.fixture(scope="module")
def pool(bundle):
    """Two workers, for all tests of a module."""
    pool = WorkerPool(bundle, workers=2)
    while pool.running < 2:
        assert not pool.collect(), "a worker was lost"
        time.sleep(0.01)
    yield pool
    pool.close()


@pytest.fixture
def house(bundle, rings, pool):
    house = House(bundle, rings, pool)
    yield house
    house.close()


@pytest.fixture
def make_house(bundle, rings, pool):
    made = []

    def make(**options) -> House:
        made.append(House(**{"bundle": bundle, "rings": rings, "pool": pool, **options}))
        return made[-1]

    yield make
    for house in made:
        house.close()


def by_probe(finished):
    return {reading.probe: reading for reading in finished.readings}


LINEAR = [name for name, *_ in PROBES]
