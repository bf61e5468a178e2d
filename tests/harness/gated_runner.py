"""A model runner with gates, without an engine: steps go in, decisions come out."""

import numpy as np
import pytest

from monitor.engine.gates.host import Gates
from monitor.engine.ops.gate_layout import Flag
from monitor.engine.rows import map_rows
from monitor.engine.slots import Slots
from monitor.engine.staging import Stage
from monitor.engine.steering.table import ENTRIES_PER_SLOT, Steering
from monitor.engine.taps import Taps
from monitor.wire.orders import Act, Arm
from tests.harness.decoder import Decoder

torch = pytest.importorskip("torch")
PROMPT = [1, 2, 7, 7, 7, 4, 1, 3]
"""A user's message of three tokens, and the header of the answer."""
EARLY, LATE = Act("harmful_intent", add=0.2), Act("sycophancy", add=-0.1)
"""On vectors of layers 1 and 2."""
ROWS = 64


def arm(**changes) -> Arm:
    """A gate on probe ``toxicity`` of layer 1, which reads users and assistants, at a threshold of 5."""
    return Arm(**{"id": "g", "probe": "toxicity", "acts": [LATE], "threshold": 5.0, **changes})


class House:
    """A step of an engine, but for the model: scores are made up."""

    def __init__(self, bundle, slots: int = 4, gates: int = 2) -> None:
        self.model = Decoder()
        self.taps = Taps(
            self.model, bundle, max_tokens=ROWS, entries=ENTRIES_PER_SLOT * slots, gates=gates, slots=slots
        )
        self.steering = Steering(self.taps, bundle, slots)
        self.slots = Slots(self.steering, bundle, slots)
        self.gates = Gates(self.taps, bundle, self.slots.gated)
        self.stage = Stage(ROWS, len(bundle.probes), torch.device("cpu"), gates)
        self.events = []
        self.cache = None
        """Scores by position of whatever the prefix cache has."""

    def start(self, key: str, prompt=tuple(PROMPT)) -> int:
        started = self.slots.start(key, key.upper(), list(prompt), scored=True)
        self.gates.start(started)
        return started.slot

    def finish(self, key: str) -> None:
        self.gates.finish(self.slots.finish(key))
        self.events += self.gates.take_events()

    def arm(self, **changes) -> None:
        self.gates.arm(arm(**changes), self.slots.upcoming)

    def begin(self, computed) -> tuple[int, object]:
        counts = np.array([count for _, count in computed.values()])
        firsts = np.array([first for first, _ in computed.values()])
        batch = self.slots.batch(list(computed), counts, firsts, suspended=False)
        self.steering.flush()
        rows, stage = int(counts.sum()), self.stage
        map_rows(
            torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
            torch.from_numpy(batch.slots),
            torch.from_numpy(firsts.astype(np.int32)),
            self.steering.segments,
            stage.slots,
            stage.positions,
            self.taps.row_entry,
            rows,
            len(computed),
        )
        if self.gates.active:
            cached = None
            if batch.gaps and self.cache is not None:
                found = np.concatenate([gap.rows() for gap in batch.gaps])
                cached = found, torch.from_numpy(np.concatenate([self.cache[g.start : g.end] for g in batch.gaps]))
            self.gates.open(batch, counts, firsts, stage, rows, cached)
        return rows, batch

    def end(self, rows: int) -> None:
        if self.gates.active:
            self.gates.close(self.stage, rows)
        self.events += self.gates.take_events()

    def step(self, scores=0.0, /, **computed: tuple[int, int]) -> np.ndarray:
        """Rows of a step: for each request, the position of its first row and how many there are.

        Args:
            scores: Of every probe, shape ``(rows, probes)``, or one number for all of them.
            computed: First row and rows of each request.

        Returns:
            Whether taps of layers 1 and 2 steer each row by each gate, bool, ``(2, rows, gates)``.
        """
        rows, _ = self.begin(computed)
        steered, buffers = [], self.taps.gates
        for layer in (1, 2):
            steered.append((buffers.row_gates[:rows].numpy() & Flag.STEER) != 0)
            self.taps.scores[:rows] = torch.as_tensor(scores, dtype=torch.float32)
            torch.ops.plumbob.gate(
                self.taps.scores,
                buffers.row_slot,
                buffers.row_position,
                buffers.row_role,
                self.taps.layers[layer].gated,
                buffers.limits,
                buffers.rules,
                buffers.averages,
                buffers.counters,
                buffers.row_gates,
                buffers.row_average,
                rows,
                layer,
            )
        self.end(rows)
        return np.array(steered)

    def seen(self, slot_gate: int = 0) -> list[bool]:
        """Whether each row of the last step lies downstream of a gate's steering, by its flags."""
        return (self.stage.gates[:, slot_gate] != 0).tolist()

    def told(self) -> list[tuple]:
        return [(event.kind, event.gate, event.request_id, event.position, event.steered) for event in self.events]
