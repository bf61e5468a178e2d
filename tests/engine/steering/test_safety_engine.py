"""A real engine and a real monitor: leases that outlive the monitor."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from monitor.wire.orders import Act, Arm
from probes.bundle import save_bundle
from tests.harness.engines import random_bundle, settings, start
from tests.harness.models import tiny_model
from tests.harness.wire import ConfirmingWire

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CAP = 1.2
DOSE = 0.8
"""Alone within the cap, twice beyond it."""
LEASE = 8.0
"""Seconds; a few steps are taken in them, however busy the machine."""
ALWAYS = -1e6
"""A threshold that every token reaches."""
PATIENCE = 150.0
"""Seconds that anything may take on a machine that does other things beside."""


class House:
    def __init__(self, arm, bundle, endpoint: str, tokenizer) -> None:
        self.arm, self.bundle, self.endpoint, self.tokenizer = arm, bundle, endpoint, tokenizer
        self.prompt = list(range(5, 25))
        self.probe = bundle.probes[0].name

    @contextmanager
    def listening(self) -> Iterator[ConfirmingWire]:
        wire = ConfirmingWire(self.endpoint)
        try:
            self.until(lambda: wire.pump(0.05) or wire.engine)
            yield wire
        finally:
            wire.close()

    @staticmethod
    def until(condition) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"

    def answer(self, tokens: int = 12) -> list[int]:
        return self.arm.generate([self.prompt], tokens, fresh=True).tokens[0]

    def step(self, wire: ConfirmingWire) -> None:
        """Have what was ordered taken, and what is told of it read."""
        self.arm.generate([[5, 6]], 2)
        wire.pump(0.2)

    def gate(self, id: str, **more) -> Arm:
        return Arm(id, self.probe, [Act("random-0", add=DOSE)], threshold=ALWAYS, **more)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'plumbob[cpu]'")
    from probes.models.activations import TransformersSource

    folder = tmp_path_factory.mktemp("safe")
    path = tiny_model(folder / "llama", "llama", max_position_embeddings=512)
    source = TransformersSource(path, dtype="float32")
    plain = random_bundle(folder / "plain", path, source.markers, threshold=ALWAYS, layers=(0, 1, 3))
    manifest = plain.manifest
    bundle = save_bundle(
        folder / "bundle",
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=[(probe, plain.weight[i], float(plain.bias[i])) for i, probe in enumerate(plain.probes)],
        vectors=[
            (msgspec.structs.replace(vector, hidden_norm=8.0, max_dose=CAP), plain.vectors[row])
            for row, vector in enumerate(manifest.vectors)
        ],
    )
    endpoint = f"ipc://{folder}/engine.sock"
    tap = {"bundle": str(bundle.path), "endpoint": endpoint, "gates": 2}
    engine = settings(path, dtype="float32", max_model_len=256, max_num_seqs=8, additional_config={"plumbob": tap})
    with start("safe", folder, kv_cache_memory_bytes=1 << 28, **engine) as arm:
        yield House(arm, bundle, endpoint, source.tokenizer)


def test_a_gate_ends_with_its_lease_though_its_monitor_was_killed_and_the_next_one_hears_of_it(house):
    plain = house.answer()
    with house.listening() as wire:
        wire.order(house.gate("order:g", lease=LEASE))
        begun = time.monotonic()
        house.step(wire)
        assert house.answer() != plain
        house.until(lambda: wire.pump(0.05) or wire.hello.armed == ["order:g"])
    # Nobody is there to disarm it; the engine is idle, and then is not.
    time.sleep(max(0.0, begun + LEASE + 0.1 - time.monotonic()))
    assert house.answer() == plain
    with house.listening() as wire:
        house.until(lambda: house.step(wire) or wire.refused)
        (told,) = wire.refused.values()
        assert (told.order, told.id, told.cause) == ("arm", "order:g", "expired")
        assert told.reason == f"Its lease of {LEASE:g} s has ended."
        house.until(lambda: wire.pump(0.05) or wire.hello.armed == [])


def test_what_an_idle_engine_takes_too_late_is_never_done(house):
    plain = house.answer()
    with house.listening() as wire:
        before = len(wire.refused)
        wire.order(house.gate("order:late", lease=0.2))
        time.sleep(0.5)
        assert house.answer() == plain
        house.until(lambda: wire.pump(0.05) or len(wire.refused) > before)
        assert [told.cause for told in wire.refused.values()][-1] == "lease"
