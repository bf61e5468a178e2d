import msgspec
import numpy as np
import pytest

from probes.bundle import MANIFEST, MAX_WORKER_PROBES, TENSORS, ModelIdentity, WorkerProbe, load_bundle, save_bundle
from probes.bundle.canaries import Canaries
from probes.errors import BundleError
from probes.scoring.multimax import MultiMax
from probes.scoring.roles import Role


def edit(bundle, change):
    """Change the manifest on disk."""
    path = bundle.path / MANIFEST
    manifest = msgspec.json.decode(path.read_bytes())
    change(manifest)
    path.write_bytes(msgspec.json.encode(manifest))
    return bundle.path


def test_a_bundle_is_read_back_as_written(tiny_bundle):
    bundle = tiny_bundle()
    again = load_bundle(bundle.path)
    assert again.digest == bundle.digest and again.manifest == bundle.manifest
    assert np.array_equal(again.weight, bundle.weight) and again.weight.shape == (3, 8)
    assert np.linalg.norm(again.vectors, axis=1) == pytest.approx([1.0, 1.0])


def test_the_digest_stands_for_the_tensors(tiny_bundle, tmp_path):
    digests = {tiny_bundle(tmp_path / str(seed), seed=seed).digest for seed in (1, 2)}
    assert len(digests) == 2
    assert tiny_bundle(tmp_path / "1", seed=1).digest in digests, "the same content has the same digest"


def save_again(bundle, probes=None, canaries=None, workers=()):
    manifest = bundle.manifest
    probes = probes or list(zip(bundle.probes, bundle.weight, bundle.bias.tolist(), strict=True))
    return save_bundle(
        bundle.path,
        version="0",
        created=manifest.created,
        model=manifest.model,
        markers=manifest.markers,
        probes=probes,
        vectors=list(zip(manifest.vectors, bundle.vectors, strict=True)),
        canaries=canaries,
        worker_probes=workers,
    )


def network(hidden=8, width=3, heads=2, window=4, seed=5):
    random = np.random.default_rng(seed)
    shapes = (width, hidden), (width,), (width, width), (width,), (heads, width), (heads, width), (1,)
    return MultiMax(*(random.normal(size=shape).astype(np.float32) for shape in shapes), window=window)


def worker(bundle, name="concealment", layer=3, **options):
    probe = msgspec.structs.replace(bundle.probes[1], name=name, layer=layer, kind="multimax")
    return WorkerProbe(probe, network(**options))


def test_canaries_are_read_back_in_the_order_of_the_bundles_probes(tiny_bundle):
    bundle = tiny_bundle()
    assert not bundle.canaries and bundle.canaries.reference.shape == (0, 3)
    probes = list(zip(bundle.probes, bundle.weight, bundle.bias.tolist(), strict=True))
    # The first two are of one layer, the last of the next.
    reference = np.arange(15, dtype=np.float32).reshape(5, 3)
    reference[0, 1] = np.nan
    prompts = (np.array([1, 2, 3]), np.array([4, 5]))
    again = save_again(bundle, [probes[index] for index in (2, 0, 1)], Canaries(prompts, reference))
    assert again.probes == bundle.probes and again.digest != bundle.digest
    assert [prompt.tolist() for prompt in again.canaries.prompts] == [[1, 2, 3], [4, 5]]
    np.testing.assert_array_equal(again.canaries.reference, reference[:, [1, 2, 0]])


def test_canaries_of_worker_probes_go_with_them(tiny_bundle):
    """Both kinds are sorted by layer; those of workers may be missing, as in bundles of before."""
    bundle = tiny_bundle()
    workers = [worker(bundle, "late", 3), worker(bundle, "early", 0)]
    reference = np.arange(10, dtype=np.float32).reshape(2, 5)
    prompts = (np.array([1, 2]),)
    again = save_again(bundle, canaries=Canaries(prompts, reference), workers=workers)
    assert [probe.name for probe in again.all_probes[3:]] == ["early", "late"]
    np.testing.assert_array_equal(again.canaries.reference, reference[:, [0, 1, 2, 4, 3]])
    without = save_again(bundle, canaries=Canaries(prompts, reference[:, :3]), workers=workers)
    np.testing.assert_array_equal(without.canaries.reference, reference[:, :3])
    with pytest.raises(BundleError, match=r"scores of shape \(2, 4\) for 3 probes and 2 worker probes"):
        save_again(bundle, canaries=Canaries(prompts, reference[:, :4]), workers=workers)


def test_canaries_of_other_tokens_are_refused(tiny_bundle):
    bundle = tiny_bundle()
    probes = list(zip(bundle.probes, bundle.weight, bundle.bias.tolist(), strict=True))
    with pytest.raises(BundleError, match=r"canaries of 3 tokens with scores of shape \(2, 3\)"):
        save_again(bundle, probes, Canaries((np.array([1, 2, 3]),), np.zeros((2, 3), np.float32)))
    assert load_bundle(bundle.path).digest == bundle.digest, "what was there is still there"


def test_columns_and_rows_of_a_layer(tiny_bundle):
    bundle = tiny_bundle()
    assert bundle.layers == [1, 2]
    assert [bundle.probe_columns(layer) for layer in (0, 1, 2)] == [[], [0, 1], [2]]
    assert [bundle.vector_rows(layer) for layer in (1, 2)] == [[0], [1]]


def test_the_read_mask_is_by_role_and_probe(tiny_bundle):
    mask = tiny_bundle().read_mask
    assert mask[Role.USER].tolist() == [True, True, False]
    assert mask[Role.ASSISTANT].tolist() == [False, True, True]
    assert not mask[Role.TEMPLATE].any()


def test_an_unknown_vector_names_those_there_are(tiny_bundle):
    with pytest.raises(BundleError, match="harmful_intent, sycophancy"):
        tiny_bundle().vector("honesty")


def test_another_model_is_refused_by_the_parts_that_differ(tiny_bundle):
    bundle = tiny_bundle()
    bundle.require_model(bundle.manifest.model)
    with pytest.raises(BundleError, match=r"'other': weights differ"):
        bundle.require_model(ModelIdentity("other", 8, 4, {"config": "c", "weights": "x"}))


def test_damaged_tensors_are_found(tiny_bundle):
    bundle = tiny_bundle()
    blob = bytearray((bundle.path / TENSORS).read_bytes())
    blob[-1] ^= 1
    (bundle.path / TENSORS).write_bytes(blob)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=99), "format 99"),
        (lambda m: m["probes"][0].update(layer=9), "layer 9"),
        (lambda m: m["probes"][0].update(layer=3), "not sorted by layer"),
        (lambda m: m["probes"][1].update(name="harmful_intent"), "two probes named 'harmful_intent'"),
        (lambda m: m["probes"][0].update(roles=["assisstant"]), "unknown role 'assisstant'"),
        (lambda m: m["vectors"].pop(), "for 1 of width 8"),
        (lambda m: m.pop("model"), "model"),
    ],
)
def test_an_inconsistent_manifest_is_refused(tiny_bundle, change, message):
    with pytest.raises(BundleError, match=message):
        load_bundle(edit(tiny_bundle(), change))


def test_what_is_no_bundle_is_neither_read_nor_overwritten(tiny_bundle, tmp_path):
    directory = tmp_path / "precious"
    directory.mkdir()
    (directory / "file").write_text("keep me")
    with pytest.raises(BundleError, match="not a bundle"):
        load_bundle(directory)
    with pytest.raises(BundleError, match="not a bundle"):
        tiny_bundle(directory)
    assert [path.name for path in directory.iterdir()] == ["file"]


def test_a_bundle_is_replaced_whole(tiny_bundle, tmp_path):
    path = tmp_path / "bundle"
    before = tiny_bundle(path, seed=1)
    after = tiny_bundle(path, seed=2)
    assert load_bundle(path).digest == after.digest != before.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"], "nothing temporary is left"


def test_worker_probes_are_read_back_beside_the_linear_ones(tiny_bundle, tmp_path):
    """Sorted by layer; they are columns of no matrix, but their layers are tapped."""
    bundle = tiny_bundle()
    late, early = worker(bundle, "late", 3, seed=1, heads=1, window=1), worker(bundle, "early", 0, seed=2)
    again = save_again(bundle, workers=[late, early])
    assert [found.probe for found in again.worker_probes] == [early.probe, late.probe]
    for found, written in zip(again.worker_probes, (early, late), strict=True):
        assert found.reader.window == written.reader.window
        for name, tensor in written.reader.tensors().items():
            np.testing.assert_array_equal(found.reader.tensors()[name], tensor)
    assert again.layers == [0, 1, 2, 3] and again.probe_columns(3) == [] == again.vector_rows(3)
    assert again.probes == bundle.probes and np.array_equal(again.weight, bundle.weight)
    assert [probe.name for probe in again.all_probes][3:] == ["early", "late"]
    np.testing.assert_array_equal(again.read_mask, bundle.read_mask)
    np.testing.assert_array_equal(again.all_read_mask[:, [3, 4]], bundle.read_mask[:, [1, 1]])
    assert tiny_bundle(tmp_path / "plain").digest == bundle.digest and bundle.worker_probes == []


def test_a_bundle_without_the_field_has_no_worker_probes(tiny_bundle):
    """It was written before there were any."""
    bundle = load_bundle(edit(tiny_bundle(), lambda manifest: manifest.pop("worker_probes")))
    assert bundle.worker_probes == [] and bundle.layers == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["worker_probes"][0].update(name="toxicity"), "'toxicity' has no tensor 'window'"),
        (lambda m: m["worker_probes"][0].update(layer=4), "worker probe 'concealment' at layer 4"),
        (lambda m: m["worker_probes"].reverse(), "worker probes that are not sorted by layer"),
        (lambda m: m["worker_probes"][0].update(kind="logistic"), "'concealment' is of the unknown kind 'logistic'"),
        (lambda m: m["worker_probes"][0].update(roles=["usher"]), "'concealment' with the unknown role 'usher'"),
        (lambda m: m["model"].update(hidden=9), "'concealment' of width 8, for a model of width 9"),
    ],
)
def test_an_inconsistent_worker_probe_is_refused(tiny_bundle, change, message):
    bundle = tiny_bundle()
    both = save_again(bundle, workers=[worker(bundle, layer=2), worker(bundle, "other")])
    with pytest.raises(BundleError, match=message):
        load_bundle(edit(both, change))


def test_a_name_stands_for_one_probe_of_either_sort(tiny_bundle):
    bundle = tiny_bundle()
    for names in (["toxicity"], ["twice", "twice"]):
        with pytest.raises(BundleError, match=f"two probes named '{names[0]}'"):
            save_again(bundle, workers=[worker(bundle, name) for name in names])
    with pytest.raises(BundleError, match=f"{MAX_WORKER_PROBES + 1} worker probes, more than {MAX_WORKER_PROBES}"):
        save_again(bundle, workers=[worker(bundle, f"{n}", n % 4) for n in range(MAX_WORKER_PROBES + 1)])
    assert load_bundle(bundle.path).digest == bundle.digest, "what was there is still there"


class Written:
    """A reader that writes what it is given into the bundle, right or wrong."""

    def __init__(self, tensors):
        self._tensors = tensors

    def tensors(self):
        return self._tensors


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("w2", np.zeros((3, 4), np.float32), r"w2 has shape \(3, 4\), not \(3, 3\)"),
        ("value", np.full((2, 3), np.nan, np.float32), "value is not finite"),
        ("attention", np.zeros((1, 3), np.float32), r"attention has shape \(1, 3\), not \(2, 3\)"),
        ("window", np.array([0]), "window of 0 tokens"),
        ("window", np.array([4.0]), "window is float64"),
        ("w1", np.zeros((0, 8), np.float32), "w1 has shape"),
        ("bias", None, "has no tensor 'bias'"),
    ],
)
def test_wrong_tensors_of_a_worker_probe_are_named(tiny_bundle, name, tensor, message):
    bundle = tiny_bundle()
    tensors = network().tensors() | {name: tensor}
    wrong = Written({key: value for key, value in tensors.items() if value is not None})
    with pytest.raises(BundleError, match=f"worker probe 'concealment'.*{message}"):
        save_again(bundle, workers=[WorkerProbe(worker(bundle).probe, wrong)])
