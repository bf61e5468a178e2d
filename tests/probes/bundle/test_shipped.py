"""The bundle that ships: whole, signed, of the demo model, and made of the data that its manifest names."""

import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from probes.bundle import SIGNATURE, load_bundle
from probes.bundle.keys import generate_key, load_private_key
from probes.bundle.shipped import DEMO_BUNDLE, DEMO_KEY, bundle_directory, require_trusted, shipped_bundle
from probes.bundle.signing import require_signature, sign_bundle
from probes.data.concepts import CONCEPTS, benign_path
from probes.data.sources import provenance
from probes.errors import BundleError, ModelError
from probes.models import DEMO, identify, resolve_model
from probes.report import read

DATA = Path(__file__).parents[3].parent / "shared" / "data"
"""Public data sets, beside the checkout."""
REFITTED = "harmful_intent"
"""Reads the user alone, so that no benign request has to be answered to make it again."""


@pytest.fixture(scope="module")
def shipped():
    return load_bundle(DEMO)


@pytest.fixture(scope="module")
def demo_model():
    try:
        return resolve_model(DEMO)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def source(demo_model):
    pytest.importorskip("torch")
    from probes.models.activations import TransformersSource

    return TransformersSource(demo_model)


def test_it_holds_every_concept_and_is_found_by_the_models_name(shipped):
    assert shipped.path == DEMO_BUNDLE == shipped_bundle(DEMO)
    assert {probe.name for probe in shipped.all_probes} == {concept.name for concept in CONCEPTS}
    assert {vector.name for vector in shipped.manifest.vectors} == {concept.name for concept in CONCEPTS}
    assert shipped_bundle("owner/name") is None


def test_it_has_the_markers_of_its_models_template(shipped, source):
    assert shipped.manifest.markers == source.markers


def test_a_directory_of_that_name_comes_first(tmp_path, monkeypatch, tiny_bundle):
    monkeypatch.chdir(tmp_path)
    assert bundle_directory(DEMO) == DEMO_BUNDLE
    mine = tiny_bundle(tmp_path / DEMO)
    assert load_bundle(DEMO).digest == mine.digest
    assert bundle_directory("other") == tmp_path / "other"


def test_it_is_signed_and_small(shipped):
    signature = require_signature(shipped, [DEMO_KEY])
    assert signature.signed >= shipped.manifest.created[:10]
    assert sum(file.stat().st_size for file in DEMO_BUNDLE.iterdir()) < 2 << 20


def test_its_report_is_of_these_probes(shipped):
    report = read(DEMO_BUNDLE)
    by_name = {probe.name: probe for probe in report.probes}
    assert report.fingerprint == shipped.manifest.model.parts
    for probe in shipped.all_probes:
        told = by_name[probe.name]
        assert (told.layer, told.kind, told.threshold) == (probe.layer, probe.kind, probe.threshold)
        assert told.nominal == probe.calibration.false_positive_rate


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy that is taken for what ships."""
    target = tmp_path / "shipped"
    shutil.copytree(DEMO_BUNDLE, target)
    monkeypatch.setattr("probes.bundle.shipped.DEMO_BUNDLE", target)
    return target


def test_it_is_refused_where_another_has_signed_it(copy, tmp_path):
    generate_key(tmp_path / "key")
    sign_bundle(load_bundle(DEMO), load_private_key(tmp_path / "key", lambda: b""))
    with pytest.raises(BundleError, match="which is none of the 1 trusted"):
        require_trusted(load_bundle(DEMO), [])
    require_trusted(load_bundle(DEMO), [tmp_path / "key.pub"])


def test_it_is_refused_without_its_signature_and_any_other_is_not(copy, tiny_bundle):
    (copy / SIGNATURE).unlink()
    with pytest.raises(BundleError, match="is not signed"):
        require_trusted(load_bundle(DEMO), [])
    require_trusted(tiny_bundle(), [])


def test_it_is_of_the_demo_model_and_refused_for_any_other(shipped, demo_model):
    identity = identify(demo_model, DEMO)
    shipped.require_model(identity)
    for part in identity.parts:
        other = msgspec.structs.replace(identity, parts={**identity.parts, part: "0" * 64})
        with pytest.raises(BundleError, match=rf"was fitted to model 'demo', not to 'demo': {part} differ"):
            shipped.require_model(other)


def test_the_pairs_that_ship_are_those_that_it_was_made_of(shipped):
    sources = {concept.name: concept.path for concept in CONCEPTS} | {"benign": benign_path()}
    assert shipped.manifest.provenance.keys() == sources.keys()
    for name, path in sources.items():
        (pairs,) = [origin for origin in shipped.manifest.provenance[name] if origin.source == "shipped"]
        assert pairs.files == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the checkout")
def test_the_public_data_are_those_that_it_was_made_of(shipped):
    for name, origins in shipped.manifest.provenance.items():
        recorded = [origin for origin in origins if origin.source != "shipped"]
        assert msgspec.to_builtins(provenance(name, DATA)) == msgspec.to_builtins(recorded)


@pytest.mark.long
def test_transformers_reads_in_the_canaries_what_is_recorded(shipped, source):
    from probes.fit.bundle_fit import record_canaries

    probes = [(probe, shipped.weight[column], shipped.bias[column]) for column, probe in enumerate(shipped.probes)]
    again = record_canaries(source, probes, workers=shipped.worker_probes)
    assert [prompt.tolist() for prompt in again.prompts] == [prompt.tolist() for prompt in shipped.canaries.prompts]
    # An engine is let off with a drift of several percent; this is the reader that recorded them.
    assert shipped.canaries.drift(again.reference).max() < 0.01


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the checkout")
def test_a_probe_is_made_again_of_the_data_with_its_choices(shipped, source, tmp_path, monkeypatch):
    """Of the same conversations, with layer, kind and aggregate as chosen: the same direction, the same threshold."""
    from probes.calibration.thresholds import calibrate, traffic_slices
    from probes.fit.bundle_fit import TOKENS
    from probes.fit.concept_fit import PENALTIES, ConceptFit
    from probes.fit.material import gather
    from probes.fit.selection import Candidate, make
    from probes.models import no_progress
    from probes.models.activation_store import Store

    # Attacks and styles, on which no probe is fitted.
    monkeypatch.setattr("probes.fit.material.variants", lambda *_: [])

    class Silent:
        """Reads as the model does, and answers nothing."""

        read, encode = source.read, source.encode

        @staticmethod
        def respond(prompts, max_tokens, progress=no_progress):
            return [list(prompt) for prompt in prompts]

    (column,) = [column for column, probe in enumerate(shipped.probes) if probe.name == REFITTED]
    probe = shipped.probes[column]
    (concept,) = [concept for concept in CONCEPTS if concept.name == REFITTED]
    store = Store(tmp_path, Silent(), "demo", [probe.layer])
    (material,) = gather(Silent(), store, [concept], DATA, TOKENS, no_progress, sharing=len(CONCEPTS))
    fit = ConceptFit(material, [probe.layer], probe.calibration.false_positive_rate)
    # The bundle does not say which of the two penalties was chosen.
    found = []
    for penalty in PENALTIES:
        candidate = Candidate(probe.layer, probe.kind, penalty, probe.aggregate)
        reader = make(fit.spans(candidate), material.data, np.ones(len(material.data.labels), bool), candidate)
        cosine = reader.weight @ shipped.weight[column]
        cosine /= np.linalg.norm(reader.weight) * np.linalg.norm(shipped.weight[column])
        found.append((float(cosine), reader, candidate))
    cosine, reader, candidate = max(found, key=lambda item: item[0])
    assert cosine > 0.999
    benign, which = fit.quiet(candidate)
    slices = traffic_slices(benign.counts, material.ordinary.sources[which].tolist())
    threshold, calibration = calibrate(benign.peaks(reader), probe.calibration.false_positive_rate, slices)
    assert calibration.benign == probe.calibration.benign
    # Rounding of bfloat16 states differs with the batch; a tenth of a logit moves no more than a request or two.
    assert threshold == pytest.approx(probe.threshold, abs=0.1)
    assert calibration.fired == pytest.approx(probe.calibration.fired, abs=2)
