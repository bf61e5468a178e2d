"""The table of ``plumbob eval``."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from probes.evaluation.wording import number, rate_with_interval, with_interval
from probes.report import Given, ProbeReport


def judgement_table(probes: Sequence[ProbeReport]) -> Table:
    """The figures of probes on each part of the data that were given."""
    table = Table(
        "probe", "data", "positives", "recall at the threshold", "negatives", "false positives", "AUROC", "words",
        "length", "recall at 1%", "at 0.1%", "tokens to detect",
    )  # fmt: skip
    for probe in probes:
        given, rates = {part.name: part for part in probe.given}, {rate.source: rate for rate in probe.false_positives}
        for name in dict.fromkeys([*given, *rates]):
            part, rate = given.get(name), rates.get(name)
            table.add_row(
                Text(probe.name if name == probe.given[0].name else ""),
                Text(name),
                str(part.n_positive) if part else "",
                rate_with_interval(part.recall) if part and part.recall else "",
                str(rate.requests) if rate else "0",
                f"{rate.fired}: {rate_with_interval(rate.interval)}" if rate else "",
                *_against_text(part),
            )
    table.caption = (
        "Intervals are 95%. Words and length were learnt on these data, by cross-validation; the probes were not. "
        "Recall at a rate: with the threshold set on these negatives."
    )
    return table


def _against_text(part: Given | None) -> list[str]:
    """AUROC, its baselines, recall at fixed rates, and tokens to detect."""
    if part is None:
        return [""] * 6
    baselines = [number(part.text.tfidf_auroc), number(part.text.length_auroc)] if part.text else ["none", "none"]
    at = [rate_with_interval(at.recall) if at.recall else "not certifiable" for at in part.at_rates]
    detected = "" if part.tokens_to_detect is None else f"{part.tokens_to_detect:g}"
    if part.auroc is None:
        return [*[""] * 5, detected]
    return [with_interval(part.auroc), *baselines, *at, detected]
