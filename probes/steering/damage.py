"""Damage by steering: its effect on ordinary answers, and on facts.

1. **Perplexity.** Of ordinary answers that people wrote, after their own prompts, by teacher forcing: every row that
   may be steered is, from the one on at which steering begins. Reported as the ratio to the same model unsteered, over
   all tokens together.
2. **Accuracy.** Whether the model finds a true answer likelier, a token, than the same one made false.

Texts are the negatives of the contrast pairs that ship: careful, true answers in conversations of many kinds. Those of
the vector's own concept are left out, and facts where its concept is of the deception family, which they would measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.data.concepts import CONCEPTS, Concept
from probes.errors import SteeringError
from probes.evaluation.metrics import Interval, bootstrap
from probes.models import Progress, no_progress
from probes.models.activations import TransformersSource
from probes.models.chat import Conversation
from probes.models.teacher_forcing import Prompt, log_likelihoods
from probes.scoring.aggregate import Aggregates
from probes.scoring.roles import RoleReader
from probes.steering.causal import answer_span
from probes.steering.edit import Edit
from probes.steering.generation import Trigger

ORDINARY: Final = ("sycophancy", "concealment", "instructed_lie", "roleplayed_lie")
"""Concepts whose negatives are ordinary answers: polite, frank and true. Refusal's comply with what is harmful."""
FACTS: Final = "false_statement"
TEXTS: Final = 40
"""Ordinary answers, and facts, as many: a few seconds of work a dose for a model of 135M."""


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation that ends with an answer, and perhaps the same answer made false."""

    id: str
    group: str
    messages: Conversation
    false: Conversation | None = None


def ordinary(concept: str, count: int = TEXTS) -> list[Text]:
    """Ordinary answers that ship, none of them of the concept's own pairs."""
    found = [
        Text(f"{of.name}:{pair.id}", f"{of.name}:{pair.topic}", pair.negative)
        for of in CONCEPTS
        if of.name in ORDINARY and of.name != concept
        for pair in of.pairs
        if pair.negative[-1].role == "assistant"
    ]
    return found[:: max(1, len(found) // count)][:count]


def facts(concept: Concept | None, count: int = TEXTS) -> list[Text]:
    """Answers that are true, each with itself made false; none where that is what the concept is about."""
    (source,) = (of for of in CONCEPTS if of.name == FACTS)
    if concept is not None and (concept.name == FACTS or concept.family == source.family != ""):
        return []
    found = [
        Text(pair.id, pair.topic, pair.negative, pair.positive)
        for pair in source.pairs
        if pair.negative[-1].role == "assistant" and pair.negative[:-1] == pair.positive[:-1]
    ]
    return found[:: max(1, len(found) // count)][:count]


@dataclass(frozen=True, slots=True)
class Damage:
    """One arm's effect on ordinary texts."""

    before: NDArray[np.float64]
    """Nats a token, unsteered, of each text, shape ``(texts,)``."""
    lost: NDArray[np.float64]
    """Nats a token more than unsteered, of each text, shape ``(texts,)``."""
    tokens: NDArray[np.float64]
    """Of each text, the same shape."""
    groups: Sequence[str]
    steered: float
    """Share of the rows before an answer's token that are steered."""
    right: NDArray[np.float64] | None
    """Of each fact, 1 where the true answer is likelier; ``None`` where facts are not measured."""
    right_before: NDArray[np.float64] | None
    """The same, unsteered."""
    fact_groups: Sequence[str]

    def perplexity(self) -> Interval:
        """Ratio to the unsteered model's, over all tokens together, with its interval by group."""
        return bootstrap(
            lambda rows: float(np.exp((self.lost * self.tokens)[rows].sum() / self.tokens[rows].sum())), self.groups
        )


class Bystanders:
    """Ordinary texts, encoded once for all arms.

    Args:
        source: The model.
        texts: Ordinary ones.
        known: Facts; may be none.

    Raises:
        SteeringError: There are no texts.
        ConceptError: A text is empty.
        ModelError: The model has no chat template that marks answers.
    """

    def __init__(self, source: TransformersSource, texts: Sequence[Text], known: Sequence[Text] = ()) -> None:
        if not texts:
            raise SteeringError("There are no ordinary answers to measure damage on.", "Give some with --benign.")
        self._source, self._texts, self._known = source, texts, known
        self._answers = [_spoken(source, text.id, text.messages) for text in texts]
        self._facts = [
            (_spoken(source, text.id, text.messages), _spoken(source, text.id, text.false))
            for text in known
            if text.false is not None
        ]

    def suffer(self, arms: Sequence[tuple[Edit, Trigger | None]], progress: Progress = no_progress) -> list[Damage]:
        """Measure what each arm does.

        Args:
            arms: What is done, and what must fire first; ``None`` to steer every row that may be.
            progress: Told how many texts are done.

        Raises:
            ModelError: Probabilities are not finite.
        """
        before, nats, starts = self._likelihoods(
            self._answers, arms, lambda _, done, total: progress("measuring perplexity", done, total)
        )
        # Of each fact the true answer, then the false one: triggered, they may be steered from different rows on.
        sides = [side for both in self._facts for side in both]
        known_before, known, _ = self._likelihoods(
            sides, arms, lambda _, done, total: progress("measuring facts", done, total)
        )
        tokens = np.array([len(ids) - 1 - first for ids, first in self._answers], np.float64)
        ends = np.array([len(ids) - 1 for ids, _ in self._answers])
        return [
            Damage(
                before=-before,
                lost=before - nats[arm],
                tokens=tokens,
                groups=[text.group for text in self._texts],
                steered=float(np.maximum(0, ends - starts[arm]).sum() / tokens.sum()),
                right=(known[arm, ::2] > known[arm, 1::2]).astype(np.float64) if sides else None,
                right_before=(known_before[::2] > known_before[1::2]).astype(np.float64) if sides else None,
                fact_groups=[text.group for text in self._known],
            )
            for arm in range(len(arms))
        ]

    def _likelihoods(
        self, texts: Sequence[tuple[list[int], int]], arms: Sequence[tuple[Edit, Trigger | None]], progress: Progress
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Log-probabilities a token, unsteered ``(texts,)`` and of each arm ``(arms, texts)``; first rows steered."""
        starts = np.array([self._starts(texts, *arm) for arm in arms]).reshape(len(arms), len(texts))
        before, after = np.zeros(len(texts)), np.zeros((len(arms), len(texts)))
        if not texts:
            return before, after, starts
        # Those that steer the same rows go together: what precedes these rows is read once for all of them.
        together: dict[bytes, list[int]] = {}
        for arm in range(len(arms)):
            together.setdefault(starts[arm].tobytes(), []).append(arm)
        for chosen in together.values():
            prompts = [
                Prompt(ids[:first], [ids[first:]], 1, range(start, len(ids)))
                for (ids, first), start in zip(texts, starts[chosen[0]].tolist(), strict=True)
            ]
            found = log_likelihoods(self._source.hooked, prompts, [None, *(arms[arm][0] for arm in chosen)], progress)
            before, after[chosen] = found[0, :, 0], found[1:, :, 0]
        return before, after, starts

    def _starts(self, texts: Sequence[tuple[list[int], int]], edit: Edit, trigger: Trigger | None) -> list[int]:
        """The first row of each text that is steered, past its end where none is; as in generation."""
        if trigger is None:
            return [first for _, first in texts]
        roles = RoleReader(self._source.markers)
        # The last token of an answer is not read.
        readings = self._source.read([ids[:-1] for ids, _ in texts], [trigger.probe.layer])
        aggregates: Aggregates = trigger.aggregates(1)
        found: list[int] = []
        for (ids, first), reading in zip(texts, readings, strict=True):
            aggregates.reset(0)
            scores = trigger.scores(reading.states[0])[:, None]
            reads = trigger.reads(roles.prompt(ids[:-1]))[:, None]
            aggregates.update(0, scores, np.arange(len(scores)), reads)
            fired = int(aggregates.fired_at[0, 0])
            found.append(len(ids) if fired < 0 else max(first, fired + (edit.layer <= trigger.probe.layer)))
        return found


def _spoken(source: TransformersSource, name: str, messages: Conversation) -> tuple[list[int], int]:
    """Tokens up to the answer's end, and the row that yields the answer's first."""
    ids, span = answer_span(source, name, messages)
    return ids[: span.stop], span.start - 1
