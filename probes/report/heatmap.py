"""An example conversation as coloured spans: each token's score, whose it is, and where the probe fired."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from probes.evaluation.results import Heatmap
from probes.evaluation.wording import number

DARKEST: Final = 0.6
"""Opacity of the strongest score's colour: text stays legible on it."""
NAMED: Final = 3
"""Tokens named below the map, for a reader who does not see its colours."""


@dataclass(frozen=True, slots=True)
class ColouredToken:
    """A token as a span of text."""

    text: str
    """With white space made visible."""
    title: str
    """The score and the role."""
    speaker: str
    """The role, where it changes; else empty."""
    css: str
    """Class of the span; may be empty."""
    background: str
    """Colour; empty where the token was not read."""
    fired: bool
    """The probe fired here."""


@dataclass(frozen=True, slots=True)
class ColouredTokens:
    """A conversation as spans of text."""

    title: str
    tokens: list[ColouredToken]
    caption: str


def heatmap(example: Heatmap) -> ColouredTokens:
    """Colour each token by its score: above zero in one colour, below in another, stronger where further from it."""
    return ColouredTokens(example.title, list(_tokens(example)), _caption(example))


def _tokens(example: Heatmap) -> Iterator[ColouredToken]:
    scale = max((abs(score) for score in example.scores if score is not None), default=0.0) or 1.0
    last = ""
    for index, (token, role, score) in enumerate(zip(example.tokens, example.roles, example.scores, strict=True)):
        fired = index == example.fired_at
        classes = [*(["unread"] if score is None else []), *(["fired"] if fired else [])]
        yield ColouredToken(
            text=token.replace("\r", "␍").replace("\n", "⏎\n").replace("\t", "⇥\t") or "∅",
            title=f"{'not read' if score is None else number(score)} ({role})",
            speaker="" if role == last else role,
            css=" ".join(classes),
            background="" if score is None else _colour(score / scale),
            fired=fired,
        )
        last = role


def _colour(share: float) -> str:
    """Colour of a score, as a share from −1 to 1 of the strongest."""
    return f"rgb(var({'--high' if share > 0 else '--low'})/{DARKEST * abs(share):.2f})"


def _caption(example: Heatmap) -> str:
    read = [(score, index) for index, score in enumerate(example.scores) if score is not None]
    highest = sorted(read, key=lambda item: -item[0])[:NAMED]
    named = ", ".join(f"‘{example.tokens[index]}’ {number(score)}" for score, index in highest)
    fired = (
        "The probe did not fire."
        if example.fired_at is None
        else f"The probe fired at token {example.fired_at + 1:,} of {len(example.tokens):,}."
    )
    return f"{fired} {f'Highest scores a token: {named}.' if named else 'No token was read.'}"
