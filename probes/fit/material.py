"""Everything that fitting reads of a model, on disk: labelled conversations, and benign requests with answers.

Benign requests are halved by a hash of their names: one half teaches what is ordinary, the other sets thresholds and is
seen by no probe. Some of each half are read with the model's own answer: a probe that reads the assistant must be set
on what the model really writes, and a request without its answer would be quieter than any that is served.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.calibration.thresholds import may_fire
from probes.data.concepts import Concept, load_benign
from probes.data.corpus import MAX_TOKENS, Sample, sample_benign, sample_examples
from probes.data.examples import Benign, Example
from probes.data.sources import load
from probes.data.sources import load_benign as load_public_benign
from probes.data.variants import Variant, variants
from probes.fit.selection import Labelled
from probes.models import Progress
from probes.models.activation_store import Rows, Store, Stored
from probes.models.activations import Reader
from probes.models.chat import Conversation
from probes.scoring.roles import Role

CALIBRATING: Final = 0.8
"""Share of the benign requests that set thresholds."""
BENIGN_SHARE: Final = 0.4
"""Of the token budget: enough that a large data set alone can show a rate of 1%, which takes 300 of its requests."""
ANSWERED: Final = 1560
"""Benign requests that are read with an answer, of both halves together: all of the small public sets, and of each
large one as many as such a rate takes."""
ANSWER_TOKENS: Final = 32
"""Length of those answers at most."""
ANSWERED_PROMPT: Final = 160
"""Tokens of a request that is answered, at most: a longer one costs more than its answer tells."""
NEGATED: Final = "negated"
"""The tag of a statement whose sign is turned."""


@dataclass(frozen=True)
class Ordinary:
    """Benign requests as read; arrays have one element a request."""

    sample: Sample[Benign]
    stored: Stored
    answered: NDArray[np.bool_]
    """Read with the model's answer."""
    calibrating: NDArray[np.bool_]
    """Of the half that sets thresholds."""

    @property
    def sources(self) -> NDArray[np.str_]:
        """The origin of each."""
        return np.array([item.source for item in self.sample.items])

    def answer_states(self, layer: int) -> NDArray[np.float32]:
        """The states of the model's own answers at a layer, shape ``(rows, hidden)``."""
        rows = self.stored.rows(layer)
        return rows.states[rows.roles == Role.ASSISTANT]

    def read_by(self, concept: Concept) -> NDArray[np.bool_]:
        """Those that have what the concept's probe reads."""
        return _read_by(concept, self.answered)


@dataclass(frozen=True)
class Material:
    """One concept's conversations, and the benign requests of the half that teaches."""

    concept: Concept
    sample: Sample[Example]
    ordinary: Ordinary
    data: Labelled
    """The labelled conversations, then the benign ones."""
    stored: Stored
    variants: Sequence[Variant] = ()
    """Variants of some of the examples, which no probe is fitted on."""
    _variants_stored: Stored | None = None

    def rows(self, layer: int) -> Rows:
        """The rows of :attr:`data`'s conversations at a layer."""
        teaching = ~self.ordinary.calibrating & self.ordinary.read_by(self.concept)
        return self.stored.rows(layer).join(self.ordinary.stored.rows(layer).of(teaching))

    def variant_rows(self, layer: int) -> Rows:
        """The rows of :attr:`variants` at a layer; only where there are any."""
        assert self._variants_stored is not None
        return self._variants_stored.rows(layer)

    def calibration_rows(self, layer: int) -> tuple[Rows, NDArray[np.bool_]]:
        """The rows of the half that sets thresholds, and which benign requests they are."""
        chosen = self.ordinary.calibrating & self.ordinary.read_by(self.concept)
        return self.ordinary.stored.rows(layer).of(chosen), chosen


def gather(
    source: Reader,
    store: Store,
    concepts: Sequence[Concept],
    data: Path | None,
    budget: int,
    progress: Progress,
    rates: Mapping[str, float] = MappingProxyType({}),
    sharing: int | None = None,
) -> list[Material]:
    """Choose, answer and read everything.

    Args:
        source: Answers benign requests, and encodes.
        store: Reads the rest, and remembers it.
        concepts: What is to be fitted.
        data: Directory of public data sets; ``None`` for what ships with Plumbob.
        budget: Tokens of all conversations together.
        progress: Told about slow work.
        rates: The false-positive rate of each concept's threshold, by name; too few benign requests for one are refused
            before anything is read.
        sharing: Concepts that share the budget, where these are but some of them: so one probe of a bundle can be made
            again of the same conversations. ``None``: these are all.

    Raises:
        PlumbobError: The data cannot be used.
        OSError: The disk is full, or refuses.
    """
    samples: list[Sample[Example]] = []
    share = int(budget * (1 - BENIGN_SHARE) / (sharing or len(concepts)))
    for number, concept in enumerate(concepts):
        samples.append(sample_examples(concept.examples(data, load), source.encode, share, concept.name))
        progress("encoding examples", number + 1, len(concepts))
    requests = [*load_benign(), *(load_public_benign(data) if data is not None else [])]
    chosen, answered = _choose_ordinary(source, requests, int(budget * BENIGN_SHARE))
    setting = calibrating(chosen.items)
    for concept in concepts:
        if concept.name in rates:
            may_fire(int((setting & _read_by(concept, answered)).sum()), rates[concept.name])
    ordinary = _read_ordinary(source, store, chosen, answered, progress)
    materials: list[Material] = []
    for concept, sample in zip(concepts, samples, strict=True):
        stored = store.read(sample.tokens, f"reading {concept.name}", progress)
        material = _material(concept, sample, stored, ordinary)
        # The pairs that ship are too few for intervals that would say anything of so many variants.
        if data is not None and (made := variants(sample.items, concept)):
            tokens = [source.encode(variant.example.messages)[:MAX_TOKENS] for variant in made]
            # They come on top of the budget; a small one would be mostly theirs, and fewer of them would say nothing.
            if sum(map(len, tokens)) <= share:
                stored_variants = store.read(tokens, f"reading variants of {concept.name}", progress)
                material = replace(material, variants=made, _variants_stored=stored_variants)
        materials.append(material)
    return materials


def calibrating(requests: Sequence[Benign]) -> NDArray[np.bool_]:
    """The mask of benign requests that set thresholds, shape ``(requests,)``."""
    return _draws(requests) < CALIBRATING


def _read_by(concept: Concept, answered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A probe of answers needs one; every request has a user's words."""
    return np.ones(len(answered), bool) if Role.USER in concept.roles else answered


def _choose_ordinary(
    source: Reader, requests: Sequence[Benign], budget: int
) -> tuple[Sample[Benign], NDArray[np.bool_]]:
    """Benign requests within a budget, and which of them are to be answered."""

    def ask(conversation: Conversation) -> list[int]:
        return source.encode(conversation, respond=True)

    sample = sample_benign(requests, ask, budget)
    drawn = _draws(sample.items)
    answered = np.zeros(len(drawn), bool)
    sources = np.array([item.source for item in sample.items])
    # As many of each source as of any other, where it has them.
    ranks = np.full(len(drawn), len(drawn))
    short = np.array([len(ids) <= ANSWERED_PROMPT for ids in sample.tokens])
    for name in np.unique(sources):
        members = np.flatnonzero((sources == name) & short)
        ranks[members[np.argsort(_spread(drawn[members]))]] = np.arange(len(members))
    answered[np.argsort(ranks, kind="stable")[: min(ANSWERED, int(short.sum()))]] = True
    return sample, answered


def _read_ordinary(
    source: Reader, store: Store, sample: Sample[Benign], answered: NDArray[np.bool_], progress: Progress
) -> Ordinary:
    tokens = list(sample.tokens)
    asked = np.flatnonzero(answered).tolist()
    for index, answer in zip(
        asked, store.answers([tokens[index] for index in asked], ANSWER_TOKENS, source, progress), strict=True
    ):
        tokens[index] = answer
    stored = store.read(tokens, "reading benign requests", progress)
    return Ordinary(sample, stored, answered, calibrating(sample.items))


def _material(concept: Concept, sample: Sample[Example], stored: Stored, ordinary: Ordinary) -> Material:
    teaching = np.flatnonzero(~ordinary.calibrating & ordinary.read_by(concept)).tolist()
    examples, requests = sample.items, [ordinary.sample.items[index] for index in teaching]
    return Material(
        concept,
        sample,
        ordinary,
        Labelled(
            labels=np.array([*(item.label for item in examples), *([False] * len(requests))]),
            benign=np.array([False] * len(examples) + [True] * len(requests)),
            polarity=np.array(
                [*(-1.0 if NEGATED in item.tags else 1.0 for item in examples), *([1.0] * len(requests))]
            ),
            sources=np.array([*(item.source for item in examples), *(item.source for item in requests)]),
            groups=np.array(
                [*(item.group for item in examples), *(f"benign:{item.source}:{item.id}" for item in requests)]
            ),
            topics=np.array([*(item.topic for item in examples), *(item.topic for item in requests)]),
        ),
        stored,
    )


def _draws(requests: Sequence[Benign]) -> NDArray[np.float64]:
    """A number from 0 to 1 for each request, the same on every machine."""
    # Not the hash by which requests are chosen: those within a budget have its lowest values.
    digests = [hashlib.sha256(f"half:{request.source}:{request.id}".encode()).digest() for request in requests]
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])


def _spread(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same order within either half, so that either has its share of those that come first."""
    return np.where(drawn < CALIBRATING, drawn / CALIBRATING, (drawn - CALIBRATING) / (1 - CALIBRATING))
