"""From a model to a bundle.

1. Gather each concept's examples and the benign requests, choose among them within a token budget
   (:mod:`probes.data.corpus`), let the model answer some of the benign ones, and read the residual stream of all of
   them at candidate layers (:mod:`probes.fit.material`). What was read stays on disk until the bundle is written, so
   that an interrupted fit goes on where it was.
2. For each concept choose layer, kind and penalty by leaving out whole data sets (:mod:`probes.fit.selection`), fit on
   all of the data, and set the threshold on benign requests that no probe has seen
   (:mod:`probes.calibration.thresholds`).
3. Measure it on what was left out, beside baselines and controls (:mod:`probes.fit.held_out`), and ask whether the
   model uses what the probe reads (:mod:`probes.steering.causal`).
4. Take the mean difference of the contrast pairs at that layer as steering vector (contrastive activation addition,
   Rimsky et al., arXiv 2312.06681), with the median norm of the residual stream over response tokens as the unit of
   dose.
5. Record what the probes read in the canaries (:mod:`probes.bundle.canaries`), by which an engine is tested later, and
   write bundle and report.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.bundle import Bundle, WorkerProbe, require_destination, save_bundle
from probes.bundle.canaries import CONVERSATIONS, Canaries
from probes.bundle.directory import fitting_directory
from probes.bundle.manifest import Probe, Provenance
from probes.calibration.thresholds import may_fire
from probes.data.concepts import CONCEPTS, Concept, benign_path, load_benign
from probes.data.sources import provenance
from probes.errors import ConceptError, ModelError
from probes.evaluation.conclusions import concluded
from probes.evaluation.results import Report
from probes.fit.concept_fit import ConceptFit, Fitted
from probes.fit.linear import Linear
from probes.fit.material import CALIBRATING, Material, calibrating, gather
from probes.fit.selection import SHIPPED
from probes.models import Progress, identify, no_progress, resolve_model
from probes.models.activation_store import Store
from probes.models.activations import OpenReader, TransformersSource
from probes.report.files import HTML, JSON, decode, encode
from probes.report.page import render
from probes.scoring.multimax import MultiMax
from probes.scoring.roles import Role

DEPTHS: Final = (0.4, 0.5, 0.6)
"""Depths at which layers are tried, as shares of the model's layers: concepts are most linear in the middle."""
TOKENS: Final = 700_000
"""Read at most, unless told otherwise; some ten minutes for a model of 135M on two cores."""


def fit_bundle(
    model: str,
    out: Path,
    *,
    version: str,
    data: Path | None = None,
    false_positive_rate: float = 0.01,
    concepts: Sequence[Concept] = CONCEPTS,
    tokens: int = TOKENS,
    command: str = "",
    reader: OpenReader | None = None,
    progress: Progress = no_progress,
) -> Bundle:
    """Fit, calibrate, evaluate and write a bundle.

    Args:
        model: A Hugging Face id, a local directory, or ``demo``.
        out: Directory of the bundle. What is read on the way is kept beside it until the bundle is written, or in it
            where nothing can be written beside it.
        version: Of plumbob, for the manifest.
        data: Directory of public data sets; ``None`` for the pairs that ship with Plumbob alone.
        false_positive_rate: Share of benign requests on which each probe may fire; of a family of probes, together.
        concepts: What to fit.
        tokens: Read at most.
        command: That the user gave, for the report.
        reader: Reads the material and answers; ``None``: transformers does. What steers the model, example
            conversations and canaries are transformers' in any case: it has hooks, and an engine that is tested by
            canaries must not have recorded them.
        progress: Told about slow work.

    Returns:
        The bundle.

    Raises:
        PlumbobError: The model or the data cannot be used; no bundle was written.
    """
    # What would fail at the end of minutes of work fails here.
    out = require_destination(out)
    rates = {concept.name: _rate(concept, concepts, false_positive_rate) for concept in concepts}
    for concept in concepts:
        _ = concept.pairs
    if data is None:
        may_fire(int(calibrating(load_benign()).sum()), min(rates.values()))
    path = resolve_model(model, progress)
    identity = identify(path, model)
    source = TransformersSource(path)
    _require_roles(source, model, concepts)
    layers = sorted({min(round(depth * source.layers), source.layers - 1) for depth in DEPTHS})
    work = fitting_directory(out)
    # The configuration changes what the weights compute, the chat template whose tokens are whose.
    parts = "".join(identity.parts.values())
    with reader(path, layers) if reader else nullcontext(source) as reads:
        # What another reader has read is rounded otherwise, and is not mixed with this one's.
        store = Store(work, reads, parts if reads is source else f"{type(reads).__name__} {parts}", layers)
        materials = gather(reads, store, concepts, data, tokens, progress, rates)
    fitted: list[Fitted] = []
    for material in materials:
        name = material.concept.name
        try:
            fitted.append(ConceptFit(material, layers, rates[name]).run(source, progress))
        except ConceptError as error:
            raise ConceptError(f"Concept '{name}' cannot be fitted: {error}") from error
    report = Report(
        plumbob=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        command=command,
        probes=[item.report for item in fitted],
        fingerprint=identity.parts,
        notes=_notes(materials, data, tokens),
    )
    encoded = encode(concluded(report))
    probes = [(item.probe, item.reader.weight, item.reader.bias) for item in fitted if isinstance(item.reader, Linear)]
    workers = [WorkerProbe(item.probe, item.reader) for item in fitted if isinstance(item.reader, MultiMax)]
    bundle = save_bundle(
        out,
        version=version,
        created=report.created,
        model=identity,
        markers=source.markers,
        probes=probes,
        worker_probes=workers,
        vectors=[item.vector for item in fitted],
        canaries=record_canaries(source, probes, progress, workers),
        provenance=_provenance(concepts, data),
        files={JSON: encoded, HTML: render(decode(encoded, "The report")).encode()},
    )
    shutil.rmtree(work, ignore_errors=True)
    return bundle


def record_canaries(
    source: TransformersSource,
    probes: Sequence[tuple[Probe, NDArray[np.floating], float]],
    progress: Progress = no_progress,
    workers: Sequence[WorkerProbe] = (),
) -> Canaries:
    """Record what probes read in the canaries.

    Args:
        source: Reads the model; in bfloat16 as well as in float32, since either is much nearer to the other than what
            is tolerated.
        probes: As :func:`probes.bundle.save_bundle` takes them.
        progress: Told about slow work.
        workers: The worker probes, too.
    """
    prompts = [source.encode(conversation) for conversation in CONVERSATIONS]
    layers = [*(probe.layer for probe, _, _ in probes), *(worker.probe.layer for worker in workers)]
    read = sorted(set(layers))
    readings = source.read(prompts, read, lambda _, done, total: progress("reading canaries", done, total))
    return Canaries.record(
        prompts,
        [reading.states[[read.index(layer) for layer in layers]] for reading in readings],
        np.asarray([weight for _, weight, _ in probes], np.float64).reshape(len(probes), source.hidden),
        np.asarray([bias for _, _, bias in probes], np.float64),
        [worker.reader for worker in workers],
    )


def _rate(concept: Concept, concepts: Sequence[Concept], rate: float) -> float:
    """A family's budget, split evenly (Bonferroni)."""
    family = [other for other in concepts if other.family and other.family == concept.family]
    return rate / max(1, len(family))


def _require_roles(source: TransformersSource, model: str, concepts: Sequence[Concept]) -> None:
    """Check that the chat template marks what the probes read, and answers, which are the unit of dose."""
    needed = {Role.ASSISTANT}.union(*(concept.roles for concept in concepts))
    missing = sorted(role for role in needed if role.name.lower() not in source.markers.headers)
    if missing:
        raise ModelError(
            f"Model '{model}' has no chat template that marks messages of: "
            f"{', '.join(role.name.lower() for role in missing)}.",
            "Fit a model that was tuned for conversations.",
        )


def _notes(materials: Sequence[Material], data: Path | None, tokens: int) -> list[str]:
    ordinary = materials[0].ordinary
    by_source = Counter(ordinary.sources.tolist())
    listed = ", ".join(f"{name} {count}" for name, count in sorted(by_source.items()))
    return [
        f"At most {tokens:,} tokens were read; each data set of a concept has an equal share of them, in whole groups.",
        f"Benign requests, by source: {listed}. {CALIBRATING:.0%} of them set thresholds, and no probe has seen these; "
        f"{int(ordinary.answered.sum())} were read with the model's own answer.",
        "Only what ships with Plumbob was fitted on: its sets were written by few authors."
        if data is None
        else "A split that leaves a source out makes the probe without it: layer, kind, penalty, weights, threshold.",
        "A probe can read what the model does not use. It is evidence, and no verdict on what the model intends.",
    ]


def _provenance(concepts: Sequence[Concept], data: Path | None) -> dict[str, list[Provenance]]:
    """The files of each concept and of the benign requests."""

    def pairs(path: Path, rows: int) -> Provenance:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        ours = path.parent == benign_path().parent
        return Provenance(
            SHIPPED if ours else path.name, "Apache-2.0" if ours else "not stated", {path.name: digest}, rows
        )

    found = {concept.name: [pairs(concept.path, len(concept.pairs))] for concept in concepts}
    found["benign"] = [pairs(benign_path(), len(load_benign()))]
    if data is not None:
        for name, sets in found.items():
            sets += provenance(name, data)
    return found
