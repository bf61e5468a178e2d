"""A model runner whose vectors have caps, without an engine."""

import pytest

torch = pytest.importorskip("torch")
import msgspec
import numpy as np
import pytest

from monitor.engine.gates.host import Gates
from monitor.engine.slots import Slots
from monitor.engine.steering.table import ENTRIES_PER_SLOT, Steering
from monitor.engine.taps import Taps
from monitor.errors import OrderError
from monitor.wire.orders import Act, Admission, Arm
from probes.bundle import Bundle, save_bundle
from tests.harness.bundles import make_bundle
from tests.harness.decoder import Decoder
from tests.harness.gated_runner import PROMPT, ROWS

CAP = 0.5
ONE, OTHER = "harmful_intent", "sycophancy"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    """Vector ``harmful_intent`` has a cap, ``sycophancy`` has none."""
    plain = make_bundle(tmp_path_factory.mktemp("caps") / "plain")
    manifest = plain.manifest
    caps = {ONE: CAP, OTHER: None}
    return save_bundle(
        tmp_path_factory.mktemp("caps") / "bundle",
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=[(probe, plain.weight[i], float(plain.bias[i])) for i, probe in enumerate(plain.probes)],
        vectors=[
            (msgspec.structs.replace(vector, max_dose=caps[vector.name]), plain.vectors[row])
            for row, vector in enumerate(manifest.vectors)
        ],
    )


def arm(id: str, *acts: Act, **more) -> Arm:
    return Arm(id, "toxicity", list(acts), threshold=5.0, **more)


def add(dose: float, vector: str = ONE) -> Act:
    return Act(vector, add=dose)


class House:
    """Slots and gates that know of each other, as an engine process has them."""

    def __init__(self, bundle, gates: int = 3, slots: int = 4) -> None:
        taps = Taps(Decoder(), bundle, max_tokens=ROWS, entries=ENTRIES_PER_SLOT * slots, gates=gates, slots=slots)
        self.taps = taps
        self.slots = Slots(Steering(taps, bundle, slots), bundle, slots, lambda key: self.gates.armed_for(key))
        self.gates = Gates(taps, bundle, self.slots.gated)

    def start(self, key: str, admission: Admission | None = None) -> int:
        started = self.slots.start(key, key, PROMPT, scored=True)
        if admission is not None:
            started = self.slots.admit(key, admission)
        self.gates.start(started)
        return started.slot

    def arm(self, order: Arm) -> dict[str, OrderError]:
        return self.gates.arm(order, self.slots.upcoming, self.slots.require_beside)

    def step(self, *keys: str, first: int = 0, rows: int = 8) -> None:
        count = np.full(len(keys), rows)
        self.slots.batch(list(keys), count, np.full(len(keys), first), suspended=False)

    def applies(self, slot: int) -> list[bool]:
        """Whether each place's gate judges a slot's request, on the device."""
        return self.taps.gates.counters[slot, :, 0].bool().tolist()
