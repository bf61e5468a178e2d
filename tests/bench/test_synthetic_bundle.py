"""The bundles of a benchmark: as many probes as wanted where they are wanted, and one that fires at once."""

import numpy as np
import pytest

from monitor.bench.bundle import (
    default_layers,
    idle_policy,
    steering_policy,
    streamed_layer,
    synthetic_bundle,
    with_trigger,
)
from monitor.ingest import MemorySource, read_arrival
from monitor.service.monitor import Monitor
from monitor.wire.codec import decode_order, encode_frame
from monitor.wire.frames import Started
from monitor.wire.orders import Act, Steer
from probes.bundle import MAX_PROBES_PER_LAYER, ModelIdentity, save_bundle
from probes.bundle.canaries import Canaries
from probes.errors import BundleError
from probes.scoring.roles import Role

MODEL = ModelIdentity(name="tiny", hidden=8, layers=12, parts={"config": "c"})


def test_probes_are_spread_evenly_and_of_unit_weight(tmp_path):
    bundle = synthetic_bundle(tmp_path / "b", MODEL, [9, 3, 6], 48)
    assert bundle.layers == [3, 6, 9]
    assert [len(bundle.probe_columns(layer)) for layer in bundle.layers] == [16, 16, 16]
    assert np.linalg.norm(bundle.weight, axis=1) == pytest.approx(np.ones(48))
    assert len(bundle.manifest.vectors) == 1
    assert streamed_layer(bundle) == 6


def test_a_number_that_does_not_divide_leaves_no_layer_without(tmp_path):
    bundle = synthetic_bundle(tmp_path / "b", MODEL, [1, 2, 3], 4)
    assert sorted(len(bundle.probe_columns(layer)) for layer in bundle.layers) == [1, 1, 2]


@pytest.mark.parametrize("layers", [1, 2, 4, 30, 32])
def test_the_layers_that_are_taken_by_default_exist(tmp_path, layers):
    chosen = default_layers(layers)
    assert all(0 <= layer < layers for layer in chosen)
    assert len(chosen) == min(layers, 3)


@pytest.mark.parametrize(
    ("layers", "probes", "said"),
    [
        ([12], 1, "layers 0 to 11, not 12"),
        ([-1, 3], 2, "not -1"),
        ([], 1, "not none"),
        ([3], MAX_PROBES_PER_LAYER + 1, "65 probes do not fit 1 layers"),
        ([3, 4], 1, "1 probes do not fit 2 layers"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, layers, probes, said):
    with pytest.raises(BundleError, match=said):
        synthetic_bundle(tmp_path / "b", MODEL, layers, probes)


def first_frame(bundle, frame):
    """A monitor after the first token of a request, which is its prompt's."""
    source = MemorySource()
    monitor = Monitor(bundle, steering_policy(bundle), source)
    started = Started(0, "key", "request", 5)
    probes = len(bundle.probes)
    message = frame(rows=[(0, 0, Role.TEMPLATE, 0)], scores=-1000.0, started=[started], probes=probes)
    parts = encode_frame(message.header, message.rows, message.scores)
    monitor.receive(read_arrival(b"engine/rank0", parts))
    return monitor, source


def test_the_trigger_steers_every_request_from_its_first_token(tmp_path, frame):
    """Whatever its score; and no other probe fires."""
    monitor, source = first_frame(synthetic_bundle(tmp_path / "b", MODEL, [3, 6], 8), frame)
    orders = [decode_order(parts) for identity, parts in source.sent if identity == b"engine/core"]
    assert [(type(order), order.engine_request_id) for order in orders] == [(Steer, "key")]
    (act,) = orders[0].acts
    assert act == Act("random", add=act.add)
    assert 0 < act.add < 0.01
    assert monitor.stats.probe_fired.total() == monitor.stats.interventions.total() == 1


def test_without_a_trigger_nothing_fires(tmp_path):
    bundle = synthetic_bundle(tmp_path / "b", MODEL, [3], 8, trigger=False)
    assert min(probe.threshold for probe in bundle.probes) > 1e6


def test_a_copy_with_a_trigger_reads_what_the_original_reads(tmp_path, tiny_bundle, frame):
    original = tiny_bundle()
    copy = with_trigger(tmp_path / "copy", original)
    assert copy.digest != original.digest
    assert np.array_equal(copy.weight, original.weight) and np.array_equal(copy.bias, original.bias)
    assert copy.vectors == pytest.approx(original.vectors)
    assert copy.probes[1:] == original.probes[1:]
    assert [probe.name for probe in copy.probes] == [probe.name for probe in original.probes]
    _, source = first_frame(copy, frame)
    assert any(identity == b"engine/core" for identity, _ in source.sent)


def test_a_copy_with_a_trigger_is_tested_by_the_same_canaries(tmp_path, tiny_bundle):
    original = tiny_bundle()
    scores = np.arange(6, dtype=np.float32).reshape(2, 3)
    vars(original)["canaries"] = Canaries((np.array([7, 8]),), scores)
    copied = with_trigger(tmp_path / "copy", original).canaries
    assert [prompt.tolist() for prompt in copied.prompts] == [[7, 8]]
    assert np.array_equal(copied.reference, scores)


def test_steering_takes_a_vector(tmp_path, tiny_bundle):
    original = tiny_bundle()
    probes = [(probe, original.weight[column], 0.0) for column, probe in enumerate(original.probes)]
    bare = save_bundle(
        tmp_path / "bare",
        version="0",
        created="2026-01-01T00:00:00Z",
        model=original.manifest.model,
        markers=original.manifest.markers,
        probes=probes,
        vectors=[],
    )
    with pytest.raises(BundleError, match=r"no steering vector.*--arms"):
        steering_policy(bare)


def test_the_idle_policy_does_nothing():
    assert idle_policy().rules == ()
