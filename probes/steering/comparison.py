"""Arms side by side: the same prompts answered unsteered and in one or more steered ways, and what came of it.

Every change is of the same prompt (or text, or fact) between two arms, and its interval resamples groups of prompts:
the topic where there is one, else the prompt itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.evaluation.metrics import bootstrap
from probes.models import Progress, no_progress
from probes.models.activations import TransformersSource
from probes.steering.behaviour import Shown, Words, show
from probes.steering.damage import Bystanders, Damage
from probes.steering.edit import Edit
from probes.steering.generation import Answer, Arm, Trigger, generate
from probes.steering.results import Outcome, Shift


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to answer."""

    id: str
    group: str
    """The group that is resampled as one."""
    token_ids: Sequence[int]
    """Up to where the answer begins."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A steered arm."""

    name: str
    dose: float
    edit: Edit
    trigger: Trigger | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of :func:`compare`; arms are the unsteered one, and then the ways."""

    outcomes: list[Outcome]
    answers: list[list[Answer]]
    damages: list[Damage]
    """Of the ways alone."""


def compare(
    source: TransformersSource,
    questions: Sequence[Question],
    ways: Sequence[Way],
    bystanders: Bystanders,
    *,
    reader: Trigger | None,
    words: Words | None,
    max_tokens: int,
    progress: Progress = no_progress,
) -> Compared:
    """Answer, and measure.

    Args:
        source: The model.
        questions: One at least.
        ways: One at least.
        bystanders: What damage is measured on.
        reader: The probe that reads the answers; ``None`` for none.
        words: The classifier of answers; ``None`` for none.
        max_tokens: Of each answer.
        progress: Told about slow work.

    Raises:
        SteeringError: The steered model breaks down.
        ModelError: The model cannot be read, or breaks down on ordinary text.
    """
    prompts = [question.token_ids for question in questions]
    groups = [question.group for question in questions]
    arms = [Arm(), *(Arm([way.edit], way.trigger) for way in ways)]
    answers = generate(source, prompts, arms, max_tokens, progress)
    shown = show(
        source, prompts, answers, reader, words, lambda _, done, total: progress("reading answers", done, total)
    )
    damages = bystanders.suffer([(way.edit, way.trigger) for way in ways], progress)
    return Compared(
        [
            _outcome("unsteered", 0.0, shown[0], shown[0], answers[0], groups),
            *(
                _outcome(way.name, way.dose, shown[0], seen, said, groups, damage, triggered=way.trigger is not None)
                for way, seen, said, damage in zip(ways, shown[1:], answers[1:], damages, strict=True)
            ),
        ],
        answers,
        damages,
    )


def shift(before: NDArray[np.float64], after: NDArray[np.float64], groups: Sequence[str]) -> Shift | None:
    """Of the same things in two arms, shape ``(things,)``; those without a number in either are left out.

    Returns:
        ``None`` where none is left.
    """
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return None
    changes = (after - before)[both]
    kept = [group for group, is_kept in zip(groups, both.tolist(), strict=True) if is_kept]
    return Shift(float(after[both].mean()), bootstrap(_mean_of(changes), kept))


def _mean_of(values: NDArray[np.float64]) -> Callable[[NDArray[np.intp]], float]:
    return lambda rows: float(values[rows].mean())


def _outcome(
    name: str,
    dose: float,
    before: Shown,
    after: Shown,
    answers: Sequence[Answer],
    groups: Sequence[str],
    damage: Damage | None = None,
    *,
    triggered: bool = False,
) -> Outcome:
    def moved(one: NDArray[np.float64] | None, other: NDArray[np.float64] | None) -> Shift | None:
        return None if one is None or other is None else shift(one, other, groups)

    def of_all(one: NDArray[np.float64], other: NDArray[np.float64]) -> Shift:
        found = shift(one, other, groups)
        assert found is not None, "every answer has one, empty or not"
        return found

    accuracy = None
    if damage is not None and damage.right is not None and damage.right_before is not None:
        accuracy = shift(damage.right_before, damage.right, damage.fact_groups)
    return Outcome(
        name=name,
        dose=dose,
        probe=moved(before.probe, after.probe),
        fired=moved(before.fired, after.fired),
        words=moved(before.words, after.words),
        refused=of_all(before.refused, after.refused),
        repetition=of_all(before.repetition, after.repetition),
        perplexity=None if damage is None else damage.perplexity(),
        accuracy=accuracy,
        tokens=sum(len(answer.token_ids) for answer in answers),
        steered=sum(answer.steered for answer in answers),
        triggered=sum(answer.fired_at is not None for answer in answers) if triggered else None,
        empty=sum(not answer.token_ids for answer in answers),
        ordinary_steered=0.0 if damage is None else damage.steered,
    )
