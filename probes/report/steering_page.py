"""``steering.json`` and ``steering.html``: the sweep or the trial as a table, two figures, and sentences on both.

The page is laid out as that of a probes' report (:mod:`probes.report.page`), and has no text of any request or answer.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from probes.errors import reason
from probes.evaluation.metrics import Interval
from probes.evaluation.wording import count, number, percent
from probes.report.content import Section, Table
from probes.report.figures import INK, line_style, svg
from probes.report.files import ReportError, encode, replace_files
from probes.report.templating import render_template, require_renderer
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
        PlumbobError: matplotlib or Jinja2 is missing.
    """
    report = concluded(report)
    encoded = encode(report)
    page = render(decode(encoded, "The report")).encode()
    replace_files(directory, {JSON: encoded, HTML: page})


def decode(encoded: bytes, name: str) -> SteeringReport:
    """Decode a report.

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
    """Render the page.

    Raises:
        PlumbobError: matplotlib or Jinja2 is missing.
    """
    require_renderer()
    report = concluded(report)
    title = f"Steering {report.model} by {report.vector}"
    return render_template(
        "steering.html", title=title, report=report, facts=list(_facts(report)), sections=list(_sections(report))
    )


def _facts(report: SteeringReport) -> Iterator[str]:
    norm = f"Dose 1 is {report.hidden_norm:.4g}, the median norm of the residual stream there."
    yield f"Vector at the output of layer {report.layer}: {report.method}. {norm}"
    yield f"Judged by concept: {report.concept or 'none'}; probe: {report.probe or 'none'}."
    if report.trigger:
        yield f"The policy's arm is steered from the token at which '{report.trigger}' fires."


def _sections(report: SteeringReport) -> Iterator[Section]:
    for title, lines, name in (
        ("What answers show, less unsteered, in logits", BEHAVIOUR, "behaviour"),
        ("Shares, and what is left alone, less unsteered", SHARES, "shares"),
    ):
        measured = [(label, get) for label, get in lines if any(get(outcome) for outcome in report.outcomes)]
        if measured:
            legend = [(line_style(index), label) for index, (label, _) in enumerate(measured)]
            yield Section(title, _figure(report, measured, name), legend)
    yield Section("Every arm", table=arms(report))


def _figure(report: SteeringReport, lines: Sequence[_Line], name: str) -> str:
    """Draw changes by dose, or by arm, with their 95% intervals; the working range is shaded."""
    swept = report.kind == "sweep"
    places = [outcome.dose for outcome in report.outcomes] if swept else list(range(len(report.outcomes)))

    def draw(axes: Any) -> None:
        if swept and report.working is not None:
            axes.axvspan(*report.working, color="#808080", alpha=0.12, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5)
        for index, (_, get) in enumerate(lines):
            style = line_style(index)
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
                color=style.colour,
                linestyle=style.dash if swept else "none",
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
    return svg(draw, name, what, height=3.2)


def arms(report: SteeringReport) -> Table:
    """List every number of every arm."""
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
    return Table.of(caption, heads, rows)


def ratio(interval: Interval) -> str:
    """Word a perplexity relative to another, with its interval."""
    return f"{interval.point:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _shift(shift: Shift | None) -> list[str]:
    return ["", ""] if shift is None else [number(shift.mean), change(shift)]


def _facts_right(report: SteeringReport, outcome: Outcome) -> str:
    if outcome.accuracy is not None:
        return f"{percent(outcome.accuracy.mean)}, {change(outcome.accuracy)}"
    return percent(report.facts_right) if report.facts_right is not None and not outcome.dose else ""
