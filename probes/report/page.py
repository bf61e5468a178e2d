"""The report as one page of HTML: no script, nothing loaded, the same bytes for the same report."""

from functools import cache
from pathlib import Path
from typing import Final

from probes.evaluation.conclusions import concluded, left_out
from probes.evaluation.results import ProbeReport, Report
from probes.evaluation.wording import count, number, percent
from probes.report import figures, tables
from probes.report.heatmap import heatmap
from probes.report.markup import Markup, tag

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that is told so loads nothing and runs nothing, whatever the page holds."""


def render(report: Report) -> str:
    """The page.

    Raises:
        PlumbobError: matplotlib is missing.
    """
    figures.require_figures()
    report = concluded(report)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Probes of {report.model}"),
        tag("style", _stylesheet()),
    )
    body = tag(
        "body",
        tag("header", tag("h1", f"Probes of {report.model}"), _facts(report)),
        tag("main", _summary(report), *(_probe(probe, index) for index, probe in enumerate(report.probes, 1))),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


@cache
def _stylesheet() -> Markup:
    return Markup((Path(__file__).parent / "page.css").read_text("utf-8"))


def _facts(report: Report) -> Markup:
    parts = [
        tag("p", "Made ", report.created, f" by plumbob {report.plumbob} with ", tag("code", report.command)),
        *(tag("p", f"{part}: ", tag("code", digest)) for part, digest in report.fingerprint.items()),
    ]
    return tag("div", *parts, class_="facts")


def _summary(report: Report) -> Markup:
    notes = tag("ul", *(tag("li", note) for note in report.notes)) if report.notes else ""
    if not report.probes:
        return tag("p", "This report has no probes.")
    return tag("section", tag("h2", "Summary"), notes, tables.summary(report.probes), aria_label="Summary")


def _probe(probe: ProbeReport, index: int) -> Markup:
    name = f"probe-{index}"
    return tag(
        "section",
        tag("h2", probe.name, id=name),
        tag("p", f"A high score means: {probe.definition}."),
        _card(probe),
        tag("p", _operation(probe), class_="facts"),
        *_section("Splits, with baselines", tables.splits(probe) if probe.splits else None),
        *_section("On the data given", tables.given(probe) if probe.given else None),
        *_section(
            f"False positives on {'requests labelled 0' if probe.given else 'benign requests'}",
            tables.false_positives(probe) if probe.false_positives else None,
        ),
        *_section(
            "ROC at low false-positive rates",
            _figure(figures.roc(probe.roc, probe.nominal, f"{name}-roc")) if probe.roc else None,
            tables.curves(probe.roc),
        ),
        *_scores(probe, name),
        *_section(
            "Layers and kinds tried",
            _figure(figures.sweep(probe.sweep, probe.layer, probe.nominal, f"{name}-sweep")) if probe.sweep else None,
            tables.swept(probe),
        ),
        *_section("Controls", tables.controls(probe.controls) if probe.controls else None),
        *_section(
            "Does the model use what the probe reads?",
            tables.causal(probe.causal) if probe.causal else None,
            tag("p", probe.causal.verdict if probe.causal else ""),
        ),
        *_section("Probabilities", _probabilities(probe)),
        *_section(
            "Example conversations",
            tag("div", *(heatmap(example) for example in probe.heatmaps)) if probe.heatmaps else None,
        ),
    )


def _card(probe: ProbeReport) -> Markup:
    first, *rest = probe.verdict_says
    beaten = any(part.beats_baselines for part in probe.given or left_out(probe))
    items = [tag("li", sentence) for sentence in [*rest, *probe.remarks]]
    return tag("div", tag("p", first), tag("ul", *items), class_="card" if beaten else "card none")


def _operation(probe: ProbeReport) -> str:
    cost = "" if probe.seconds_a_token is None else f" Cost: {1e6 * probe.seconds_a_token:.3g} µs a token."
    return (
        f"{probe.kind} at the output of layer {probe.layer}, on tokens of: {', '.join(probe.roles)}. "
        f"Verdict: {probe.aggregate}. It fires at {number(probe.threshold)} logits, set for a false-positive rate of "
        f"{percent(probe.nominal)} a request.{cost}"
    )


def _scores(probe: ProbeReport, name: str) -> list[Markup]:
    if probe.scores is None:
        return []
    drawn = figures.histogram(probe.scores, probe.threshold, f"{name}-scores")
    return _section("Scores", _figure(drawn), tables.classes(probe.scores))


def _probabilities(probe: ProbeReport) -> Markup | None:
    judged = probe.calibration
    if judged is None:
        return None
    return tag(
        "p",
        f"The probability beside the logit (Platt) is off by {percent(judged.ece)} on average (expected calibration "
        f"error, {count(judged.bins)} bins of equal mass, {count(judged.n, 'example')}). It holds for the mixture of "
        "classes that it was fitted on, not for live traffic, where the concept is rarer.",
    )


def _figure(drawn: Markup) -> Markup:
    return tag("figure", drawn)


def _section(title: str, content: Markup | None, *more: Markup) -> list[Markup]:
    """A heading and what is under it; nothing where there is no content."""
    return [] if content is None else [tag("h3", title), content, *more]
