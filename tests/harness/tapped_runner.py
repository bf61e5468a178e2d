"""A tapped model runner without an engine: batches go in, row maps come out."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st

from monitor.engine.rows import map_rows
from monitor.engine.slots import Slots
from monitor.engine.staging import Stage
from monitor.engine.steering.table import ENTRIES_PER_SLOT, Steering
from monitor.engine.taps import Taps
from probes.bundle import save_bundle
from probes.steering import Entry
from tests.harness.bundles import make_bundle
from tests.harness.decoder import Decoder

torch = pytest.importorskip("torch")
PROMPT = [1, 2, 7, 7, 7, 4, 1, 3]
"""A user's message of three tokens, and the header of the answer."""


class House:
    """Slots, steering and the row map, as a step goes through them."""

    def __init__(self, bundle, slots: int = 4) -> None:
        self.taps = Taps(Decoder(), bundle, max_tokens=64, entries=ENTRIES_PER_SLOT * slots)
        self.steering = Steering(self.taps, bundle, slots)
        self.slots = Slots(self.steering, bundle, slots)
        self.stage = Stage(64, len(bundle.probes), torch.device("cpu"))
        self.bundle = bundle
        self.batch = None

    def step(self, **computed: tuple[int, int]):
        """Rows of a step: for each request, the position of its first row and how many there are."""
        counts = np.array([count for _, count in computed.values()])
        firsts = np.array([first for first, _ in computed.values()])
        self.batch = self.slots.batch(list(computed), counts, firsts, suspended=False)
        self.steering.flush()
        starts = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
        first = torch.from_numpy(firsts.astype(np.int32))
        slots = torch.from_numpy(self.batch.slots)
        rows, stage = int(counts.sum()), self.stage
        entries = self.taps.row_entry
        map_rows(
            starts, slots, first, self.steering.segments, stage.slots, stage.positions, entries, rows, len(computed)
        )
        slots, positions, _ = stage.read(rows)
        kept = slots >= 0
        return self.batch.describe(slots[kept], positions[kept])

    def entries(self, row: int) -> list[tuple[float, ...]]:
        """What the taps do along each vector at a row of the step."""
        entry = int(self.taps.row_entry[row])
        tables = [self.taps.layers[vector.layer].table for vector in self.bundle.manifest.vectors]
        return [NEUTRAL if entry < 0 else tuple(table[entry, 0].tolist()) for table in tables]

    def added(self, row: int) -> list[float]:
        """What they add."""
        return [add for add, *_ in self.entries(row)]

    def steered(self, rows: int) -> list[bool]:
        return [any(self.added(row)) for row in range(rows)]


@pytest.fixture
def house(tiny_bundle) -> House:
    return House(tiny_bundle())


NEUTRAL = Entry(0.0, 1.0, -math.inf, math.inf)
entries = st.builds(
    Entry,
    st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([-math.inf, -2.0]),
    st.sampled_from([math.inf, 3.0]),
)


@pytest.fixture
def capped(tmp_path) -> House:
    """Its vectors, one at each of two layers, have a cap of 0.5."""
    bundle = make_bundle(tmp_path / "plain")
    manifest = bundle.manifest
    vectors = [msgspec.structs.replace(vector, max_dose=0.5) for vector in manifest.vectors]
    return House(
        save_bundle(
            tmp_path / "capped",
            version=manifest.plumbob,
            created=manifest.created,
            model=manifest.model,
            markers=manifest.markers,
            probes=[(probe, bundle.weight[i], float(bundle.bias[i])) for i, probe in enumerate(bundle.probes)],
            vectors=[(vector, bundle.vectors[row]) for row, vector in enumerate(vectors)],
        )
    )


ONE, OTHER = "harmful_intent", "sycophancy"
"""Vectors at two layers, with a hidden norm of 10."""
