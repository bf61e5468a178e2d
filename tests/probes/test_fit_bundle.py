"""From a model to a bundle, on a model of five random blocks and a few sentences."""

import json
import math
import shutil

import numpy as np
import pytest

from probes import fit as fitting
from probes.activations import TransformersSource
from probes.aggregate import Aggregate
from probes.bundle import MANIFEST, TENSORS, load_bundle
from probes.canaries import TOLERANCE, Canaries
from probes.concepts import Benign, Concept
from probes.errors import BundleError, ConceptError, ModelError
from probes.models import identify
from probes.roles import Role

pytest.importorskip("torch")
pytest.importorskip("sklearn")

THINGS = ("boat", "house", "bird", "door", "car", "hat", "cup", "box", "bell", "kite", "tent", "ring")
AGGREGATE = Aggregate(half_life=4.0, min_tokens=2)
BENIGN = 60
RATE = 0.1


def write_concept(path, name, roles):
    """Pairs that tell red from blue, in the last message."""
    rows = []
    for index, thing in enumerate(THINGS):
        before = [] if roles[0] is Role.USER else [{"role": "user", "content": f"What colour is the {thing}?"}]
        red, blue = (
            [
                *before,
                {
                    "role": roles[0].name.lower(),
                    "content": f"The {colour} {colour} {thing} and the {colour} {colour} hat.",
                },
            ]
            for colour in ("red", "blue")
        )
        rows.append({"id": f"{name}-{index}", "topic": thing, "positive": red, "negative": blue})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Concept(name, "it is red", roles, path)


@pytest.fixture(scope="module")
def concepts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    return (
        write_concept(folder / "asked.jsonl", "asked", (Role.USER,)),
        write_concept(folder / "said.jsonl", "said", (Role.ASSISTANT,)),
    )


@pytest.fixture(autouse=True)
def few_benign(monkeypatch):
    import msgspec

    requests = [
        msgspec.convert(
            {
                "id": f"b-{index}",
                "topic": "t",
                "messages": [
                    {"role": "user", "content": f"Is it warm in {'the ' * (index % 5)}house number {index} today?"}
                ],
            },
            Benign,
        )
        for index in range(BENIGN)
    ]
    monkeypatch.setattr(fitting, "load_benign", lambda: requests)
    monkeypatch.setattr(fitting, "ANSWERED_TRAINING", BENIGN)
    monkeypatch.setattr(fitting, "ANSWERED_CALIBRATION", BENIGN)
    monkeypatch.setattr(fitting, "ANSWER_TOKENS", 6)


@pytest.fixture
def no_model(monkeypatch):
    """The model must not be touched: it may take minutes to load."""

    def touched(*arguments):
        raise AssertionError("the model was touched")

    monkeypatch.setattr(fitting, "resolve_model", touched)


def fit(model, out, concepts, **options):
    options = {"version": "1.2.3", "false_positive_rate": RATE, "concepts": concepts, "aggregate": AGGREGATE} | options
    return fitting.fit_bundle(str(model), out, **options)


def test_a_bundle_is_fitted(tiny_model, tmp_path, concepts):
    told = []
    made = fit(tiny_model, tmp_path / "bundle", concepts, progress=lambda *step: told.append(step))
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.digest == made.digest
    assert sorted(entry.name for entry in bundle.path.iterdir()) == [MANIFEST, TENSORS]
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"], "nothing temporary is left"

    bundle.require_model(identify(tiny_model, "elsewhere"))
    assert (bundle.manifest.model.hidden, bundle.manifest.model.layers) == (32, 5)
    assert bundle.manifest.plumbob == "1.2.3"
    assert set(bundle.manifest.markers.headers) == {"system", "user", "assistant"}
    assert bundle.weight.shape == bundle.vectors.shape == (2, 32)

    assert {probe.name for probe in bundle.probes} == {"asked", "said"}
    for probe in bundle.probes:
        assert probe.roles == ["user" if probe.name == "asked" else "assistant"]
        assert probe.layer in (2, 3, 4)
        assert probe.aggregate == AGGREGATE
        assert math.isfinite(probe.threshold)
        assert probe.calibration.false_positive_rate == RATE
        assert probe.calibration.benign == BENIGN // 2, "half of them taught, the other half were never seen"
        assert probe.calibration.fired <= math.floor(RATE * (BENIGN // 2 + 1)) - 1
        low, high = probe.calibration.interval
        assert low <= probe.calibration.fired / probe.calibration.benign <= high
        assert probe.evaluation.pairs == len(THINGS)
        # Red and blue are words, and a random network keeps words apart.
        assert probe.evaluation.auroc_text > 0.9
        assert probe.evaluation.auroc > 0.8
    for vector in bundle.manifest.vectors:
        assert vector.layer == next(probe.layer for probe in bundle.probes if probe.name == vector.name)
        assert vector.hidden_norm > 0
    # Recorded with the probes that were saved: reading the same tokens again gives the same scores.
    source = TransformersSource(tiny_model)
    layers = [probe.layer for probe in bundle.probes]
    states = [
        np.stack([source.read([ids], [layer])[0].states[0] for layer in layers]) for ids in bundle.canaries.prompts
    ]
    again = Canaries.record(bundle.canaries.prompts, states, bundle.weight, bundle.bias)
    assert bundle.canaries.drift(np.nan_to_num(again.reference)).max() < TOLERANCE / 2
    last = {what: (done, total) for what, done, total in told}
    assert set(last) == {
        *("answering benign prompts", "reading benign requests"),
        *("reading asked", "reading said", "fitting asked", "fitting said"),
        "reading canaries",
    }
    assert all(done == total for done, total in last.values())


def test_no_benign_request_both_teaches_and_sets_thresholds(tiny_model, tmp_path, concepts, monkeypatch):
    read = []
    benign = fitting._Benign
    monkeypatch.setattr(fitting, "_Benign", lambda **halves: read.append(halves) or benign(**halves))
    fit(tiny_model, tmp_path / "bundle", concepts[:1])
    training, calibration = ({tuple(item.token_ids) for item in read[0][half]} for half in ("training", "calibration"))
    assert not training & calibration
    assert len(training) == len(calibration) == BENIGN // 2


def test_the_same_data_give_the_same_probes(tiny_model, tmp_path, concepts):
    first, second = (fit(tiny_model, tmp_path / name, concepts[:1]) for name in ("first", "second"))
    assert np.array_equal(first.weight, second.weight)
    assert first.manifest.probes == second.manifest.probes


def test_an_earlier_bundle_is_replaced_even_behind_a_link(tiny_model, tmp_path, concepts):
    bundle = fit(tiny_model, tmp_path / "v1", concepts[:1])
    (tmp_path / "current").symlink_to("v1")
    again = fit(tiny_model, tmp_path / "current", concepts[:1], version="4.5.6")
    assert (tmp_path / "current").is_symlink()
    assert load_bundle(bundle.path).manifest.plumbob == again.manifest.plumbob == "4.5.6"


@pytest.mark.parametrize("files", [["precious"], [MANIFEST, TENSORS, "precious"]])
def test_a_directory_of_something_else_is_refused_before_any_work(no_model, tmp_path, concepts, files):
    out = tmp_path / "out"
    out.mkdir()
    for file in files:
        (out / file).write_text("keep me")
    with pytest.raises(BundleError, match=r"out exists and is not a bundle\. Name another"):
        fit("demo", out, concepts)
    assert sorted(entry.name for entry in out.iterdir()) == sorted(files)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(no_model, tmp_path, concepts):
    (tmp_path / "file").write_text("keep me")
    for out in (tmp_path / "file", tmp_path / "file" / "bundle", tmp_path / "file" / "a" / "b"):
        with pytest.raises(BundleError, match="Name another directory with --out"):
            fit("demo", out, concepts)
    assert (tmp_path / "file").read_text() == "keep me"


def test_a_rate_that_cannot_be_had_is_refused_before_any_work(no_model, tmp_path, concepts):
    with pytest.raises(ConceptError, match=r"rate of 0\.0001 cannot be set on 30 benign requests\. It takes 9999"):
        fit("demo", tmp_path / "out", concepts, false_positive_rate=0.0001)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_used_are_refused_before_any_work(no_model, tmp_path):
    concept = Concept("own", "", (Role.USER,), tmp_path / "gone.jsonl")
    with pytest.raises(ConceptError, match=r"gone\.jsonl cannot be read"):
        fit("demo", tmp_path / "out", [concept])


def test_a_failure_late_in_the_work_leaves_nothing(tiny_model, tmp_path, concepts, monkeypatch):
    def fail(*arguments):
        raise ConceptError("late")

    monkeypatch.setattr(fitting, "calibrate", fail)
    with pytest.raises(ConceptError, match="late"):
        fit(tiny_model, tmp_path / "out" / "deep", concepts)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_bundle_survives_a_failure(tiny_model, tmp_path, concepts, monkeypatch):
    before = fit(tiny_model, tmp_path / "bundle", concepts[:1])

    def fail(*arguments):
        raise ConceptError("late")

    monkeypatch.setattr(fitting, "calibrate", fail)
    with pytest.raises(ConceptError, match="late"):
        fit(tiny_model, tmp_path / "bundle", concepts)
    assert load_bundle(tmp_path / "bundle").digest == before.digest


def test_a_model_whose_template_marks_no_answers_is_refused(tiny_model, tmp_path, concepts):
    path = shutil.copytree(tiny_model, tmp_path / "base")
    (path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"marks messages of: user, assistant\. Fit a model that was tuned for conv"):
        fit(path, tmp_path / "out", concepts)
    assert not (tmp_path / "out").exists()


def test_activations_that_are_not_numbers_are_a_model_that_cannot_be_read(tiny_model, tmp_path, concepts):
    from safetensors.numpy import load_file, save_file

    path = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:] = np.nan
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        fit(path, tmp_path / "out", concepts)
    assert not (tmp_path / "out").exists()
