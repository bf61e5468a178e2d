"""``steering.json`` and ``steering.html``: the sweep or the trial as a table, two figures, and what they amount to.

The page is built as that of a probes' report (:mod:`probes.report`): no script, nothing loaded, and no text of any
request or answer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from probes.errors import reason
from probes.evaluation.metrics import Interval
from probes.evaluation.wording import count, number, percent
from probes.report.figures import _INK, _svg, require_figures, style
from probes.report.files import ReportError, _replace, encode
from probes.report.markup import Markup, join, tag
from probes.report.page import POLICY, _stylesheet
from probes.report.tables import key, table
from probes.steering.conclusions import change, concluded, dose
from probes.steering.results import FORMAT, Outcome, Shift, SteeringReport

JSON: Final = "steering.json"
HTML: Final = "steering.html"

_Line = tuple[str, Callable[[Outcome], Interval | None]]


def _of(name: str) -> Callable[[Outcome], Interval | None]:
    def get(outcome: Outcome) -> Interval | None:
        shift: Shift | None = getattr(outcome, name)
        return None if shift is None else shift.change

    return get


def _perplexity(outcome: Outcome) -> Interval | None:
    found = outcome.perplexity
    return None if found is None else Interval(found.point - 1, found.low - 1, found.high - 1)


BEHAVIOUR: Final[Sequence[_Line]] = (("probe", _of("probe")), ("words", _of("words")))
"""In logits."""
SHARES: Final[Sequence[_Line]] = (
    ("answers that refuse", _of("refused")),
    ("answers on which the probe fires", _of("fired")),
    ("perplexity of ordinary answers", _perplexity),
    ("repetition", _of("repetition")),
    ("facts right", _of("accuracy")),
)
"""Shares, and the perplexity relative to unsteered."""


def write(report: SteeringReport, directory: Path) -> None:
    """Write both files, whole or not at all.

    Args:
        report: ``says`` is filled from its numbers.
        directory: Made where it is missing.

    Raises:
        ReportError: A number is not finite, or the directory cannot be written.
        PlumbobError: matplotlib is missing.
    """
    report = concluded(report)
    encoded = encode(report)
    page = render(decode(encoded, "The report")).encode()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory, {JSON: encoded, HTML: page})
    except OSError as error:
        raise ReportError(
            f"The report cannot be written to {directory}: {error.strerror}.", "Name another directory."
        ) from error


def decode(encoded: bytes, name: str) -> SteeringReport:
    """The report that was encoded.

    Raises:
        ReportError: It is none, or of an unknown format; the message begins with ``name``.
    """
    again = "Make it again with: plumbob steer calibrate, or plumbob steer eval"
    try:
        report = msgspec.json.decode(encoded, type=SteeringReport)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReportError(f"{name} is no report on steering: {reason(error)}.", again) from error
    if report.format != FORMAT:
        raise ReportError(f"{name} has format {report.format}; this plumbob reads format {FORMAT}.", again)
    return report


def render(report: SteeringReport) -> str:
    """The page.

    Raises:
        PlumbobError: matplotlib is missing.
    """
    require_figures()
    report = concluded(report)
    title = f"Steering {report.model} by {report.vector}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", _stylesheet()),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), _facts(report)),
        tag(
            "main",
            tag("div", *(tag("p", sentence) for sentence in report.says), class_="card"),
            tag("ul", *(tag("li", note) for note in report.notes)) if report.notes else Markup(""),
            *_section("What answers show, less unsteered, in logits", report, BEHAVIOUR, "behaviour"),
            *_section("Shares, and what is left alone, less unsteered", report, SHARES, "shares"),
            tag("h3", "Every arm"),
            arms(report),
        ),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _facts(report: SteeringReport) -> Markup:
    norm = f"Dose 1 is {report.hidden_norm:.4g}, the median norm of the residual stream there."
    parts = [
        tag("p", "Made ", report.created, f" by plumbob {report.plumbob} with ", tag("code", report.command)),
        tag("p", f"Vector at the output of layer {report.layer}: {report.method}. {norm}"),
        tag("p", f"Judged by concept: {report.concept or 'none'}; probe: {report.probe or 'none'}."),
        *(
            [tag("p", f"The policy's arm is steered from the token at which '{report.trigger}' fires.")]
            if report.trigger
            else []
        ),
        tag("p", "bundle: ", tag("code", report.bundle)),
        *(tag("p", f"{part}: ", tag("code", digest)) for part, digest in report.fingerprint.items()),
    ]
    return tag("div", *parts, class_="facts")


def _section(title: str, report: SteeringReport, lines: Sequence[_Line], name: str) -> list[Markup]:
    """A figure and its key; nothing where nothing was measured."""
    shown = [(label, get) for label, get in lines if any(get(outcome) for outcome in report.outcomes)]
    if not shown:
        return []
    keys = tag("p", *(join([key(index), label, " "]) for index, (label, _) in enumerate(shown)))
    return [tag("h3", title), tag("figure", _figure(report, shown, name)), keys]


def _figure(report: SteeringReport, lines: Sequence[_Line], name: str) -> Markup:
    """Changes by dose, or by arm, with their 95% intervals; the working range is shaded."""
    swept = report.kind == "sweep"
    places = [outcome.dose for outcome in report.outcomes] if swept else list(range(len(report.outcomes)))

    def draw(axes: Any) -> None:
        if swept and report.working is not None:
            axes.axvspan(*report.working, color="#808080", alpha=0.12, linewidth=0)
        axes.axhline(0, color=_INK, linewidth=0.8, alpha=0.5)
        for index, (_, get) in enumerate(lines):
            colour, dash = style(index)
            # The unsteered arm has no change, not an unknown one.
            points = [
                (at, get(outcome) or Interval(0, 0, 0)) for at, outcome in zip(places, report.outcomes, strict=True)
            ]
            aside = 0.0 if swept else 0.06 * (index - (len(lines) - 1) / 2)
            axes.errorbar(
                [at + aside for at, _ in points],
                [found.point for _, found in points],
                yerr=[
                    [found.point - found.low for _, found in points],
                    [found.high - found.point for _, found in points],
                ],
                color=colour,
                linestyle=dash if swept else "none",
                marker="o",
                markersize=3.5,
                capsize=2,
                linewidth=1.2,
            )
        if swept:
            axes.set_xlabel("dose, in norms of the residual stream")
        else:
            axes.set_xticks(places, [outcome.name for outcome in report.outcomes])
        axes.set_ylabel("change")

    what = f"Changes of {len(lines)} quantities over {len(report.outcomes)} arms; the table below gives the numbers."
    return _svg(draw, name, what, height=3.2)


def arms(report: SteeringReport) -> Markup:
    """Every number of every arm."""
    heads = (
        "Arm", "Dose", "Probe", "Change", "Words", "Change", "Probe fires", "Refuses", "Change", "Repetition",
        "Perplexity of ordinary answers", "Facts right", "Tokens", "Rows steered", "Fired on",
    )  # fmt: skip
    rows = [
        [
            outcome.name,
            dose(outcome.dose),
            *_shift(outcome.probe),
            *_shift(outcome.words),
            "" if outcome.fired is None else percent(outcome.fired.mean),
            percent(outcome.refused.mean),
            change(outcome.refused),
            percent(outcome.repetition.mean),
            "1" if outcome.perplexity is None else ratio(outcome.perplexity),
            _facts_right(report, outcome),
            count(outcome.tokens),
            count(outcome.steered),
            "" if outcome.triggered is None else count(outcome.triggered, "prompt"),
        ]
        for outcome in report.outcomes
    ]
    caption = (
        f"{count(report.prompts, 'prompt')}; changes are within prompts, with 95% intervals by bootstrap over their "
        f"groups. Perplexity is relative to {report.ordinary_perplexity:.2f}, that of "
        f"{count(report.ordinary, 'ordinary answer')} unsteered. Probe and words in logits."
    )
    return table(caption, heads, rows)


def ratio(interval: Interval) -> str:
    """A perplexity relative to another, with its interval."""
    return f"{interval.point:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _shift(shift: Shift | None) -> list[str]:
    return ["", ""] if shift is None else [number(shift.mean), change(shift)]


def _facts_right(report: SteeringReport, outcome: Outcome) -> str:
    if outcome.accuracy is not None:
        return f"{percent(outcome.accuracy.mean)}, {change(outcome.accuracy)}"
    return percent(report.facts_right) if report.facts_right is not None and not outcome.dose else ""
