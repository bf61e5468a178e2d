"""``plumbob steer``, as a user meets it."""

import json

import msgspec
import numpy as np
import pytest

from probes.bundle import load_bundle, save_bundle
from probes.bundle.keys import generate_key, load_private_key
from probes.bundle.manifest import Vector
from probes.bundle.signing import sign_bundle
from probes.data.examples import Pair
from probes.models.chat import Message
from probes.report.steering_page import HTML, JSON, decode
from tests.harness.command_line import assert_one_error
from tests.harness.models import tiny_model
from tests.harness.offline_bundles import bundle_for
from tests.probes.conftest import one_thread  # noqa: F401  (a fixture: so small a model is slower on several threads)

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model, of the same shape."""
    return tiny_model(tmp_path_factory.mktemp("models") / "other", "llama", hidden_act="gelu")


@pytest.fixture(scope="module")
def fitted(model, tmp_path_factory):
    """A bundle of three probes and two vectors, signed."""
    folder = tmp_path_factory.mktemp("bundles")
    bare = bundle_for(model, folder / "bare", threshold=5.0)
    random = np.random.default_rng(0)
    bundle = save_bundle(
        folder / "bundle",
        version="0",
        created="2026-01-01T00:00:00Z",
        model=bare.manifest.model,
        markers=bare.manifest.markers,
        probes=list(zip(bare.probes, bare.weight, bare.bias.tolist(), strict=True)),
        vectors=[(Vector(name, 2, hidden_norm=6.0), random.normal(size=64)) for name in ("a", "b")],
    )
    generate_key(folder / "key", None)
    sign_bundle(bundle, load_private_key(folder / "key", lambda: b""))
    return load_bundle(bundle.path)


@pytest.fixture
def no_model(monkeypatch):
    """Whatever is wrong must be found before the model is touched: it may take minutes to load."""

    def touched(*arguments, **options):
        raise AssertionError("the model was touched")

    monkeypatch.setattr("probes.steering.evaluation.open_model", touched)


@pytest.fixture
def concept(tmp_path):
    """A user's concept file, named after a vector; answers in the words that the tiny tokenizer knows."""
    warm, bees = "It is warm in the house.", "They eat nectar and pollen."
    pairs = [
        Pair(
            f"p{number}",
            f"t{number}",
            [Message("user", f"Is it warm, {number}?"), Message("assistant", f"{warm} {number}")],
            [Message("user", f"Is it warm, {number}?"), Message("assistant", f"{bees} {number}")],
        )
        for number in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(msgspec.json.encode(pair) + b"\n" for pair in pairs))
    path = tmp_path / "warmth.yaml"
    path.write_text("name: warmth\ndefinition: it is warm\nroles: [assistant]\npairs: pairs.jsonl\n")
    return path


def requests(path, count=10, answer=False):
    rows = []
    for number in range(count):
        messages = [{"role": "user", "content": f"Tell me about the little boat {number}."}]
        if answer:
            messages.append({"role": "assistant", "content": f"They eat nectar, {number}."})
        rows.append({"id": number, "messages": messages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_vectors_are_listed(plumbob, fitted):
    result = plumbob("steer", "list", fitted.path)
    assert result.code == 0 and "not swept" in result.out and " a " in result.out and " b " in result.out


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_extracted_from_a_users_pairs(plumbob, fitted, concept, tmp_path, method):
    made = tmp_path / "made"
    result = plumbob(
        *("steer", "extract", fitted.path, "--concept", concept, "--method", method, "--layer", 2, "--name", "warmth"),
        *("--out", made),
    )
    assert result.code == 0, result.err
    bundle = load_bundle(made)
    assert bundle.vector("warmth") == Vector("warmth", 2, 6.0, method=method, origin="12 pairs of warmth")
    assert "cosine with the layer's other vectors: a " in result.out and "signature was left behind" in result.err
    assert [probe.name for probe in bundle.probes] == [probe.name for probe in fitted.probes]


def test_a_probe_as_vector_and_back_from_a_file(plumbob, fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.steering.extraction.NORM_REQUESTS", 2)
    probe = fitted.probes[0]
    made, file, again = tmp_path / "made", tmp_path / "v.safetensors", tmp_path / "again"
    extracted = ("steer", "extract", fitted.path, "-c", probe.name, "--method", "probe", "-n", "read", "-o", made)
    assert plumbob(*extracted).code == 0
    bundle = load_bundle(made)
    row = bundle.manifest.vectors.index(bundle.vector("read"))
    np.testing.assert_allclose(bundle.vectors[row], fitted.weight[0] / np.linalg.norm(fitted.weight[0]), atol=1e-6)
    assert plumbob("steer", "export", made, "--vector", "read", "--out", file).code == 0
    result = plumbob("steer", "import", made, "--file", file, "--name", "back", "--out", again)
    assert result.code == 0, result.err
    back = load_bundle(again)
    assert back.vector("back").layer == probe.layer and back.vector("back").method == "file"
    assert back.vector("back").hidden_norm == bundle.vector("read").hidden_norm
    np.testing.assert_allclose(
        back.vectors[back.manifest.vectors.index(back.vector("back"))], bundle.vectors[row], atol=1e-6
    )


def test_combined(plumbob, fitted, tmp_path, no_model):
    made = tmp_path / "made"
    result = plumbob("steer", "combine", fitted.path, "-n", "c", "--expression", "orthogonal(a, b)", "-o", made)
    assert result.code == 0, result.err
    bundle = load_bundle(made)
    vector = bundle.vector("c")
    assert (vector.layer, vector.hidden_norm, vector.method, vector.origin) == (
        2,
        6.0,
        "combination",
        "orthogonal(a, b)",
    )
    rows = {found.name: row for found, row in zip(bundle.manifest.vectors, bundle.vectors, strict=True)}
    assert abs(rows["c"] @ rows["b"]) < 1e-6 and np.linalg.norm(rows["c"]) == pytest.approx(1)


def test_swept_and_then_compared_with_a_policy(plumbob, fitted, concept, tmp_path):
    made, report = tmp_path / "made", tmp_path / "report"
    prompts, benign = requests(tmp_path / "p.jsonl"), requests(tmp_path / "b.jsonl", answer=True)
    common = ("--concept", concept, "--prompts", prompts, "--benign", benign, "--tokens", 6)
    swept = plumbob(
        *("steer", "calibrate", fitted.path, "--vector", "a", "--doses", "0.01,0.02", "--out", made),
        *("--report", report, *common),
    )
    assert swept.code == 0, swept.err
    found = decode((report / JSON).read_bytes(), "report")
    assert [outcome.dose for outcome in found.outcomes] == [-0.02, -0.01, 0, 0.01, 0.02]
    vector = load_bundle(made).vector("a")
    assert (vector.working, vector.max_dose) == (found.working, found.max_dose)
    assert vector.max_dose is not None and (report / HTML).exists() and "Cap: " in swept.out
    assert load_bundle(fitted.path).vector("a").max_dose is None, "the bundle itself is as it was"

    over = plumbob("steer", "eval", made, "-v", "a", "--dose", 0.5, "-p", fitted.probes[0].name, "-o", report, *common)
    assert_one_error(over, "A dose of 0.5 of vector 'a' is over the bundle's cap")
    compared = plumbob(
        *("steer", "eval", made, "--vector", "a", "--dose", vector.max_dose, "--probe", fitted.probes[0].name),
        *("--out", report, "--texts", *common),
    )
    assert compared.code == 0, compared.err
    found = decode((report / JSON).read_bytes(), "report")
    assert [outcome.name for outcome in found.outcomes] == ["unsteered", "always", "policy"]
    assert found.trigger == fitted.probes[0].name and found.prompts == 10
    lines = [json.loads(line) for line in (report / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(number) for number in range(10)]
    assert sum(line["answers"]["always"]["steered"] for line in lines) == found.outcomes[1].steered > 0
    assert "boat" not in (report / HTML).read_text() + (report / JSON).read_text()


WRONG = {
    "unknown vector": (["eval", "-v", "x", "-d", 0.1, "-o", "OUT"], "no steering vector 'x'. It has: a, b."),
    "no dose": (["eval", "-v", "a", "-c", "toxicity", "-o", "OUT"], "no working range. Give a --dose"),
    "a dose of nothing": (["eval", "-v", "a", "-c", "toxicity", "-d", 0, "-o", "OUT"], "A dose of 0 changes nothing"),
    "a dose that is none": (["eval", "-v", "a", "-c", "toxicity", "-d", "nan", "-o", "OUT"], "cannot be applied"),
    "unknown probe": (["eval", "-v", "a", "-c", "toxicity", "-d", 0.1, "-p", "x", "-o", "OUT"], "no linear probe 'x'"),
    "no concept": (["calibrate", "-v", "a", "-o", "OUT"], "--concept"),
    "unknown concept": (["calibrate", "-v", "a", "-c", "x", "-o", "OUT"], "no concept 'x'. Name a file (.yaml)"),
    "a dose too large": (["calibrate", "-v", "a", "-c", "toxicity", "--doses", "2", "-o", "OUT"], "cannot be swept"),
    "no prompts": (["calibrate", "-v", "a", "--prompts", "nowhere.jsonl", "-o", "OUT"], "nowhere.jsonl cannot be read"),
    "unknown method": (["extract", "-c", "toxicity", "--method", "x", "-n", "n", "-o", "OUT"], "no method 'x'"),
    "a layer too many": (["extract", "-c", "toxicity", "-l", 9, "-n", "n", "-o", "OUT"], "no layer 9"),
    "a layer of no probe": (["extract", "-c", "refusal", "-n", "n", "-o", "OUT"], "to take the layer of"),
    "a name that is taken": (["extract", "-c", "toxicity", "-l", 2, "-n", "a", "-o", "OUT"], "a vector 'a' already"),
    "a name that is none": (["combine", "-n", "a-b", "-e", "a", "-o", "OUT"], "'a-b' is no name"),
    "nothing left": (["combine", "-n", "c", "-e", "a - a", "-o", "OUT"], "points nowhere"),
    "unknown in a sum": (["combine", "-n", "c", "-e", "a + x", "-o", "OUT"], "no vector 'x' to combine"),
    "no file": (["import", "-f", "nowhere", "-n", "c", "-l", 1, "-o", "OUT"], "nowhere cannot be read"),
    "nowhere to write": (["combine", "-n", "c", "-e", "a", "-o", "FILE"], "exists and is not a bundle"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found_before_the_model_is_touched(plumbob, fitted, tmp_path, no_model, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    command, *options = WRONG[case][0]
    assert_one_error(plumbob("steer", command, fitted.path, *options), WRONG[case][1])
    assert not (tmp_path / "OUT").exists()


def test_a_vector_of_another_model(plumbob, fitted, other, tmp_path, no_model):
    theirs = bundle_for(other, tmp_path / "b", threshold=5.0)
    file = tmp_path / "v.safetensors"
    assert plumbob("steer", "export", fitted.path, "-v", "a", "-o", file).code == 0
    result = plumbob("steer", "import", theirs.path, "-f", file, "-n", "c", "-o", tmp_path / "out")
    assert_one_error(result, "a direction of another model")


def test_a_bundle_of_another_model(plumbob, fitted, other, concept, tmp_path):
    result = plumbob(
        *("steer", "extract", fitted.path, "-c", concept, "-l", 2, "-n", "c", "-o", tmp_path / "out", "-m", other)
    )
    assert_one_error(result, "was fitted to model", "config")
