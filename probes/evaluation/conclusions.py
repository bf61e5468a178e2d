"""Conclusions about a probe in plain sentences: first if it earns its place, then where it fails.

The rules are fixed, so that a report cannot be kinder than its figures:

1. A probe beats a baseline on a split if the low end of its AUROC's interval lies above the baseline's AUROC.
2. A probe that beats words and length on no left-out source shows no evidence of internal signal beyond words.
3. A benign source fires too often if the low end of its interval lies above the nominal rate.
4. What is too small to certify the nominal rate is named, whatever it shows.
5. Steering has an effect if its interval and the unsteered one have nothing in common; taking the direction away should
   lower the behaviour, adding it should raise it.
6. On data that a user gave, words and length were learnt on those very data: to lose to them is no proof that a probe
   reads words, and is said as what it is. Nothing is said there of controls and of causes, which are the bundle's own.
"""

from collections.abc import Iterator, Sequence

import msgspec

from probes.evaluation.metrics import Interval, needed
from probes.evaluation.results import Baseline, Causal, Given, ProbeReport, Report, Split
from probes.evaluation.wording import count, number, percent, rate_with_interval, several, with_interval

NO_EVIDENCE = "No evidence of internal signal beyond words."


def concluded(report: Report) -> Report:
    """The report with ``verdict_says`` of every probe filled from its numbers."""
    probes = [msgspec.structs.replace(probe, verdict_says=sentences(probe)) for probe in report.probes]
    return msgspec.structs.replace(report, probes=probes)


def sentences(probe: ProbeReport) -> list[str]:
    """The conclusions about a probe, most important first; never empty."""
    if probe.given:
        return [
            *_given_evidence(probe.given),
            *_worst_given(probe.given),
            *_highest_rate(probe),
            *(text for part in probe.given for text in _compared(part)),
            *_not_certifiable(probe.given[0]),
            *_false_positives(probe),
        ]
    return [
        *_evidence(probe),
        *_worst_split(probe),
        *_highest_rate(probe),
        *_splits(probe),
        *_false_positives(probe),
        *_controls(probe),
        *_causal(probe.causal),
    ]


def left_out(probe: ProbeReport) -> list[Split]:
    """The splits whose source had no part in fitting."""
    return [split for split in probe.splits if split.kind == "leave-source"]


def worst(probe: ProbeReport) -> Split | None:
    """The split with the lowest recall; where none has one, with the lowest AUROC; ``None`` where there is none."""
    measured = [(split.recall.point, split.auroc.point, split) for split in probe.splits if split.recall]
    ranked = measured or [(0.0, split.auroc.point, split) for split in probe.splits]
    return min(ranked, key=lambda item: item[:2])[2] if ranked else None


def worst_given(given: Sequence[Given]) -> Given | None:
    """The part with the lowest recall; ``None`` where no part has positives."""
    measured = [(part.recall.point, index) for index, part in enumerate(given) if part.recall]
    return given[min(measured)[1]] if measured else None


def _given_evidence(given: Sequence[Given]) -> Iterator[str]:
    whole, compared = given[0], [part for part in given if part.auroc and part.text]
    beaten = sum(part.beats_baselines for part in compared)
    if not whole.n_negative:
        yield f"No request is labelled 0: of the data given, recall alone is known ({_size(whole)})."
    elif not whole.n_positive:
        yield f"No request is labelled 1: of the data given, the false-positive rate alone is known ({_size(whole)})."
    elif not compared:
        yield "On the data given, no baseline could be made: words or length may do as well."
    else:
        verb = "Beats" if beaten else "Does not beat"
        parts = f"{beaten} of {count(len(compared), 'part')}" if beaten else f"any of {count(len(compared), 'part')}"
        yield (
            f"{verb} words (TF-IDF) and length on {parts} of the data given. These baselines were learnt on the data "
            "themselves, by cross-validation; the probe was not."
        )


def _worst_given(given: Sequence[Given]) -> Iterator[str]:
    if (part := worst_given(given)) is not None and part.recall is not None:
        yield f"Lowest recall: {rate_with_interval(part.recall)} at the threshold, on '{part.name}', {_size(part)}."


def _not_certifiable(whole: Given) -> Iterator[str]:
    for at in whole.at_rates:
        if at.recall is None:
            yield (
                f"Recall at {percent(at.rate)} false positives of these data is not certifiable: it takes "
                f"{count(needed(at.rate), 'negative')}, and there are {count(whole.n_negative)}."
            )


def _evidence(probe: ProbeReport) -> Iterator[str]:
    sources = left_out(probe)
    beaten = [split.name for split in sources if split.beats_baselines]
    if not sources:
        yield "No source was left out of fitting: what the probe does on other data is not known."
    elif not beaten:
        yield (
            f"{NO_EVIDENCE} On none of {count(len(sources), 'left-out source')} does it beat both words (TF-IDF) and "
            "length."
        )
    else:
        yield f"Beats words (TF-IDF) and length on {len(beaten)} of {count(len(sources), 'left-out source')}."


def _worst_split(probe: ProbeReport) -> Iterator[str]:
    if (split := worst(probe)) is not None:
        recall = (
            f"recall {rate_with_interval(split.recall)} at the threshold"
            if split.recall
            else f"AUROC {with_interval(split.auroc)}"
        )
        yield f"Worst split: '{split.name}', {recall}, {_size(split)}."


def _highest_rate(probe: ProbeReport) -> Iterator[str]:
    if not probe.false_positives:
        if not probe.given:
            yield "False positives on benign requests were not measured."
        return
    highest = max(probe.false_positives, key=lambda rate: (rate.interval.point, rate.interval.high))
    yield (
        f"Highest false-positive rate: {rate_with_interval(highest.interval)} on '{highest.source}' "
        f"({highest.fired:,} of {count(highest.requests, 'request')}), nominal {percent(probe.nominal)}."
    )


def _splits(probe: ProbeReport) -> Iterator[str]:
    for split in probe.splits:
        yield from _compared(split)
    small = [split.name for split in probe.splits if split.recall is None]
    if small:
        yield (
            f"Recall at {percent(probe.nominal)} false positives is not certifiable on {several(small)}: it takes "
            f"{count(needed(probe.nominal), 'negative')}."
        )


def _compared(part: Split | Given) -> Iterator[str]:
    if part.auroc is None:
        return
    shown = f"AUROC {with_interval(part.auroc)}, {_size(part)}"
    if part.auroc.point < 0.5:
        words = f", against {number(part.text.tfidf_auroc)} for words" if part.text else ""
        chance = "; the interval includes chance" if part.auroc.high >= 0.5 else ""
        yield f"Inverted on '{part.name}': {shown}{words}{chance}."
        return
    if part.text:
        yield from _lost(part.name, part.auroc, part.text, shown)
    if part.auroc.low <= 0.5:
        yield f"Not told from chance on '{part.name}': {shown}."


def _lost(name: str, auroc: Interval, text: Baseline, shown: str) -> Iterator[str]:
    if auroc.low <= text.tfidf_auroc:
        yield f"Does not beat words (TF-IDF) on '{name}': {shown}, against {number(text.tfidf_auroc)}."
    if auroc.low <= text.length_auroc:
        yield f"Does not beat length on '{name}': {shown}, against {number(text.length_auroc)}."


def _false_positives(probe: ProbeReport) -> Iterator[str]:
    nominal, rates = percent(probe.nominal), probe.false_positives
    for rate in rates:
        if rate.interval.low > probe.nominal:
            yield (
                f"Fires too often on '{rate.source}': {rate_with_interval(rate.interval)} of "
                f"{count(rate.requests, 'request')}, above the nominal {nominal}."
            )
    if rates and not probe.given and not any(rate.left_out for rate in rates):
        yield "No benign source was left out: the rate on other traffic is not known."
    if small := [rate.source for rate in rates if not rate.certified]:
        yield (
            f"Not certified at {nominal}: {several(small)}. It takes {count(needed(probe.nominal), 'request')} to show "
            "such a rate."
        )


def _controls(probe: ProbeReport) -> Iterator[str]:
    controls = probe.controls
    if controls is None:
        yield "Random labels and random directions were not tried."
        return
    if controls.selectivity.low <= 0:
        yield (
            "Not selective: a probe fitted to random labels does as well (selectivity "
            f"{with_interval(controls.selectivity)}, {count(controls.draws, 'draw')})."
        )
    grouped = [split for split in probe.splits if split.kind == "grouped"]
    for split in grouped:
        if controls.random_direction.high >= split.auroc.low:
            yield (
                f"Random directions come near it on '{split.name}': AUROC {with_interval(controls.random_direction)} "
                f"over {count(controls.draws, 'draw')}, against {with_interval(split.auroc)}."
            )


def _causal(causal: Causal | None) -> Iterator[str]:
    if causal is None or (causal.ablated is None and causal.added is None):
        yield "No causal check was made: whether the model uses what the probe reads is not known."
        return
    # The check compares prompt by prompt, which the intervals of its arms do not show.
    yield f"Causal check on {count(causal.n, 'prompt')}: {causal.verdict}"


def _size(part: Split | Given) -> str:
    return f"{count(part.n_positive, 'positive')} and {count(part.n_negative, 'negative')}"
