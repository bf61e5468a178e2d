"""From a model to a bundle.

1. Read the residual stream of every contrast pair and benign request at candidate layers, in the middle of the model,
   where concepts are most linear. Benign requests are read with the model's own answer, since probes of assistant
   tokens must be set on what the model really writes.
2. Halve the benign requests: one half teaches what is ordinary, the other sets thresholds and is seen by no probe.
3. For each concept choose layer and penalty by cross-validation on pairs and the first half (:mod:`probes.linear`),
   fit on all of them, and set the threshold on the second half (:mod:`probes.calibrate`).
4. Take the mean difference of the pairs at that layer as steering vector (contrastive activation addition, Rimsky et
   al., arXiv 2312.06681), with the median norm of the residual stream over response tokens as the unit of dose.
5. Record what the probes read in the canaries (:mod:`probes.canaries`), by which an engine is tested later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.activations import Reading, TransformersSource
from probes.aggregate import Aggregate
from probes.bundle import Bundle, Evaluation, Probe, Vector, require_destination, save_bundle
from probes.calibrate import calibrate, may_fire
from probes.canaries import CONVERSATIONS, Canaries
from probes.concepts import CONCEPTS, Concept, load_benign
from probes.errors import ConceptError, ModelError
from probes.linear import PENALTIES, Linear, averaged, cross_validate, fit, text_auroc
from probes.models import Progress, identify, no_progress, resolve_model
from probes.roles import Role

CANDIDATE_DEPTHS: Final = (0.4, 0.5, 0.6)
"""Depths at which layers are tried, as shares of the model's layers."""
ANSWERED_TRAINING: Final = 50
"""Benign requests of the training half that are read with the model's own answer; the others are read without."""
ANSWERED_CALIBRATION: Final = 150
"""The same of the calibration half. The threshold of a probe that reads the assistant's tokens is set on these alone: a
request without its answer would be quieter than any that is served."""
ANSWER_TOKENS: Final = 40
"""Length of those answers at most."""


@dataclass(frozen=True)
class _Benign:
    """Benign requests as read, in two halves."""

    training: list[Reading]
    calibration: list[Reading]


def fit_bundle(
    model: str,
    out: Path,
    *,
    version: str,
    false_positive_rate: float = 0.01,
    concepts: Sequence[Concept] = CONCEPTS,
    aggregate: Aggregate = Aggregate(),  # noqa: B008  (frozen)
    progress: Progress = no_progress,
) -> Bundle:
    """Fit, calibrate and write a bundle.

    Args:
        model: A Hugging Face id, a local directory, or ``demo``.
        out: Directory of the bundle.
        version: Of plumbob, for the manifest.
        false_positive_rate: Share of benign requests on which each probe may fire.
        concepts: What to fit.
        aggregate: How token scores become verdicts.
        progress: Told about slow work.

    Returns:
        The bundle.

    Raises:
        PlumbobError: The model or the data cannot be used; nothing was written.
    """
    # What would fail at the end of minutes of work fails here.
    out = require_destination(out)
    pairs = {concept.name: concept.pairs for concept in concepts}
    may_fire(len(load_benign()) // 2, false_positive_rate)
    path = resolve_model(model, progress)
    identity = identify(path, model)
    source = TransformersSource(path)
    _require_roles(source, model, concepts)
    layers = sorted({min(round(depth * source.layers), source.layers - 1) for depth in CANDIDATE_DEPTHS})
    benign = _read_benign(source, layers, progress)
    fitted: list[tuple[Probe, NDArray[np.floating], float]] = []
    vectors: list[tuple[Vector, NDArray[np.floating]]] = []
    for concept in concepts:
        sides = [[source.encode(side) for side in (pair.positive, pair.negative)] for pair in pairs[concept.name]]
        readings = source.read(
            [ids for side in sides for ids in side], layers, _named(f"reading {concept.name}", progress)
        )
        contrast = _Contrast(concept, layers, readings[0::2], readings[1::2], benign, aggregate)
        probe, linear = contrast.probe(false_positive_rate, progress)
        fitted.append((probe, linear.weight, linear.bias))
        vectors.append(contrast.vector(probe.layer))
    return save_bundle(
        out,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=identity,
        markers=source.markers,
        probes=fitted,
        vectors=vectors,
        canaries=record_canaries(source, fitted, progress),
    )


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


def _read_benign(source: TransformersSource, layers: Sequence[int], progress: Progress) -> _Benign:
    prompts = [source.encode(request.messages, respond=True) for request in load_benign()]
    # Shuffled, so that either half and the answered ones are alike.
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    training, calibration = ([prompts[index] for index in order[half::2]] for half in (0, 1))
    asked = [*training[:ANSWERED_TRAINING], *calibration[:ANSWERED_CALIBRATION]]
    answered = source.respond(asked, ANSWER_TOKENS, progress)
    training[:ANSWERED_TRAINING] = answered[: len(training[:ANSWERED_TRAINING])]
    calibration[:ANSWERED_CALIBRATION] = answered[len(training[:ANSWERED_TRAINING]) :]
    readings = source.read([*training, *calibration], layers, _named("reading benign requests", progress))
    return _Benign(training=readings[: len(training)], calibration=readings[len(training) :])


def record_canaries(
    source: TransformersSource,
    probes: Sequence[tuple[Probe, NDArray[np.floating], float]],
    progress: Progress = no_progress,
) -> Canaries:
    """What probes read in the canaries.

    Args:
        source: Reads the model; in bfloat16 as well as in float32, since either is much nearer to the other than what
            is tolerated.
        probes: As :func:`probes.bundle.save_bundle` takes them.
        progress: Told about slow work.
    """
    prompts = [source.encode(conversation) for conversation in CONVERSATIONS]
    layers = [probe.layer for probe, _, _ in probes]
    read = sorted(set(layers))
    readings = source.read(prompts, read, _named("reading canaries", progress))
    return Canaries.record(
        prompts,
        [reading.states[[read.index(layer) for layer in layers]] for reading in readings],
        np.stack([weight for _, weight, _ in probes]),
        np.asarray([bias for _, _, bias in probes]),
    )


def _named(what: str, progress: Progress) -> Progress:
    """The same report under another name: one bar for each reading."""
    return lambda _, done, total: progress(what, done, total)


class _Contrast:
    """One concept's data at the candidate layers.

    Args:
        concept: What is fitted.
        layers: In the order of the readings' states.
        positive: Readings of the positives.
        negative: Readings of the matched negatives.
        benign: Readings of the benign requests.
        aggregate: How scores are averaged.
    """

    def __init__(
        self,
        concept: Concept,
        layers: Sequence[int],
        positive: Sequence[Reading],
        negative: Sequence[Reading],
        benign: _Benign,
        aggregate: Aggregate,
    ) -> None:
        self._concept, self._layers, self._aggregate = concept, list(layers), aggregate
        self._positive, self._negative, self._benign = positive, negative, benign
        shortest = min(int(last_message(reading.roles).sum()) for reading in [*positive, *negative])
        if shortest < aggregate.min_tokens:
            raise ConceptError(
                f"A message of concept '{concept.name}' has {shortest} tokens.",
                f"Write {aggregate.min_tokens} at least.",
            )

    def probe(self, rate: float, progress: Progress) -> tuple[Probe, Linear]:
        """Choose, fit and calibrate."""
        concept, minimum = self._concept, self._aggregate.min_tokens
        what, total = f"fitting {concept.name}", len(self._layers) * len(PENALTIES) + 1
        choices = []
        for layer in self._layers:
            spans = self._spans(layer)
            for penalty in PENALTIES:
                choices.append(cross_validate(layer, penalty, *spans, minimum, rate))
                progress(what, len(choices), total)
        best = max(choices, key=lambda choice: choice.informedness)
        linear = fit(*self._spans(best.layer), best.penalty, minimum)
        calibration_set = self._benign.calibration
        if Role.ASSISTANT in concept.roles:
            calibration_set = calibration_set[:ANSWERED_CALIBRATION]
        quiet = linear.verdicts(self._ordinary(calibration_set, best.layer), minimum)
        threshold, calibration = calibrate(quiet, rate)
        progress(what, total, total)
        return (
            Probe(
                name=concept.name,
                layer=best.layer,
                roles=[role.name.lower() for role in concept.roles],
                threshold=threshold,
                aggregate=self._aggregate,
                calibration=calibration,
                evaluation=Evaluation(
                    pairs=len(best.positive),
                    auroc=_auroc(best.positive, best.negative),
                    auroc_text=text_auroc(
                        [pair.positive[-1].content for pair in concept.pairs],
                        [pair.negative[-1].content for pair in concept.pairs],
                    ),
                    # Scores of probes that have not seen the pair, against the threshold that is deployed.
                    recall=float((best.positive >= threshold).mean()),
                    paired=float((best.positive > best.negative).mean()),
                ),
            ),
            linear,
        )

    def vector(self, layer: int) -> tuple[Vector, NDArray[np.floating]]:
        """The mean difference of the pairs, over the tokens that differ in the concept."""
        at = self._layers.index(layer)
        means = [
            np.mean([reading.states[at, last_message(reading.roles)].mean(axis=0) for reading in side], axis=0)
            for side in (self._positive, self._negative)
        ]
        answers = [
            np.linalg.norm(reading.states[at, reading.roles == Role.ASSISTANT], axis=-1)
            for reading in [*self._benign.training, *self._benign.calibration]
        ]
        norm = float(np.median(np.concatenate(answers)))
        return Vector(name=self._concept.name, layer=layer, hidden_norm=norm), means[0] - means[1]

    def _spans(
        self, layer: int
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        at = self._layers.index(layer)
        positive, negative = (
            [averaged(reading.states[at, last_message(reading.roles)], self._aggregate) for reading in side]
            for side in (self._positive, self._negative)
        )
        return positive, negative, self._ordinary(self._benign.training, layer)

    def _ordinary(self, readings: Sequence[Reading], layer: int) -> list[NDArray[np.float32]]:
        """Benign requests that have tokens for this probe to read."""
        at = self._layers.index(layer)
        masks = [np.isin(reading.roles, self._concept.roles) for reading in readings]
        return [
            averaged(reading.states[at, mask], self._aggregate)
            for reading, mask in zip(readings, masks, strict=True)
            if mask.any()
        ]


def last_message(roles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which tokens belong to the last message, shape ``(tokens,)``: the one that a pair differs in."""
    content = np.flatnonzero(roles != Role.TEMPLATE)
    mask = np.zeros(len(roles), bool)
    if len(content):
        end = content[-1]
        other = np.flatnonzero(roles[:end] != roles[end])
        mask[(other[-1] + 1 if len(other) else 0) : end + 1] = True
    return mask


def _auroc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    from sklearn.metrics import roc_auc_score

    scores = np.nan_to_num(np.concatenate([positive, negative]), neginf=-1e30)
    return float(roc_auc_score(np.arange(len(scores)) < len(positive), scores))
