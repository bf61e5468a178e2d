"""Numbers as a reader meets them: with their interval, with their n, and never with more digits than they bear."""

from probes.evaluation.metrics import Interval


def number(value: float) -> str:
    """An AUROC or a logit, three decimals."""
    # Added to 0, so that what rounds to it has no sign.
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def percent(value: float) -> str:
    """A rate: one decimal, and two digits that count where it is below 1%."""
    hundred = 100 * value
    if 99.95 <= hundred < 100:
        return "> 99.9%"
    if hundred == 0 or hundred >= 1:
        return f"{hundred:.1f}%".replace(".0%", "%")
    return f"{hundred:.2g}%" if hundred >= 0.001 else "< 0.001%"


def count(value: int, noun: str = "") -> str:
    """``1,319 positives``, ``1 positive``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}" if noun else f"{value:,}"


def with_interval(interval: Interval) -> str:
    """An AUROC with its interval."""
    return f"{number(interval.point)} ({number(interval.low)} to {number(interval.high)})"


def rate_with_interval(interval: Interval) -> str:
    """A rate with its interval."""
    return f"{percent(interval.point)} ({percent(interval.low)} to {percent(interval.high)})"


def several(names: list[str]) -> str:
    """``'a', 'b' and 'c'``."""
    quoted = [f"'{name}'" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
