"""Directions from pairs, probes and files, and the bundle that they are put into."""

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from probes.bundle import SIGNATURE, load_bundle, save_bundle
from probes.bundle.keys import generate_key, load_private_key
from probes.bundle.manifest import Vector
from probes.bundle.signing import sign_bundle
from probes.data.examples import Pair
from probes.errors import BundleError, SteeringError
from probes.models.activations import TransformersSource
from probes.models.chat import Message
from probes.scoring.roles import Role
from probes.steering import Direction, fingerprint
from probes.steering.extraction import (
    LAYER_KEY,
    MODEL_KEY,
    differences,
    digest,
    from_file,
    from_pairs,
    hidden_norm,
    mean_direction,
    of_bundle,
    of_probe,
    principal_direction,
    to_file,
)
from probes.steering.rewrite import require_room, with_vector
from tests.harness.bundles import HIDDEN, make_bundle
from tests.harness.offline_bundles import bundle_for

pytest.importorskip("torch")
pytest.importorskip("transformers")

RANDOM = np.random.default_rng(3)


@pytest.fixture(scope="module")
def source(tiny_model) -> TransformersSource:
    return TransformersSource(tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def fitted(tiny_model, tmp_path_factory):
    return bundle_for(tiny_model, tmp_path_factory.mktemp("bundles") / "bundle")


def pair(name, positive, negative):
    asked = Message("user", "Is it warm in the house?")
    return Pair(name, name, [asked, Message("assistant", positive)], [asked, Message("assistant", negative)])


PAIRS = [pair("a", "It is warm.", "They eat nectar and pollen."), pair("b", "It is warm in the house.", "Thank you!")]


def test_a_difference_is_between_the_means_of_the_last_messages(source):
    found = differences(source, PAIRS, 2)
    for row, one in enumerate(PAIRS):
        means = []
        for side in (one.positive, one.negative):
            (reading,) = source.read([source.encode(side)], [2])
            means.append(reading.states[0][reading.roles == Role.ASSISTANT].mean(axis=0))
        np.testing.assert_allclose(found[row], means[0] - means[1], atol=1e-5)
    np.testing.assert_allclose(mean_direction(found), found.sum(axis=0) / 2)
    turned = [msgspec.structs.replace(one, positive=one.negative, negative=one.positive) for one in PAIRS]
    np.testing.assert_allclose(differences(source, turned, 2), -found, atol=1e-6)


def test_both_methods_find_what_was_planted():
    planted = RANDOM.normal(size=20)
    planted /= np.linalg.norm(planted)
    noisy = 3 * planted + 0.2 * RANDOM.normal(size=(60, 20))
    for method in (mean_direction, principal_direction):
        found = method(noisy)
        assert found @ planted / np.linalg.norm(found) > 0.99
        np.testing.assert_allclose(method(-noisy), -found, atol=1e-9)
    # A few far pairs draw the mean; the component is where most of the spread is.
    spread = np.concatenate([noisy, [40 * np.eye(20)[0]]])
    assert abs(principal_direction(spread) @ np.eye(20)[0]) > abs(mean_direction(spread) @ np.eye(20)[0])


@pytest.mark.parametrize("wrong", [np.zeros((4, 6)), np.array([[1.0, 0], [-1, 0]])], ids=["nothing", "opposite"])
def test_differences_without_a_common_direction_are_refused(wrong):
    with pytest.raises(SteeringError, match="no common direction"):
        principal_direction(wrong)


def test_directions_are_bound_to_the_bundles_model(fitted, source):
    found = from_pairs(fitted, source, PAIRS, 3, "mean")
    assert (found.model, found.layer) == (fingerprint(fitted.manifest.model), 3)
    np.testing.assert_allclose(found.values, differences(source, PAIRS, 3).mean(axis=0))
    for layer in (-1, 5):
        with pytest.raises(SteeringError, match=f"no layer {layer}.*0 to 4"):
            from_pairs(fitted, source, PAIRS, layer, "mean")
    with pytest.raises(SteeringError, match=r"Pair e has no text"):
        from_pairs(fitted, source, [pair("e", "", "They eat.")], 1, "pca")


def test_a_probes_direction_is_its_weight(fitted):
    probe = fitted.probes[1]
    found = of_probe(fitted, probe.name)
    assert found.layer == probe.layer
    np.testing.assert_allclose(found.values, fitted.weight[1])
    with pytest.raises(SteeringError, match="no linear probe 'x'"):
        of_probe(fitted, "x")


def test_the_unit_of_dose_is_the_layers_own_or_measured(fitted, source, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.steering.extraction.NORM_REQUESTS", 4)
    monkeypatch.setattr("probes.steering.extraction.NORM_TOKENS", 6)
    measured = hidden_norm(fitted, 2, source)
    # A random model's states at a layer have about one length.
    norms = np.linalg.norm(source.read([source.encode(PAIRS[0].positive)], [2])[0].states[0], axis=1)
    assert norms.min() / 2 < measured < norms.max() * 2
    with_one, _ = with_vector(fitted, Vector("v", 2, 5.5), np.ones(32), tmp_path / "b", version="0")
    assert hidden_norm(with_one, 2, source) == 5.5


def test_a_file_comes_back_as_it_went(tmp_path):
    bundle, path = make_bundle(tmp_path / "bundle"), tmp_path / "v.safetensors"
    direction = of_bundle(bundle)["sycophancy"]
    to_file(direction, path)
    for layer in (None, 2):
        back = from_file(bundle, path, layer)
        assert (back.model, back.layer) == (direction.model, 2)
        np.testing.assert_allclose(back.values, direction.values, atol=1e-7)
    assert len(digest(path)) == 64
    with pytest.raises(SteeringError, match="layer 2, not 1"):
        from_file(bundle, path, 1)


GOOD = {LAYER_KEY: "1"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        ({"d": np.ones(HIDDEN + 1, np.float32)}, GOOD, r"shape \(9,\).*8 wide"),
        ({"d": np.ones((2, HIDDEN), np.float32)}, GOOD, r"shape \(2, 8\)"),
        ({"d": np.full(HIDDEN, np.nan, np.float32)}, GOOD, "not finite"),
        ({"d": np.ones(HIDDEN, bool)}, GOOD, "of type bool"),
        ({"d": np.ones(HIDDEN, np.float32), "e": np.ones(HIDDEN, np.float32)}, GOOD, r"2 tensors.*--tensor.*d, e"),
        ({}, GOOD, "0 tensors"),
        ({"d": np.ones(HIDDEN, np.float32)}, {}, "which layer"),
        ({"d": np.ones(HIDDEN, np.float32)}, {LAYER_KEY: "one"}, "says that its layer is 'one'"),
        ({"d": np.ones(HIDDEN, np.float32)}, {LAYER_KEY: "4"}, "no layer 4.*0 to 3"),
        ({"d": np.ones(HIDDEN, np.float32)}, {**GOOD, MODEL_KEY: "0" * 64}, "another model than tiny"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, tensors, metadata, match):
    bundle, path = make_bundle(tmp_path / "bundle"), tmp_path / "v.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(SteeringError, match=match):
        from_file(bundle, path, None)


def test_what_is_no_file_of_safetensors_is_refused(tmp_path):
    bundle, path = make_bundle(tmp_path / "bundle"), tmp_path / "v.safetensors"
    with pytest.raises(SteeringError, match="No such file"):
        from_file(bundle, path, 1)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(SteeringError, match="cannot be read"):
        from_file(bundle, path, 1)
    save_file({"d": np.ones(HIDDEN, np.float32)}, path)
    with pytest.raises(SteeringError, match="no tensor 'x'"):
        from_file(bundle, path, 1, "x")
    assert from_file(bundle, path, 1).layer == 1


def test_all_else_of_a_bundle_goes_along(tmp_path):
    made = make_bundle(tmp_path / "made")
    bundle = save_bundle(
        tmp_path / "bundle",
        version="0",
        created="2026-01-01T00:00:00Z",
        model=made.manifest.model,
        markers=made.manifest.markers,
        probes=list(zip(made.probes, made.weight, made.bias.tolist(), strict=True)),
        vectors=list(zip(made.manifest.vectors, made.vectors, strict=True)),
        files={"report.json": b"{}"},
    )
    key = tmp_path / "key"
    generate_key(key, None)
    sign_bundle(bundle, load_private_key(key, lambda: b""))
    vector = Vector("new", 0, 3.0, method="file", origin="x", max_dose=0.5, working=(-0.1, 0.2))
    written, signed = with_vector(bundle, vector, 7 * np.ones(HIDDEN), tmp_path / "next", version="1")
    assert signed and not (written.path / SIGNATURE).exists()
    assert written.vector("new") == vector
    np.testing.assert_allclose(written.vectors[written.manifest.vectors.index(vector)], np.full(HIDDEN, HIDDEN**-0.5))
    assert [probe.name for probe in written.probes] == [probe.name for probe in bundle.probes]
    assert np.array_equal(written.weight, bundle.weight)
    assert (written.path / "report.json").read_bytes() == b"{}"
    assert {v.name for v in written.manifest.vectors} == {"new", "harmful_intent", "sycophancy"}
    # In its own place, and again: what it had is not there twice.
    same, signed = with_vector(
        written, msgspec.structs.replace(vector, max_dose=0.1), np.ones(HIDDEN), written.path, version="1"
    )
    assert not signed and load_bundle(written.path).vector("new").max_dose == 0.1
    assert len(same.manifest.vectors) == 3
    with pytest.raises(SteeringError, match="points nowhere"):
        with_vector(bundle, vector, np.zeros(HIDDEN), tmp_path / "other", version="1")
    assert not (tmp_path / "other").exists()


def test_an_older_bundle_has_no_cap(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "bundle.json"
    content = msgspec.json.decode(manifest.read_bytes())
    for vector in content["vectors"]:
        for name in ("method", "origin", "max_dose", "working"):
            del vector[name]
    manifest.write_bytes(msgspec.json.encode(content))
    found = load_bundle(tmp_path / "bundle").vector("sycophancy")
    assert found == bundle.vector("sycophancy") and found.max_dose is None and found.working is None
    content["vectors"][0]["max_dose"] = -1.0
    manifest.write_bytes(msgspec.json.encode(content))
    with pytest.raises(BundleError, match="max_dose"):
        load_bundle(tmp_path / "bundle")


def test_room_for_a_vector(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    require_room(bundle, "new", 2)
    require_room(bundle, "sycophancy", 2, replaces=True)
    with pytest.raises(SteeringError, match=r"has a vector 'sycophancy' already.*--replace"):
        require_room(bundle, "sycophancy", 2)
    with pytest.raises(SteeringError, match="'a b' is no name"):
        require_room(bundle, "a b", 2)
    for number in range(7):
        bundle, _ = with_vector(bundle, Vector(f"v{number}", 2, 1.0), np.ones(HIDDEN), bundle.path, version="0")
    with pytest.raises(SteeringError, match="Layer 2 has 8 vectors"):
        require_room(bundle, "new", 2)
    require_room(bundle, "v3", 2, replaces=True)
    require_room(bundle, "new", 3)


def test_the_bundles_vectors_are_directions(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    found = of_bundle(bundle)
    assert {name: direction.layer for name, direction in found.items()} == {"harmful_intent": 1, "sycophancy": 2}
    assert isinstance(found["sycophancy"], Direction) and found["sycophancy"].norm == pytest.approx(1)
