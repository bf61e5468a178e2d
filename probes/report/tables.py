"""Tables of a report: every number with its n and interval, and every failure marked by a word and a colour."""

from collections.abc import Sequence

from probes.evaluation.conclusions import left_out, worst, worst_given
from probes.evaluation.metrics import Interval
from probes.evaluation.results import Causal, Controls, Given, Histogram, ProbeReport, Roc, Split
from probes.evaluation.wording import count, number, percent, rate_with_interval, with_interval
from probes.report.content import Cell, Table
from probes.report.figures import best_by_layer, line_style


def anchor(index: int) -> str:
    """Id of the section of the probe of that number."""
    return f"probe-{index + 1}"


def summary(probes: Sequence[ProbeReport]) -> Table:
    """List the probes with what an auditor must know before reading on, one row each."""
    heads = (
        "Probe",
        "Left-out sources where it beats words and length",
        "Worst split",
        "Highest false-positive rate",
        "Read at",
        "In short",
    )
    rows: list[list[str | Cell]] = []
    for index, probe in enumerate(probes):
        sources = [part for part in probe.given if part.auroc and part.text] or left_out(probe)
        beaten = sum(part.beats_baselines for part in sources)
        of = f"{beaten} of {len(sources)}{' parts of the data given' if probe.given else ''}"
        none = "not compared" if probe.given else "none was left out"
        highest = max(probe.false_positives, key=lambda rate: rate.interval.point, default=None)
        rows.append(
            [
                Cell(probe.name, link=f"#{anchor(index)}"),
                _marked(of if sources else none, bad=not beaten),
                _lowest(probe),
                "not measured"
                if highest is None
                else f"{rate_with_interval(highest.interval)}, {highest.source}, n {highest.requests:,}",
                f"layer {probe.layer}, {probe.kind}",
                probe.verdict_says[0],
            ]
        )
    return Table.of("Every probe. Ranges are 95% intervals.", heads, rows)


def splits(probe: ProbeReport) -> Table:
    """List every split, with its baselines beside it."""
    heads = (
        "Split",
        "Positives",
        "Negatives",
        "AUROC",
        "AUROC of words",
        "AUROC of length",
        "Beats both",
        "Recall at the threshold",
        f"Recall of words at {percent(probe.nominal)}",
        "Tokens to detect",
    )
    rows = [
        [
            split.name,
            count(split.n_positive),
            count(split.n_negative),
            _marked(with_interval(split.auroc), bad=split.auroc.point < 0.5),
            number(split.text.tfidf_auroc),
            number(split.text.length_auroc),
            _marked("yes" if split.beats_baselines else "no", bad=not split.beats_baselines),
            _recall(split, brief=True),
            "not certifiable" if split.text.tfidf_recall is None else percent(split.text.tfidf_recall),
            _tokens_to_detect(split),
        ]
        for split in probe.splits
    ]
    caption = (
        "Examples that the probe was not fitted on. Words: logistic regression on TF-IDF, learnt on the same examples "
        "as the probe. Intervals are 95%, by resampling groups; a probe beats a baseline if its whole interval lies "
        "above. Tokens to detect: median, over positives on which it fired."
    )
    return Table.of(caption, heads, rows)


def given(probe: ProbeReport) -> Table:
    """List what the probe shows on data of a user's."""
    rates = [at.rate for at in probe.given[0].at_rates]
    heads = (
        "Part of the data",
        "Positives",
        "Negatives",
        "AUROC",
        "AUROC of words",
        "AUROC of length",
        "Beats both",
        "Recall at the threshold",
        *(f"Recall at {percent(rate)}" for rate in rates),
        "Tokens to detect",
    )
    rows = [
        [
            part.name,
            count(part.n_positive),
            count(part.n_negative),
            _marked(with_interval(part.auroc), bad=part.auroc.point < 0.5) if part.auroc else "too few",
            number(part.text.tfidf_auroc) if part.text else "none",
            number(part.text.length_auroc) if part.text else "none",
            _marked("yes" if part.beats_baselines else "no", bad=not part.beats_baselines) if part.text else "",
            rate_with_interval(part.recall) if part.recall else "no positives",
            *([_at(at.recall) for at in part.at_rates] or ["" for _ in rates]),
            _tokens_to_detect(part),
        ]
        for part in probe.given
    ]
    caption = (
        "Requests that a user labelled; the bundle is as it was. Words and length were learnt on these data, by "
        "cross-validation in whole groups: they have seen data like these, the probe has not. Recall at a rate: the "
        "threshold is set on the part's own negatives. Intervals are 95%, by resampling groups."
    )
    return Table.of(caption, heads, rows)


def false_positives(probe: ProbeReport) -> Table:
    """List false-positive rates by benign source and slice."""
    requests = "requests labelled 0" if probe.given else "benign requests"
    nominal = percent(probe.nominal)
    first = "Requests labelled 0" if probe.given else "Benign source"
    heads = (first, "Requests", "Fired", "Rate (95% interval)", f"Against {nominal}", "In fitting")
    rows = [
        [
            rate.source,
            count(rate.requests),
            count(rate.fired),
            rate_with_interval(rate.interval),
            _against(rate.interval.low, rate.interval.high, probe.nominal, certified=rate.certified),
            {True: "left out", False: "used", None: "not known"}[rate.left_out],
        ]
        for rate in probe.false_positives
    ]
    return Table.of(
        f"How often it fires on {requests}; its threshold was set for {nominal}. Exact intervals (Clopper and "
        "Pearson).",
        heads,
        rows,
    )


def curves(items: Sequence[Roc]) -> Table:
    """List legend and numbers of the ROC figure."""
    heads = ("Set", "Positives", "Negatives", "Rates it can show", "Recall at 0.1%", "at 1%", "at 10%")
    rows = [
        [
            Cell(curve.split, line=line_style(index)),
            count(curve.n_positive),
            count(curve.n_negative),
            f"from {percent(min(3 / curve.n_negative, 1.0))}",
            *(
                percent(curve.recall(rate)) if 3 / curve.n_negative <= rate * (1 + 1e-9) else "not certifiable"
                for rate in (1e-3, 1e-2, 1e-1)
            ),
        ]
        for index, curve in enumerate(items)
    ]
    return Table.of(
        "Recall where the threshold is set on the set's own negatives; thin where they are too few.", heads, rows
    )


def classes(scores: Histogram) -> Table:
    """List legend and counts of the histogram."""
    rows = [
        [Cell(name, line=line_style(index)), count(sum(counts)), count(scores.silent.get(name, 0))]
        for index, (name, counts) in enumerate(scores.counts.items())
    ]
    return Table.of("The vertical line is the threshold.", ("Class", "Scored", "Too short for a score"), rows)


def swept(probe: ProbeReport) -> Table:
    """List legend and numbers of the layer sweep: of each kind, the best at each layer."""
    heads = ("Kind", "Layer", "Penalty", f"Recall at {percent(probe.nominal)}", "AUROC", "Chosen")
    rows = [
        [
            Cell(kind, line=line_style(index)),
            count(point.layer),
            "none" if point.penalty is None else f"{point.penalty:g}",
            percent(point.recall),
            number(point.auroc),
            "chosen" if (point.layer, point.kind) == (probe.layer, probe.kind) else "",
        ]
        for index, (kind, points) in enumerate(best_by_layer(probe.sweep).items())
        for point in points
    ]
    return Table.of("Of each kind, the best penalty at each layer, on the development split.", heads, rows)


def causal(check: Causal) -> Table:
    """List what steering does to the behaviour."""
    arms = {
        "unsteered": check.unsteered,
        "direction taken away": check.ablated,
        "direction added": check.added,
        "random direction added": check.random,
    }
    rows = [[name, "not tried" if arm is None else with_interval(arm)] for name, arm in arms.items()]
    return Table.of(f"Over {count(check.n, 'prompt')}.", ("Steering", f"{check.measure} (95% interval)"), rows)


def controls(items: Controls) -> Table:
    """List what random labels and random directions reach."""
    rows = [
        ["Fitted to random labels, AUROC", with_interval(items.random_label)],
        ["Selectivity: the probe's AUROC, less that", with_interval(items.selectivity)],
        ["Random direction, AUROC", with_interval(items.random_direction)],
    ]
    return Table.of(
        f"Over {count(items.draws, 'draw')}, on the grouped split.", ("Control", "Figure (95% interval)"), rows
    )


def _at(recall: Interval | None) -> str:
    return "not certifiable" if recall is None else rate_with_interval(recall)


def _tokens_to_detect(part: Split | Given) -> str:
    return "never fired" if part.tokens_to_detect is None else f"{part.tokens_to_detect:,.1f}".removesuffix(".0")


def _lowest(probe: ProbeReport) -> str:
    if (part := worst_given(probe.given)) is not None and part.recall is not None:
        return f"{part.name}: recall {rate_with_interval(part.recall)}"
    split = worst(probe)
    return "none" if split is None else f"{split.name}: {_recall(split)}"


def _recall(split: Split, *, brief: bool = False) -> str:
    if split.recall is not None:
        return f"{'' if brief else 'recall '}{rate_with_interval(split.recall)}"
    return "not certifiable" if brief else f"AUROC {with_interval(split.auroc)}; recall not certifiable"


def _against(low: float, high: float, nominal: float, *, certified: bool) -> str | Cell:
    if low > nominal:
        return _marked("above", bad=True)
    if not certified:
        return "not certified: too few"
    return "below" if high <= nominal else "agrees"


def _marked(text: str, *, bad: bool) -> Cell:
    return Cell(text, "bad" if bad else "good")
