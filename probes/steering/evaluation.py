"""Steering evaluated, from a bundle to a report: the dose sweep of a vector, and one dose always and by policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
import numpy as np

from probes.bundle import Bundle, Vector
from probes.data.concepts import Concept
from probes.data.examples import Example
from probes.data.requests import Request
from probes.errors import SteeringError
from probes.models import Progress, identify, no_progress, resolve_model
from probes.models.activations import TransformersSource
from probes.scoring.roles import Role
from probes.steering.behaviour import Words
from probes.steering.comparison import Compared, Question, Way, compare
from probes.steering.conclusions import concluded, dose
from probes.steering.damage import Bystanders, Text, facts, ordinary
from probes.steering.edit import Edit, edits_of
from probes.steering.generation import Trigger
from probes.steering.operation import add
from probes.steering.questions import COUNT, of_concept, of_requests, ordinary_of
from probes.steering.results import SteeringReport
from probes.steering.sweep import cap, working_range

ANSWER_TOKENS: Final = 32
"""Of each answer at most, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The evaluation to run, and its data."""

    bundle: Bundle
    vector: Vector
    concept: Concept | None
    """Whose words and pairs judge the answers; ``None`` for none."""
    prompts: Sequence[Request] | None = None
    """``None`` for the contexts of the concept's pairs."""
    benign: Sequence[Request] | None = None
    """Ordinary conversations; ``None`` for those that ship."""
    max_tokens: int = ANSWER_TOKENS
    learnt: Sequence[Example] = ()
    """Texts that the classifier of words learns beside the concept's pairs."""

    def __post_init__(self) -> None:
        if self.concept is None and self.prompts is None:
            raise SteeringError(
                f"Nothing is known that vector '{self.vector.name}' should be tried on.",
                "Name a concept with --concept, or a file of requests with --prompts.",
            )

    @property
    def reader(self) -> Trigger | None:
        """The bundle's probe of the concept, if it reads answers."""
        if self.concept is None or self.concept.name not in [probe.name for probe in self.bundle.probes]:
            return None
        found = Trigger.of(self.bundle, self.concept.name)
        return found if found.probe.reads(Role.ASSISTANT) else None


def open_model(bundle: Bundle, model: str | None = None, progress: Progress = no_progress) -> TransformersSource:
    """The model that a bundle was fitted to, in bfloat16.

    Args:
        bundle: Of the model.
        model: Where it is now; ``None`` for the name it was fitted under.
        progress: Told about slow work.

    Raises:
        ModelError: The model cannot be found or read.
        BundleError: The bundle was fitted to another.
    """
    name = model or bundle.manifest.model.name
    path = resolve_model(name, progress)
    bundle.require_model(identify(path, name))
    return TransformersSource(path)


def sweep(
    subject: Subject,
    source: TransformersSource,
    doses: Sequence[float],
    *,
    version: str,
    command: str,
    progress: Progress = no_progress,
) -> SteeringReport:
    """Try doses of a vector side by side.

    Args:
        subject: What, and on what.
        source: The model.
        doses: Both signs, without 0.
        version: Of plumbob.
        command: That the user gave.
        progress: Told about slow work.

    Returns:
        The report, with the working range and the cap.

    Raises:
        SteeringError: There are too few prompts, the steered model breaks down, or no dose is harmless.
        PlumbobError: The model or the requests cannot be used.
    """
    vector, row = subject.vector, subject.bundle.manifest.vectors.index(subject.vector)

    def edit(size: float) -> Edit:
        # Not by edits_of: an earlier cap does not bind the sweep that sets a new one.
        table = np.array([add(size).entry(vector.hidden_norm)])
        return Edit(vector.layer, subject.bundle.vectors[[row]], table)

    ways = [Way(f"dose {dose(size)}", size, edit(size)) for size in doses]
    measured = _run(subject, source, ways, progress)
    outcomes = sorted(measured.compared.outcomes, key=lambda outcome: outcome.dose)
    return concluded(
        msgspec.structs.replace(
            _report(subject, "sweep", measured, version, command),
            outcomes=outcomes,
            working=working_range(outcomes),
            max_dose=cap(outcomes),
        )
    )


def trial(
    subject: Subject,
    source: TransformersSource,
    size: float,
    trigger: Trigger,
    *,
    version: str,
    command: str,
    progress: Progress = no_progress,
) -> tuple[SteeringReport, list[Question], Compared]:
    """Compare unsteered, always steered, and steered from the token on at which a probe fires.

    Args:
        subject: What, and on what.
        source: The model.
        size: The dose.
        trigger: The policy's probe.
        version: Of plumbob.
        command: That the user gave.
        progress: Told about slow work.

    Returns:
        The report, the prompts, and the answers.

    Raises:
        BundleError: The dose is over the vector's cap.
        SteeringError: There are too few prompts, or the steered model breaks down.
        PlumbobError: The model or the requests cannot be used.
    """
    (edit,) = edits_of(subject.bundle, {subject.vector.name: add(size)})
    ways = [Way("always", size, edit), Way("policy", size, edit, trigger)]
    measured = _run(subject, source, ways, progress)
    report = _report(subject, "trial", measured, version, command)
    return (
        concluded(msgspec.structs.replace(report, trigger=trigger.probe.name)),
        measured.questions,
        measured.compared,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """The result of :func:`_run`."""

    questions: list[Question]
    compared: Compared
    ordinary: int
    facts: int
    words_auroc: float | None


def _run(subject: Subject, source: TransformersSource, ways: Sequence[Way], progress: Progress) -> _Measured:
    concept = subject.concept
    if subject.prompts is not None:
        questions = of_requests(source, subject.prompts, subject.max_tokens)
    else:
        assert concept is not None, "a subject has prompts or a concept"
        questions = of_concept(source, concept, subject.max_tokens, COUNT)
    texts: Sequence[Text] = (
        ordinary_of(subject.benign) if subject.benign is not None else ordinary(concept.name if concept else "")
    )
    known = facts(concept)
    words = None if concept is None else Words(concept, subject.learnt)
    found = compare(
        source,
        questions,
        ways,
        Bystanders(source, texts, known),
        reader=subject.reader,
        words=words,
        max_tokens=subject.max_tokens,
        progress=progress,
    )
    return _Measured(questions, found, len(texts), len(known), words.auroc() if words else None)


def _report(
    subject: Subject, kind: Literal["sweep", "trial"], measured: _Measured, version: str, command: str
) -> SteeringReport:
    bundle, vector, reader = subject.bundle, subject.vector, subject.reader
    damage = measured.compared.damages[0]
    nats = float((damage.before * damage.tokens).sum() / damage.tokens.sum())
    return SteeringReport(
        kind=kind,
        plumbob=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=bundle.manifest.model.name,
        fingerprint=bundle.manifest.model.parts,
        bundle=bundle.digest,
        command=command,
        vector=vector.name,
        layer=vector.layer,
        hidden_norm=vector.hidden_norm,
        method=f"{vector.method} of {vector.origin}" if vector.origin else vector.method,
        concept=subject.concept.name if subject.concept else None,
        probe=reader.probe.name if reader else None,
        trigger=None,
        words_auroc=measured.words_auroc,
        prompts=len(measured.questions),
        ordinary=measured.ordinary,
        ordinary_perplexity=float(np.exp(nats)),
        facts=measured.facts,
        facts_right=None if damage.right_before is None else float(damage.right_before.mean()),
        outcomes=measured.compared.outcomes,
        notes=_notes(subject),
    )


def _notes(subject: Subject) -> list[str]:
    notes = [
        f"Answers are greedy, of {subject.max_tokens} tokens at most. The probe reads them again without steering; it "
        "and the vector may still come of the same pairs, so that what it says is no independent witness.",
    ]
    if subject.prompts is None:
        notes.append(
            "Prompts are the contexts of the concept's own pairs, whose answers made the vector, unless it was made "
            "otherwise: on prompts of your own it may do less."
        )
    if subject.benign is None:
        notes.append(
            "Ordinary answers are those that ship with Plumbob, of few authors: give your own traffic with --benign."
        )
    if subject.learnt:
        sources = ", ".join(sorted({example.source for example in subject.learnt}))
        notes.append(f"The words were learnt on {len(subject.learnt):,} labelled texts of {sources} as well.")
    if subject.reader is None:
        notes.append("No probe of the bundle reads answers for this concept: they are judged by words and rule alone.")
    return notes
