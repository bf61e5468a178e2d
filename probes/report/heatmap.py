"""An example conversation as coloured spans: each token's score, whose it is, and where the probe fired."""

from typing import Final

from probes.evaluation.results import Heatmap
from probes.evaluation.wording import number
from probes.report.markup import Markup, tag

DARKEST: Final = 0.6
"""Opacity of the strongest score's colour: text stays legible on it."""
NAMED: Final = 3
"""Tokens named below the map, for a reader who does not see its colours."""


def heatmap(example: Heatmap) -> Markup:
    """A figure with one span a token; scores above zero in one colour, below in another, stronger where further."""
    scores = [score for score in example.scores if score is not None]
    scale = max(map(abs, scores), default=0.0) or 1.0
    parts: list[Markup] = []
    speaker = ""
    for index, (token, role, score) in enumerate(zip(example.tokens, example.roles, example.scores, strict=True)):
        if role != speaker:
            parts.append(tag("span", role, class_="role"))
            speaker = role
        fired = index == example.fired_at
        parts.append(_token(token, role, score, scale, fired=fired))
        if fired:
            parts.append(tag("span", "fired here", class_="mark"))
    return tag(
        "figure",
        tag("h4", example.title),
        tag("div", *parts, class_="tokens"),
        tag("figcaption", _caption(example)),
        style="max-width:none",
    )


def _token(token: str, role: str, score: float | None, scale: float, *, fired: bool) -> Markup:
    shown = token.replace("\r", "␍").replace("\n", "⏎\n").replace("\t", "⇥\t") or "∅"
    if score is None:
        return tag("span", shown, class_="unread fired" if fired else "unread", title=f"not read ({role})")
    colour = "--high" if score > 0 else "--low"
    attributes = {"class_": "fired"} if fired else {}
    return tag(
        "span",
        shown,
        title=f"{number(score)} ({role})",
        style=f"background:rgb(var({colour})/{DARKEST * abs(score) / scale:.2f})",
        **attributes,
    )


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
