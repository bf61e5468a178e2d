"""The causal check: whether the model uses what a probe reads, or whether the probe merely can read it.

1. **Behaviour.** For a probe that reads the assistant: how much likelier the model finds the answer that shows the
   concept than its matched one, each in its own conversation. For one that does not: how much likelier it finds it to
   refuse the request that shows the concept than to comply, by a few fixed openings of either. Both are differences of
   mean log-probabilities, in nats a token, by teacher forcing: nothing is sampled.
2. **Ablated.** At the probe's layer, the projection of every row on the direction is taken out (directional ablation:
   Arditi et al., arXiv 2406.11717). There it is done at all layers; here at one, so that a later layer may write again
   what was taken away.
3. **Added.** The direction, ``dose`` times as long as the layer's states, is added where the probe was taught to read:
   the tokens of the last message of the pair, and the header before it, whose last token yields the first of them.
4. **Random.** Directions drawn at random, as long, are added to the same rows: what any push does.
5. The effects are differences within a pair, with a bootstrap interval over pairs. Adding must raise the behaviour, and
   by more than a random push; ablating must lower it.

What it cannot show: a behaviour that takes several layers or directions at once moves little by one; and a change of
log-probability is not yet a change of what is sampled.
"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from probes.bundle.manifest import Probe
from probes.data.examples import Pair
from probes.errors import ConceptError, ModelError
from probes.evaluation.metrics import MIN_GROUPS, Interval, bootstrap
from probes.evaluation.results import Causal
from probes.evaluation.wording import with_interval
from probes.models import Progress, no_progress
from probes.models.activation_store import last_message
from probes.models.activations import TransformersSource
from probes.models.chat import Message
from probes.models.teacher_forcing import Prompt, log_likelihoods
from probes.scoring.roles import Role, RoleReader
from probes.steering.edit import Edit

REFUSALS: Final = ("I'm sorry", "I can't", "I cannot", "Sorry")
"""Beginnings of answers that refuse."""
COMPLIANCES: Final = ("Sure", "Here is", "Of course", "Certainly")
"""Beginnings of answers that comply; as many."""
RANDOM_DRAWS: Final = 2
"""Random directions whose effects are averaged."""

ANSWERS: Final = "the preference for an answer that shows the concept over its match, in nats a token"
"""The behaviour of a probe that reads the assistant."""
REFUSING: Final = "the preference for refusing a request that shows the concept over complying, in nats a token"
"""The behaviour of a probe that reads only what the assistant is told."""

_Arm = Literal["unsteered", "ablated", "added", "random"]


def check(
    source: TransformersSource,
    probe: Probe,
    direction: NDArray[np.floating],
    hidden_norm: float,
    pairs: Sequence[Pair],
    *,
    dose: float = 0.1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Causal:
    """Steer with a probe's direction, and see what the model makes of it.

    Args:
        source: The model.
        probe: Says at which layer, and whose tokens it reads.
        direction: Of more of the concept, of any length above 0, shape ``(hidden,)``.
        hidden_norm: Norm of the states at the probe's layer, the unit of dose.
        pairs: Of the concept, best ones that the probe was not fitted on. Of a probe that reads the user as well as the
            assistant, those that end with the assistant are used.
        dose: Norm of what is added, relative to the states.
        seed: Of random directions and of resampling.
        progress: Told how many prompts are done.

    Raises:
        ConceptError: Too few pairs, or one without text in its last message.
        ModelError: The chat template does not mark whose words are whose, the direction is none, or a result is not
            finite.
    """
    norm = float(np.linalg.norm(direction))
    if not 0 < norm < np.inf:
        raise ModelError(f"The direction of probe '{probe.name}' has a norm of {norm:g}.", "Fit it again.")
    unit, length = np.asarray(direction, np.float64) / norm, dose * hidden_norm
    reads_answers = probe.reads(Role.ASSISTANT)
    if reads_answers:
        pairs = [pair for pair in pairs if pair.positive[-1].role == pair.negative[-1].role == "assistant"]
    if len(pairs) < MIN_GROUPS:
        raise ConceptError(
            f"The causal check of probe '{probe.name}' has {len(pairs)} pairs{' with answers' * reads_answers}.",
            f"It takes {MIN_GROUPS} at least, better 24.",
        )
    edits = [
        None,
        Edit.ablating(probe.layer, unit),
        Edit.adding(probe.layer, length * unit),
        *(Edit.adding(probe.layer, length * draw) for draw in _random_units(len(unit), seed)),
    ]
    prompts = _answers(source, pairs) if reads_answers else _openings(source, pairs)
    likelihoods = log_likelihoods(
        source.hooked, prompts, edits, lambda _, done, total: progress(f"steering {probe.name}", done, total)
    )
    # Either the positives' answers and then the negatives', or each prompt's refusals and then its compliances.
    shows, not_shows = np.split(likelihoods, 2, axis=1 if reads_answers else 2)
    preferred = shows.mean(axis=2) - not_shows.mean(axis=2)
    behaviour: dict[_Arm, NDArray[np.float64]] = {
        "unsteered": preferred[0],
        "ablated": preferred[1],
        "added": preferred[2],
        "random": preferred[3:].mean(axis=0),
    }
    ids = [pair.id for pair in pairs]

    def interval(values: NDArray[np.float64]) -> Interval:
        return bootstrap(lambda rows: float(values[rows].mean()), ids, seed=seed)

    measure = ANSWERS if reads_answers else REFUSING
    return Causal(
        measure=measure,
        n=len(pairs),
        unsteered=interval(behaviour["unsteered"]),
        ablated=interval(behaviour["ablated"]),
        added=interval(behaviour["added"]),
        random=interval(behaviour["random"]),
        verdict=verdict(
            measure,
            added=interval(behaviour["added"] - behaviour["unsteered"]),
            random=interval(behaviour["random"] - behaviour["unsteered"]),
            beyond_random=interval(behaviour["added"] - behaviour["random"]),
            ablated=interval(behaviour["ablated"] - behaviour["unsteered"]),
        ),
    )


def verdict(measure: str, *, added: Interval, random: Interval, beyond_random: Interval, ablated: Interval) -> str:
    """The conclusion from the effects, in plain sentences.

    Args:
        measure: The behaviour.
        added: Change by adding the direction, within pairs.
        random: The same by random directions.
        beyond_random: The first less the second.
        ablated: Change by taking the direction away.
    """
    raises, lowers = added.low > 0 and beyond_random.low > 0, ablated.high < 0
    if raises:
        adding = f"raises {measure}, by more than any push does"
    elif added.low > 0:
        adding = f"raises {measure}, by no more than any push does"
    elif added.high < 0:
        adding = f"lowers {measure}, the wrong way round"
    else:
        adding = f"does not measurably raise {measure}"
    taking = "lowers it" if lowers else "raises it, the wrong way round" if ablated.low > 0 else "does not lower it"
    if raises and lowers:
        conclusion = "The model uses what the probe reads."
    elif raises or lowers:
        conclusion = "By one test of two, the model uses what the probe reads."
    else:
        conclusion = "As far as this shows, the probe reads something that this behaviour does not depend on."
    return (
        f"Adding the direction {adding}: {with_interval(added)}, against {with_interval(random)} by a random one. "
        f"Taking it away {taking}: {with_interval(ablated)}. {conclusion}"
    )


def _answers(source: TransformersSource, pairs: Sequence[Pair]) -> list[Prompt]:
    """The positives' last messages, each after its conversation, and then the negatives'."""
    sides = [(pair.id, pair.positive) for pair in pairs] + [(pair.id, pair.negative) for pair in pairs]
    prompts: list[Prompt] = []
    for name, side in sides:
        ids, span = answer_span(source, name, side)
        start = max(0, span.start - len(source.markers.headers["assistant"]))
        prompts.append(Prompt(ids[:start], [ids[start : span.stop]], span.start - start, range(start, span.stop)))
    return prompts


def _openings(source: TransformersSource, pairs: Sequence[Pair]) -> list[Prompt]:
    """The positives, each with all openings; what is steered is their last message."""
    prompts: list[Prompt] = []
    for pair in pairs:
        said = [
            answer_span(source, pair.id, [*pair.positive, Message("assistant", opening)])
            for opening in (*REFUSALS, *COMPLIANCES)
        ]
        ids, begin = said[0][0], said[0][1].start
        role = pair.positive[-1].role
        request = _span(source, ids[:begin], pair.id, role)
        header = len(source.markers.headers.get(role, ()))
        prompts.append(
            Prompt(
                ids[: begin - 1],
                # The last token of the header is each text's own, since it yields the first that is scored.
                [tokens[begin - 1 : span.stop] for tokens, span in said],
                1,
                range(max(0, request.start - header), request.stop),
            )
        )
    return prompts


def answer_span(source: TransformersSource, name: str, conversation: Sequence[Message]) -> tuple[list[int], range]:
    """A conversation's tokens, and which of them are its last message, the assistant's.

    Args:
        source: The model.
        name: Of the conversation, for errors.
        conversation: It ends with the assistant.

    Raises:
        ModelError: The chat template marks no such messages.
        ConceptError: That message has no text.
    """
    if "assistant" not in source.markers.headers:
        raise ModelError(
            f"Model {source.hooked.name} has no chat template that marks messages of: assistant.",
            "Fit a model that was tuned for conversations.",
        )
    ids = source.encode(conversation)
    return ids, _span(source, ids, name, "assistant")


def _span(source: TransformersSource, ids: Sequence[int], name: str, role: str) -> range:
    """The span of the last message, without what the template writes around it."""
    roles = RoleReader(source.markers).prompt(ids)
    inside = np.flatnonzero(last_message(roles))
    if not len(inside) or roles[inside[0]] != Role[role.upper()]:
        raise ConceptError(f"Pair {name} has no text in its last message of: {role}.", "Write one.")
    return range(int(inside[0]), int(inside[-1]) + 1)


def _random_units(hidden: int, seed: int) -> NDArray[np.float64]:
    """Unit vectors, uniform over directions, shape ``(draws, hidden)``."""
    drawn = np.random.default_rng(seed).normal(size=(RANDOM_DRAWS, hidden))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
