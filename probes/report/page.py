"""The report of a bundle's probes as one page of HTML: the same bytes for the same report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from probes.evaluation.conclusions import concluded, left_out
from probes.evaluation.results import ProbeReport, Reliability, Report
from probes.evaluation.wording import count, number, percent
from probes.report import figures, tables
from probes.report.content import Section
from probes.report.heatmap import heatmap
from probes.report.templating import render_template, require_renderer


@dataclass(frozen=True, slots=True)
class _ProbeContent:
    name: str
    anchor: str
    definition: str
    sentences: Sequence[str]
    """The verdict first."""
    beats_baselines: bool
    operation: str
    sections: Sequence[Section]


def render(report: Report) -> str:
    """Render the page.

    Raises:
        PlumbobError: matplotlib or Jinja2 is missing.
    """
    require_renderer()
    report = concluded(report)
    return render_template(
        "report.html",
        title=f"Probes of {report.model}",
        report=report,
        summary=tables.summary(report.probes),
        probes=[_content(probe, tables.anchor(index)) for index, probe in enumerate(report.probes)],
    )


def _content(probe: ProbeReport, anchor: str) -> _ProbeContent:
    return _ProbeContent(
        name=probe.name,
        anchor=anchor,
        definition=probe.definition,
        sentences=[*probe.verdict_says, *probe.remarks],
        beats_baselines=any(part.beats_baselines for part in probe.given or left_out(probe)),
        operation=_operation(probe),
        sections=list(_sections(probe, anchor)),
    )


def _operation(probe: ProbeReport) -> str:
    cost = "" if probe.seconds_a_token is None else f" Cost: {1e6 * probe.seconds_a_token:.3g} µs a token."
    return (
        f"{probe.kind} at the output of layer {probe.layer}, on tokens of: {', '.join(probe.roles)}. "
        f"Verdict: {probe.aggregate}. It fires at {number(probe.threshold)} logits, set for a false-positive rate of "
        f"{percent(probe.nominal)} a request.{cost}"
    )


def _sections(probe: ProbeReport, anchor: str) -> Iterator[Section]:
    """Everything that was measured of a probe; nothing stands for what was not."""
    if probe.splits:
        yield Section("Splits, with baselines", table=tables.splits(probe))
    if probe.given:
        yield Section("On the data given", table=tables.given(probe))
    if probe.false_positives:
        of = "requests labelled 0" if probe.given else "benign requests"
        yield Section(f"False positives on {of}", table=tables.false_positives(probe))
    if probe.roc:
        drawn = figures.roc(probe.roc, probe.nominal, f"{anchor}-roc")
        yield Section("ROC at low false-positive rates", drawn, table=tables.curves(probe.roc))
    if probe.scores is not None:
        drawn = figures.histogram(probe.scores, probe.threshold, f"{anchor}-scores")
        yield Section("Scores", drawn, table=tables.classes(probe.scores))
    if probe.sweep:
        drawn = figures.sweep(probe.sweep, probe.layer, probe.nominal, f"{anchor}-sweep")
        yield Section("Layers and kinds tried", drawn, table=tables.swept(probe))
    if probe.controls is not None:
        yield Section("Controls", table=tables.controls(probe.controls))
    if probe.causal is not None:
        title = "Does the model use what the probe reads?"
        yield Section(title, table=tables.causal(probe.causal), text=probe.causal.verdict)
    if probe.calibration is not None:
        yield Section("Probabilities", text=_probabilities(probe.calibration))
    if probe.heatmaps:
        yield Section("Example conversations", heatmaps=[heatmap(example) for example in probe.heatmaps])


def _probabilities(judged: Reliability) -> str:
    return (
        f"The probability beside the logit (Platt) is off by {percent(judged.ece)} on average (expected calibration "
        f"error, {count(judged.bins)} bins of equal mass, {count(judged.n, 'example')}). It holds for the mixture of "
        "classes that it was fitted on, not for live traffic, where the concept is rarer."
    )
