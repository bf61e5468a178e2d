"""From a model to a bundle, on a model of five random blocks and a few sentences."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from probes.bundle import MANIFEST, TENSORS, load_bundle
from probes.bundle.canaries import CONVERSATIONS, TOLERANCE, Canaries
from probes.data.concepts import CONCEPTS, benign_path
from probes.errors import BundleError, ConceptError, ModelError
from probes.evaluation.metrics import Interval
from probes.fit import bundle_fit as fitting
from probes.fit import concept_fit
from probes.fit import material as gathering
from probes.models import identify
from probes.models.activations import TransformersSource
from probes.report import files as reporting
from probes.scoring.aggregate import Aggregate, running
from probes.scoring.roles import Role
from tests.harness.small_fit import (  # noqa: F401
    AGGREGATE,
    BENIGN,
    RATE,
    REQUESTS,
    THINGS,
    Reads,
    concepts,
    few_benign,
    fit,
    pair,
    quick,
    write_concept,
)

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

LAYERS = tuple(sorted({round(5 * depth) for depth in fitting.DEPTHS}))
"""At the depths that are tried."""


@pytest.fixture
def no_model(monkeypatch):
    """The model must not be touched: it may take minutes to load."""

    def touched(*arguments):
        raise AssertionError("the model was touched")

    monkeypatch.setattr(fitting, "resolve_model", touched)


@pytest.fixture
def reads(monkeypatch):
    return Reads(monkeypatch)


class Made:
    """A bundle with all that was told and read while it was fitted."""

    def __init__(self, model, out, concepts):
        self.told, self.materials, self.concepts = [], [], {concept.name: concept for concept in concepts}
        # By concept and layer; from the disk they are gone in the end.
        self.quiet = {}
        # A fixture of a module is made before that of a test which says the same.
        with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
            gather = fitting.gather

            def gathered(*arguments):
                self.materials = gather(*arguments)
                for material in self.materials:
                    for layer in LAYERS:
                        self.quiet[material.concept.name, layer] = material.calibration_rows(layer)
                return self.materials

            evaluate, self.evaluated = concept_fit.evaluate, {}

            def evaluated(material, *arguments):
                self.evaluated[material.concept.name] = evaluate(material, *arguments)
                return self.evaluated[material.concept.name]

            patch.setattr(fitting, "gather", gathered)
            patch.setattr(concept_fit, "evaluate", evaluated)
            self.reads = Reads(patch)
            self.bundle = fit(
                model, out, concepts, progress=lambda *step: self.told.append(step), command="plumbob fit"
            )
            self.ordinary = self.materials[0].ordinary

    def probe(self, name):
        """A probe, with its column."""
        return next((probe, at) for at, probe in enumerate(self.bundle.probes) if probe.name == name)


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory, concepts):
    return Made(tiny_model, tmp_path_factory.mktemp("made") / "bundle", concepts)


def test_a_bundle_is_written_and_nothing_beside_it(made, tiny_model):
    bundle = load_bundle(made.bundle.path)
    assert bundle.digest == made.bundle.digest
    assert sorted(entry.name for entry in bundle.path.iterdir()) == [MANIFEST, "report.html", "report.json", TENSORS]
    assert [entry.name for entry in bundle.path.parent.iterdir()] == ["bundle"], "nothing temporary is left"
    bundle.require_model(identify(tiny_model, "elsewhere"))
    assert (bundle.manifest.model.hidden, bundle.manifest.model.layers) == (32, 5)
    assert bundle.manifest.plumbob == "1.2.3"
    assert set(bundle.manifest.markers.headers) == {"system", "user", "assistant"}
    assert bundle.weight.shape == bundle.vectors.shape == (3, 32)


def test_the_probes_are_what_was_asked_for(made, concepts):
    bundle = made.bundle
    assert {probe.name for probe in bundle.probes} == {"asked", "said", "answered"}
    for probe in bundle.probes:
        assert probe.roles == ["user" if probe.name == "asked" else "assistant"]
        assert probe.layer in LAYERS and probe.kind in concepts[0].kinds
        assert probe.aggregate == AGGREGATE and probe.definition == "it is red"
        assert math.isfinite(probe.threshold)
        assert (probe.evaluation.positives, probe.evaluation.negatives) == (len(THINGS), len(THINGS))
        # Red and blue are words, and a random network keeps words apart.
        assert probe.evaluation.auroc_text > 0.9
        assert probe.evaluation.auroc > 0.8
        assert 0 <= probe.evaluation.recall <= 1


def test_a_family_shares_its_budget(made):
    rates = {probe.name: probe.calibration.false_positive_rate for probe in made.bundle.probes}
    assert rates == {"asked": RATE, "said": RATE / 2, "answered": RATE / 2}
    for probe in made.bundle.probes:
        calibration = probe.calibration
        assert calibration.fired <= math.floor(rates[probe.name] * (calibration.benign + 1)) - 1
        low, high = calibration.interval
        assert low <= calibration.fired / calibration.benign <= high


def test_the_four_probes_of_deception_share_one_percent():
    rates = {concept.name: fitting._rate(concept, CONCEPTS, 0.01) for concept in CONCEPTS}
    assert {name for name, rate in rates.items() if rate == 0.0025} == {
        "false_statement",
        "instructed_lie",
        "roleplayed_lie",
        "concealment",
    }
    assert {rate for name, rate in rates.items()} == {0.01, 0.0025}
    alone = [concept for concept in CONCEPTS if concept.name in ("false_statement", "toxicity")]
    assert [fitting._rate(concept, alone, 0.01) for concept in alone] == [0.01, 0.01], "of what is fitted"


def test_no_benign_request_both_teaches_and_sets_thresholds(made):
    ordinary = made.ordinary
    assert len(ordinary.sample.items) == BENIGN and 0.5 < ordinary.calibrating.mean() < 0.9
    names = np.array([f"benign:{item.source}:{item.id}" for item in ordinary.sample.items])
    for material in made.materials:
        teaching = set(material.data.groups[material.data.benign])
        rows, which = made.quiet[material.concept.name, LAYERS[-1]]
        setting = set(names[which])
        assert teaching and setting and not teaching & setting
        assert len(rows.offsets) == which.sum() + 1
        probe, _ = made.probe(material.concept.name)
        assert probe.calibration.benign == which.sum()


def test_a_probe_of_answers_is_set_on_what_the_model_answers(made):
    assert len(made.reads.answered) == BENIGN
    for material in made.materials:
        rows, _ = made.quiet[material.concept.name, LAYERS[0]]
        roles = [set(part.tolist()) for part in np.split(rows.roles, rows.offsets[1:-1])]
        assert all(found == {Role.USER, Role.ASSISTANT} for found in roles)


def test_the_threshold_is_reached_by_as_many_as_it_says(made, tiny_model):
    """Read anew, without what comes after the request, and aggregated by the reference."""
    source = TransformersSource(tiny_model)
    probe, column = made.probe("asked")
    chosen = [REQUESTS.index(made.ordinary.sample.items[at]) for at in np.flatnonzero(made.ordinary.calibrating)]
    readings = source.read([source.encode(REQUESTS[at].messages, respond=True) for at in chosen], [probe.layer])
    peaks = [
        running(
            reading.states[0, reading.roles == Role.USER] @ made.bundle.weight[column] + made.bundle.bias[column],
            AGGREGATE,
        ).max()
        for reading in readings
    ]
    # What rounding to bfloat16 lets pass or stop lies near the threshold itself.
    rounding = 0.05 * np.std(peaks)
    sure, possible = ((np.array(peaks) >= probe.threshold + shift).sum() for shift in (rounding, -rounding))
    assert sure <= probe.calibration.fired <= possible <= probe.calibration.fired + 3


def test_vectors_point_to_more_of_the_concept(made, tiny_model, concepts):
    source = TransformersSource(tiny_model, dtype="float32")
    for at, vector in enumerate(made.bundle.manifest.vectors):
        concept = next(concept for concept in concepts if concept.name == vector.name)
        assert vector.layer == made.probe(vector.name)[0].layer and vector.hidden_norm > 0
        sides = []
        for conversations in zip(*((one.positive, one.negative) for one in concept.pairs), strict=True):
            readings = source.read([source.encode(side) for side in conversations], [vector.layer])
            sides.append(np.mean([r.states[0, r.roles == concept.roles[0]].mean(axis=0) for r in readings], axis=0))
        difference = sides[0] - sides[1]
        assert made.bundle.vectors[at] @ difference / np.linalg.norm(difference) > 0.99
        assert np.linalg.norm(made.bundle.vectors[at]) == pytest.approx(1)


def test_canaries_are_of_the_probes_that_were_saved(made, tiny_model):
    """Reading the same tokens again gives the same scores."""
    source, bundle = TransformersSource(tiny_model), made.bundle
    layers = [probe.layer for probe in bundle.probes]
    states = [
        np.stack([source.read([ids], [layer])[0].states[0] for layer in layers]) for ids in bundle.canaries.prompts
    ]
    again = Canaries.record(bundle.canaries.prompts, states, bundle.weight, bundle.bias)
    assert bundle.canaries.drift(np.nan_to_num(again.reference)).max() < TOLERANCE / 2


def test_progress_is_told_to_the_end(made):
    last = {what: (done, total) for what, done, total in made.told}
    names = ("asked", "said", "answered")
    assert set(last) >= {
        *(f"reading {name}" for name in names),
        *(f"fitting {name}" for name in names),
        *("reading benign requests", "answering benign requests", "reading canaries"),
    }
    assert all(done == total for done, total in last.values())


def test_the_report_is_part_of_the_bundle(made, tiny_model):
    bundle = made.bundle
    assert set(bundle.manifest.files) == {reporting.JSON, reporting.HTML}
    for name, digest in bundle.manifest.files.items():
        assert hashlib.sha256((bundle.path / name).read_bytes()).hexdigest() == digest
    report = reporting.read(bundle.path)
    assert (report.plumbob, report.created, report.command) == ("1.2.3", bundle.manifest.created, "plumbob fit")
    assert report.fingerprint == bundle.manifest.model.parts == identify(tiny_model, "").parts
    page = (bundle.path / reporting.HTML).read_text()
    for written in report.probes:
        probe, _ = made.probe(written.name)
        assert (written.layer, written.kind, written.threshold) == (probe.layer, probe.kind, probe.threshold)
        assert written.nominal == probe.calibration.false_positive_rate
        assert {split.kind for split in written.splits} == {"leave-topic", "grouped"}, "there is one data set"
        outside = [split.auroc.point for split in written.splits if split.kind == "leave-topic"]
        assert probe.evaluation.auroc == pytest.approx(np.mean(outside))
        assert written.controls and written.causal and written.scores and written.verdict_says
        assert written.calibration and probe.probability and probe.probability.ece == written.calibration.ece
        assert {rate.source for rate in written.false_positives if not rate.left_out} >= {
            "source=shipped",
            "source=streets",
        }
        margins = np.array(made.evaluated[written.name].scores.edges)
        assert written.scores.edges == pytest.approx(margins + probe.threshold), "scores, not margins"
        assert written.name in page and written.verdict_says[0].split("(")[0].strip() in page


def test_a_pair_is_shown_token_by_token(made, tiny_model):
    source = TransformersSource(tiny_model)
    for written in reporting.read(made.bundle.path).probes:
        probe, column = made.probe(written.name)
        for heatmap, side in zip(written.heatmaps, ("positive", "negative"), strict=True):
            conversation = getattr(made.concepts[written.name].pairs[0], side)
            (reading,) = source.read([source.encode(conversation)], [probe.layer])
            assert "".join(heatmap.tokens) == source.tokenizer.decode(reading.token_ids)
            assert heatmap.roles == [Role(role).name.lower() for role in reading.roles]
            read = np.array([role in probe.roles for role in heatmap.roles])
            assert [score is not None for score in heatmap.scores] == read.tolist()
            scores = (reading.states[0] @ made.bundle.weight[column] + made.bundle.bias[column])[read]
            spread = float(np.std(scores))
            found = [score for score in heatmap.scores if score is not None]
            assert found == pytest.approx(scores, abs=0.2 * spread)
            fires = running(np.array(found), AGGREGATE) >= probe.threshold
            assert heatmap.fired_at == (np.flatnonzero(read)[fires.argmax()] if fires.any() else None)


def test_a_probability_is_of_the_score_and_not_of_its_margin(made):
    """Each fold has a threshold of its own, from which its scores are taken; the probe has one, and scores."""
    for name, evaluated in made.evaluated.items():
        probe, _ = made.probe(name)
        scale, offset = evaluated.probability
        assert abs(scale * probe.threshold) > 0.01, "or the two would be the same"
        assert probe.probability.scale == pytest.approx(scale) and scale > 0
        assert probe.probability.scale * probe.threshold + probe.probability.offset == pytest.approx(offset)
        assert probe.probability.ece == evaluated.reliability.ece


def test_provenance_names_the_files(made, concepts):
    provenance = made.bundle.manifest.provenance
    assert set(provenance) == {"asked", "said", "answered", "benign"}
    for name, path in {**{concept.name: concept.path for concept in concepts}, "benign": benign_path()}.items():
        (only,) = provenance[name]
        assert only.files == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    for concept in concepts:
        (only,) = provenance[concept.name]
        assert (only.source, only.licence, only.rows) == (concept.path.name, "not stated", len(concept.pairs))
    assert (provenance["benign"][0].source, provenance["benign"][0].licence) == ("shipped", "Apache-2.0")


def test_the_same_data_give_the_same_probes(tiny_model, tmp_path, quick):
    first, second = (fit(tiny_model, tmp_path / name, quick) for name in ("first", "second"))
    assert np.array_equal(first.weight, second.weight)
    assert first.manifest.probes == second.manifest.probes


def interrupt_at(step):
    def progress(what, done, total):
        if what == step:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_fit_goes_on_where_it_was(tiny_model, tmp_path, quick, reads):
    out = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model, out, quick, progress=interrupt_at("fitting asked"))
    assert not out.exists()
    assert len(reads.read) == BENIGN + 2 * len(THINGS) and len(reads.answered) == BENIGN
    reads.read.clear()
    reads.answered.clear()
    resumed = fit(tiny_model, out, quick)
    source = TransformersSource(tiny_model)
    first = quick[0].pairs[0]
    shown = [source.encode(conversation) for conversation in (first.positive, first.negative, *CONVERSATIONS)]
    assert reads.read == shown, "what the report shows token by token, and the canaries"
    assert reads.answered == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]
    whole = fit(tiny_model, tmp_path / "whole", quick)
    assert np.array_equal(resumed.weight, whole.weight) and resumed.manifest.probes == whole.manifest.probes


def test_what_was_read_of_another_model_is_not_gone_on_with(tiny_model, tmp_path, quick, reads):
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model, tmp_path / "bundle", quick, progress=interrupt_at("fitting asked"))
    before = len(reads.read)
    # The weights are the same, what they compute is not.
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(KeyboardInterrupt):
        fit(other, tmp_path / "bundle", quick, progress=interrupt_at("fitting asked"))
    assert len(reads.read) == 2 * before


def test_an_earlier_bundle_is_replaced_even_behind_a_link(tiny_model, tmp_path, quick):
    bundle = fit(tiny_model, tmp_path / "v1", quick)
    (tmp_path / "current").symlink_to("v1")
    again = fit(tiny_model, tmp_path / "current", quick, version="4.5.6")
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
    with pytest.raises(ConceptError, match=r"rate of 0\.0001 cannot be set on \d+ benign requests\. It takes 9999"):
        fit("demo", tmp_path / "out", concepts, false_positive_rate=0.0002)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_the_answered_requests_cannot_show_is_refused_before_anything_is_read(
    tiny_model, tmp_path, concepts, monkeypatch, reads
):
    monkeypatch.setattr(gathering, "ANSWERED", 8)
    with pytest.raises(ConceptError, match=r"rate of 0\.1 cannot be set on [4-8] benign requests\. It takes 9"):
        fit(tiny_model, tmp_path / "out", concepts[1:2])
    assert reads.read == reads.answered == []
    assert list(tmp_path.iterdir()) == []
    # A probe of requests has all of them.
    fit(tiny_model, tmp_path / "out", [replace(concepts[0], kinds=("mean_difference",))])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"own\.jsonl cannot be read"),
        ([pair(at, "boat", "own", "user") for at in range(3)], r"own\.jsonl has 3 pairs\. A probe needs at least"),
        ([pair(at % 11, "boat", "own", "user") for at in range(12)], r"line 12: own-0 is also line 1"),
        ([pair(at, "boat", "own", "assistant") for at in range(12)], "must end with a message of: user"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused_before_any_work(no_model, tmp_path, rows, message):
    concept = write_concept(tmp_path, "own", Role.USER, rows=rows or [])
    if rows is None:
        concept.path.unlink()
    with pytest.raises(ConceptError, match=message):
        fit("demo", tmp_path / "out", [concept])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("topics", "options", "message"),
    [
        (2, {}, "Concept 'own' has positive examples of 2 topics"),
        (12, {"tokens": 100}, r"within 60 tokens.*raise --tokens"),
        (12, {"data": "gone"}, "gone"),
    ],
)
def test_data_that_cannot_be_used_are_refused_before_anything_is_read(
    tiny_model, tmp_path, reads, topics, options, message
):
    rows = [pair(at, THINGS[at % topics], "own", "user") for at in range(12)]
    concept = write_concept(tmp_path, "own", Role.USER, rows=rows)
    if "data" in options:
        options = {"data": tmp_path / "gone"}
    with pytest.raises(ConceptError, match=message):
        fit(tiny_model, tmp_path / "out", [concept], **options)
    assert reads.read == reads.answered == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.jsonl"]


def test_a_concept_that_cannot_be_fitted_is_named(tiny_model, tmp_path):
    rows = [pair(at, thing, "short", "user") for at, thing in enumerate(THINGS)]
    for row in rows:
        row["positive"][-1]["content"], row["negative"][-1]["content"] = "red", "blue"
    concept = write_concept(tmp_path, "short", Role.USER, rows=rows)
    concept = replace(concept, aggregates=(Aggregate(half_life=4.0, min_tokens=40),))
    with pytest.raises(ConceptError, match=r"Concept 'short' cannot be fitted: No example that shows .* 40 tokens"):
        fit(tiny_model, tmp_path / "out", [concept])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("better", [True, False])
def test_a_network_ships_only_if_it_beats_the_direction(tiny_model, tmp_path, quick, monkeypatch, better):
    """Tried on what is left out; a bundle may then have no linear probe at all."""
    monkeypatch.setattr(concept_fit, "BIGGER_NEEDS", 2)
    monkeypatch.setattr(fitting, "DEPTHS", (0.6,))
    low, high = (0.1, 0.3) if better else (-0.1, 0.3)
    compared = []

    def gain(plain, bigger, data, folds, rate):
        compared.append([len(side) for side in (plain, bigger)] + [len(folds)])
        # What the table then says must agree, or the choice would be the direction's.
        for shown in bigger:
            object.__setattr__(shown, "recall", 1.0 if better else 0.0)
            object.__setattr__(shown, "auroc", 1.0)
        for shown in plain:
            object.__setattr__(shown, "recall", 0.0)
        return Interval(0.2, low, high)

    monkeypatch.setattr(concept_fit, "gain", gain)
    bundle = fit(tiny_model, tmp_path / "out", quick)
    assert compared == [[3, 3, 3]]
    card = json.loads((bundle.path / "report.json").read_text())["probes"][0]
    (remark,) = [text for text in card["remarks"] if "MultiMax" in text]
    if not better:
        assert [probe.kind for probe in bundle.all_probes] == ["mean_difference"] and "does not ship" in remark
        return
    assert not bundle.probes and "is what ships" in remark and card["kind"] == "multimax"
    (worker,) = bundle.worker_probes
    assert worker.probe.kind == "multimax" and worker.probe.aggregate == concept_fit.BIGGER_AGGREGATE
    source = TransformersSource(tiny_model)
    canary_states = [source.read([ids], [worker.probe.layer])[0].states[0] for ids in bundle.canaries.prompts]
    again = bundle.canaries.read(0, worker.reader, np.concatenate(canary_states))
    assert bundle.canaries.drift(again[:, None]).max() < TOLERANCE / 2
    # Its threshold is a rate of what it makes of benign requests itself.
    states = [
        reading.states[0][reading.roles == Role.USER]
        for reading in source.read(
            [source.encode(request.messages, respond=True) for request in REQUESTS], [worker.probe.layer]
        )
    ]
    peaks = [
        running(worker.reader.scores(state, worker.reader.begin()), worker.probe.aggregate).max() for state in states
    ]
    assert (np.array(peaks) >= worker.probe.threshold).mean() <= 2 * RATE


def test_few_topics_are_enough_to_fit_and_judge(tiny_model, tmp_path):
    """The least that is not refused is fitted, with every way to fit it."""
    rows = [pair(at, THINGS[at % 5], "own", "user") for at in range(10)]
    concept = write_concept(tmp_path, "own", Role.USER, rows=rows)
    (probe,) = fit(tiny_model, tmp_path / "out", [concept]).probes
    assert (probe.evaluation.positives, probe.evaluation.negatives) == (10, 10)


def test_messages_too_short_for_a_verdict_are_refused(tiny_model, tmp_path, concepts):
    concept = replace(concepts[0], aggregates=(Aggregate(half_life=4.0, min_tokens=200),))
    with pytest.raises(ConceptError, match="No example that shows the concept has the 200 tokens"):
        fit(tiny_model, tmp_path / "out", [concept])
    assert not (tmp_path / "out").exists()


def fail(*arguments, **options):
    raise ConceptError("late")


@pytest.mark.parametrize(
    ("module", "step"),
    [
        *((concept_fit, step) for step in ("calibrate", "evaluate", "check")),
        *((fitting, step) for step in ("record_canaries", "save_bundle", "render")),
    ],
)
def test_a_failure_late_in_the_work_leaves_no_bundle(tiny_model, tmp_path, quick, monkeypatch, module, step):
    monkeypatch.setattr(module, step, fail)
    with pytest.raises(ConceptError, match="late"):
        fit(tiny_model, tmp_path / "bundle", quick)
    assert [entry.name for entry in tmp_path.iterdir()] == [".bundle.fitting"], "what was read, for the next time"


def test_an_earlier_bundle_survives_a_failure(tiny_model, tmp_path, quick, monkeypatch):
    before = fit(tiny_model, tmp_path / "bundle", quick)
    monkeypatch.setattr(concept_fit, "calibrate", fail)
    with pytest.raises(ConceptError, match="late"):
        fit(tiny_model, tmp_path / "bundle", quick)
    assert load_bundle(tmp_path / "bundle").digest == before.digest


def test_a_model_whose_template_marks_no_answers_is_refused(tiny_model, tmp_path, concepts, reads):
    path = shutil.copytree(tiny_model, tmp_path / "base")
    (path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"marks messages of: user, assistant\. Fit a model that was tuned for conv"):
        fit(path, tmp_path / "out", concepts)
    assert not (tmp_path / "out").exists() and reads.read == []


def test_activations_that_are_not_numbers_are_a_model_that_cannot_be_read(tiny_model, tmp_path, quick):
    from safetensors.numpy import load_file, save_file

    path = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:] = np.nan
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        fit(path, tmp_path / "out", quick)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.tmp")) and not list((tmp_path / ".out.fitting").glob("*.safetensors"))
