"""Conclusions of a steering report, in plain sentences that follow from its numbers and from nothing else."""

import msgspec

from probes.evaluation.wording import percent
from probes.steering.results import Outcome, Shift, SteeringReport
from probes.steering.sweep import CAP, REPEATED, WORKING


def concluded(report: SteeringReport) -> SteeringReport:
    """The report with its sentences."""
    says = _sweep(report) if report.kind == "sweep" else _trial(report)
    return msgspec.structs.replace(report, says=says)


def signed(value: float) -> str:
    """A change, with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def change(shift: Shift) -> str:
    """A change with its interval."""
    return f"{signed(shift.change.point)} ({signed(shift.change.low)} to {signed(shift.change.high)})"


def effect(outcome: Outcome, wanted: int) -> str:
    """One arm's effect on the behaviour.

    Args:
        outcome: The arm.
        wanted: 1 if it is to show more of the concept, −1 if less.
    """
    parts: list[str] = []
    for name, shift in (("the probe's score", outcome.probe), ("the words' score", outcome.words)):
        if shift is None:
            continue
        moved = shift.rises if wanted > 0 else shift.falls
        against = shift.falls if wanted > 0 else shift.rises
        verb = "moves" if moved else "moves the wrong way:" if against else "does not measurably move"
        parts.append(f"{name} {verb} {change(shift)}")
    if not parts:
        return f"answers that refuse {change(outcome.refused)}"
    return " and ".join(parts)


def harm(outcome: Outcome) -> str:
    """One arm's effect on ordinary text."""
    if outcome.perplexity is None:
        return "damage was not measured"
    low, high = outcome.perplexity.low, outcome.perplexity.high
    text = f"perplexity of ordinary answers × {outcome.perplexity.point:.3f} ({low:.3f} to {high:.3f})"
    if outcome.accuracy is not None:
        text += f", facts right {change(outcome.accuracy)}"
    return text


def _sweep(report: SteeringReport) -> list[str]:
    low, high = report.working or (0.0, 0.0)
    bound = (
        f"the perplexity of ordinary answers is shown to stay within {percent(WORKING - 1)}, "
        f"and repetition rises by {percent(REPEATED)} at most"
    )
    says = [f"Working range: {dose(low)} to {dose(high)}, where {bound}."]
    if low == high == 0:
        says = [f"No dose that was swept works: there is none where {bound}."]
    for wanted, end in ((1, high), (-1, low)):
        if end:
            best = next(outcome for outcome in report.outcomes if outcome.dose == end)
            says.append(f"At its {'upper' if wanted > 0 else 'lower'} end, {dose(end)}: {effect(best, wanted)}.")
    if report.max_dose is not None:
        says.append(f"Cap: {report.max_dose:g}, either way (perplexity within {percent(CAP - 1)}).")
    return says + _witness(report)


def _trial(report: SteeringReport) -> list[str]:
    says: list[str] = []
    for outcome in report.outcomes[1:]:
        wanted = 1 if outcome.dose > 0 else -1
        fired = "" if outcome.triggered is None else f" The probe fired on {outcome.triggered} of {report.prompts}."
        says.append(
            f"{outcome.name.capitalize()}: {effect(outcome, wanted)}; {harm(outcome)}. "
            f"{outcome.steered:,} rows were steered, for {outcome.tokens:,} tokens.{fired}"
        )
    return says + _witness(report)


def _witness(report: SteeringReport) -> list[str]:
    """The reliability of the classifier of words."""
    if report.words_auroc is None:
        return []
    weak = " They are no witness." if report.words_auroc < 0.6 else ""
    return [
        "Words tell labelled texts apart, of whose topics they have learnt nothing, with an AUROC of "
        f"{report.words_auroc:.3f}.{weak}"
    ]


def dose(value: float) -> str:
    """A dose, with its sign."""
    return f"{value:+g}".replace("-", "−") if value else "0"
